//! Reads the catalogue about a table that is to be prepared.

use sqlx::AssertSqlSafe;

use super::super::LedgerError;
use super::super::beneath::BENEATH;
use super::super::quoting::quote_identifier;
use super::super::table::{self, Column};
use super::names::{SUFFIXES, body, index_called, stamp_called};
use crate::config::LedgerSettings;
use crate::database::Database;

/// The table, or one of its partitions.
#[derive(Debug, sqlx::FromRow)]
pub(super) struct Relation {
    pub oid: i64,
    /// The partitioned table that this is a partition of.
    pub parent: Option<i64>,
    pub schema: String,
    pub table: String,
    /// `pg_class.relkind`.
    pub kind: String,
    pub is_partition: bool,
    /// `pg_class.relpersistence`.
    pub persistence: String,
    pub row_security: bool,
}

impl Relation {
    pub(super) fn name(&self) -> String {
        format!("{}.{}", quote_identifier(&self.schema), quote_identifier(&self.table))
    }

    pub(super) fn is_partitioned(&self) -> bool {
        self.kind == "p"
    }
}

/// A trigger that stamps rows as [`super::body`] does.
#[derive(Debug, sqlx::FromRow)]
pub(super) struct Trigger {
    pub relation: i64,
    pub name: String,
    /// It fires before insert and update, for each row, without a condition or a list of columns.
    pub fires_always: bool,
    /// `ENABLE ALWAYS`.
    pub enabled_always: bool,
    pub function: String,
    /// No trigger of another table uses the function.
    pub function_is_ours_alone: bool,
    source: String,
}

/// A plain B-tree index with the default order of its columns, or with the order of bytes.
#[derive(Debug, sqlx::FromRow)]
pub(super) struct Index {
    pub oid: i64,
    pub relation: i64,
    pub name: String,
    /// The keys as SQL: the quoted column, with `collate "C"` if only the key has this collation.
    pub keys: Vec<String>,
    /// It has only these columns and is not unique.
    pub is_plain: bool,
    pub is_valid: bool,
    /// The index of the partitioned table that it is attached to.
    pub parent: Option<i64>,
}

/// Everything that is read before a table is prepared.
#[derive(Debug)]
pub(super) struct Facts {
    /// The table and then its partitions, parents first.
    pub relations: Vec<Relation>,
    /// The name of the stamp column.
    pub stamp_name: String,
    /// The stamp column, if it exists.
    pub stamp: Option<Column>,
    pub triggers: Vec<Trigger>,
    pub indexes: Vec<Index>,
    /// Schema and name of relations that already use the name of an index that `attach` creates.
    pub taken: Vec<(String, String)>,
    /// Publications whose subscribers would lack the column.
    pub publications: Vec<String>,
    /// The keys of the index that a run needs, and of the index for backfills, as SQL like [`Index::keys`].
    pub run_index: Vec<String>,
    pub backfill_index: Vec<String>,
}

const TREE: &str = "
    with recursive tree (oid, parent, depth) as (
        select c.oid, null::oid, 0 from pg_catalog.pg_class c
          join pg_catalog.pg_namespace n on n.oid = c.relnamespace where n.nspname = $1 and c.relname = $2
        union all
        select i.inhrelid, i.inhparent, t.depth + 1 from tree t join pg_catalog.pg_inherits i on i.inhparent = t.oid)
    select t.oid::bigint as oid, t.parent::bigint as parent, n.nspname::text as schema, c.relname::text as table,
           c.relkind::text as kind, c.relispartition as is_partition, c.relpersistence::text as persistence,
           c.relrowsecurity as row_security
      from tree t join pg_catalog.pg_class c on c.oid = t.oid join pg_catalog.pg_namespace n on n.oid = c.relnamespace
     order by t.depth, n.nspname, c.relname";

// tgtype: 1 for each row, 2 before, 4 insert, 16 update (src/include/catalog/pg_trigger.h).
const TRIGGERS: &str = "
    select t.tgrelid::bigint as relation, t.tgname::text as name,
           t.tgtype = 23 and t.tgqual is null and t.tgattr::text = '' as fires_always,
           t.tgenabled = 'A' as enabled_always, p.prosrc as source,
           pg_catalog.format('%I.%I', n.nspname, p.proname) as function,
           not exists (select from pg_catalog.pg_trigger x where x.tgfoid = p.oid
           and x.tgrelid <> all ($1::bigint[]::oid[]))
               as function_is_ours_alone
      from pg_catalog.pg_trigger t join pg_catalog.pg_proc p on p.oid = t.tgfoid
      join pg_catalog.pg_namespace n on n.oid = p.pronamespace
     where t.tgrelid = any ($1::bigint[]::oid[])";

