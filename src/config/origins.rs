//! Where the settings come from: names only, never values.

use std::path::PathBuf;

use super::environment::{Environment, SETTING_PREFIX};
use super::variables::VARIABLES;
use super::{Flags, read_file};

/// Where the settings of a process come from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origins {
    /// The configuration file that was read, if there is one.
    pub file: Option<PathBuf>,
    /// The settings in the file, e.g. `[sync] batch_rows`.
    pub in_file: Vec<String>,
    /// The variables of the environment that are used.
    pub variables: Vec<String>,
    /// The flags of the command line that are used.
    pub flags: Vec<&'static str>,
    /// Variables that look like settings and have no effect.
    pub without_effect: Vec<String>,
}

/// The beginnings of the names that belong to the program.
const PREFIXES: [&str; 2] = ["ELVEN_SYNC_", "ELVEN_API_"];

/// Variables that have an effect and are no settings of users.
const INTERNAL: [&str; 1] = ["ELVEN_SYNC_FAULT_POINT"];

impl Origins {
    /// Reads where the settings come from. A file that cannot be read or parsed has no settings.
    pub fn read(flags: &Flags, environment: &Environment) -> Self {
        let mut origins = Self::default();
        if let Ok((path, Some(text))) = read_file(flags, environment) {
            origins.file = Some(path);
            if let Ok(table) = toml::from_str::<toml::Table>(&text) {
                collect(&table, "", &mut origins.in_file);
            }
        }
        let is_known = |name: &str| {
            VARIABLES.iter().any(|variable| variable.names.contains(&name)) || INTERNAL.contains(&name)
        };
        for (name, _) in environment.variables.iter().filter(|(_, value)| !value.is_empty()) {
            let is_setting = name.strip_prefix(SETTING_PREFIX).is_some_and(|path| path.contains("__"));
            if is_setting || is_known(name) {
                origins.variables.push(name.clone());
            } else if PREFIXES.iter().any(|prefix| name.starts_with(prefix)) {
                origins.without_effect.push(name.clone());
            }
        }
        let given = [
            ("--config", flags.config.is_some()),
            ("--database-url", flags.database_url.is_some()),
            ("--api-url", flags.api_url.is_some()),
        ];
        origins.flags = given.into_iter().filter_map(|(flag, is_given)| is_given.then_some(flag)).collect();
        origins
    }
}

/// Collects the names of the settings in a table.
fn collect(table: &toml::Table, section: &str, names: &mut Vec<String>) {
    for (key, value) in table {
        match value {
            toml::Value::Table(below) if section.is_empty() => collect(below, key, names),
            toml::Value::Table(below) => collect(below, &format!("{section}.{key}"), names),
            _ => names.push(format!("[{section}] {key}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_setting_is_named_with_its_place_and_no_value() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("c.toml");
        std::fs::write(&path, "[sync]\nbatch_rows = 7\n[credentials.acme]\nkey_env = \"hidden\"\n").unwrap();
        let environment = [
            ("ELVEN_SYNC_CONFIG", path.to_str().unwrap()),
            ("ELVEN_SYNC_RETRY__INITIAL", "1s"),
            ("ELVEN_SYNC_BATCH_ROWS", "hidden"),
            ("ELVEN_API_SECRETS", "hidden"),
            ("ELVEN_API_KEY", "hidden"),
            ("ELVEN_SYNC_LOG", ""),
            ("PATH", "/bin"),
        ];
        let environment: Environment =
            environment.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        let flags = Flags { api_url: Some("https://h".to_owned()), ..Flags::default() };
        let origins = Origins::read(&flags, &environment);
        assert_eq!(origins.in_file, ["[credentials.acme] key_env", "[sync] batch_rows"]);
        assert_eq!(origins.variables, ["ELVEN_API_KEY", "ELVEN_SYNC_CONFIG", "ELVEN_SYNC_RETRY__INITIAL"]);
        assert_eq!(origins.flags, ["--api-url"]);
        assert_eq!(origins.without_effect, ["ELVEN_API_SECRETS", "ELVEN_SYNC_BATCH_ROWS"]);
        assert!(!format!("{origins:?}").contains("hidden"));
    }
}
