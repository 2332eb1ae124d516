//! `[ledger]`: the table or view, and the role of its columns.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::error::{ConfigError, error};
use super::{number, switch};
use crate::align::{self, CurrencyKind};

/// The largest `balance_scale`. Ledgers in wei need 18; an integer has at most 19 digits.
const BALANCE_SCALE_MAX: u32 = 100;

/// `[ledger]`: the table or view, and its columns.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default, expecting = "a section")]
pub struct LedgerSettings {
    /// Schema and name of the table or view.
    pub table: String,
    /// Columns whose names differ from the default.
    pub columns: Columns,
    /// The IANA time zone of a `captured_at` of type `timestamp`.
    pub captured_at_zone: Option<String>,
    /// The number of decimal places in an integer `balance`, e.g. 2 for cents.
    #[serde(deserialize_with = "number::from_text_or_number_if_any")]
    pub balance_scale: Option<u32>,
    /// What the names in the column `currency` are, unless a map says otherwise.
    pub currency_kind: CurrencyKind,
    /// The entity of all rows, if the ledger has no column for it.
    pub entity: Option<String>,
    /// Rows of entities that are not registered are left out, without an error.
    #[serde(deserialize_with = "switch::from_text_or_bool")]
    pub ignore_unregistered: bool,
}

impl Default for LedgerSettings {
    fn default() -> Self {
        Self {
            table: "ledger.balance_snapshots".to_owned(),
            columns: Columns::default(),
            captured_at_zone: None,
            balance_scale: None,
            currency_kind: CurrencyKind::default(),
            entity: None,
            ignore_unregistered: false,
        }
    }
}

impl LedgerSettings {
    /// Schema and name of the table, spelled as in the catalogue. Only a name with a dot in it needs double quotes, as
    /// in SQL.
    pub fn schema_and_table(&self) -> Result<(String, String), ConfigError> {
        let (schema, rest) = identifier(&self.table)?;
        let (table, rest) = match rest.strip_prefix('.') {
            Some(rest) => identifier(rest)?,
            None => (String::new(), rest),
        };
        if schema.is_empty() || table.is_empty() || !rest.is_empty() {
            return Err(error(
                "[ledger] table is not a schema and a name; hint: write it as \"schema.table\"",
            ));
        }
        Ok((schema, table))
    }

    /// What people should know about the name of the zone in `captured_at_zone`, if it is a surprising one.
    pub fn zone_caution(&self) -> Option<String> {
        let caution = align::zone_caution(self.captured_at_zone.as_deref()?)?;
        Some(format!("[ledger] captured_at_zone: {caution}"))
    }

    pub(super) fn check(&self, zones: &align::Zones) -> Result<(), ConfigError> {
        self.schema_and_table()?;
        if let Some(role) = self.columns.0.keys().find(|role| !Columns::ROLES.contains(&role.as_str())) {
            return Err(error(format!(
                "[ledger.columns] {role} is not a role of a column; hint: use {}",
                Columns::ROLES.join(", ")
            )));
        }
        if let Some(zone) = &self.captured_at_zone {
            // The message does not show the value, which may be a secret entered here by mistake.
            let wrong = |problem: &str| problem.replace(&format!("`{zone}`"), "the value");
            zones.get(zone).map_err(|problem| {
                error(format!("[ledger] captured_at_zone: {}", wrong(&problem.to_string())))
            })?;
        }
        if self.balance_scale.is_some_and(|scale| scale > BALANCE_SCALE_MAX) {
            return Err(error(format!("[ledger] balance_scale must be 0 to {BALANCE_SCALE_MAX}")));
        }
        if self.entity.is_some() && self.columns.0.contains_key("entity_id") {
            return Err(error(
                "[ledger] entity and [ledger.columns] entity_id exclude each other: either all rows belong to one \
                 entity, or a column names the entity of each row",
            ));
        }
        if let Some(entity) = &self.entity {
            align::Text::read("[ledger] entity", Some(entity))
                .map_err(|problem| error(problem.to_string()))?;
        }
        Ok(())
    }
}

/// Splits an identifier off the beginning of a text, and returns it with the rest.
fn identifier(text: &str) -> Result<(String, &str), ConfigError> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find('.').unwrap_or(text.len());
        return Ok((text[..end].to_owned(), &text[end..]));
    };
    let mut name = String::new();
    let mut rest = quoted;
    loop {
        let Some(end) = rest.find('"') else {
            return Err(error("[ledger] table: a double quote is missing"));
        };
        name.push_str(&rest[..end]);
        rest = &rest[end + 1..];
        match rest.strip_prefix('"') {
            Some(more) => {
                name.push('"');
                rest = more;
            }
            None => return Ok((name, rest)),
        }
    }
}

/// `[ledger.columns]`: the names that differ from the default.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(transparent)]
pub struct Columns(BTreeMap<String, String>);

impl Columns {
    /// The roles that a column can have; each is also the default name.
    pub const ROLES: [&str; 7] =
        ["id", "entity_id", "entity_account_id", "currency", "captured_at", "balance", "change_xid"];

    /// Returns the name of the column in a role.
    pub fn get<'a>(&'a self, role: &'a str) -> &'a str {
        self.0.get(role).map_or(role, String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_named_as_the_catalogue_spells_it() {
        let named = |table: &str| {
            let settings = LedgerSettings { table: table.to_owned(), ..LedgerSettings::default() };
            settings.schema_and_table().ok()
        };
        let parts = |schema: &str, table: &str| Some((schema.to_owned(), table.to_owned()));
        assert_eq!(named("accounting.Balances 2"), parts("accounting", "Balances 2"));
        assert_eq!(named(r#""a.b"."c""d""#), parts("a.b", r#"c"d"#));
        assert_eq!(named(r#"a."b""#), parts("a", "b"));
        for wrong in ["", ".", "a.", ".b", r#""a"b.c"#, r#"a."b"c"#, r#"a."b"#, r#"a."b"""#] {
            assert_eq!(named(wrong), None, "{wrong}");
        }
    }
}
