//! Facts about the ledger for preflight checks: rights, row-level security, columns that may be NULL, publications.

use serde::Deserialize;
use sqlx::AssertSqlSafe;

use super::beneath::BENEATH;
use super::observation::TABLES;
use super::{Ledger, LedgerError, quote_array, quote_identifier, quote_literal};
use crate::config::Columns;
use crate::text::quoted_sql;

/// Facts about the ledger table or view.
#[derive(Clone, Debug, PartialEq, Eq, sqlx::FromRow)]
pub struct LedgerFacts {
    /// It is a view.
    pub is_view: bool,
    /// The `grant` statements for what the role lacks, separated by `; `.
    pub missing_grants: Option<String>,
    /// The tables of the ledger whose row-level security applies to the role, separated by commas.
    pub filtered: Option<String>,
    /// The publications that carry the tables of the ledger, separated by commas.
    pub publications: Option<String>,
    /// The publications that carry the sync tables, separated by commas.
    pub publications_of_journal: Option<String>,
}

/// A table that the ledger consists of, and its file.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, sqlx::FromRow)]
pub struct LedgerFile {
    /// The table or partition, qualified.
    pub table: String,
    /// Its oid.
    pub oid: i64,
    /// The number of its file, which is another one after the table was rewritten. `None`: it has none.
    pub file: Option<i64>,
}

impl Ledger {
    /// Returns the tables that the ledger consists of, with their files.
    pub async fn files(&self) -> Result<Vec<LedgerFile>, LedgerError> {
        let sql = format!("with recursive {BENEATH} {TABLES}");
        let sql = sql.replace("$1", &quote_literal(self.table.name()));
        let query = || sqlx::query_as(AssertSqlSafe(sql.clone())).fetch_all(self.primary.single_round_trip());
        Ok(self.primary.retry(query).await?)
    }

    /// Reads the facts about the ledger table or view. One statement, from the catalogue alone.
    pub async fn facts(&self) -> Result<LedgerFacts, LedgerError> {
        let (schema, relation) = self.table.name().split_once("\".\"").unwrap_or_default();
        let [schema, relation] = [schema, relation].map(|name| name.trim_matches('"').replace("\"\"", "\""));
        let this = format!(
            "select c.oid from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
              where n.nspname = {} and c.relname = {}",
            quote_literal(&schema),
            quote_literal(&relation)
        );
        // A name is not resolved with a cast, which needs the usage of its schema.
        let beneath = BENEATH.replace("select $1::pg_catalog.regclass::oid", &this);
        let columns = self.table.mapping.columns.values().map(|column| Some(column.name.as_str()));
        let columns = quote_array(columns);
        let sql = format!(
            "with recursive {beneath},
             this (oid) as ({this})
             select c.relkind = 'v' as is_view,
                    nullif(concat_ws('; ',
                        case when not pg_catalog.has_schema_privilege(c.relnamespace, 'usage')
                             then pg_catalog.format('grant usage on schema %I to %I', n.nspname, current_user) end,
                        case when exists (select from pg_catalog.pg_attribute a
                                           where a.attrelid = c.oid and a.attname = any ({columns})
                                             and not pg_catalog.has_column_privilege(c.oid, a.attnum, 'select'))
                             then pg_catalog.format('grant select on %I.%I to %I', n.nspname, c.relname, current_user)
                        end), '') as missing_grants,
                    (select string_agg(b.oid::pg_catalog.regclass::text, ', ')
                       from beneath b join pg_catalog.pg_class p on p.oid = b.oid and p.relkind in ('r', 'p')
                      where p.relrowsecurity and pg_catalog.row_security_active(p.oid)) as filtered,
                    (select string_agg(distinct p.pubname, ', ') from pg_catalog.pg_publication_tables p
                      where (p.schemaname, p.tablename) in (
                            select q.nspname, k.relname from beneath b join pg_catalog.pg_class k on k.oid = b.oid
                              join pg_catalog.pg_namespace q on q.oid = k.relnamespace)) as publications,
                    (select string_agg(distinct p.pubname, ', ') from pg_catalog.pg_publication_tables p
                      where p.schemaname = 'elven_sync') as publications_of_journal
               from this t join pg_catalog.pg_class c on c.oid = t.oid
               join pg_catalog.pg_namespace n on n.oid = c.relnamespace"
        );
        let query = || sqlx::query_as(AssertSqlSafe(sql.clone())).fetch_one(self.primary.single_round_trip());
        Ok(self.primary.retry(query).await?)
    }

