//! The mapping: the relation that is read, the column in each role, and the settings that change values.
//!
//! A watermark says which rows were read under one mapping. Another mapping may give other rows.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::align::CurrencyKind;
use crate::config::{ApiVersion, Columns, LedgerSettings};

/// The roles whose columns decide which rows there are, which entity they belong to, and when they were written.
const IDENTITY: [&str; 3] = ["id", "entity_id", "change_xid"];

/// How a ledger is read, as `sync_state.mapping` records it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mapping {
    /// The table or view.
    pub relation: Relation,
    /// The column in each role; without `entity_id` when all rows belong to one entity.
    pub columns: BTreeMap<String, Mapped>,
    /// `[ledger] entity`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entity: Option<String>,
    /// `[ledger] captured_at_zone`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub captured_at_zone: Option<String>,
    /// `[ledger] balance_scale`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub balance_scale: Option<u32>,
    /// `[api] version`.
    pub api_version: i32,
    /// `[ledger] currency_kind`, if it is not the default. Version 3 does not distinguish kinds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub currency_kind: Option<CurrencyKind>,
}

/// A table or view. It is identified by its oid; the name is shown to people.
///
/// Serialized as the text `oid:name`, because each state has a mapping and each run writes the states.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Relation {
    /// Its oid in `pg_class`.
    pub oid: i64,
    /// Its quoted, qualified name.
    pub name: String,
}

/// A column in a role. It is identified by its number and type; the name is shown to people.
///
/// Serialized as the text `number:type:name`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Mapped {
    /// Its number in `pg_attribute`.
    pub attnum: i16,
    /// Its name.
    pub name: String,
    /// Its type; for a domain, the base type.
    pub kind: String,
}

/// The error for a text that is not a relation or column as this program writes it.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` names no relation or column")]
pub struct NotMapped(String);

impl From<Relation> for String {
    fn from(relation: Relation) -> Self {
        format!("{}:{}", relation.oid, relation.name)
    }
}

impl TryFrom<String> for Relation {
    type Error = NotMapped;

    fn try_from(text: String) -> Result<Self, NotMapped> {
        let parsed = text
            .split_once(':')
            .and_then(|(oid, name)| Some(Self { oid: oid.parse().ok()?, name: name.to_owned() }));
        parsed.ok_or(NotMapped(text))
    }
}

impl From<Mapped> for String {
    fn from(mapped: Mapped) -> Self {
        format!("{}:{}:{}", mapped.attnum, mapped.kind, mapped.name)
    }
}

impl TryFrom<String> for Mapped {
    type Error = NotMapped;

    fn try_from(text: String) -> Result<Self, NotMapped> {
        let parse = || {
            let mut parts = text.splitn(3, ':');
            let attnum = parts.next()?.parse().ok()?;
            let kind = parts.next()?.to_owned();
            Some(Self { attnum, kind, name: parts.next()?.to_owned() })
        };
        parse().ok_or_else(|| NotMapped(text.clone()))
    }
}

/// The differences between two mappings.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    /// The text of each difference.
    pub said: Vec<String>,
    /// Other values may be sent: another column, scale, zone or API version.
    pub values: bool,
    /// Other rows may be read: another id, entity or `change_xid`.
    pub identity: bool,
}

impl Changes {
    /// Returns whether the mappings are equal.
    pub fn is_none(&self) -> bool {
        self.said.is_empty()
    }

    /// Returns whether only names differ, so that the same rows and values are read as before.
    pub fn is_rename(&self) -> bool {
        !self.values && !self.identity
    }

    /// Returns the texts of all differences in one sentence.
    pub fn sentence(&self) -> String {
        self.said.join(", and ")
    }

    fn add(&mut self, what: String, values: bool, identity: bool) {
        self.said.push(what);
        self.values |= values;
        self.identity |= identity;
    }
}

impl Mapping {
    pub(super) fn new(
        relation: Relation,
        columns: BTreeMap<String, Mapped>,
        settings: &LedgerSettings,
        version: ApiVersion,
    ) -> Self {
        Self {
            relation,
            columns,
            entity: settings.entity.clone(),
            captured_at_zone: settings.captured_at_zone.clone(),
            balance_scale: settings.balance_scale,
            api_version: version.number(),
            currency_kind: Some(settings.currency_kind).filter(|kind| *kind != CurrencyKind::default()),
        }
    }

    /// Returns the mapping as JSON, in the form of `sync_state.mapping`.
    pub fn to_json(&self) -> String {
        serde_json::json!(self).to_string()
    }

