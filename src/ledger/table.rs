//! The ledger's table: found in the catalogue, its columns checked and put into expressions.

use std::collections::BTreeMap;
use std::sync::Arc;

use sqlx::{AssertSqlSafe, Row as _};

use super::mapping::{Mapped, Relation};
use super::{LedgerError, Mapping};
use crate::config::{Columns, LedgerSettings};
use crate::database::Database;

/// A table or view with the columns of a ledger, checked against the catalogue.
///
/// The columns are SQL expressions over the alias `t`.
#[derive(Clone, Debug)]
pub struct Table {
    pub(super) name: String,
    pub(super) mapping: Mapping,
    /// The same as JSON.
    pub(super) mapping_json: Arc<str>,
    pub(super) id_type: String,
    pub(super) entity: String,
    pub(super) xid: String,
    pub(super) id: String,
    pub(super) captured_at: String,
    /// The columns by which a range is found, as they are called; without one where it is no plain column.
    pub(super) entity_column: Option<String>,
    pub(super) captured_at_column: Option<String>,
    pub(super) account: String,
    pub(super) currency: String,
    /// What a page selects, in the order in which [`super::row`] decodes it.
    pub(super) columns: String,
    careful: Careful,
    /// Columns that the catalogue does not promise to be filled, as in any view. A comparison with NULL
    /// is never true, so such rows have to be looked for.
    pub(super) id_may_be_null: bool,
    pub(super) xid_may_be_null: bool,
    pub(super) entity_may_be_null: bool,
}

/// The same for rows of which PostgreSQL cannot convert a value: the others are read, and that row comes in a form in
/// which it is found to be invalid. It takes longer, so it is used for pages that have failed.
#[derive(Clone, Debug)]
struct Careful {
    captured_at: String,
    columns: String,
}

/// The roles of columns, with the types that each may have. A domain counts as the type beneath it.
const ROLES: [(&str, &[&str]); 7] = [
    ("id", &["bigint", "integer", "smallint", "uuid", "text", "character varying"]),
    ("entity_id", &["text", "character varying"]),
    ("entity_account_id", &["text", "character varying", "uuid"]),
    ("currency", &["text", "character varying", "character"]),
    ("captured_at", &["timestamp with time zone", "timestamp without time zone"]),
    ("balance", &["numeric", "bigint", "integer", "smallint"]),
    ("change_xid", &["xid8"]),
];

/// Kind and columns of a table. A domain may stand on another one.
pub(super) fn columns_sql(schema: &str, relation: &str) -> String {
    let (schema, relation) = (quote_literal(schema), quote_literal(relation));
    format!(
        "select c.oid::bigint as relation, c.relkind::text as relkind, a.attnum, a.attname::text as name, pg_catalog.format_type(base.oid, null) as type,
           not a.attnotnull as may_be_null, coalesce(not l.collisdeterministic, false) as equates_texts
      from pg_catalog.pg_class c
      join pg_catalog.pg_namespace n on n.oid = c.relnamespace
      join pg_catalog.pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
      left join pg_catalog.pg_collation l on l.oid = a.attcollation
     cross join lateral (
           with recursive d (oid) as (
               select a.atttypid
               union all
               select y.typbasetype from d join pg_catalog.pg_type y on y.oid = d.oid where y.typtype = 'd')
           select d.oid from d join pg_catalog.pg_type y on y.oid = d.oid where y.typtype <> 'd') base
     where n.nspname = {schema}::text and c.relname = {relation}::text"
    )
}

/// A column of the ledger, as the catalogue describes it.
#[derive(Clone, Debug, sqlx::FromRow)]
pub(super) struct Column {
    relation: i64,
    relkind: String,
    attnum: i16,
    pub name: String,
    #[sqlx(rename = "type")]
    kind: String,
    pub may_be_null: bool,
    equates_texts: bool,
}

