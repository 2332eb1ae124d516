//! The reference of the configuration: each key of the file and each environment variable, with a description.
//!
//! The tables of `docs/configuration.md` and the file `elven-sync.example.toml` are generated from it. A test compares
//! it with the structs, so that no key is missing and no default differs.

use std::fmt::Write as _;

use super::Columns;
use super::error::{ConfigError, error};
use super::settings::File;
pub use super::variables::{VARIABLES, Variable};

/// A key of the configuration file.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// The section, without brackets.
    pub section: &'static str,
    /// The key.
    pub name: &'static str,
    /// The type of the value.
    pub value: &'static str,
    /// The default as the file spells it. `None`: there is no default.
    pub default: Option<&'static str>,
    /// The default, or an example where there is no default, as the file spells it.
    pub example: &'static str,
    /// The description.
    pub sentence: &'static str,
}

/// The sections in the order of the documents, each with a description.
pub const SECTIONS: [(&str, &str); 9] = [
    ("ledger", "The table or view that holds the balance snapshots."),
    (
        "ledger.columns",
        "The column of the ledger in each role. Only names that differ from the default are needed.",
    ),
    (
        "credentials.NAME",
        "Where to find the API key and the secret of a credential. `entity add --credential NAME` refers to it. \
         The file never contains the key or the secret itself.",
    ),
    ("sync", "How runs, backfills and retries work."),
    ("api", "How the API is called."),
    ("retry", "How a request is repeated after a transient error."),
    ("notify", "The webhook that is told of alerts, and the heartbeat. Unset: nobody is told."),
    ("database", "How the database is used."),
    ("time", "Which zone rules are used."),
];

const TEXT: &str = "text";
const COUNT: &str = "whole number";
const PAUSE: &str = "duration, up to `24h`";

const fn key(
    section: &'static str,
    name: &'static str,
    value: &'static str,
    default: &'static str,
    sentence: &'static str,
) -> Key {
    Key { section, name, value, default: Some(default), example: default, sentence }
}

const fn unset(
    section: &'static str,
    name: &'static str,
    value: &'static str,
    example: &'static str,
    sentence: &'static str,
) -> Key {
    Key { section, name, value, default: None, example, sentence }
}

