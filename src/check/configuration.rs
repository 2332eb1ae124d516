//! The configuration.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use secrecy::ExposeSecret;

use super::finding::{Finding, Outcome, Status, Unmade, named};
use super::surroundings::Surroundings;
use crate::config::{CredentialSource, Settings};
use crate::text::quoted;

/// A key or secret shorter than this is not searched for in messages, so that it may appear in one.
const SECRET_BYTES_MIN: usize = 8;

/// The permission of others to read a file.
const OTHERS_READ: u32 = 0o004;

/// The settings can be read, and nothing in them is unknown or impossible.
pub(super) fn load(surroundings: &Surroundings) -> Finding {
    if let Err(problem) = &surroundings.loaded {
        return Finding::of(Status::Failed, problem);
    }
    let origins = &surroundings.origins;
    let mut from = Vec::new();
    match &origins.file {
        None => from.push("no configuration file".to_owned()),
        Some(file) if origins.in_file.is_empty() => from.push(format!("{} without settings", file.display())),
        Some(file) => from.push(format!("{}: {}", file.display(), origins.in_file.join(", "))),
    }
    if !origins.variables.is_empty() {
        from.push(format!("environment: {}", origins.variables.join(", ")));
    }
    if !origins.flags.is_empty() {
        from.push(format!("flags: {}", origins.flags.join(", ")));
    }
    Finding::ok(format!("{}; all else is default", from.join("; ")))
}

/// No variable looks like a setting and is none.
pub(super) fn variables(surroundings: &Surroundings) -> Finding {
    let ignored = &surroundings.origins.without_effect;
    if ignored.is_empty() {
        Finding::ok("no variable of the environment is ignored")
    } else {
        Finding::warning(
            format!("{} {} no effect", ignored.join(", "), if ignored.len() == 1 { "has" } else { "have" }),
            "a setting [section] key is written ELVEN_SYNC_SECTION__KEY, see docs/configuration.md",
        )
    }
}

/// Each credential can be read and used. A run uploads with those that can be used, and without a webhook; so only a
/// configuration without any usable credential would stop it.
pub(super) fn secrets(surroundings: &Surroundings) -> Outcome {
    let settings = surroundings.settings()?;
    let mut names: Vec<&str> = settings.credentials.keys().map(String::as_str).collect();
    if names.is_empty() {
        names.push("default");
    }
    let (mut unusable, mut short) = (Vec::new(), Vec::new());
    for name in &names {
        let credential = match settings.credential(name) {
            Ok(credential) => credential,
            Err(problem) => {
                unusable.push(problem.to_string());
                continue;
            }
        };
        let is_short = |secret: &str| secret.len() < SECRET_BYTES_MIN;
        if is_short(credential.key.expose_secret()) || is_short(credential.secret.expose_secret()) {
            short.push(format!("`{name}`"));
        }
    }
    if let Some(first) = unusable.first() {
        // Beside those of the configuration there may be one of the environment.
        let is_another_usable = unusable.len() < names.len() || settings.credential("default").is_ok();
        if !is_another_usable {
            return Ok(Finding::of(Status::Failed, first));
        }
        let others = match unusable.len() - 1 {
            0 => "",
            _ => "; nor can others be used",
        };
        let and_so = format!("{others}; the entities of other credentials are uploaded all the same");
        return Ok(Finding::of(Status::Warning, first).and(&and_so));
    }
    if let Err(problem) = settings.notify.webhook() {
        let and_so = "; rows are uploaded all the same, and alerts are not told";
        return Ok(Finding::of(Status::Warning, &problem.to_string()).and(and_so));
    }
    Ok(if short.is_empty() {
        Finding::ok(format!("key and secret can be read: {}", named(&names)))
    } else {
        Finding::warning(
            format!(
                "key or secret of credential {} is shorter than {SECRET_BYTES_MIN} characters, so it is not searched \
                 for in messages to hide it",
                named(&short)
            ),
            "check that the whole key and secret were copied",
        )
    })
}