impl Table {
    /// Looks the table up and checks that each column is there and of a type that can be read.
    pub(super) async fn find(database: &Database, settings: &LedgerSettings) -> Result<Self, LedgerError> {
        let (schema, relation) =
            settings.schema_and_table().map_err(|problem| LedgerError::Shape(problem.to_string()))?;
        let look = || {
            sqlx::query_as(AssertSqlSafe(columns_sql(&schema, &relation)))
                .fetch_all(database.single_round_trip())
        };
        let columns: Vec<Column> = database.retry(look).await?;
        let table = &settings.table;
        match columns.first().map(|column| column.relkind.as_str()) {
            Some("r" | "p" | "v") => {}
            None => return Err(missing(database, settings, &schema, &relation).await?),
            Some(kind) => {
                return Err(LedgerError::Shape(format!(
                    "the ledger {table} is a {}, whose rows do not carry transactions of this database in the order \
                     in which they can be read; hint: name a table, or a view over one",
                    if kind == "m" { "materialized view" } else { "foreign table or the like" }
                )));
            }
        }
        let found = ResolvedColumns { settings, columns: &columns };
        let id = found.role("id")?;
        let entity = match &settings.entity {
            Some(entity) => format!("{}::text", quote_literal(entity)),
            None => found.role("entity_id")?.quoted(),
        };
        let account = found.role("entity_account_id")?.quoted();
        let currency = found.role("currency")?.quoted();
        let captured_at = found.captured_at()?;
        let balance = found.balance()?;
        let xid = found.role("change_xid")?;
        let id_value = if is_number(&id.kind) { "bigint" } else { "text" };
        let careful_at = found.careful_captured_at()?;
        let columns = |account: &str, currency: &str, captured_at: &str| {
            let (xid, id) = (xid.quoted(), id.quoted());
            format!("{xid}, {id}::{id_value}, {account}, {currency}, {captured_at}, {balance}")
        };
        let careful = Careful {
            columns: columns(
                &format!("elven_sync.utf8_or_bytes({account}::text)"),
                &format!("elven_sync.utf8_or_bytes({currency}::text)"),
                &careful_at,
            ),
            captured_at: careful_at,
        };
        let columns = columns(&format!("{account}::text"), &format!("{currency}::text"), &captured_at);
        found.check_zone(database).await?;
        let name = format!("{}.{}", quote_identifier(&schema), quote_identifier(&relation));
        let mapping = found.mapping(&name)?;
        Ok(Self {
            mapping_json: mapping.to_json().into(),
            mapping,
            name,
            id_type: id.kind.clone(),
            entity,
            xid: xid.quoted(),
            id: id.quoted(),
            captured_at,
            entity_column: found.entity_column()?,
            captured_at_column: found.captured_at_column()?,
            account,
            currency,
            columns,
            careful,
            id_may_be_null: id.may_be_null,
            xid_may_be_null: xid.may_be_null,
            entity_may_be_null: settings.entity.is_none() && found.role("entity_id")?.may_be_null,
        })
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The same table, read in a way in which no time is out of range and any bytes are taken for a text.
    pub(super) fn careful(&self) -> Self {
        let Careful { captured_at, columns } = self.careful.clone();
        Self { captured_at, columns, ..self.clone() }
    }

    /// Whether ids are whole numbers (then read as `bigint`) or texts.
    pub(super) fn id_is_number(&self) -> bool {
        is_number(&self.id_type)
    }
}

impl Column {
    fn quoted(&self) -> String {
        format!("t.{}", quote_identifier(&self.name))
    }
}

/// The columns of the table that was found, to be matched with their roles.
pub(super) struct ResolvedColumns<'a> {
    pub settings: &'a LedgerSettings,
    pub columns: &'a [Column],
}

