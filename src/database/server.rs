//! Facts about the server, for preflight checks.

use chrono::{DateTime, TimeDelta, Utc};
use sqlx::{Executor, Row};

use super::Database;
use crate::wall_clock;

/// Selects the timeline of the server, which each promotion of a copy changes; NULL at a standby.
pub const TIMELINE: &str = "
    select case when not pg_catalog.pg_is_in_recovery()
                then ('x' || left(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 8))::bit(32)::bigint end";

/// Facts about the server, the connection and the role.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct ServerFacts {
    /// The version as a number, e.g. 150004.
    pub version_number: i32,
    /// The version for people.
    pub version: String,
    /// The role.
    pub role: String,
    /// The role is a superuser.
    pub is_superuser: bool,
    /// The database.
    pub database: String,
    /// Why nothing can be written: `standby`, or `configuration` where the server's own one makes transactions read-only.
    pub read_only_by: Option<String>,
    /// The protocol of TLS; `None`: the connection of the server is not encrypted.
    pub tls: Option<String>,
    /// The connection of the server comes from this machine: a socket, or a loopback address.
    pub is_local: bool,
    /// The number of connections that roles such as this one may open: at the server, in the database, by the role.
    pub connections_max: i64,
    /// The number of open connections.
    pub connections: i64,
    /// The timeline, which each promotion of a copy changes. `None`: the server is a standby.
    pub timeline: Option<i64>,
    /// Sessions of elven-sync in other databases of the server, as far as the role may see them.
    pub elsewhere: Vec<String>,
}

const FACTS: &str = "
    select current_setting('server_version_num')::int as version_number,
           current_setting('server_version') as version, current_user::text as role,
           (select rolsuper from pg_catalog.pg_roles where rolname = current_user) as is_superuser,
           current_database()::text as database,
           case when pg_catalog.pg_is_in_recovery() then 'standby'
                when exists (select from pg_catalog.pg_settings where name = 'default_transaction_read_only'
                                and reset_val = 'on' and source in ('configuration file', 'command line', 'override'))
                then 'configuration' end as read_only_by,
           (select case when s.ssl then s.version end from pg_catalog.pg_stat_ssl s
             where s.pid = pg_catalog.pg_backend_pid()) as tls,
           coalesce(pg_catalog.inet_client_addr() <<= '127.0.0.0/8'::inet
                    or pg_catalog.inet_client_addr() = '::1'::inet
                    or pg_catalog.inet_client_addr() = pg_catalog.inet_server_addr(), true) as is_local,
           least(current_setting('max_connections')::bigint
                     - current_setting('superuser_reserved_connections')::bigint
                     - coalesce(current_setting('reserved_connections', true)::bigint, 0),
                 (select nullif(datconnlimit, -1) from pg_catalog.pg_database where datname = current_database()),
                 (select nullif(rolconnlimit, -1) from pg_catalog.pg_roles where rolname = current_user))::bigint
               as connections_max,
           (select sum(numbackends) from pg_catalog.pg_stat_database)::bigint as connections,
           ({timeline}) as timeline,
           array(select distinct a.datname::text from pg_catalog.pg_stat_activity a
                  where a.datname <> current_database() and a.application_name like 'elven-sync%' order by 1)
               as elsewhere";

impl Database {
    /// Reads the facts about the server.
    pub async fn server_facts(&self) -> Result<ServerFacts, sqlx::Error> {
        let sql = FACTS.replace("{timeline}", TIMELINE);
        self.retry(|| sqlx::query_as(sqlx::AssertSqlSafe(sql.clone())).fetch_one(self)).await
    }

    /// Returns how far the clock of this machine is ahead of the server's. The best of a few measurements counts: half
    /// of the time of an answer is its error.
    pub async fn clock_skew(&self) -> Result<TimeDelta, sqlx::Error> {
        let mut best: Option<(TimeDelta, TimeDelta)> = None;
        for _ in 0..3 {
            let mut transaction = self.begin_reading().await?;
            let before = wall_clock::now();
            let asked = sqlx::query_scalar("select clock_timestamp()").fetch_one(&mut transaction).await;
            let theirs: DateTime<Utc> = asked?;
            let took = wall_clock::now() - before;
            transaction.commit().await?;
            let ahead = before + took / 2 - theirs;
            if best.is_none_or(|(shortest, _)| took < shortest) {
                best = Some((took, ahead));
            }
        }
        Ok(best.map(|(_, ahead)| ahead).unwrap_or_default())
    }

    /// Returns the server processes of two statements in each of a few transactions. Behind a pooler in transaction
    /// mode the transactions may have different ones; within a transaction they must be equal.
    pub async fn processes_of_transactions(&self) -> Result<Vec<(i32, i32)>, sqlx::Error> {
        let mut processes = Vec::new();
        // At once, so that a pooler has to use several server connections.
        let mut open = Vec::new();
        for _ in 0..2 {
            let mut transaction = self.begin_reading().await?;
            let first = process(&mut transaction).await?;
            open.push((transaction, first));
        }
        for (mut transaction, first) in open {
            processes.push((first, process(&mut transaction).await?));
            transaction.commit().await?;
        }
        let mut transaction = self.begin_reading().await?;
        let first = process(&mut transaction).await?;
        processes.push((first, process(&mut transaction).await?));
        transaction.commit().await?;
        Ok(processes)
    }

    /// Returns how many seconds a standby is behind. `None`: it has replayed nothing yet, or it is a primary.
    pub async fn replay_lag_s(&self) -> Result<Option<i64>, sqlx::Error> {
        // A standby that has replayed everything is not behind, however old the last transaction is.
        let lag = "select case when pg_catalog.pg_last_wal_receive_lsn() = pg_catalog.pg_last_wal_replay_lsn() then 0
                        else extract(epoch from clock_timestamp() - pg_catalog.pg_last_xact_replay_timestamp()) end::bigint
                    where pg_catalog.pg_is_in_recovery()";
        Ok(self.retry(|| sqlx::query_scalar(lag).fetch_optional(self)).await?.flatten())
    }
}

async fn process(transaction: &mut super::Transaction) -> Result<i32, sqlx::Error> {
    transaction.fetch_one("select pg_catalog.pg_backend_pid()").await?.try_get(0)
}