    /// Reads no row, by a statement that a page is read with: it needs the same privileges and the same locks.
    pub async fn try_reading(&self) -> Result<(), LedgerError> {
        let super::Table { name, columns, .. } = &self.table;
        let sql = format!("select {columns} from {name} t limit 0");
        let query = || sqlx::raw_sql(AssertSqlSafe(sql.clone())).execute(self.primary.single_round_trip());
        self.primary.retry(query).await?;
        Ok(())
    }

    /// Returns the size of the tables that the ledger consists of, without their indexes, in bytes.
    pub async fn bytes(&self) -> Result<i64, LedgerError> {
        let sql = format!(
            "with recursive {BENEATH}
             select coalesce(sum(pg_catalog.pg_table_size(c.oid)), 0)::bigint
               from beneath b join pg_catalog.pg_class c on c.oid = b.oid and c.relkind in ('r', 'm')"
        );
        let sql = sql.replace("$1", &quote_literal(self.table.name()));
        let query =
            || sqlx::query_scalar(AssertSqlSafe(sql.clone())).fetch_one(self.primary.single_round_trip());
        Ok(self.primary.retry(query).await?)
    }

    /// Returns the statement that stamps rows of an entity: those that have no stamp, or one that this database has not
    /// given out. A person executes it.
    pub fn stamping(&self, entity_id: &str, is_missing: bool) -> String {
        let column =
            |role: &str| self.table.mapping.columns.get(role).map(|column| quote_identifier(&column.name));
        let stamp = quote_identifier(self.table.stamp_name());
        let of_entity =
            column("entity_id").map(|entity| format!("{entity} = {} and ", quoted_sql(entity_id)));
        let is_wrong = if is_missing {
            format!("{stamp} is null")
        } else {
            format!("{stamp} >= pg_snapshot_xmax(pg_current_snapshot())")
        };
        format!("{};", self.table.stamping(&format!("{}{is_wrong}", of_entity.unwrap_or_default())))
    }

    /// Returns each role of a column that the ledger has, with its column and type.
    pub fn columns(&self) -> Vec<String> {
        let columns = &self.table.mapping.columns;
        let shown = |role: &&str| {
            let column = columns.get(*role)?;
            let from = if column.name == **role { String::new() } else { format!(" from {}", column.name) };
            Some(format!("{role}{from} {}", column.kind))
        };
        Columns::ROLES.iter().filter_map(shown).collect()
    }

    /// Returns the roles of columns that may be NULL although each row needs them to be found.
    pub fn nullable(&self) -> Vec<&'static str> {
        let table = &self.table;
        [
            ("id", table.id_may_be_null),
            ("entity_id", table.entity_may_be_null),
            ("change_xid", table.xid_may_be_null),
        ]
        .into_iter()
        .filter_map(|(role, may_be_null)| may_be_null.then_some(role))
        .collect()
    }

    /// Returns which of these entities have no row.
    pub async fn without_rows(&self, entity_ids: &[String]) -> Result<Vec<String>, LedgerError> {
        let super::Table { name, entity, xid, id, .. } = &self.table;
        let ids = quote_array(entity_ids.iter().map(|id| Some(id.as_str())));
        // `order by ... limit 1` and not `exists`, for the reason that `Table::probe_sql` gives.
        let sql = format!(
            "select e.id from unnest({ids}) e (id) left join lateral (
                    select true as found from {name} t where {entity} = e.id order by {xid}, {id} limit 1) r on true
              where r.found is null order by 1"
        );
        let query =
            || sqlx::query_scalar(AssertSqlSafe(sql.clone())).fetch_all(self.primary.single_round_trip());
        Ok(self.primary.retry(query).await?)
    }

    /// Returns whether a row of the ledger has a NULL in a column in one of these roles. Reads the whole table where no
    /// index helps, for at most the time limit of a statement.
    pub async fn has_null_in(&self, role: &str) -> Result<bool, LedgerError> {
        let table = &self.table;
        let column = match role {
            "id" => &table.id,
            "entity_id" => &table.entity,
            _ => &table.xid,
        };
        let sql = format!("select exists (select from {} t where {column} is null)", table.name);
        let query =
            || sqlx::query_scalar(AssertSqlSafe(sql.clone())).fetch_one(self.primary.single_round_trip());
        Ok(self.primary.retry(query).await?)
    }
}
