//! Messages about mistakes in the configuration. They name the problem and its place, but show neither the value nor
//! the text of the line: either may be a secret entered under a wrong name.

use std::path::Path;

use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use super::environment::{Environment, SETTING_PREFIX};
use super::error::{ConfigError, error};
use super::settings::File;

/// The hint for a mistake under `[credentials]`.
const CREDENTIALS_HINT: &str = "; hint: do not put a key or a secret into the configuration; name the environment \
                                variable or the file that holds it";

/// The sources of the settings, to find the place of a mistake.
pub(super) struct Source<'a> {
    /// The file and its text, if there is one.
    pub(super) file: Option<(&'a Path, &'a str)>,
    pub(super) environment: &'a Environment,
}

impl Source<'_> {
    /// Parses the settings of the file. A wrong type is reported here, where its line is known.
    pub(super) fn parse(&self) -> Result<toml::Table, ConfigError> {
        let Some((_, text)) = self.file else { return Ok(toml::Table::new()) };
        toml::from_str::<File>(text).map_err(|problem| self.in_file(&problem))?;
        toml::from_str(text).map_err(|problem| self.in_file(&problem))
    }

    /// The message for a mistake that the parser found in the file.
    fn in_file(&self, problem: &toml::de::Error) -> ConfigError {
        let Some((path, text)) = self.file else { return error(what(problem)) };
        let offset = problem.span().map(|span| span.start);
        let line = offset.map_or_else(String::new, |offset| format!(" line {}", line(text, offset)));
        let keys = offset.and_then(|offset| {
            let table = DeTable::parse(text).ok()?;
            keys_at(table.get_ref(), offset)
        });
        // If the text is not TOML, the parser's message has a fixed text; otherwise it may repeat a value.
        let is_section = |keys: &[String]| match keys {
            [key] => DeTable::parse(text).is_ok_and(|table| {
                matches!(table.get_ref().get(&**key).map(Spanned::get_ref), Some(DeValue::Table(_)))
            }),
            _ => false,
        };
        let (setting, what) = match &keys {
            Some(keys) if is_section(keys) => (
                format!(": {}", setting(keys)),
                what(problem).replacen("unknown field", "unknown section", 1),
            ),
            Some(keys) => (format!(": {}", setting(keys)), what(problem)),
            None if DeTable::parse(text).is_err() => (String::new(), problem.message().to_owned()),
            None => (String::new(), what(problem)),
        };
        error(format!("{}{line}{setting}: {what}{}", path.display(), hint(&keys.unwrap_or_default())))
    }

    /// Adds its place to a mistake that was found later. The message begins with the setting, as in
    /// `[sync] batch_rows`.
    pub(super) fn located(&self, problem: ConfigError) -> ConfigError {
        let ConfigError(message) = problem;
        match self.place(&message) {
            Some(place) => error(format!("{place}: {message}")),
            None => error(message),
        }
    }

    fn place(&self, message: &str) -> Option<String> {
        let (section, rest) = message.strip_prefix('[')?.split_once(']')?;
        let end = rest.trim_start().find([' ', ':']).unwrap_or(rest.trim_start().len());
        let keys: Vec<&str> = section.split('.').chain([&rest.trim_start()[..end]]).collect();
        let variable = format!("{SETTING_PREFIX}{}", keys.join("__").to_uppercase());
        if self.environment.get(&variable).is_some() {
            return Some(variable);
        }
        let (path, text) = self.file?;
        let table = DeTable::parse(text).ok()?;
        let offset = offset_of(table.get_ref(), &keys)?;
        Some(format!("{} line {}", path.display(), line(text, offset)))
    }
}

/// The message for a mistake in the value of an environment variable.
pub(super) fn in_environment(variable: &str, problem: &toml::de::Error) -> ConfigError {
    let is_credential = variable.starts_with("ELVEN_SYNC_CREDENTIALS__");
    error(format!("{variable}: {}{}", what(problem), if is_credential { CREDENTIALS_HINT } else { "" }))
}

/// Describes the problem without repeating a value: of serde's message, only the part after `expected` is used, which
/// comes from this program.
fn what(problem: &toml::de::Error) -> String {
    let message = problem.message();
    let expected =
        message.rsplit_once(", expected ").map(|(_, expected)| expected.replace("a map", "a section"));
    let expected = expected.map_or_else(String::new, |expected| format!("; expected {expected}"));
    let wrong =
        if message.starts_with("unknown field `") { "unknown field" } else { "the value cannot be used" };
    format!("{wrong}{expected}")
}

