//! `[notify]`: the webhook that is told of alerts, and the heartbeat.

use std::path::{Path, PathBuf};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use secrecy::{ExposeSecret, SecretBox, SecretString};
use serde::{Deserialize, Serialize};
use url::Url;

use super::addresses::is_loopback;
use super::error::{ConfigError, error};
use super::files::read_secret;

/// What a secret for signatures begins with (Standard Webhooks).
const SECRET_PREFIX: &str = "whsec_";
/// The least bytes of a secret for signatures (Standard Webhooks).
const SECRET_BYTES_MIN: usize = 24;

/// How much attention an alert needs: `alerts.severity`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize, strum::AsRefStr,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum Severity {
    /// A person should look.
    #[default]
    Warning,
    /// Balances at Elven are or may become wrong or old until a person acts.
    Critical,
}

/// `[notify]`: the webhook that is told of alerts, and the heartbeat. The URLs are secrets: who knows one can use it.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default, expecting = "a section")]
pub struct NotifySettings {
    /// The URL that is told of alerts.
    #[serde(with = "secret_text")]
    pub webhook_url: Option<SecretString>,
    /// The file that holds this URL.
    pub webhook_url_file: Option<PathBuf>,
    /// The file that holds the secrets with which messages are signed, one per line.
    pub secret_file: Option<PathBuf>,
    /// Alerts of a lower severity are not told.
    pub min_severity: Severity,
    /// The URL that is called after each run that polled everything.
    #[serde(with = "secret_text")]
    pub heartbeat_url: Option<SecretString>,
}

/// A URL that is never printed.
#[derive(Clone)]
pub struct SecretUrl(Url);

impl SecretUrl {
    /// Returns the URL, for a request.
    pub fn expose(&self) -> &Url {
        &self.0
    }
}

impl std::fmt::Debug for SecretUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SecretUrl")
    }
}

/// The webhook, with everything read from its files.
#[derive(Debug)]
pub struct Webhook {
    /// Where messages are posted.
    pub url: SecretUrl,
    /// The secrets with which they are signed. Empty: they are not signed.
    pub secrets: Vec<SecretBox<[u8]>>,
}

impl NotifySettings {
    /// Returns whether alerts are told.
    pub fn has_webhook(&self) -> bool {
        self.webhook_url.is_some() || self.webhook_url_file.is_some()
    }

    /// Checks what is in the configuration itself. Files are read when they are needed: a file that is missing must not
    /// stop an upload.
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        self.heartbeat()?;
        self.url_in_configuration().map(drop)
    }

    fn url_in_configuration(&self) -> Result<Option<SecretUrl>, ConfigError> {
        let url = self.webhook_url.as_ref();
        url.map(|url| parsed("[notify] webhook_url", url.expose_secret())).transpose()
    }

    /// Reads the webhook. `None`: there is none.
    ///
    /// # Errors
    /// A file cannot be read or used. The message never has the URL or a secret.
    pub fn webhook(&self) -> Result<Option<Webhook>, ConfigError> {
        let url = match &self.webhook_url_file {
            Some(file) => {
                let text = read("[notify] webhook_url_file", file)?;
                Some(parsed("the URL in the file of [notify] webhook_url_file", text.expose_secret())?)
            }
            None => self.url_in_configuration()?,
        };
        let Some(url) = url else { return Ok(None) };
        let secrets = match &self.secret_file {
            Some(file) => secrets(read("[notify] secret_file", file)?.expose_secret())?,
            None => Vec::new(),
        };
        Ok(Some(Webhook { url, secrets }))
    }

    /// Returns the URL of the heartbeat, if there is one.
    ///
    /// # Errors
    /// It cannot be used. The message does not have it.
    pub fn heartbeat(&self) -> Result<Option<SecretUrl>, ConfigError> {
        let url = self.heartbeat_url.as_ref();
        url.map(|url| parsed("[notify] heartbeat_url", url.expose_secret())).transpose()
    }

    /// Returns the files that hold secrets.
    pub fn secret_files(&self) -> impl Iterator<Item = &PathBuf> {
        self.webhook_url_file.iter().chain(&self.secret_file)
    }
}

fn read(setting: &str, file: &Path) -> Result<SecretString, ConfigError> {
    let text = read_secret(file)
        .map_err(|problem| error(format!("the file that {setting} names cannot be read: {problem}")))?;
    Ok(SecretString::from(text.expose_secret().trim()))
}

/// Parses a URL. `name`: what a message calls it.
fn parsed(name: &str, text: &str) -> Result<SecretUrl, ConfigError> {
    let url = Url::parse(text.trim()).map_err(|problem| {
        error(format!("{name} is not a URL ({problem}); hint: https://hooks.example.com/..."))
    })?;
    match url.scheme() {
        "https" => Ok(SecretUrl(url)),
        "http" if is_loopback(&url) => Ok(SecretUrl(url)),
        "http" => Err(error(format!(
            "{name} would be called unencrypted; plain http is accepted only for loopback addresses; hint: use https"
        ))),
        _ => Err(error(format!("{name} does not begin with https://; hint: use https"))),
    }
}

