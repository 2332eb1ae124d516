//! Credentials: where API key and secret are kept, and how they are read.

use std::path::PathBuf;

use secrecy::{ExposeSecret, SecretString};

use super::Settings;
use super::environment::Environment;
use super::error::{ConfigError, error};
use super::files::read_secret;
use super::settings::CredentialSource;

/// An API key and its secret, with the name that `entities.credential` refers to.
#[derive(Clone, Debug)]
pub struct Credential {
    /// The name in the configuration.
    pub name: String,
    /// The API key.
    pub key: SecretString,
    /// The secret that signs requests.
    pub secret: SecretString,
}

impl Credential {
    /// Whether key and secret are the same.
    pub fn is(&self, other: &Self) -> bool {
        let Self { key, secret, .. } = other;
        self.key.expose_secret() == key.expose_secret()
            && self.secret.expose_secret() == secret.expose_secret()
    }
}

impl Settings {
    /// Reads the credential with this name.
    ///
    /// `default` is `ELVEN_API_KEY` and `ELVEN_API_SECRET` (or `..._FILE`), unless the configuration has a section for
    /// it.
    pub fn credential(&self, name: &str) -> Result<Credential, ConfigError> {
        let source = match self.credentials.get(name) {
            Some(source) => source.clone(),
            None if name == "default" => CredentialSource {
                key_env: Some("ELVEN_API_KEY".to_owned()),
                key_file: self.environment.get("ELVEN_API_KEY_FILE").map(PathBuf::from),
                secret_env: Some("ELVEN_API_SECRET".to_owned()),
                secret_file: self.environment.get("ELVEN_API_SECRET_FILE").map(PathBuf::from),
            },
            None => {
                return Err(error(format!(
                    "credential `{name}` is not configured; hint: add [credentials.{}] with key_env or key_file \
                     and secret_env or secret_file to the configuration file",
                    toml_key(name)
                )));
            }
        };
        let is_configured = self.credentials.contains_key(name);
        let read = |half: &str, variable: Option<&String>, file: Option<&PathBuf>| {
            let wanted = Wanted { name, half, is_configured };
            find(wanted, variable.map(String::as_str), file, &self.environment)
        };
        Ok(Credential {
            name: name.to_owned(),
            key: read("key", source.key_env.as_ref(), source.key_file.as_ref())?,
            secret: read("secret", source.secret_env.as_ref(), source.secret_file.as_ref())?,
        })
    }
}

/// One half of a credential, key or secret, that is read.
#[derive(Clone, Copy)]
struct Wanted<'a> {
    name: &'a str,
    /// `key` or `secret`.
    half: &'a str,
    /// A section of the configuration names its place.
    is_configured: bool,
}

impl Wanted<'_> {
    /// The setting that names the place of the half. A message never shows its value, which may be the secret itself,
    /// entered in the wrong place.
    fn setting(&self, kind: &str) -> String {
        let Self { name, half, is_configured } = self;
        if *is_configured {
            format!("[credentials.{}] {half}_{kind}", toml_key(name))
        } else {
            format!("ELVEN_API_{}_{}", half.to_uppercase(), kind.to_uppercase())
        }
    }
}

fn find(
    wanted: Wanted<'_>,
    variable: Option<&str>,
    file: Option<&PathBuf>,
    environment: &Environment,
) -> Result<SecretString, ConfigError> {
    let Wanted { name, half, is_configured } = wanted;
    // The place of a value that was found is no secret: there is a file or a variable of this name.
    let (value, place) = if let Some(path) = file {
        let value = read_secret(path).map_err(|problem| {
            error(format!(
                "the {half} of credential `{name}`: the file that {} names cannot be read: {problem}",
                wanted.setting("file")
            ))
        })?;
        (value.expose_secret().to_owned(), format!("file {}", path.display().to_string().escape_debug()))
    } else if let Some(variable) = variable {
        let value = environment.get(variable).ok_or_else(|| {
            let (what, hint) = if is_configured {
                let what = format!("the environment variable that {} names", wanted.setting("env"));
                (what, format!("set it, or name a file with {half}_file"))
            } else {
                (variable.to_owned(), format!("set {variable} or {variable}_FILE"))
            };
            let why = environment.why_missing(variable);
            error(format!("the {half} of credential `{name}` is missing: {what} {why}; hint: {hint}"))
        })?;
        (value.to_owned(), format!("environment variable {}", variable.escape_debug()))
    } else {
        return Err(error(format!(
            "the {half} of credential `{name}` is missing; hint: set {half}_env or {half}_file in [credentials.{}]",
            toml_key(name)
        )));
    };
    let value = value.trim();
    // The messages do not show the value, which may be the secret with a typing error.
    if is_quoted(value) {
        return Err(error(format!(
            "the {half} of credential `{name}` is in quotation marks, which the API would take as part of it \
             ({place}); hint: remove the quotation marks there; `docker run --env-file`, for example, passes them on"
        )));
    }
    if value.is_empty() || !value.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(error(format!(
            "the {half} of credential `{name}` is empty or has characters that an HTTP header cannot carry ({place}); \
             hint: remove spaces, line breaks and non-ASCII characters"
        )));
    }
    Ok(SecretString::from(value))
}