    /// Returns the differences from a recorded mapping. A recorded mapping that cannot be parsed differs in
    /// everything.
    pub fn changes_since(&self, recorded: &str) -> Changes {
        let mut changes = Changes::default();
        let Ok(before) = serde_json::from_str::<Mapping>(recorded) else {
            let what = "the recorded mapping (elven_sync.sync_state.mapping) cannot be read".to_owned();
            changes.add(what, true, true);
            return changes;
        };
        self.relation_since(&before, &mut changes);
        for role in Columns::ROLES {
            self.column_since(&before, role, &mut changes);
        }
        let shown =
            |value: &Option<String>| value.as_ref().map_or("unset".to_owned(), |value| format!("{value:?}"));
        let number = |value: Option<u32>| value.map_or("unset".to_owned(), |value| value.to_string());
        if before.entity != self.entity {
            let (was, is) = (shown(&before.entity), shown(&self.entity));
            changes.add(format!("[ledger] entity was {was}, now {is}"), false, true);
        }
        if before.captured_at_zone != self.captured_at_zone {
            let (was, is) = (shown(&before.captured_at_zone), shown(&self.captured_at_zone));
            changes.add(format!("captured_at_zone was {was}, now {is}"), true, false);
        }
        if before.balance_scale != self.balance_scale {
            let (was, is) = (number(before.balance_scale), number(self.balance_scale));
            changes.add(format!("balance_scale was {was}, now {is}"), true, false);
        }
        if before.api_version != self.api_version {
            let (was, is) = (before.api_version, self.api_version);
            changes.add(format!("the API version was {was}, now {is}"), true, false);
        }
        if before.currency_kind != self.currency_kind {
            let word = |kind: Option<CurrencyKind>| kind.unwrap_or_default().word();
            let (was, is) = (word(before.currency_kind), word(self.currency_kind));
            changes.add(format!("currency_kind was {was}, now {is}"), true, false);
        }
        changes
    }

    fn relation_since(&self, before: &Mapping, changes: &mut Changes) {
        let (was, is) = (&before.relation, &self.relation);
        if was.oid != is.oid {
            // In another relation, no column is the recorded one.
            let what = if was.name == is.name {
                format!(
                    "the ledger {} is a different table or view than before (oid {}, now {})",
                    is.name, was.oid, is.oid
                )
            } else {
                belongs_to(&was.name, &is.name)
            };
            changes.add(what, true, true);
        } else if was.name != is.name {
            changes.add(format!("the ledger {} was renamed to {}", was.name, is.name), false, false);
        }
    }

    fn column_since(&self, before: &Mapping, role: &str, changes: &mut Changes) {
        let identity = IDENTITY.contains(&role);
        let same_relation = before.relation.oid == self.relation.oid;
        let what = match (before.columns.get(role), self.columns.get(role)) {
            (None, None) => return,
            (Some(was), None) => format!("{role} was read from column {}, now from none", was.name),
            (None, Some(is)) => format!("{role} was read from no column, now from {}", is.name),
            (Some(was), Some(is)) if was == is => return,
            // Column numbers of two relations cannot be compared.
            (Some(was), Some(is)) if !same_relation && (&was.name, &was.kind) == (&is.name, &is.kind) => {
                return;
            }
            (Some(was), Some(is)) if same_relation && was.attnum == is.attnum && was.kind == is.kind => {
                return changes.add(
                    format!("column {} ({role}) was renamed to {}", was.name, is.name),
                    false,
                    false,
                );
            }
            (Some(was), Some(is)) if was.name != is.name => {
                format!("{role} was read from column {}, now from {}", was.name, is.name)
            }
            (Some(was), Some(is)) if was.kind != is.kind => {
                format!("column {} ({role}) was {}, now {}", is.name, was.kind, is.kind)
            }
            (Some(was), Some(is)) => format!(
                "{role} is read from a different column {} than before (number {}, now {})",
                is.name, was.attnum, is.attnum
            ),
        };
        changes.add(what, !identity, identity);
    }
}