/// All keys of the file, in the order of the documents.
pub const KEYS: [Key; 42] = [
    key(
        "ledger",
        "table",
        TEXT,
        "\"ledger.balance_snapshots\"",
        "Schema and name of the table or view, spelled as in the catalogue. Only a name with a dot in it needs \
         double quotes.",
    ),
    unset(
        "ledger",
        "entity",
        TEXT,
        "\"acme\"",
        "The entity of all rows, for a ledger without a column for it. It excludes `[ledger.columns] entity_id`.",
    ),
    unset(
        "ledger",
        "captured_at_zone",
        TEXT,
        "\"UTC\"",
        "The IANA time zone of `captured_at`, for a column of type `timestamp`.",
    ),
    unset(
        "ledger",
        "balance_scale",
        "whole number, digits, 0 to 100",
        "2",
        "How many digits of a whole number in `balance` are decimal places, e.g. 2 for cents. An integer column \
         needs it; for a numeric column it is refused.",
    ),
    key(
        "ledger",
        "currency_kind",
        "`symbol` or `asset_id`",
        "\"symbol\"",
        "What the column `currency` holds, which decides how a record of version 4 names it: `symbol` or `assetID`. \
         `asset_id` needs `[api] version = 4`.",
    ),
    key(
        "ledger",
        "ignore_unregistered",
        "true or false",
        "false",
        "Leave out the rows of entities that are not registered, without an error. Each run records how many \
         entities it left out (`sync_runs.entities_left_out`). By default such rows stay pending, and the run exits \
         with 3.",
    ),
    key("ledger.columns", "id", TEXT, "\"id\"", "The column that identifies a row."),
    key("ledger.columns", "entity_id", TEXT, "\"entity_id\"", "The column with the entity of a row."),
    key(
        "ledger.columns",
        "entity_account_id",
        TEXT,
        "\"entity_account_id\"",
        "The column with Elven's key of the account.",
    ),
    key(
        "ledger.columns",
        "currency",
        TEXT,
        "\"currency\"",
        "The column with the currency, as Elven spells it.",
    ),
    key(
        "ledger.columns",
        "captured_at",
        TEXT,
        "\"captured_at\"",
        "The column with the instant of the balance.",
    ),
    key("ledger.columns", "balance", TEXT, "\"balance\"", "The column with the amount."),
    key(
        "ledger.columns",
        "change_xid",
        TEXT,
        "\"change_xid\"",
        "The column with the id of the transaction that wrote the row. `attach` adds it.",
    ),
    unset(
        "credentials.NAME",
        "key_env",
        TEXT,
        "\"ACME_KEY\"",
        "The name of the environment variable that holds the API key.",
    ),
    unset(
        "credentials.NAME",
        "key_file",
        "path",
        "\"/run/secrets/acme-key\"",
        "The file that holds the API key. It takes precedence over `key_env`.",
    ),
    unset(
        "credentials.NAME",
        "secret_env",
        TEXT,
        "\"ACME_SECRET\"",
        "The name of the environment variable that holds the secret.",
    ),
    unset(
        "credentials.NAME",
        "secret_file",
        "path",
        "\"/run/secrets/acme-secret\"",
        "The file that holds the secret. It takes precedence over `secret_env`.",
    ),
    key("sync", "batch_rows", "whole number, records, 1 to 1000", "1000", "The most records in one request."),
    unset(
        "sync",
        "batch_bytes",
        "whole number, bytes",
        "100000",
        "The most bytes of a request's body. If it is not set, the limit is learned from the API's answers (HTTP \
         413), and one request in 25 tries a larger body.",
    ),
    key(
        "sync",
        "entities_at_once",
        COUNT,
        "4",
        "How many entities are worked on at once. More entities may wait for the answers to their last requests, or \
         for an API key that is slow or throttled.",
    ),
    key(
        "sync",
        "requests_in_flight",
        COUNT,
        "4",
        "How many requests of one entity are in flight at once. All entities together have at most \
         `entities_at_once` times as many; beyond that, a credential without a request in flight may send one.",
    ),
    key(
        "sync",
        "max_rejections",
        "whole number, rows",
        "100",
        "How many rows of an entity may be set aside and open because the API refused them. Then the entity stops \
         with kind `rejected_batch`. Rows of kind `invalid_row` do not count.",
    ),
    key(
        "sync",
        "on_ambiguous",
        "`resend` or `hold`",
        "\"resend\"",
        "What happens to a batch whose outcome is unknown: `resend` sends it again, `hold` stops the entity until \
         a person decides.",
    ),
    key(
        "sync",
        "on_invalid_start",
        "`stop` or `set_aside`",
        "\"stop\"",
        "What happens when the first 1,000 rows that a run reads of an entity are all invalid: `stop` stops the \
         entity with kind `config`, `set_aside` sets the rows aside.",
    ),
    key(
        "sync",
        "lease",
        "duration, up to `1h`",
        "\"30s\"",
        "How long an entity stays with a worker that no longer renews its lease.",
    ),
    key(
        "sync",
        "shutdown_grace",
        "duration, up to `1h`",
        "\"25s\"",
        "How long requests in flight may take to finish after SIGTERM, SIGHUP or Ctrl-C.",
    ),
    key(
        "api",
        "version",
        "`3` or `4`",
        "3",
        "The version of the import. Version 4 needs the source of each entity (`entity set ID --source-id ID`); see \
         docs/delivery.md, \"API version 4\".",
    ),
    key("api", "timeout", "duration, up to `1h`", "\"30s\"", "The longest time that one request may take."),
    key(
        "api",
        "signature_window",
        "duration, up to `1h`",
        "\"30s\"",
        "How far the timestamp of a signature may be from the API's clock. The API decides it; a shorter value \
         here would let an old request overwrite a newer row.",
    ),
    unset(
        "api",
        "requests_per_second",
        "whole number, requests per second",
        "10",
        "The most requests per second with one credential. If it is not set, there is no limit.",
    ),
    key(
        "api",
        "already_imported_codes",
        "list of texts or whole numbers",
        "[]",
        "Codes of refusals (`code` in the answer, `sync_errors.api_code`) that say that Elven has the records already. \
         They count only for a batch one of whose answers was lost; see docs/delivery.md, \
         \"Refused as imported already\".",
    ),
    key(
        "retry",
        "attempts",
        COUNT,
        "6",
        "How often a request is sent in one run, the first attempt included.",
    ),
    key(
        "retry",
        "initial",
        PAUSE,
        "\"500ms\"",
        "The longest wait before the second attempt. It doubles with each attempt; a random part of it is waited.",
    ),
    key("retry", "max", PAUSE, "\"30s\"", "The longest wait between two attempts."),
    unset(
        "notify",
        "webhook_url",
        "URL",
        "\"https://hooks.slack.com/services/...\"",
        "The URL to which a JSON message is posted when an alert begins, becomes worse or ends. Plain `http` is \
         accepted only for loopback addresses. The URL is a secret: it is never printed.",
    ),
    unset(
        "notify",
        "webhook_url_file",
        "path",
        "\"/run/secrets/webhook-url\"",
        "The file that holds this URL. It takes precedence over `webhook_url`, and is read again for each run.",
    ),
    unset(
        "notify",
        "secret_file",
        "path",
        "\"/run/secrets/webhook-secret\"",
        "The file that holds the secret with which messages are signed (Standard Webhooks): `whsec_` and base64. With \
         several lines, messages carry a signature by each. If it is not set, messages are not signed.",
    ),
    key(
        "notify",
        "min_severity",
        "`warning` or `critical`",
        "\"warning\"",
        "Alerts of a lower severity are not told.",
    ),
    unset(
        "notify",
        "heartbeat_url",
        "URL",
        "\"https://hc.example.com/ping/...\"",
        "The URL that is called (GET) after each run that polled all entities. A service that expects the call reports \
         a schedule that stopped. The URL is a secret: it is never printed.",
    ),
    key(
        "database",
        "reconnect_timeout",
        "duration, up to `1h`",
        "\"1m\"",
        "How long a command waits for a database that restarts or fails over.",
    ),
    unset(
        "database",
        "password_command",
        "shell command",
        "\"cat /run/secrets/db-password\"",
        "A command that prints the password. It is run for each new connection, with `PGHOST`, `PGPORT`, `PGUSER` and \
         `PGDATABASE` set, so that tokens with a short life work.",
    ),
    unset(
        "time",
        "zoneinfo",
        "path or `bundled`",
        "\"/usr/share/zoneinfo\"",
        "The folder of the zone rules, or `bundled` for the rules in the program. If it is not set, the newest \
         rules of the program and the system are used.",
    ),
];