/// Whether a value begins and ends with a quotation mark, as a shell or a word processor writes it.
fn is_quoted(value: &str) -> bool {
    let is_mark = |c: char| matches!(c, '"' | '\'' | '`' | '\u{ab}' | '\u{bb}' | '\u{2018}'..='\u{201f}');
    value.starts_with(is_mark) && value.ends_with(is_mark)
}

/// A name as a key of a TOML file, quoted if necessary. Strings of TOML have the escapes of JSON.
fn toml_key(name: &str) -> String {
    let is_bare = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
    if is_bare && !name.is_empty() { name.to_owned() } else { serde_json::Value::from(name).to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Flags;

    fn settings(variables: &[(&str, &str)]) -> Settings {
        let environment =
            variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Settings::load(&Flags::default(), environment).unwrap()
    }

    #[test]
    fn each_half_is_found_or_named() {
        let missing = settings(&[("ELVEN_API_KEY", "k")]).credential("default").unwrap_err().to_string();
        assert!(missing.contains("ELVEN_API_SECRET is not set"), "{missing}");
        let unknown = settings(&[]).credential("acme").unwrap_err().to_string();
        assert!(unknown.contains("[credentials.acme]"), "{unknown}");
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("secret");
        std::fs::write(&path, "s3cret\n").unwrap();
        let file = [("ELVEN_API_KEY", "k"), ("ELVEN_API_SECRET_FILE", path.to_str().unwrap())];
        assert_eq!(settings(&file).credential("default").unwrap().secret.expose_secret(), "s3cret");
    }

    #[test]
    fn a_half_in_quotation_marks_is_refused_by_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("secret");
        let shown = format!("(file {})", path.display());
        let marked = [
            "\"s3cret\"",
            "'s3cret'",
            "`s3cret`",
            " \"s3cret\"\r\n",
            "'\"s3cret\"'",
            "\"s3cret'",
            "\"",
            "\u{201c}s3cret\u{201d}",
            "\u{201e}s3cret\u{201c}",
        ];
        for value in marked {
            std::fs::write(&path, value).unwrap();
            let file = [("ELVEN_API_KEY", "k"), ("ELVEN_API_SECRET_FILE", path.to_str().unwrap())];
            for (variables, half, place) in [
                (&[("ELVEN_API_KEY", value), ("ELVEN_API_SECRET", "s")], "key", "variable ELVEN_API_KEY)"),
                (
                    &[("ELVEN_API_KEY", "k"), ("ELVEN_API_SECRET", value)],
                    "secret",
                    "variable ELVEN_API_SECRET)",
                ),
                (&file, "secret", shown.as_str()),
            ] {
                let refused = settings(variables).credential("default").unwrap_err().to_string();
                assert!(
                    refused.contains(&format!("the {half} of credential `default` is in quotation marks")),
                    "{refused}"
                );
                assert!(
                    refused.contains(place) && refused.contains("hint: remove the quotation marks"),
                    "{refused}"
                );
                assert!(!refused.contains("s3cret"), "{refused}");
            }
        }
        for value in ["s\"3\"cret", "\"s3cret", "s3cret'"] {
            let good = settings(&[("ELVEN_API_KEY", value), ("ELVEN_API_SECRET", "s")]).credential("default");
            assert_eq!(good.unwrap().key.expose_secret(), value);
        }
    }

    #[test]
    fn no_secret_is_ever_printed() {
        let settings = settings(&[
            ("ELVEN_API_KEY", "key-7f3a"),
            ("ELVEN_API_SECRET", "secret-9c1b"),
            ("DATABASE_URL", "postgres://u:pw-5d2e@h/d"),
        ]);
        let credential = settings.credential("default").unwrap();
        let printed = format!("{settings:?} {credential:?}");
        for secret in ["7f3a", "9c1b", "5d2e"] {
            assert!(!printed.contains(secret), "{printed}");
        }
    }
}
