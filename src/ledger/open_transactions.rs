//! Open transactions that have written to the ledger.

use super::beneath::BENEATH;
use crate::database::Database;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

/// An open transaction that has written to the ledger.
///
/// It delays only its own rows: they belong to the first pass that begins after it ends.
#[derive(Clone, Debug, Deserialize, Serialize, sqlx::FromRow)]
pub struct Writer {
    /// Its id, as in `pg_stat_activity.backend_xid`.
    pub transaction: String,
    /// The server process. `None`: the transaction is prepared and belongs to no session.
    pub pid: Option<i32>,
    /// The name under which it was prepared (two-phase commit).
    pub prepared_as: Option<String>,
    /// Its user; `None` when this role may not see it.
    pub user_name: Option<String>,
    /// The `application_name` of its session.
    pub application_name: Option<String>,
    /// The state of its session, as in `pg_stat_activity.state`.
    pub state: Option<String>,
    /// When it began, or was prepared; `None` when this role may not see it.
    pub since: Option<DateTime<Utc>>,
}

/// Returns the oldest open transaction that has written to the table.
pub(super) async fn oldest(database: &Database, table: &str) -> Result<Option<Writer>, sqlx::Error> {
    Ok(writers(database, table, 1).await?.into_iter().next())
}

/// Returns the open transactions that have written to the table, the oldest first, and at most so many. They are found
/// by their locks, which every role may see; `pg_stat_activity` shows other sessions in full only to members of
/// `pg_monitor`.
pub(super) async fn writers(database: &Database, table: &str, max: u16) -> Result<Vec<Writer>, sqlx::Error> {
    let sql = format!("with recursive {BENEATH} {WRITERS} limit {max}");
    database.retry(|| sqlx::query_as(sqlx::AssertSqlSafe(sql.clone())).bind(table).fetch_all(database)).await
}

/// SQL for the open transactions that have written to one of the tables in `beneath`, the oldest first.
pub(super) const WRITERS: &str = "
         select x.transactionid::text as transaction, x.pid, p.gid as prepared_as,
                coalesce(a.usename, p.owner)::text as user_name, nullif(a.application_name, '') as application_name,
                a.state, coalesce(a.xact_start, p.prepared) as since
           from pg_catalog.pg_locks x
           left join pg_catalog.pg_stat_activity a on a.pid = x.pid
           left join pg_catalog.pg_prepared_xacts p on x.pid is null and p.transaction = x.transactionid
          where x.locktype = 'transactionid' and x.mode = 'ExclusiveLock' and x.granted
            and x.virtualtransaction in (
                    select l.virtualtransaction from pg_catalog.pg_locks l
                      join pg_catalog.pg_database d on d.oid = l.database and d.datname = current_database()
                     where l.relation in (select oid from beneath) and l.granted
                       and l.mode in ('RowExclusiveLock', 'ShareRowExclusiveLock', 'ExclusiveLock',
                       'AccessExclusiveLock'))
          order by pg_catalog.age(x.transactionid) desc";