impl ResolvedColumns<'_> {
    /// The column with a role, if it is there and of an accepted type.
    pub(super) fn role(&self, role: &str) -> Result<&Column, LedgerError> {
        let table = &self.settings.table;
        let name = self.settings.columns.get(role);
        let Some(column) = self.columns.iter().find(|column| column.name == name) else {
            let remedy = match role {
                "change_xid" => {
                    "`elven-sync attach` adds it to a table; a view has to select that of its table"
                }
                "entity_id" => {
                    "name the one that holds it under [ledger.columns], or say [ledger] entity = \"...\""
                }
                _ => "name the one that holds it under [ledger.columns]",
            };
            let role = if name == role { String::new() } else { format!(" for {role}") };
            return Err(LedgerError::Shape(format!(
                "the ledger {table} has no column {name}{role}; hint: {remedy}"
            )));
        };
        let accepted = ROLES.iter().find(|(known, _)| *known == role).map_or(&[][..], |(_, types)| types);
        if !accepted.contains(&column.kind.as_str()) {
            return Err(LedgerError::Shape(format!(
                "column {name} of the ledger {table} is {}, but {role} has to be {}",
                column.kind,
                accepted.join(" or ")
            )));
        }
        // To PostgreSQL 'a' and 'A' would be one id, or one entity; to everybody else they are two.
        if column.equates_texts && matches!(role, "id" | "entity_id") {
            return Err(LedgerError::Shape(format!(
                "column {name} of the ledger {table} has a collation that takes different texts for equal; hint: map \
                 a view that selects it collate \"C\""
            )));
        }
        Ok(column)
    }

    /// How this ledger is read.
    fn mapping(&self, name: &str) -> Result<Mapping, LedgerError> {
        let oid = self.role("id")?.relation;
        let mut columns = BTreeMap::new();
        for role in Columns::ROLES {
            if role == "entity_id" && self.settings.entity.is_some() {
                continue;
            }
            let Column { attnum, name, kind, .. } = self.role(role)?.clone();
            columns.insert(role.to_owned(), Mapped { attnum, name, kind });
        }
        Ok(Mapping::new(Relation { oid, name: name.to_owned() }, columns, self.settings))
    }

    /// The instant. A `timestamp` is one only together with a zone, and only its owner knows which.
    fn captured_at(&self) -> Result<String, LedgerError> {
        let column = self.role("captured_at")?;
        let with_zone = column.kind == "timestamp with time zone";
        match &self.settings.captured_at_zone {
            None if with_zone => Ok(column.quoted()),
            Some(zone) if !with_zone => {
                Ok(format!("({} at time zone {})", column.quoted(), quote_literal(zone)))
            }
            None => Err(LedgerError::Shape(format!(
                "column {} of the ledger {} is {}, which names no instant; hint: say in which zone it was written, \
                 e.g. [ledger] captured_at_zone = \"UTC\", or make it timestamp with time zone",
                column.name, self.settings.table, column.kind
            ))),
            Some(_) => Err(LedgerError::Shape(format!(
                "[ledger] captured_at_zone is set, but column {} of the ledger {} is {} and names instants already; \
                 hint: leave captured_at_zone out",
                column.name, self.settings.table, column.kind
            ))),
        }
    }

    /// The instant, where `AT TIME ZONE` may lead out of the range of a timestamp: what lies within some weeks of its ends
    /// is moved away from them. It is far outside of the years that can be sent, before and after.
    fn careful_captured_at(&self) -> Result<String, LedgerError> {
        let Some(zone) = &self.settings.captured_at_zone else { return self.captured_at() };
        let column = self.role("captured_at")?.quoted();
        Ok(format!(
            "(case when isfinite({column}) then least(greatest({column}, timestamp '4713-01-10 BC'), \
             timestamp '294276-12-01') else {column} end at time zone {})",
            quote_literal(zone)
        ))
    }

    fn entity_column(&self) -> Result<Option<String>, LedgerError> {
        if self.settings.entity.is_some() {
            return Ok(None);
        }
        Ok(Some(self.role("entity_id")?.name.clone()))
    }

    fn captured_at_column(&self) -> Result<Option<String>, LedgerError> {
        let column = self.role("captured_at")?;
        Ok(self.settings.captured_at_zone.is_none().then(|| column.name.clone()))
    }

    /// The amount, as a numeric. An integer is one of minor units, and how minor has to be said.
    fn balance(&self) -> Result<String, LedgerError> {
        let column = self.role("balance")?;
        match self.settings.balance_scale {
            None if column.kind == "numeric" => Ok(column.quoted()),
            Some(scale) if column.kind != "numeric" => {
                // Exact: the product of two numerics has all digits of both.
                Ok(format!("({}::numeric * '1e-{scale}'::numeric)", column.quoted()))
            }
            None => Err(LedgerError::Shape(format!(
                "column {} of the ledger {} is {}; hint: say how many digits are behind the decimal point, e.g. \
                 [ledger] balance_scale = 2 for cents and 0 for whole units",
                column.name, self.settings.table, column.kind
            ))),
            Some(_) => Err(LedgerError::Shape(format!(
                "[ledger] balance_scale is set, but column {} of the ledger {} is numeric and has its decimal point; \
                 hint: leave balance_scale out",
                column.name, self.settings.table
            ))),
        }
    }

    /// Makes sure that the server knows the zone: its rules decide what a `timestamp` means.
    async fn check_zone(&self, database: &Database) -> Result<(), LedgerError> {
        let Some(zone) = &self.settings.captured_at_zone else { return Ok(()) };
        let known = database
            .retry(|| sqlx::query("select now() at time zone $1").bind(zone).fetch_one(database))
            .await;
        known.map(drop).map_err(|problem| match problem.as_database_error() {
            Some(refused) => LedgerError::Shape(format!(
                "[ledger] captured_at_zone: the database does not know it: {}",
                refused.message()
            )),
            None => problem.into(),
        })
    }
}

