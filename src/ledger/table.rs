//! The ledger's table, its columns, and the statements over them.

use std::fmt::Write as _;

use sqlx::{PgPool, Row as _};

use super::{LedgerError, Page, Progress};
use crate::config::LedgerSettings;
use crate::watermark::{Cursor, Snapshot};

/// A table or view with the columns of a ledger, checked against the catalogue.
#[derive(Clone, Debug)]
pub struct Table {
    name: String,
    id_type: String,
    entity: String,
    xid: String,
    id: String,
    captured_at: String,
    columns: String,
}

/// The roles of columns, with the types that each may have.
const ROLES: [(&str, &[&str]); 7] = [
    ("id", &["bigint", "integer", "smallint", "uuid", "text", "character varying"]),
    ("entity_id", &["text", "character varying"]),
    ("entity_account_id", &["text", "character varying", "uuid"]),
    ("currency", &["text", "character varying", "character"]),
    ("captured_at", &["timestamp with time zone"]),
    ("balance", &["numeric"]),
    ("change_xid", &["xid8"]),
];

impl Table {
    /// Looks the table up and checks that each column is there and of a type that can be read.
    pub(super) async fn find(pool: &PgPool, settings: &LedgerSettings) -> Result<Self, LedgerError> {
        let wanted = &settings.table;
        let Some((schema, relation)) = wanted.split_once('.') else {
            return Err(LedgerError::Shape(format!(
                "[ledger] table = \"{wanted}\" has no schema; hint: write it as \"schema.table\""
            )));
        };
        let found = sqlx::query(
            "select a.attname::text, pg_catalog.format_type(a.atttypid, null)
               from pg_catalog.pg_attribute a
               join pg_catalog.pg_class c on c.oid = a.attrelid
               join pg_catalog.pg_namespace n on n.oid = c.relnamespace
              where n.nspname = $1 and c.relname = $2 and a.attnum > 0 and not a.attisdropped",
        )
        .bind(schema)
        .bind(relation)
        .fetch_all(pool)
        .await?;
        if found.is_empty() {
            return Err(LedgerError::Shape(format!(
                "there is no ledger table {wanted}; hint: `elven-sync migrate --with-ledger` creates the default \
                 one, or name yours under [ledger] table in the configuration"
            )));
        }
        let mut id_type = String::new();
        let mut quoted = Vec::new();
        for (role, accepted) in ROLES {
            let column = settings.columns.get(role);
            let kind = found
                .iter()
                .find(|row| row.get::<&str, _>(0) == column)
                .map(|row| row.get::<String, _>(1))
                .ok_or_else(|| {
                    LedgerError::Shape(format!(
                        "the ledger table {wanted} has no column {column}; hint: name the one that holds the \
                         {role} under [ledger.columns]"
                    ))
                })?;
            if !accepted.contains(&kind.as_str()) {
                return Err(LedgerError::Shape(format!(
                    "column {column} of the ledger table {wanted} is {kind}, but {role} has to be {}",
                    accepted.join(" or ")
                )));
            }
            if role == "id" {
                id_type = kind;
            }
            quoted.push(format!("t.{}", quote_identifier(column)));
        }
        let [id, entity, account, currency, captured_at, balance, xid] =
            quoted.try_into().unwrap_or_default();
        let id_value = if is_number(&id_type) { format!("{id}::bigint") } else { format!("{id}::text") };
        let columns =
            format!("{xid}, {id_value}, {account}::text, {currency}::text, {captured_at}, {balance}");
        let name = format!("{}.{}", quote_identifier(schema), quote_identifier(relation));
        Ok(Self { name, id_type, entity, xid, id, captured_at, columns })
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Whether ids are whole numbers (then read as `bigint`) or texts.
    pub(super) fn id_is_number(&self) -> bool {
        is_number(&self.id_type)
    }

    /// One page, as a copy. `with ties`: a partitioned ledger cannot have a unique id, and a page
    /// that ended inside a tie would lose the rest of it, since the next one begins behind it.
    pub(super) fn page_sql(&self, page: &Page<'_>) -> String {
        let &Page { entity_id, target, segment, after, until, rows_max } = page;
        let Self { name, entity, xid, id, id_type, columns, .. } = self;
        let mut filter =
            format!("{entity} = {} and {xid} < '{}'::xid8", quote_literal(entity_id), segment.until);
        // Writing to a String cannot fail.
        let _ = match after.filter(|after| after.xid >= segment.from) {
            Some(Cursor { xid: after, id: after_id }) => {
                write!(
                    filter,
                    " and ({xid}, {id}) > ('{after}'::xid8, {}::{id_type})",
                    quote_literal(after_id)
                )
            }
            None => write!(filter, " and {xid} >= '{}'::xid8", segment.from),
        };
        if let Some(Cursor { xid: until, id: until_id }) = until {
            let _ = write!(
                filter,
                " and ({xid}, {id}) <= ('{until}'::xid8, {}::{id_type})",
                quote_literal(until_id)
            );
        }
        // Transactions that had not ended when the target was taken belong to a later pass.
        if target.running().iter().any(|running| (segment.from..segment.until).contains(running)) {
            let _ = write!(filter, " and pg_catalog.pg_visible_in_snapshot({xid}, '{target}'::pg_snapshot)");
        }
        format!(
            "copy (select {columns} from {name} t where {filter} order by {xid}, {id} \
             fetch first {rows_max} rows with ties) to stdout (format binary)"
        )
    }

    /// $1 entity, $2 and $3 bounds of segments: the ordinals of those with rows, in order.
    ///
    /// `order by ... limit 1` and not `exists`: the planner expects to meet a matching row soon and
    /// would rather scan the table, which is wrong whenever there is none.
    pub(super) fn probe_sql(&self) -> String {
        let Self { name, entity, xid, id, .. } = self;
        format!(
            "select s.place from unnest($2::text[], $3::text[]) with ordinality s (lower, upper, place)
              cross join lateral (select from {name} t where {entity} = $1
                                     and {xid} >= s.lower::xid8 and {xid} < s.upper::xid8
                                   order by {xid}, {id} limit 1) found
              order by s.place"
        )
    }

    /// $1 entities, $2 their watermarks: snapshot, cluster, and per entity whether there is news. The
    /// outer join gives a row even when nothing was asked for.
    ///
    /// News is a row of a transaction in the range from the watermark's xmax on, or of one that was
    /// running when the watermark was taken; three index probes per entity, for the reason given above.
    pub(super) fn look_sql(&self) -> String {
        let Self { name, entity, xid, id, .. } = self;
        format!(
            "select now.target::text, now.system_identifier, l.entity_id,
                    coalesce(newest.xid >= coalesce(pg_snapshot_xmax(l.settled::pg_snapshot), '0'::xid8), false)
                    or exists (select from pg_snapshot_xip(l.settled::pg_snapshot) late (xid)
                                cross join lateral (select from {name} t where {entity} = l.entity_id
                                                       and {xid} = late.xid order by {id} limit 1) found),
                    coalesce(newest.xid >= pg_snapshot_xmax(now.target), false)
               from (select pg_current_snapshot() as target, system_identifier from pg_control_system()) now
               left join unnest($1::text[], $2::text[]) l (entity_id, settled) on true
               left join lateral (select {xid} as xid from {name} t where {entity} = l.entity_id
                                   order by {xid} desc, {id} desc limit 1) newest on true"
        )
    }

    /// What has not been dealt with, per entity.
    ///
    /// The bounds are literals, so that the planner knows how little lies behind them; with parameters
    /// it assumes a third of the table and scans it.
    pub(super) fn pending_sql(&self, lanes: &[Progress]) -> String {
        let Self { name, entity, xid, id, id_type, captured_at, .. } = self;
        let counts = lanes.iter().map(|lane| {
            let entity_id = quote_literal(&lane.entity_id);
            let settled = lane.settled.as_ref();
            let mut filter = format!("{xid} >= '{}'::xid8", settled.map_or(0, Snapshot::xmax));
            // Writing to a String cannot fail.
            for late in settled.map_or(&[][..], Snapshot::running) {
                let _ = write!(filter, " or {xid} = '{late}'::xid8");
            }
            filter = format!("({filter})");
            if let (Some(target), Some(cursor)) = (&lane.target, &lane.cursor) {
                let _ = write!(
                    filter,
                    " and (not pg_visible_in_snapshot({xid}, '{target}'::pg_snapshot) or ({xid}, {id}) > \
                     ('{}'::xid8, {}::{id_type}))",
                    cursor.xid,
                    quote_literal(&cursor.id)
                );
            }
            format!(
                "select {entity_id}::text, count(*), min({captured_at}) filter (where isfinite({captured_at})) \
                 from {name} t where {entity} = {entity_id} and {filter}"
            )
        });
        counts.collect::<Vec<_>>().join(" union all ")
    }

    /// $1 registered entities: the others that the ledger has, found by stepping through the index.
    pub(super) fn unregistered_sql(&self) -> String {
        let Self { name, entity, .. } = self;
        format!(
            "with recursive e as (
                (select {entity}::text as entity_id from {name} t order by {entity} limit 1)
                union all
                select (select {entity}::text from {name} t where {entity} > e.entity_id order by {entity} limit 1)
                  from e where e.entity_id is not null)
             select entity_id from e where entity_id <> all ($1)"
        )
    }
}

fn is_number(id_type: &str) -> bool {
    matches!(id_type, "bigint" | "integer" | "smallint")
}

fn quote_identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Quotes a text as a literal that means the same whatever `standard_conforming_strings` is
/// (manual, "String Constants with C-Style Escapes").
fn quote_literal(text: &str) -> String {
    format!("E'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_cannot_be_broken_out_of() {
        assert_eq!(quote_literal(r"a'b\"), r"E'a''b\\'");
        assert_eq!(quote_identifier(r#"a"b"#), r#""a""b""#);
    }
}
