//! The ledger's table: found in the catalogue, with its columns checked and turned into SQL expressions.

use std::collections::BTreeMap;
use std::sync::Arc;

use sqlx::{AssertSqlSafe, Row as _};

use super::beneath::BENEATH;
use super::mapping::{Mapped, Relation};
use super::quoting::{quote_identifier, quote_literal};
use super::{LedgerError, Mapping};
use crate::config::{ApiVersion, Columns, LedgerSettings};
use crate::database::Database;

/// A table or view with the columns of a ledger, checked against the catalogue.
///
/// The columns are SQL expressions over the alias `t`.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own from the catalogue")]
pub struct Table {
    pub(super) name: String,
    pub(super) mapping: Mapping,
    /// The mapping as JSON.
    pub(super) mapping_json: Arc<str>,
    pub(super) id_type: String,
    pub(super) entity: String,
    pub(super) xid: String,
    pub(super) id: String,
    pub(super) captured_at: String,
    /// The names of the columns by which a range is found; `None` if the value is not a plain column.
    pub(super) entity_column: Option<String>,
    pub(super) captured_at_column: Option<String>,
    pub(super) account: String,
    pub(super) currency: String,
    pub(super) balance: String,
    /// The select list of a page, in the order in which [`super::row`] decodes it.
    pub(super) columns: String,
    careful: Careful,
    /// Columns that may be NULL as far as the catalogue says, as in any view. A comparison with NULL is never true, so
    /// such rows need a check of their own.
    pub(super) id_may_be_null: bool,
    pub(super) xid_may_be_null: bool,
    pub(super) entity_may_be_null: bool,
    /// The id is the first column of an index, as far as the catalogue says. Not known of a view.
    pub(super) has_index_on_id: bool,
}

/// Expressions for rows with a value that PostgreSQL cannot convert. The row is then read in a form that fails
/// validation, and the other rows of the page are read normally. They are slower, so they are used only for pages that
/// have failed.
#[derive(Clone, Debug)]
struct Careful {
    captured_at: String,
    columns: String,
}

/// The roles of columns, with the types that each role accepts. A domain counts as its base type.
const ROLES: [(&str, &[&str]); 7] = [
    ("id", &["bigint", "integer", "smallint", "uuid", "text", "character varying"]),
    ("entity_id", &["text", "character varying"]),
    ("entity_account_id", &["text", "character varying", "uuid"]),
    ("currency", &["text", "character varying", "character"]),
    ("captured_at", &["timestamp with time zone", "timestamp without time zone"]),
    ("balance", &["numeric", "bigint", "integer", "smallint"]),
    ("change_xid", &["xid8"]),
];