/// Nobody else may read the files with secrets.
pub(super) fn secret_files(surroundings: &Surroundings) -> Outcome {
    let files = files_with_secrets(surroundings.settings()?);
    if files.is_empty() {
        return Err(Unmade::NotApplicable("no secret comes from a file".to_owned()));
    }
    let looked = files.iter().map(|(setting, file)| (setting, file, std::fs::metadata(file)));
    let (mut open, mut closed, mut unseen) = (Vec::new(), Vec::new(), Vec::new());
    for (setting, file, looked) in looked {
        match looked {
            Ok(found) if found.is_file() && found.permissions().mode() & OTHERS_READ != 0 => open.push(file),
            Ok(_) => closed.push(file),
            // The name may be the secret itself, in the wrong place.
            Err(problem) => unseen.push(format!("the file that {setting} names: {problem}")),
        }
    }
    let shown = |files: &[&PathBuf]| named(files.iter().map(|file| file.display()));
    Ok(match (open.first(), unseen.is_empty()) {
        (Some(first), _) => Finding::warning(
            format!("every user of this machine may read {}", shown(&open)),
            format!("chmod o-rwx {}", quoted(&first.display().to_string())),
        ),
        (None, true) => Finding::ok(format!("only owner and group may read {}", shown(&closed))),
        // That check reports it.
        (None, false) => match secrets(surroundings)?.status {
            Status::Failed => return Err(Unmade::Needs("configuration.secrets")),
            Status::Warning => {
                let why = "a file cannot be looked at, see configuration.secrets";
                return Err(Unmade::Prevented(why.to_owned()));
            }
            _ => Finding::warning(
                format!("who may read a secret cannot be seen: {}", named(unseen)),
                "correct the setting, or remove it",
            ),
        },
    })
}

/// Returns the files that hold secrets, each with the setting that names it.
fn files_with_secrets(settings: &Settings) -> Vec<(String, PathBuf)> {
    let variables = ["ELVEN_API_KEY_FILE", "ELVEN_API_SECRET_FILE"]
        .map(|name| (name.to_owned(), settings.environment.get(name).map(PathBuf::from)));
    let of = |(name, source): (&String, &CredentialSource)| {
        [("key_file", &source.key_file), ("secret_file", &source.secret_file)]
            .map(|(key, file)| (format!("[credentials.{name}] {key}"), file.clone()))
    };
    let addresses = [
        ("DATABASE_URL_FILE".to_owned(), settings.database_url_file.clone()),
        ("ELVEN_SYNC_LEDGER_URL_FILE".to_owned(), settings.ledger_url_file.clone()),
    ];
    let all = variables.into_iter().chain(settings.credentials.iter().flat_map(of)).chain(addresses);
    let of_notify = settings.notify.secret_files().map(|file| ("[notify]".to_owned(), file.clone()));
    let mut files: Vec<(String, PathBuf)> =
        all.filter_map(|(setting, file)| Some((setting, file?))).chain(of_notify).collect();
    files.sort_by(|one, two| one.1.cmp(&two.1));
    files.dedup_by(|one, two| one.1 == two.1);
    files
}

/// No two durations contradict each other.
pub(super) fn durations(surroundings: &Surroundings) -> Outcome {
    let Settings { sync, api, retry, database, .. } = surroundings.settings()?;
    let shown = |duration: Duration| format!("{duration:?}");
    let mut wrong = Vec::new();
    if retry.initial > retry.max {
        wrong.push(format!(
            "[retry] initial = {} is longer than max = {}",
            shown(retry.initial),
            shown(retry.max)
        ));
    }
    // The heartbeat renews a lease each third of it; a write may wait as long as this for its answer.
    let write = database.reconnect_timeout / 3;
    if write > sync.lease {
        wrong.push(format!(
            "[database] reconnect_timeout = {} lets one write wait for {}, longer than [sync] lease = {}, so other \
             workers take over entities that are at work",
            shown(database.reconnect_timeout),
            shown(write),
            shown(sync.lease)
        ));
    }
    if api.signature_window < Duration::from_secs(2) {
        wrong.push(format!(
            "[api] signature_window = {} is shorter than a signature may be old when it arrives, about 1s",
            shown(api.signature_window)
        ));
    }
    if api.timeout < Duration::from_secs(2) {
        wrong.push(format!(
            "[api] timeout = {} is short for a request of {} records: each cut leaves an unknown outcome",
            shown(api.timeout),
            sync.batch_rows
        ));
    }
    Ok(if wrong.is_empty() {
        Finding::ok("no durations contradict each other")
    } else {
        Finding::warning(wrong.join("; "), "remove the settings for the defaults, see docs/configuration.md")
    })
}
