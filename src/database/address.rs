//! The address of a database, and the places from which it is read again. It contains secrets.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use secrecy::{ExposeSecret, SecretString};
use sqlx::postgres::PgConnectOptions;

use super::connection_string::{parameters, refused};
use super::hosts::Hosts;

/// An address, and the places from which it is read again for each new connection.
#[derive(Clone)]
pub struct Address {
    /// The address as it was read when the process started.
    pub url: SecretString,
    /// The file that holds the address, which may change: another password, another host.
    pub file: Option<PathBuf>,
    /// The command that prints the password.
    pub password_command: Option<String>,
    /// What the process does, in a word or two, for the names of its sessions.
    pub activity: String,
}

impl std::fmt::Debug for Address {
    /// Leaves out the command, because it may hold a secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Address").field("file", &self.file).finish_non_exhaustive()
    }
}

impl From<&SecretString> for Address {
    fn from(url: &SecretString) -> Self {
        Self { url: url.clone(), file: None, password_command: None, activity: String::new() }
    }
}

impl Address {
    /// Returns whether another reading may give another password.
    pub(super) fn may_change(&self) -> bool {
        self.file.is_some() || self.password_command.is_some()
    }

    /// Checks that the address can be parsed, as it was read. The message does not repeat a value.
    pub fn check(&self) -> Result<(), sqlx::Error> {
        hosts_of(&self.url, false).map(drop)
    }

    /// Reads the address again. While its file cannot be used, the address stays as it was read last. `warn`: name the
    /// parameters that have no effect.
    pub(super) async fn hosts(&self, warn: bool) -> Result<Hosts, sqlx::Error> {
        let hosts = match self.file.as_deref().map(|file| hosts_in(file, warn)) {
            Some(Ok(hosts)) => hosts,
            Some(Err(problem)) => hosts_of(&self.url, warn).map_err(|_| problem)?,
            None => hosts_of(&self.url, warn)?,
        };
        let Some(command) = &self.password_command else { return Ok(hosts) };
        let password = password_of(command, hosts.first()).await?;
        Ok(hosts.with_password(password.expose_secret()))
    }
}

fn hosts_of(url: &SecretString, warn: bool) -> Result<Hosts, sqlx::Error> {
    Hosts::of(parameters(url.expose_secret().trim())?, warn)
}

/// Returns the hosts of the address in a file.
fn hosts_in(file: &Path, warn: bool) -> Result<Hosts, sqlx::Error> {
    let url = crate::config::read_secret(file).map_err(|problem| {
        refused(format!("the file of the address ({}) cannot be read: {problem}", file.display()))
    })?;
    hosts_of(&url, warn)
}

/// Reads an address for a single connection: that to its first host.
///
/// # Errors
/// The address is not one that psql accepts, or it has an unsupported parameter. The message does not repeat a value.
pub fn options(url: &SecretString) -> Result<PgConnectOptions, sqlx::Error> {
    Ok(hosts_of(url, true)?.first().clone())
}

/// Runs the command that prints the password. It finds where the password is for in the variables of libpq, since
/// tokens are often made for one host. What it prints to standard error is for the operator.
async fn password_of(command: &str, options: &PgConnectOptions) -> Result<SecretString, sqlx::Error> {
    let output = tokio::process::Command::new("sh")
        .args(["-c", command])
        .env("PGHOST", options.get_host())
        .env("PGPORT", options.get_port().to_string())
        .env("PGUSER", options.get_username())
        .env("PGDATABASE", options.get_database().unwrap_or_default())
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .kill_on_drop(true)
        .output()
        .await;
    let failed = |why: &str| refused(format!("[database] password_command {why}; hint: run it in a shell"));
    let output = output.map_err(|problem| failed(&format!("cannot be run: {problem}")))?;
    if !output.status.success() {
        return Err(failed(&format!("failed ({})", output.status)));
    }
    let printed = String::from_utf8(output.stdout).map_err(|_| failed("printed no UTF-8"))?;
    let password = printed.strip_suffix('\n').unwrap_or(&printed);
    let password = password.strip_suffix('\r').unwrap_or(password);
    if password.is_empty() {
        return Err(failed("printed nothing"));
    }
    Ok(SecretString::from(password))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_address_is_refused_without_its_values() {
        for url in [
            "postgres://h/d?sslmode=s3cret",
            "postgres://h/d?port=s3cret",
            "postgres://u:s3cret?@h:p/d",
            "postgres://u:s3cret:1:2/d",
            "postgres://u:s3cret%zz@h/d",
            "postgres://h/d?s3cret",
            "mysql://u:s3cret@h/d",
            "password='s3cret",
            "s3cret",
        ] {
            let said = options(&SecretString::from(url)).unwrap_err();
            let said = format!("{said} {said:?}");
            assert!(!said.contains("s3cret"), "{url}: {said}");
        }
    }
}
