//! Settings that a role or a database has for its sessions. The connector does not obey them: they are meant for people
//! and other programs, and a statement of the connector has to mean the same in each of them.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

/// The SQL expression for the settings that a role may set and that the role or the database has set, each with the
/// value that PostgreSQL itself has for it, as JSON.
///
/// It is all settings of this kind and no list, since each version of PostgreSQL has others. Exceptions:
/// - names with a dot: they belong to extensions, or to views and policies of the database's owner
/// - sizes of memory: a resource that the administrator grants; results do not depend on it
/// - `search_path`: functions that a view of the ledger calls may need it, and the connector qualifies the names of its
///   tables. It only gets `pg_catalog` at its front, where it names that later
/// - `default_tablespace`, `temp_tablespaces`, `default_table_access_method`: where the administrator stores tables
/// - `statement_timeout`, `lock_timeout`: limits that an administrator sets to protect others from waiting
/// - `client_encoding`: each connection asks for it when it begins
/// - `transaction_...`: they belong to the transaction, whose beginning names them
///
/// The settings are in force while this is asked, so it has no backslash (`standard_conforming_strings`).
///
/// Nearly always there is none, and `pg_db_role_setting` says so at once: to list all settings takes milliseconds.
pub(super) const OVERRIDDEN: &str = "(
    select case when exists (select from pg_catalog.pg_db_role_setting) then (
    select coalesce(json_object_agg(name, value), '{}')::text from (
    select name, boot_val from pg_catalog.pg_settings
     where context = 'user' and source in ('global', 'database', 'user', 'database user')
       and setting is distinct from boot_val
       and boot_val is not null and strpos(name, '.') = 0 and coalesce(unit, '') not like '%B'
       and name not in ('search_path', 'default_tablespace', 'temp_tablespaces', 'default_table_access_method',
                        'statement_timeout', 'lock_timeout', 'client_encoding', 'transaction_read_only',
                        'transaction_isolation', 'transaction_deferrable')
    union all
    select name, 'pg_catalog, ' || setting from pg_catalog.pg_settings
     where name = 'search_path' and source in ('global', 'database', 'user', 'database user')
       and strpos(setting, 'pg_catalog') > 2) overridden (name, value)) else '{}' end)";

/// The settings of a role and its database that each transaction overrides.
#[derive(Clone, Debug, Default)]
pub(super) struct Defaults {
    /// Name and value of each setting.
    values: Arc<BTreeMap<String, String>>,
    /// The statements that override them in a transaction.
    statements: Arc<str>,
}

impl Defaults {
    /// Reads what [`OVERRIDDEN`] has returned.
    pub(super) fn of(json: &str) -> Result<Self, sqlx::Error> {
        let values: BTreeMap<String, String> =
            serde_json::from_str(json).map_err(|problem| sqlx::Error::Decode(problem.into()))?;
        let statements = values.iter().fold(String::new(), |mut statements, (name, value)| {
            let name = name.replace('"', "");
            let quoted = || format!("E'{}'", value.replace('\\', "\\\\").replace('\'', "''"));
            // A list in quotes would be one name; PostgreSQL has quoted the names in it.
            let value = if name == "search_path" { value.clone() } else { quoted() };
            let _ = write!(statements, "set local \"{name}\" = {value}; ");
            statements
        });
        Ok(Self { values: Arc::new(values), statements: statements.into() })
    }

    /// Returns the statements that override the settings until the end of a transaction.
    pub(super) fn statements(&self) -> &str {
        &self.statements
    }

    /// Returns the settings as options of a new connection.
    pub(super) fn options(&self) -> impl Iterator<Item = (&str, &str)> {
        self.values.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// Returns the mode with which a writing transaction begins. A server whose own configuration makes transactions
    /// read-only (during a failover, or when its disk is full) is obeyed.
    pub(super) fn writing_mode(&self) -> &'static str {
        if self.values.contains_key("default_transaction_read_only") { " read write" } else { "" }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_setting_is_overridden_and_quoted() {
        let defaults = Defaults::of(
            r#"{"DateStyle":"ISO, MDY","a":"it's \\ so","default_transaction_read_only":"off",
                "search_path":"pg_catalog, \"it's\", pg_catalog"}"#,
        )
        .unwrap();
        assert_eq!(
            defaults.statements(),
            "set local \"DateStyle\" = E'ISO, MDY'; set local \"a\" = E'it''s \\\\ so'; \
             set local \"default_transaction_read_only\" = E'off'; \
             set local \"search_path\" = pg_catalog, \"it's\", pg_catalog; "
        );
        assert_eq!((defaults.writing_mode(), Defaults::default().writing_mode()), (" read write", ""));
    }
}
