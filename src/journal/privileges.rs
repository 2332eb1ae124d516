//! The privileges on the sync tables that runs need.

use super::JournalError;
use crate::database::Database;

/// The tables from which runs, maps and `reference pull` delete rows.
const DELETED_FROM: [&str; 5] =
    ["sync_commits", "known_accounts", "known_currencies", "account_map", "currency_map"];

/// What a role lacks on the sync tables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MissingGrants {
    /// The `grant` statements.
    pub grants: Vec<String>,
    /// Without some of them, the role cannot read.
    pub may_not_read: bool,
    /// The role may write to some sync table, as no role of a monitoring does.
    pub may_write: bool,
}

/// Returns what the role lacks. `None`: the schema does not exist.
pub async fn missing_grants(database: &Database) -> Result<Option<MissingGrants>, JournalError> {
    let exists = "select pg_catalog.to_regnamespace('elven_sync') is not null";
    if !database.retry(|| sqlx::query_scalar(exists).fetch_one(database)).await? {
        return Ok(None);
    }
    // Tables of migrations (their names begin with _) are only read, and so are views. A run only reads `entities`.
    let missing = "
        with needed (oid, privilege) as (
            select c.oid, p.privilege from pg_catalog.pg_class c
             cross join unnest(array['select', 'insert', 'update', 'delete']) p (privilege)
             where c.relnamespace = 'elven_sync'::regnamespace and c.relkind in ('r', 'p', 'v', 'm')
               and (p.privilege = 'select'
                    or p.privilege in ('insert', 'update') and c.relkind in ('r', 'p') and left(c.relname, 1) <> '_'
                       and c.relname <> 'entities'
                    or p.privilege = 'delete' and c.relname = any ($1)))
        select pg_catalog.format('grant usage on schema elven_sync to %I', current_user), true
         where not pg_catalog.has_schema_privilege('elven_sync', 'usage')
         union all
        (select pg_catalog.format('grant %s on elven_sync.%s to %I', string_agg(n.privilege, ', ' order by n.privilege),
                                  c.relname, current_user), bool_or(n.privilege = 'select')
           from needed n join pg_catalog.pg_class c on c.oid = n.oid
          where not pg_catalog.has_table_privilege(n.oid, n.privilege)
          group by c.relname order by c.relname)
         union all
        select pg_catalog.format('grant execute on all functions in schema elven_sync to %I', current_user), true
         where exists (select from pg_catalog.pg_proc p where p.pronamespace = 'elven_sync'::regnamespace
                          and not pg_catalog.has_function_privilege(p.oid, 'execute'))";
    let read = || sqlx::query_as(missing).bind(DELETED_FROM.as_slice()).fetch_all(database);
    let missing: Vec<(String, bool)> = database.retry(read).await?;
    let may_not_read = missing.iter().any(|(_, is_for_reading)| *is_for_reading);
    let grants = missing.into_iter().map(|(grant, _)| grant).collect();
    let may_write = "
        select exists (select from pg_catalog.pg_class c
                        where c.relnamespace = 'elven_sync'::regnamespace and c.relkind in ('r', 'p')
                          and pg_catalog.has_table_privilege(c.oid, 'insert, update, delete'))";
    let may_write = database.retry(|| sqlx::query_scalar(may_write).fetch_one(database)).await?;
    Ok(Some(MissingGrants { grants, may_not_read, may_write }))
}