fn hint(keys: &[String]) -> &'static str {
    if keys.first().is_some_and(|key| key == "credentials") { CREDENTIALS_HINT } else { "" }
}

/// `[credentials.acme] key`, as the file spells it, as far as a key may be a name.
fn setting(keys: &[String]) -> String {
    let keys: Vec<String> = keys.iter().map(|key| shown(key)).collect();
    match &keys[..] {
        [section @ .., key] if !section.is_empty() => format!("[{}] {key}", section.join(".")),
        _ => format!("[{}]", keys.concat()),
    }
}

/// The most characters of a key that is shown. Names of settings are shorter, and so is a name that somebody chose.
const KEY_CHARS_MAX: usize = 30;
/// The characters that are shown of another key.
const KEY_CHARS_SHOWN: usize = 4;

/// Returns a key, or its beginning if it is no name: it may be an address or a secret in place of a name.
fn shown(key: &str) -> String {
    let is_name = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | ' ');
    if key.chars().count() <= KEY_CHARS_MAX && key.chars().all(is_name) {
        return key.to_owned();
    }
    let beginning: String = key.chars().take(KEY_CHARS_SHOWN).take_while(|c| is_name(*c)).collect();
    format!("{beginning}...")
}

/// Returns the number of the line, counted from 1.
fn line(text: &str, offset: usize) -> usize {
    let before = text.get(..offset).unwrap_or(text);
    1 + before.matches('\n').count()
}

type Entry<'a, 'i> = (&'a Spanned<DeString<'i>>, &'a Spanned<DeValue<'i>>);

/// Returns the keys that lead to the setting at an offset of the text.
fn keys_at(table: &DeTable<'_>, offset: usize) -> Option<Vec<String>> {
    let is_there = |span: std::ops::Range<usize>| (span.start..=span.end).contains(&offset);
    table.iter().find_map(|(key, value): Entry<'_, '_>| {
        let deeper = match value.get_ref() {
            DeValue::Table(table) => keys_at(table, offset),
            _ => None,
        };
        let here = || (is_there(key.span()) || is_there(value.span())).then(Vec::new);
        let mut keys = deeper.or_else(here)?;
        keys.insert(0, key.get_ref().to_string());
        Some(keys)
    })
}

/// Returns the offset of a setting in the text.
fn offset_of(table: &DeTable<'_>, keys: &[&str]) -> Option<usize> {
    let (first, rest) = keys.split_first()?;
    let (key, value) = table.iter().find(|(key, _)| key.get_ref() == first)?;
    match value.get_ref() {
        DeValue::Table(table) if !rest.is_empty() => offset_of(table, rest),
        _ => rest.is_empty().then(|| key.span().start),
    }
}

#[cfg(test)]
mod tests {
    use crate::config::{Environment, Flags, Settings};

    const SECRET: &str = "REAL-SECRET-9c1b";

    fn message(file: &str, variables: &[(&str, &str)]) -> String {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("c.toml");
        std::fs::write(&path, file).unwrap();
        let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let flags = Flags { config: Some(path), ..Flags::default() };
        let environment: Environment = variables.collect();
        let settings = Settings::load(&flags, environment);
        let problem = match settings {
            Err(problem) => problem,
            Ok(settings) => settings.credential("acme").unwrap_err(),
        };
        problem.to_string()
    }