/// Returns the query for the kind and the columns of a table. A domain may be based on another domain.
pub(super) fn columns_sql(schema: &str, relation: &str) -> String {
    let (schema, relation) = (quote_literal(schema), quote_literal(relation));
    let this = format!(
        "select c.oid from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
          where n.nspname = {schema}::text and c.relname = {relation}::text"
    );
    let beneath = BENEATH.replace("select $1::pg_catalog.regclass::oid", &this);
    format!(
        "select c.oid::bigint as relation, c.relkind::text as relkind, a.attnum, a.attname::text as name,
            pg_catalog.format_type(base.oid, null) as type,
           not a.attnotnull as may_be_null, coalesce(not l.collisdeterministic, false) as equates_texts,
           a.attcollation = 'pg_catalog.\"C\"'::regcollation as orders_bytes,
           exists (select from pg_catalog.pg_index i
                     join pg_catalog.pg_class x on x.oid = i.indexrelid
                    where i.indrelid = c.oid and i.indkey[0] = a.attnum and i.indisvalid and i.indpred is null
                      and x.relam = (select oid from pg_catalog.pg_am where amname = 'btree')) as leads_an_index,
           (with recursive {beneath} select min(p.oid::pg_catalog.regclass::text) from beneath b
              join pg_catalog.pg_class p on p.oid = b.oid and p.relkind = 'f' and p.relispartition) as foreign_partition
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
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own from the catalogue")]
pub(super) struct Column {
    relation: i64,
    relkind: String,
    attnum: i16,
    pub name: String,
    #[sqlx(rename = "type")]
    kind: String,
    pub may_be_null: bool,
    equates_texts: bool,
    /// Its collation is `"C"`.
    orders_bytes: bool,
    /// It is the first column of an index of the table.
    leads_an_index: bool,
    /// A partition beneath the ledger that is a foreign table.
    foreign_partition: Option<String>,
}

impl Column {
    /// Returns the column as the key of an index for ranges, if it is the id: as SQL, with `collate "C"` where this is
    /// not its own collation.
    pub(super) fn in_order_of_range(&self) -> String {
        let name = quote_identifier(&self.name);
        if is_text(&self.kind) && !self.orders_bytes { in_byte_order(&name) } else { name }
    }
}

impl Table {
    /// Finds the table in the catalogue and checks that each column exists and has a type that can be read.
    pub(super) async fn find(
        database: &Database,
        settings: &LedgerSettings,
        version: ApiVersion,
    ) -> Result<Self, LedgerError> {
        let (schema, relation) =
            settings.schema_and_table().map_err(|problem| LedgerError::Shape(problem.to_string()))?;
        let query = || {
            sqlx::query_as(AssertSqlSafe(columns_sql(&schema, &relation)))
                .fetch_all(database.single_round_trip())
        };
        let columns: Vec<Column> = database.retry(query).await?;
        let table = &settings.table;
        let Some(first) = columns.first() else {
            return Err(missing(database, settings, &schema, &relation).await?);
        };
        first.refuse_foreign_rows(table)?;
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
        let mapping = found.mapping(&name, version)?;
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
            balance,
            columns,
            careful,
            id_may_be_null: id.may_be_null,
            xid_may_be_null: xid.may_be_null,
            entity_may_be_null: settings.entity.is_none() && found.role("entity_id")?.may_be_null,
            has_index_on_id: id.leads_an_index,
        })
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Returns the same table with conversions that cannot fail: every time is in range, and text columns are read as
    /// bytes.
    pub(super) fn careful(&self) -> Self {
        let Careful { captured_at, columns } = self.careful.clone();
        Self { captured_at, columns, ..self.clone() }
    }

    /// Returns whether ids are whole numbers (read as `bigint`) and not texts.
    pub(super) fn id_is_number(&self) -> bool {
        is_number(&self.id_type)
    }
}

impl Column {
    /// Refuses a relation some of whose rows do not carry the ids of transactions of this database.
    fn refuse_foreign_rows(&self, table: &str) -> Result<(), LedgerError> {
        if !matches!(self.relkind.as_str(), "r" | "p" | "v") {
            return Err(LedgerError::Shape(format!(
                "the ledger {table} is a {}, and its rows do not carry the ids of the transactions that wrote them; \
                 hint: configure a table, or a view over one",
                if self.relkind == "m" { "materialized view" } else { "foreign table or similar" }
            )));
        }
        let Some(partition) = &self.foreign_partition else { return Ok(()) };
        Err(LedgerError::Shape(format!(
            "the ledger {table} has the foreign partition {partition}, whose rows do not carry the ids of transactions \
             of this database; hint: detach the partition, or move its rows into a table of this database"
        )))
    }

    fn quoted(&self) -> String {
        format!("t.{}", quote_identifier(&self.name))
    }
}

/// The columns of the table, to be matched with their roles.
pub(super) struct ResolvedColumns<'a> {
    pub settings: &'a LedgerSettings,
    pub columns: &'a [Column],
}