/// Says that there is no such table, and whether another spelling would find one.
pub(super) async fn missing(
    executor: impl sqlx::PgExecutor<'_>,
    settings: &LedgerSettings,
    schema: &str,
    relation: &str,
) -> Result<LedgerError, sqlx::Error> {
    let similar = sqlx::query(
        "select n.nspname || '.' || c.relname from pg_catalog.pg_class c
           join pg_catalog.pg_namespace n on n.oid = c.relnamespace
          where lower(n.nspname) = lower($1) and lower(c.relname) = lower($2) and c.relkind in ('r', 'p', 'v')",
    )
    .bind(schema)
    .bind(relation)
    .fetch_optional(executor)
    .await?;
    let hint = match similar {
        Some(row) => format!("names are spelled as in the catalogue; there is {}", row.get::<String, _>(0)),
        None => "`elven-sync migrate --with-ledger` creates the default one, or name yours under [ledger] table in \
                 the configuration"
            .to_owned(),
    };
    Ok(LedgerError::Shape(format!("there is no ledger table {}; hint: {hint}", settings.table)))
}

fn is_number(id_type: &str) -> bool {
    matches!(id_type, "bigint" | "integer" | "smallint")
}

pub(super) fn quote_identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Quotes a text as a literal that means the same whatever `standard_conforming_strings` is
/// (manual, "String Constants with C-Style Escapes").
pub(crate) fn quote_literal(text: &str) -> String {
    format!("E'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
}

/// Quotes texts as the literal of an array of them.
pub(crate) fn quote_array<'a>(texts: impl IntoIterator<Item = Option<&'a str>>) -> String {
    let quoted = texts.into_iter().map(|text| match text {
        Some(text) => format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")),
        None => "NULL".to_owned(),
    });
    format!("{}::text[]", quote_literal(&format!("{{{}}}", quoted.collect::<Vec<_>>().join(","))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_cannot_be_broken_out_of() {
        assert_eq!(quote_literal(r"a'b\"), r"E'a''b\\'");
        assert_eq!(quote_identifier(r#"a"b"#), r#""a""b""#);
        assert_eq!(quote_array([Some(r#"a'"\"#), None]), r#"E'{"a''\\"\\\\",NULL}'::text[]"#);
    }
}