    #[test]
    fn a_mistake_in_the_file_names_line_and_key_and_no_value() {
        for (file, place) in [
            (
                "[credentials.acme]\nkey = \"SECRET\"\nsecret = \"SECRET\"\n",
                "line 2: [credentials.acme] key: ",
            ),
            ("\n[credentials]\nacme = \"SECRET\"\n", "line 3: [credentials] acme: "),
            ("[credentials]\nacme.secret = \"SECRET\"\n", "line 2: [credentials.acme] secret: "),
            ("credentials = \"SECRET\"\n", "line 1: [credentials]: "),
            ("[credentials.acme]\nkey_env = [\"SECRET\"]\n", "line 2: [credentials.acme] key_env: "),
            ("[credentials.acme]\nkey_env = {a = \"SECRET\"}\n", "line 2: [credentials.acme] key_env: "),
            ("secret = \"SECRET\"\n", "line 1: [secret]: unknown field"),
            ("[notifi]\nurl = \"SECRET\"\n", "line 1: [notifi]: unknown section"),
            (
                "[notify]\n\"https://hooks.example.com/SECRET\" = 1\n",
                "line 2: [notify] http...: unknown field",
            ),
            ("\"SECRET@db/treasury\" = 1\n", "line 1: [REAL...]: unknown field"),
            ("[sync]\non_ambiguous = \"SECRET\"\n", "line 2: [sync] on_ambiguous: "),
            ("[sync]\non_ambiguous = \"SECRET, expected SECRET\"\n", "line 2: [sync] on_ambiguous: "),
            ("[sync]\nlease = \"SECRET\"\n", "line 2: [sync] lease: "),
            ("[sync]\nbatch_rows = \"SECRET\"\n", "line 2: [sync] batch_rows: "),
            ("[sync]\nbatch_rows = [\"SECRET\"]\n", "line 2: [sync] batch_rows: "),
            ("[sync]\nbatch_bytes = \"SECRET\"\n", "line 2: [sync] batch_bytes: "),
            ("[ledger]\ntable = \"SECRET\"\n", "line 2: [ledger] table "),
            ("[ledger]\ntable = '\"SECRET'\n", "line 2: [ledger] table"),
            ("[ledger]\ncaptured_at_zone = \"SECRET\"\n", "line 2: [ledger] captured_at_zone"),
            ("[ledger.columns]\nbalance = [\"SECRET\"]\n", "line 2: [ledger.columns] balance: "),
            ("[ledger.columns]\nSECRE = \"SECRET\"\n", "line 2: [ledger.columns] SECRE "),
            ("[api]\ntimeout = \"0s\"\n", "line 2: [api] timeout "),
            ("[credentials.acme]\nsecret_env = \"SECRET\n", "line 2: "),
            ("[credentials.acme]\nSECRET\n", "line 2: "),
            ("[credentials.acme]\nsecret_env = SECRET\n", "line 2: "),
            ("[credentials.acme]\nkey_env = \"SECRET\"\n", "[credentials.acme] key_env"),
            ("[credentials.acme]\nkey_file = \"SECRET\"\n", "[credentials.acme] key_file"),
            (
                "[credentials.acme]\nkey_env = \"K\"\nsecret_file = \"SECRET\"\n",
                "[credentials.acme] secret_file",
            ),
        ] {
            let said = message(&file.replace("SECRET", SECRET), &[("K", "key")]);
            assert!(said.contains(&place.replace("SECRET", SECRET)), "{file}: {said}");
            assert!(!said.contains(SECRET) && !said.contains("9c1b"), "{file}: {said}");
            assert_eq!(said.lines().count(), 1, "{said}");
        }
    }

    #[test]
    fn a_mistake_in_the_environment_names_the_variable_and_no_value() {
        for name in [
            "ELVEN_SYNC_CREDENTIALS__ACME",
            "ELVEN_SYNC_CREDENTIALS__ACME__KEY",
            "ELVEN_SYNC_SYNC__ON_AMBIGUOUS",
            "ELVEN_SYNC_SYNC__LEASE",
            "ELVEN_SYNC_SYNC__BATCH_ROWS",
            "ELVEN_SYNC_SYNC__BATCH_BYTES",
            "ELVEN_SYNC_LEDGER__TABLE",
            "ELVEN_SYNC_LEDGER__COLUMNS",
            "ELVEN_SYNC_LEDGER__CAPTURED_AT_ZONE",
            "ELVEN_SYNC_NO__SUCH",
        ] {
            let said =
                message("[sync]\nlease = \"9s\"\n", &[(name, SECRET), ("ELVEN_SYNC_RETRY__ATTEMPTS", "3")]);
            assert!(said.starts_with(name) && !said.contains("RETRY"), "{name}: {said}");
            assert!(!said.contains("9c1b"), "{name}: {said}");
        }
        let said = message("[credentials.acme]\n", &[("ELVEN_SYNC_CREDENTIALS__ACME__KEY_ENV", SECRET)]);
        assert!(said.contains("key_env") && !said.contains("9c1b"), "{said}");
    }

    #[test]
    fn an_empty_variable_counts_as_unset() {
        let variables =
            ["ELVEN_SYNC_SYNC__BATCH_ROWS", "ELVEN_SYNC_SYNC__LEASE", "ELVEN_SYNC_CREDENTIALS__ACME"];
        let environment: Environment =
            variables.map(|name| (name.to_owned(), String::new())).into_iter().collect();
        let settings = Settings::load(&Flags::default(), environment).unwrap();
        assert_eq!(settings.sync.batch_rows, 1000);
        assert!(settings.credentials.is_empty());
    }
}