/// Returns the message for a watermark whose ledger has another name now and, as far as is known, is another relation.
pub(crate) fn belongs_to(was: &str, is: &str) -> String {
    format!("its watermark belongs to the ledger table {was}, but {is} is configured")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping() -> Mapping {
        let roles = Columns::ROLES.iter().zip(1..);
        let mapped = roles.map(|(role, attnum)| {
            let kind = if *role == "id" { "bigint" } else { "text" };
            ((*role).to_owned(), Mapped { attnum, name: (*role).to_owned(), kind: kind.to_owned() })
        });
        Mapping {
            relation: Relation { oid: 7, name: "\"a\".\"t\"".to_owned() },
            columns: mapped.collect(),
            entity: None,
            captured_at_zone: None,
            balance_scale: Some(2),
            api_version: 3,
            currency_kind: None,
        }
    }

    /// The kind is recorded only if it is not the default, so that mappings recorded before have no difference.
    #[test]
    fn another_kind_of_currencies_is_a_change_of_values() {
        assert!(!mapping().to_json().contains("currency_kind"));
        let now = Mapping { currency_kind: Some(CurrencyKind::AssetId), ..mapping() };
        let changes = now.changes_since(&mapping().to_json());
        assert_eq!(changes.sentence(), "currency_kind was symbol, now asset_id");
        assert!(changes.values && !changes.identity);
        assert!(now.changes_since(&now.to_json()).is_none());
    }

    #[test]
    fn a_mapping_is_read_as_it_was_written() {
        let mut mapping = mapping();
        mapping.relation.name = r#""a:b"."c""#.to_owned();
        mapping.columns.insert(
            "id".to_owned(),
            Mapped { attnum: 2, name: "x:y z".to_owned(), kind: "timestamp with time zone".to_owned() },
        );
        let json = mapping.to_json();
        assert!(json.contains(r#""id":"2:timestamp with time zone:x:y z""#), "{json}");
        assert_eq!(serde_json::from_str::<Mapping>(&json).unwrap(), mapping);
        assert!(mapping.changes_since(&json).is_none());
    }

    /// Each difference has its text and says what it takes to accept it.
    #[test]
    fn each_difference_is_said_and_weighed() {
        type Change = fn(&mut Mapping);
        fn column<'a>(mapping: &'a mut Mapping, role: &str) -> &'a mut Mapped {
            mapping.columns.get_mut(role).unwrap()
        }
        let cases: &[(Change, &str, (bool, bool))] = &[
            (|_| {}, "", (false, false)),
            (
                |m| m.relation.name = "\"a\".\"u\"".to_owned(),
                r#"the ledger "a"."t" was renamed to "a"."u""#,
                (false, false),
            ),
            (|m| column(m, "id").name = "no".to_owned(), "column id (id) was renamed to no", (false, false)),
            (
                |m| column(m, "currency").name = "ccy".to_owned(),
                "column currency (currency) was renamed to ccy",
                (false, false),
            ),
            (
                |m| m.relation.oid = 8,
                r#"the ledger "a"."t" is a different table or view than before (oid 7, now 8)"#,
                (true, true),
            ),
            (
                |m| *column(m, "entity_id") = column(m, "entity_account_id").clone(),
                "entity_id was read from column entity_id, now from entity_account_id",
                (false, true),
            ),
            (
                |m| column(m, "id").kind = "integer".to_owned(),
                "column id (id) was bigint, now integer",
                (false, true),
            ),
            (
                |m| column(m, "change_xid").attnum = 9,
                "change_xid is read from a different column change_xid than before (number 7, now 9)",
                (false, true),
            ),
            (
                |m| {
                    *column(m, "balance") =
                        Mapped { attnum: 9, name: "net".to_owned(), kind: "text".to_owned() }
                },
                "balance was read from column balance, now from net",
                (true, false),
            ),
            (
                |m| {
                    m.columns.remove("entity_id");
                    m.entity = Some("acme".to_owned());
                },
                "entity_id was read from column entity_id, now from none, and [ledger] entity was unset, now \"acme\"",
                (false, true),
            ),
            (
                |m| m.captured_at_zone = Some("UTC".to_owned()),
                "captured_at_zone was unset, now \"UTC\"",
                (true, false),
            ),
            (|m| m.balance_scale = None, "balance_scale was 2, now unset", (true, false)),
            (|m| m.api_version = 4, "the API version was 3, now 4", (true, false)),
        ];
        for (change, said, weighed) in cases {
            let mut now = mapping();
            change(&mut now);
            let changes = now.changes_since(&mapping().to_json());
            assert_eq!((changes.sentence().as_str(), (changes.values, changes.identity)), (*said, *weighed));
            assert_eq!(changes.is_none(), said.is_empty());
        }
        let unreadable = mapping().changes_since("{}");
        assert!(unreadable.values && unreadable.identity && !unreadable.is_none());
    }
}