const INDEXES: &str = "
    select i.indexrelid::bigint as oid, i.indrelid::bigint as relation,
           pg_catalog.format('%I.%I', n.nspname, c.relname) as name,
           array(select '\"' || replace(a.attname::text, '\"', '\"\"') || '\"'
                        || case when k.colloid <> a.attcollation then ' collate \"C\"' else '' end
                   from unnest(i.indkey::int2[], i.indcollation::oid[]) with ordinality k (attnum, colloid, place)
                   join pg_catalog.pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.attnum
                  where k.place <= i.indnkeyatts order by k.place) as keys,
           i.indnatts = i.indnkeyatts and not i.indisunique as is_plain,
           i.indisvalid and i.indisready as is_valid, h.inhparent::bigint as parent
      from pg_catalog.pg_index i join pg_catalog.pg_class c on c.oid = i.indexrelid
      join pg_catalog.pg_namespace n on n.oid = c.relnamespace
      join pg_catalog.pg_am m on m.oid = c.relam and m.amname = 'btree'
      left join pg_catalog.pg_inherits h on h.inhrelid = i.indexrelid
     where i.indrelid = any ($1::bigint[]::oid[]) and i.indpred is null and i.indexprs is null
       and not exists (select from unnest(i.indoption::int2[]) o where o <> 0)
       and not exists (select from unnest(i.indclass::oid[]) o (oid) join pg_catalog.pg_opclass k on k.oid = o.oid
                        where not k.opcdefault)
       and not exists (select from unnest(i.indcollation::oid[], i.indkey::int2[]) o (colloid, attnum)
                         join pg_catalog.pg_attribute a on a.attrelid = i.indrelid and a.attnum = o.attnum
                        where o.colloid not in (0, a.attcollation, 'pg_catalog.\"C\"'::regcollation))
     order by c.relname";

// A publication may list columns since PostgreSQL 15. The statement reads `prattrs` through jsonb, so that it is valid
// in older versions too.
const PUBLICATIONS: &str = "
    select distinct p.pubname::text
      from pg_catalog.pg_publication_tables p
      join pg_catalog.pg_namespace n on n.nspname = p.schemaname
      join pg_catalog.pg_class c on c.relnamespace = n.oid and c.relname = p.tablename
     where c.oid = any ($1::bigint[]::oid[])
       and not exists (select from pg_catalog.pg_publication_rel r join pg_catalog.pg_publication q on q.oid = r.prpubid
                        where q.pubname = p.pubname and r.prrelid = any ($1::bigint[]::oid[])
                          and to_jsonb(r) ->> 'prattrs' is not null)
     order by 1";

// The name of a broken index is not taken: the index is dropped before the name is used again.
const TAKEN: &str = "
    select n.nspname::text, c.relname::text
      from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
     where c.relname = any ($1)
       and not exists (select from pg_catalog.pg_index i where i.indexrelid = c.oid and not i.indisvalid)";

const FUNCTION: &str = "
    select p.prosrc from pg_catalog.pg_proc p join pg_catalog.pg_namespace n on n.oid = p.pronamespace
     where n.nspname = $1 and p.proname = $2 and p.pronargs = 0";

