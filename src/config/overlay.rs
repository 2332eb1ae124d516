//! Environment variables that replace settings of the file.

use super::environment::{Environment, SETTING_PREFIX};
use super::error::{ConfigError, error};
use super::mistake;
use super::settings::File;

/// Replaces settings of the file by the variables `ELVEN_SYNC_<SECTION>__<KEY>`.
pub(super) fn overlay(mut file: toml::Table, environment: &Environment) -> Result<File, ConfigError> {
    let mut laid_over = Vec::new();
    for (name, value) in environment.variables.iter().filter(|(_, value)| !value.is_empty()) {
        let Some(path) = name.strip_prefix(SETTING_PREFIX).filter(|path| path.contains("__")) else {
            continue;
        };
        let path = path.to_lowercase();
        let mut keys: Vec<&str> = path.split("__").collect();
        let Some(key) = keys.pop() else { continue };
        insert(&mut file, &keys, key, value)
            .map_err(|section| error(format!("{name}: `{section}` has no keys")))?;
        laid_over.push((name, keys.join("."), key.to_owned(), value));
    }
    file.try_into().map_err(|problem: toml::de::Error| {
        // The file alone is correct, so one of the variables is wrong.
        let wrong = laid_over.iter().find_map(|(name, sections, key, value)| {
            let mut alone = toml::Table::new();
            let sections: Vec<&str> = sections.split('.').collect();
            insert(&mut alone, &sections, key, value).ok()?;
            let problem = alone.try_into::<File>().err()?;
            Some(mistake::in_environment(name, &problem))
        });
        wrong.unwrap_or_else(|| mistake::in_environment("ELVEN_SYNC_...", &problem))
    })
}

/// Sets a key of a section, or returns the name that is not a section.
fn insert<'a>(table: &mut toml::Table, sections: &[&'a str], key: &str, value: &str) -> Result<(), &'a str> {
    let mut table = table;
    for section in sections {
        let entry = table.entry(*section).or_insert_with(|| toml::Table::new().into());
        table = entry.as_table_mut().ok_or(*section)?;
    }
    table.insert(key.to_owned(), value.into());
    Ok(())
}