/// Returns all keys with their values in a text of the file, defaults included. `null`: not set.
///
/// # Errors
/// The text is not TOML, or has an unknown key or a wrong type.
pub fn values(text: &str) -> Result<serde_json::Value, ConfigError> {
    let file: File = toml::from_str(text).map_err(|problem| error(problem.message()))?;
    let mut values = serde_json::to_value(file).map_err(|problem| error(problem.to_string()))?;
    // `[ledger.columns]` is a map without fields, so the missing roles are added here.
    let columns = &mut values["ledger"]["columns"];
    for role in Columns::ROLES {
        if columns[role].is_null() {
            columns[role] = role.into();
        }
    }
    Ok(values)
}

/// The text of `elven-sync.example.toml`.
pub fn example() -> String {
    let mut text = wrapped(
        "The configuration of elven-sync with every key. Each key has its default here; a key without a default is \
         commented out. Copy what you change to elven-sync.toml. Each key can also be given as an environment \
         variable, e.g. ELVEN_SYNC_SYNC__BATCH_ROWS=500. docs/configuration.md explains the file.",
    );
    for (section, sentence) in SECTIONS {
        let is_optional = section.contains("NAME");
        let comment = if is_optional { "# " } else { "" };
        let section_example = section.replace("NAME", "acme");
        let _ = write!(text, "\n{}{comment}[{section_example}]\n", wrapped(sentence));
        for key in KEYS.iter().filter(|key| key.section == section) {
            let comment = if key.default.is_none() { "# " } else { "" };
            let Key { name, example, .. } = key;
            let about = format!("{} ({})", key.sentence, key.value);
            let _ = write!(text, "\n{}{comment}{name} = {example}\n", wrapped(&about));
        }
    }
    text
}

/// The keys of a section as a table in Markdown.
pub fn section_table(section: &str) -> String {
    let mut table = "| key | value | default | meaning |\n|---|---|---|---|\n".to_owned();
    for Key { name, value, default, example, sentence, .. } in
        KEYS.iter().filter(|key| key.section == section)
    {
        let default =
            default.map_or_else(|| format!("not set, e.g. `{example}`"), |default| format!("`{default}`"));
        let _ = writeln!(table, "| `{name}` | {value} | {default} | {sentence} |");
    }
    table
}

/// The environment variables as a table in Markdown.
pub fn variable_table() -> String {
    let mut table = "| variable | flag | default | meaning |\n|---|---|---|---|\n".to_owned();
    for Variable { names, flag, default, sentence } in VARIABLES {
        let names = names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
        let flag = flag.map_or_else(String::new, |flag| format!("`{flag}`"));
        let _ = writeln!(table, "| {names} | {flag} | {default} | {sentence} |");
    }
    table
}

/// Wraps a text as comment lines of at most 100 characters.
fn wrapped(sentence: &str) -> String {
    let mut text = String::new();
    let mut line = "#".to_owned();
    for word in sentence.split(' ') {
        if line.len() + 1 + word.len() > 100 {
            text += &line;
            text.push('\n');
            "#".clone_into(&mut line);
        }
        line.push(' ');
        line += word;
    }
    text + &line + "\n"
}