/// Parses the secrets, one per line.
fn secrets(text: &str) -> Result<Vec<SecretBox<[u8]>>, ConfigError> {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let parsed = lines.map(|line| {
        let encoded = line.strip_prefix(SECRET_PREFIX)?;
        let bytes = STANDARD.decode(encoded).ok()?;
        (bytes.len() >= SECRET_BYTES_MIN).then(|| SecretBox::new(bytes.into_boxed_slice()))
    });
    let secrets: Option<Vec<SecretBox<[u8]>>> = parsed.collect();
    secrets.filter(|secrets| !secrets.is_empty()).ok_or_else(|| {
        error(format!(
            "the file of [notify] secret_file needs one secret per line: {SECRET_PREFIX} and at least \
             {SECRET_BYTES_MIN} bytes in base64; hint: echo \"{SECRET_PREFIX}$(openssl rand -base64 32)\""
        ))
    })
}

/// A text that is never written out again.
mod secret_text {
    use secrecy::SecretString;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<SecretString>, D::Error> {
        Ok(Some(SecretString::from(String::deserialize(deserializer)?)))
    }

    // The signature is serde's.
    #[expect(clippy::ref_option, reason = "serde passes the field by reference")]
    pub(super) fn serialize<S: Serializer>(
        text: &Option<SecretString>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match text {
            Some(_) => serializer.serialize_str("(secret)"),
            None => serializer.serialize_none(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Environment, Flags, Settings};

    const TOKEN: &str = "T0K3N-7f3a";

    fn load(variables: &[(&str, &str)]) -> Result<NotifySettings, ConfigError> {
        let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let environment: Environment = variables.collect();
        Settings::load(&Flags::default(), environment).map(|settings| settings.notify)
    }

    #[test]
    fn plain_http_is_accepted_for_loopback_alone_and_no_message_has_the_url() {
        for setting in ["WEBHOOK_URL", "HEARTBEAT_URL"] {
            let variable = format!("ELVEN_SYNC_NOTIFY__{setting}");
            for url in ["https://hooks.example.com/s/T0K3N-7f3a", "http://127.0.0.1:8/T0K3N-7f3a"] {
                let settings = load(&[(&variable, url)]).unwrap();
                assert!(!format!("{settings:?}").contains(TOKEN), "{settings:?}");
                assert!(!format!("{:?}", settings.webhook().unwrap()).contains(TOKEN));
                assert!(!format!("{:?}", settings.heartbeat().unwrap()).contains(TOKEN));
            }
            for (url, expected) in [
                ("http://hooks.example.com/T0K3N-7f3a", "only for loopback"),
                ("http://127.0.0.1.example.com/T0K3N-7f3a", "only for loopback"),
                ("ftp://hooks.example.com/T0K3N-7f3a", "use https"),
                ("T0K3N-7f3a", "not a URL"),
            ] {
                let refused = load(&[(&variable, url)]).unwrap_err().to_string();
                assert!(refused.starts_with(&variable) && refused.contains(expected), "{refused}");
                assert!(!refused.contains(TOKEN), "{refused}");
            }
        }
    }

    #[test]
    fn files_are_read_when_they_are_needed_and_take_precedence() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        let (url, secret) = (path("url"), path("secret"));
        let variables = [
            ("ELVEN_SYNC_NOTIFY__WEBHOOK_URL", "https://other.example.com"),
            ("ELVEN_SYNC_NOTIFY__WEBHOOK_URL_FILE", url.as_str()),
            ("ELVEN_SYNC_NOTIFY__SECRET_FILE", secret.as_str()),
            ("ELVEN_SYNC_NOTIFY__MIN_SEVERITY", "critical"),
        ];
        let settings = load(&variables).unwrap();
        assert_eq!(settings.min_severity, Severity::Critical);
        let missing = settings.webhook().unwrap_err().to_string();
        assert!(
            missing.contains("[notify] webhook_url_file") && missing.contains("cannot be read"),
            "{missing}"
        );
        std::fs::write(&url, "http://hooks.example.com/T0K3N-7f3a").unwrap();
        let refused = settings.webhook().unwrap_err().to_string();
        assert!(refused.contains("only for loopback") && !refused.contains(TOKEN), "{refused}");
        std::fs::write(&url, "https://hooks.example.com/T0K3N-7f3a\n").unwrap();
        for wrong in ["", "T0K3N-7f3a", "whsec_", "whsec_T0K3N", "whsec_c2hvcnQ="] {
            std::fs::write(&secret, wrong).unwrap();
            let refused = settings.webhook().unwrap_err().to_string();
            assert!(refused.contains("[notify] secret_file") && !refused.contains("T0K3N"), "{refused}");
        }
        std::fs::write(
            &secret,
            "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\nwhsec_bmV3LXNlY3JldC1vZi0yNC1ieXRlcy4u\n",
        )
        .unwrap();
        let webhook = settings.webhook().unwrap().unwrap();
        assert_eq!(webhook.url.expose().path(), "/T0K3N-7f3a");
        assert_eq!(webhook.secrets.len(), 2, "an old and a new secret");
    }

    #[test]
    fn wrong_severity_is_refused_without_its_value() {
        let refused = load(&[("ELVEN_SYNC_NOTIFY__MIN_SEVERITY", TOKEN)]).unwrap_err().to_string();
        assert!(refused.contains("`warning` or `critical`") && !refused.contains(TOKEN), "{refused}");
    }
}
