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
}

/// Sessions of elven-sync in another database of the server. What they send cannot be seen.
#[derive(Clone, Debug, PartialEq, Eq, sqlx::FromRow)]
pub struct OtherInstallation {
    /// The database.
    pub database: String,
    /// The role of the sessions.
    pub role: String,
    /// The name of one of the sessions: its version, and what it does.
    pub name: String,
}

/// How far a standby has replayed. Positions are bytes of the write-ahead log.
#[derive(Clone, Debug, PartialEq, Eq, sqlx::FromRow)]
pub struct ReplayState {
    /// The position up to which it has replayed.
    pub replayed: Option<i64>,
    /// Somebody has paused the replay.
    pub is_paused: bool,
    /// It is connected to the server from which it receives changes.
    pub is_receiving: bool,
    /// The age of the last transaction that it has replayed, in seconds. That is no lag: a quiet primary has none newer.
    pub last_commit_s: Option<i64>,
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
           ({timeline}) as timeline";

/// Commands that only look send nothing, so their sessions are no installation. Versions before 0.1.2 do not name the
/// command.
const ELSEWHERE: &str = "
    select distinct on (a.datname, a.usename) a.datname::text as database, a.usename::text as role,
           a.application_name as name
      from pg_catalog.pg_stat_activity a
     where a.datname <> current_database() and a.usename is not null
       and a.application_name ~ '^elven-sync(/[^ ]+ (run|serve|backfill|errors)( [0-9]+)?)?$'
     order by a.datname, a.usename, a.application_name";

/// The functions that read positions.
const REPLAY: &str = "
    select (pg_catalog.pg_last_wal_replay_lsn() - '0/0'::pg_lsn)::bigint as replayed,
           pg_catalog.pg_is_wal_replay_paused() as is_paused,
           exists (select from pg_catalog.pg_stat_wal_receiver r where r.pid is not null) as is_receiving,
           extract(epoch from clock_timestamp() - pg_catalog.pg_last_xact_replay_timestamp())::bigint as last_commit_s
     where pg_catalog.pg_is_in_recovery()";

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

    /// Returns the position up to which this primary has written its changes.
    pub async fn flushed(&self) -> Result<i64, sqlx::Error> {
        let flushed = "select (pg_catalog.pg_current_wal_flush_lsn() - '0/0'::pg_lsn)::bigint";
        self.retry(|| sqlx::query_scalar(flushed).fetch_one(self)).await
    }

    /// Returns how far a standby has replayed. `None`: it is a primary.
    pub async fn replay_state(&self) -> Result<Option<ReplayState>, sqlx::Error> {
        self.retry(|| sqlx::query_as(REPLAY).fetch_optional(self)).await
    }

    /// Returns the sessions of elven-sync in other databases of the server that belong to commands that send.
    pub async fn other_installations(&self) -> Result<Vec<OtherInstallation>, sqlx::Error> {
        self.retry(|| sqlx::query_as(ELSEWHERE).fetch_all(self)).await
    }
}

async fn process(transaction: &mut super::Transaction) -> Result<i32, sqlx::Error> {
    transaction.fetch_one("select pg_catalog.pg_backend_pid()").await?.try_get(0)
}
