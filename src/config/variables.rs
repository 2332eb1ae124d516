//! The environment variables of the program, for the documents.

/// An environment variable.
#[derive(Clone, Copy, Debug)]
pub struct Variable {
    /// Its name, or several names that belong together.
    pub names: &'static [&'static str],
    /// The flag that takes precedence, if there is one.
    pub flag: Option<&'static str>,
    /// The default, as the page shows it.
    pub default: &'static str,
    /// The description.
    pub sentence: &'static str,
}

/// The environment variables that are not settings of the file.
pub const VARIABLES: [Variable; 12] = [
    Variable {
        names: &["DATABASE_URL"],
        flag: Some("--database-url"),
        default: "",
        sentence: "The primary database with ledger and sync tables, e.g. `postgres://user:password@host/database`.",
    },
    Variable {
        names: &["ELVEN_SYNC_LEDGER_URL"],
        flag: None,
        default: "",
        sentence: "A standby of the primary. Runs read the pages of the ledger there.",
    },
    Variable {
        names: &["DATABASE_URL_FILE", "ELVEN_SYNC_LEDGER_URL_FILE"],
        flag: None,
        default: "",
        sentence: "Files that hold the two addresses. They take precedence over the values, and are read again for \
                   each new connection.",
    },
    Variable {
        names: &["ELVEN_API_URL"],
        flag: Some("--api-url"),
        default: "`https://openapi.elven.com`",
        sentence: "The API: scheme, host and port. Plain `http` is accepted only for loopback addresses.",
    },
    Variable {
        names: &["ELVEN_API_KEY", "ELVEN_API_SECRET"],
        flag: None,
        default: "",
        sentence: "API key and secret of the credential `default`.",
    },
    Variable {
        names: &["ELVEN_API_KEY_FILE", "ELVEN_API_SECRET_FILE"],
        flag: None,
        default: "",
        sentence: "Files that hold API key and secret of the credential `default`. They take precedence over the \
                   values, and are read again after HTTP 401 or 403.",
    },
    Variable {
        names: &["ELVEN_SYNC_CONFIG"],
        flag: Some("--config"),
        default: "`elven-sync.toml` in the working directory, if it exists",
        sentence: "The configuration file.",
    },
    Variable {
        names: &["ELVEN_SYNC_LOG"],
        flag: Some("-v"),
        default: "warnings, and the progress of long work",
        sentence: "The level of the log: `error`, `warn`, `info`, `debug` or `trace`, or a list such as \
                   `elven_sync=debug,warn`. It takes precedence over `-v`.",
    },
    Variable {
        names: &["ELVEN_SYNC_LOG_FORMAT"],
        flag: None,
        default: "`text`",
        sentence: "The form of the log: `text`, or `json` for one JSON object per line. The fields are in \
                   [operating.md](operating.md#logs).",
    },
    Variable {
        names: &["NO_COLOR"],
        flag: None,
        default: "",
        sentence: "Any value that is not empty: no colours in the log.",
    },
    Variable {
        names: &["TZDIR"],
        flag: None,
        default: "",
        sentence: "A folder of zone rules that is considered besides `/usr/share/zoneinfo`.",
    },
    Variable {
        names: &["HTTPS_PROXY", "NO_PROXY"],
        flag: None,
        default: "",
        sentence: "The proxy for requests to the API, the webhook and the heartbeat, and the hosts without one. A \
                   loopback address never uses a proxy.",
    },
];