impl ResolvedColumns<'_> {
    /// Returns the column in a role, if it exists and has an accepted type.
    pub(super) fn role(&self, role: &str) -> Result<&Column, LedgerError> {
        let table = &self.settings.table;
        let name = self.settings.columns.get(role);
        let Some(column) = self.columns.iter().find(|column| column.name == name) else {
            let remedy = match role {
                "change_xid" => {
                    "`elven-sync attach` adds it to a table; a view has to select it from its table"
                }
                "entity_id" => "set its column under [ledger.columns], or set [ledger] entity = \"...\"",
                _ => "set its column under [ledger.columns]",
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
        // With such a collation, 'a' and 'A' are one id or entity to PostgreSQL, and two to everybody else.
        if column.equates_texts && matches!(role, "id" | "entity_id") {
            return Err(LedgerError::Shape(format!(
                "column {name} of the ledger {table} has a collation that treats different texts as equal; hint: map \
                 a view that selects it with collate \"C\""
            )));
        }
        Ok(column)
    }

    /// Returns the mapping of this ledger.
    fn mapping(&self, name: &str, version: ApiVersion) -> Result<Mapping, LedgerError> {
        let oid = self.role("id")?.relation;
        let mut columns = BTreeMap::new();
        for role in Columns::ROLES {
            if role == "entity_id" && self.settings.entity.is_some() {
                continue;
            }
            let Column { attnum, name, kind, .. } = self.role(role)?.clone();
            columns.insert(role.to_owned(), Mapped { attnum, name, kind });
        }
        Ok(Mapping::new(Relation { oid, name: name.to_owned() }, columns, self.settings, version))
    }

    /// Returns the expression for the instant. A `timestamp` is an instant only together with a zone, which only the
    /// owner of the ledger knows.
    fn captured_at(&self) -> Result<String, LedgerError> {
        let column = self.role("captured_at")?;
        let with_zone = column.kind == "timestamp with time zone";
        match &self.settings.captured_at_zone {
            None if with_zone => Ok(column.quoted()),
            Some(zone) if !with_zone => {
                Ok(format!("({} at time zone {})", column.quoted(), quote_literal(zone)))
            }
            None => Err(LedgerError::Shape(format!(
                "column {} of the ledger {} is {}, which needs a time zone; hint: set the zone in which it is written, \
                 e.g. [ledger] captured_at_zone = \"UTC\", or change the column to timestamp with time zone",
                column.name, self.settings.table, column.kind
            ))),
            Some(_) => Err(LedgerError::Shape(format!(
                "[ledger] captured_at_zone is set, but column {} of the ledger {} is {}, which needs no zone; \
                 hint: remove captured_at_zone",
                column.name, self.settings.table, column.kind
            ))),
        }
    }

    /// Returns the expression for the instant when `AT TIME ZONE` may leave the range of a timestamp. Times within a
    /// few weeks of either end are moved away from it; before and after that, they are far outside the years that can
    /// be sent.
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

    /// Returns the expression for the amount, as a numeric. An integer counts minor units, and `balance_scale` says
    /// how many digits they have.
    fn balance(&self) -> Result<String, LedgerError> {
        let column = self.role("balance")?;
        match self.settings.balance_scale {
            None if column.kind == "numeric" => Ok(column.quoted()),
            Some(scale) if column.kind != "numeric" => {
                // Exact: the product of two numerics keeps all digits of both.
                Ok(format!("({}::numeric * '1e-{scale}'::numeric)", column.quoted()))
            }
            None => Err(LedgerError::Shape(format!(
                "column {} of the ledger {} is {}; hint: set the number of its digits after the decimal point, e.g. \
                 [ledger] balance_scale = 2 for cents and 0 for whole units",
                column.name, self.settings.table, column.kind
            ))),
            Some(_) => Err(LedgerError::Shape(format!(
                "[ledger] balance_scale is set, but column {} of the ledger {} is numeric, which needs no scale; \
                 hint: remove balance_scale",
                column.name, self.settings.table
            ))),
        }
    }

    /// Checks that the server knows the zone, because the server's rules convert a `timestamp`.
    async fn check_zone(&self, database: &Database) -> Result<(), LedgerError> {
        let Some(zone) = &self.settings.captured_at_zone else { return Ok(()) };
        let known = database
            .retry(|| sqlx::query("select now() at time zone $1").bind(zone).fetch_one(database))
            .await;
        known.map(drop).map_err(|problem| match problem.as_database_error() {
            Some(refused) => LedgerError::Shape(format!(
                "[ledger] captured_at_zone is unknown to the database: {}",
                refused.message()
            )),
            None => problem.into(),
        })
    }
}

/// Returns the error for a missing table, with the name of a table that differs only in upper and lower case.
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
        Some(row) => {
            format!("did you mean {}? Names are spelled as in the catalogue", row.get::<String, _>(0))
        }
        None => "`elven-sync migrate --with-ledger` creates the default one; or set [ledger] table in the \
                 configuration"
            .to_owned(),
    };
    Ok(LedgerError::Shape(format!("there is no ledger table {}; hint: {hint}", settings.table)))
}

/// Whether ids of a type are texts, which a range compares by their bytes.
pub(super) fn is_text(id_type: &str) -> bool {
    matches!(id_type, "text" | "character varying")
}

/// Returns the sort expression of a text in the order of its bytes.
pub(super) fn in_byte_order(text: &str) -> String {
    format!("{text} collate \"C\"")
}

fn is_number(id_type: &str) -> bool {
    matches!(id_type, "bigint" | "integer" | "smallint")
}
