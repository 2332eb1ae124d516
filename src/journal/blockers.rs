//! Sessions that keep rows of a lane locked, e.g. a forgotten `select ... for update`.

use chrono::{DateTime, Utc};

use super::{Journal, JournalError};
use crate::text::quoted_sql;

/// A session, or a prepared transaction, that keeps rows of a lane locked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blocker {
    /// The server process. `None`: the transaction is prepared and belongs to no session.
    pub pid: Option<i32>,
    /// The name under which it was prepared (two-phase commit).
    pub prepared_as: Option<String>,
    /// Its user; `None` when this role may not see it.
    pub user_name: Option<String>,
    /// The `application_name` of its session.
    pub application_name: Option<String>,
    /// When its transaction began; `None` when this role may not see it.
    pub since: Option<DateTime<Utc>>,
}

impl Blocker {
    /// Returns the words that identify the session.
    pub fn identity(&self) -> String {
        let who = [
            self.prepared_as.as_ref().map(|name| format!("prepared as '{name}'")),
            self.pid.map(|pid| format!("pid {pid}")),
            self.user_name.as_ref().map(|name| format!("user {name}")),
            self.application_name.as_ref().map(|name| format!("application {name}")),
            self.since.map(|since| format!("since {}", since.format("%Y-%m-%d %H:%M:%SZ"))),
        ];
        who.into_iter().flatten().collect::<Vec<_>>().join(", ")
    }

    /// Returns the SQL that ends its transaction.
    pub fn ending(&self) -> Option<String> {
        match (&self.prepared_as, self.pid) {
            (Some(name), _) => Some(format!("rollback prepared {}", quoted_sql(name))),
            (None, Some(pid)) => Some(format!("select pg_terminate_backend({pid})")),
            (None, None) => None,
        }
    }
}

impl Journal {
    /// Returns the sessions that keep the state of an entity, its open batches, the row of the run or a whole table of
    /// the schema locked, the oldest transaction first.
    ///
    /// They are found by the transaction that a locked row names (`xmax`), and not by `pg_blocking_pids`: a statement
    /// that skips locked rows waits for nobody. Statements of other workers that are at work are left out, because they
    /// hold their locks for a moment only; a statement that waits for its client is not at work, and a client that the
    /// network has lost never answers.
    pub async fn blockers(&self, entity_id: &str, run_id: i64) -> Result<Vec<Blocker>, JournalError> {
        let by_transaction = || {
            sqlx::query_as!(
                Blocker,
                r#"with locked (xid) as (
                        select xmax from elven_sync.sync_state where entity_id = $1
                         union all select xmax from elven_sync.sync_runs where run_id = $2
                         union all select xmax from elven_sync.sync_batches
                                    where entity_id = $1 and elven_sync.is_open(status, row_count)),
                        holders as (
                        select pid, virtualtransaction from pg_locks
                         where locktype = 'transactionid' and mode = 'ExclusiveLock' and granted
                           and transactionid in (select xid from locked)
                         union
                        select l.pid, l.virtualtransaction from pg_locks l join pg_class c on c.oid = l.relation
                         where l.locktype = 'relation' and l.granted
                           and l.database = (select oid from pg_database where datname = current_database())
                           and c.relnamespace = 'elven_sync'::regnamespace
                           and l.mode in ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock'))
                   select h.pid as "pid?", p.gid as "prepared_as?", coalesce(a.usename, p.owner)::text as user_name,
                          nullif(a.application_name, '') as application_name,
                          coalesce(a.xact_start, p.prepared) as since
                     from holders h
                     left join pg_stat_activity a on a.pid = h.pid
                     left join pg_prepared_xacts p
                       on h.pid is null and h.virtualtransaction = '-1/' || p.transaction::text
                    where h.pid is distinct from pg_backend_pid()
                      and not coalesce(a.application_name ~ '^elven-sync(/|$)' and a.state = 'active'
                                       and a.wait_event_type is distinct from 'Client', false)
                    order by since, h.pid"#,
                entity_id,
                run_id
            )
            .fetch_all(&self.database)
        };
        let found = self.database.retry(by_transaction).await?;
        if !found.is_empty() {
            return Ok(found);
        }
        // Several sessions with a shared lock: the row names a list of transactions. It is asked separately, because
        // PostgreSQL refuses the number of a single transaction that is not the number of a list as well.
        let by_list = sqlx::query_as!(
            Blocker,
            r#"select a.pid as "pid?", null as "prepared_as?", a.usename::text as user_name,
                      nullif(a.application_name, '') as application_name, a.xact_start as since
                 from elven_sync.sync_state s cross join lateral pg_get_multixact_members(s.xmax) m
                 join pg_locks l on l.locktype = 'transactionid' and l.transactionid = m.xid and l.granted
                 join pg_stat_activity a on a.pid = l.pid
                where s.entity_id = $1 and s.xmax <> '0'::xid
                order by a.xact_start, a.pid"#,
            entity_id
        )
        .fetch_all(&self.database);
        Ok(by_list.await.unwrap_or_default())
    }
}