impl Facts {
    /// Reads the catalogue, and refuses a table that cannot be prepared.
    pub(super) async fn gather(database: &Database, settings: &LedgerSettings) -> Result<Self, LedgerError> {
        let (schema, table) =
            settings.schema_and_table().map_err(|problem| LedgerError::Shape(problem.to_string()))?;
        let columns: Vec<Column> = sqlx::query_as(sqlx::AssertSqlSafe(table::columns_sql(&schema, &table)))
            .fetch_all(database)
            .await?;
        if columns.is_empty() {
            return Err(table::missing(database, settings, &schema, &table).await?);
        }
        let relations: Vec<Relation> =
            sqlx::query_as(TREE).bind(&schema).bind(&table).fetch_all(database).await?;
        refuse_what_has_no_triggers(database, settings, &relations).await?;

        let roles = table::ResolvedColumns { settings, columns: &columns };
        let stamp_name = settings.columns.get("change_xid").to_owned();
        let has_stamp = columns.iter().any(|column| column.name == stamp_name);
        let stamp = if has_stamp { Some(roles.role("change_xid")?.clone()) } else { None };
        let entity = match settings.entity {
            Some(_) => None,
            None => Some(quote_identifier(&roles.role("entity_id")?.name)),
        };
        let id = roles.role("id")?;
        let captured_at = roles.role("captured_at").map(|column| quote_identifier(&column.name));
        let index = |middle: String, id: String| entity.iter().cloned().chain([middle, id]).collect();
        let run_index = index(quote_identifier(&stamp_name), quote_identifier(&id.name));
        let id_in_range = id.in_order_of_range();
        let backfill_index =
            captured_at.map(|captured_at| index(captured_at, id_in_range)).unwrap_or_default();

        let oids: Vec<i64> = relations.iter().map(|relation| relation.oid).collect();
        let mut triggers: Vec<Trigger> = sqlx::query_as(TRIGGERS).bind(&oids).fetch_all(database).await?;
        let ours = |source: &str| words(source) == words(&body(&stamp_name));
        let called = stamp_called(&stamp_name);
        let function: Option<String> =
            sqlx::query_scalar(FUNCTION).bind(&schema).bind(&called).fetch_optional(database).await?;
        if function.is_some_and(|source| !ours(&source))
            || triggers.iter().any(|trigger| trigger.name == called && !ours(&trigger.source))
        {
            return Err(LedgerError::Shape(format!(
                "{} cannot be prepared: a function or trigger {called} exists that is none of elven-sync's; hint: \
                 rename it",
                settings.table
            )));
        }
        triggers.retain(|trigger| ours(&trigger.source));
        let names: Vec<String> = relations
            .iter()
            .flat_map(|relation| SUFFIXES.map(|suffix| index_called(&relation.table, suffix)))
            .collect();
        Ok(Self {
            taken: sqlx::query_as(TAKEN).bind(names).fetch_all(database).await?,
            triggers,
            indexes: sqlx::query_as(INDEXES).bind(&oids).fetch_all(database).await?,
            publications: sqlx::query_scalar(PUBLICATIONS).bind(&oids).fetch_all(database).await?,
            run_index,
            backfill_index,
            stamp_name,
            stamp,
            relations,
        })
    }

    /// Returns the table itself.
    pub(super) fn root(&self) -> &Relation {
        &self.relations[0]
    }

    /// Returns the trigger that stamps the rows of a relation.
    pub(super) fn trigger(&self, relation: &Relation) -> Option<&Trigger> {
        self.triggers.iter().find(|trigger| trigger.relation == relation.oid && trigger.fires_always)
    }
}

async fn refuse_what_has_no_triggers(
    database: &Database,
    settings: &LedgerSettings,
    relations: &[Relation],
) -> Result<(), LedgerError> {
    let table = &settings.table;
    let refuse = |why: &str| Err(LedgerError::Shape(format!("{table} cannot be prepared: {why}")));
    for (place, relation) in relations.iter().enumerate() {
        match relation.kind.as_str() {
            "r" | "p" if relation.persistence == "t" => return refuse("it is temporary"),
            "r" | "p" if place == 0 && relation.is_partition => {
                return refuse("it is a partition; hint: prepare its partitioned table");
            }
            "r" | "p" if place > 0 && !relation.is_partition => {
                return refuse(
                    "other tables inherit from it, and its triggers do not fire for rows of those tables; hint: use \
                     declarative partitioning",
                );
            }
            "r" | "p" => {}
            "v" => {
                let beneath = tables_beneath(database, &relation.name()).await?.join(", ");
                if beneath.is_empty() {
                    return refuse("it is a view that reads no table, and only a table can have the trigger");
                }
                return refuse(&format!(
                    "it is a view, and the trigger has to be on the written table; hint: prepare that table \
                     ({beneath}) with ELVEN_SYNC_LEDGER__TABLE=... elven-sync attach, and with \
                     ELVEN_SYNC_LEDGER__COLUMNS__ID and ..._ENTITY_ID if its columns have other names; then add its \
                     change_xid to the view"
                ));
            }
            _ if place > 0 => {
                return refuse(&format!("its partition {} is not a table of this database", relation.name()));
            }
            _ => return refuse("it is neither a table nor a view over one"),
        }
    }
    Ok(())
}

async fn tables_beneath(database: &Database, view: &str) -> Result<Vec<String>, sqlx::Error> {
    let sql = format!(
        "with recursive {BENEATH} select pg_catalog.format('%I.%I', n.nspname, c.relname)
           from beneath b join pg_catalog.pg_class c on c.oid = b.oid and c.relkind in ('r', 'p')
           and not c.relispartition
           join pg_catalog.pg_namespace n on n.oid = c.relnamespace order by 1"
    );
    sqlx::query_scalar(AssertSqlSafe(sql)).bind(view).fetch_all(database).await
}

/// Returns the words of a function, without line breaks and quotes.
fn words(source: &str) -> Vec<String> {
    source.replace('"', "").split_whitespace().map(str::to_lowercase).collect()
}
