//! Facts about the journal for preflight checks. One statement, which only reads.

use serde::Deserialize;
use sqlx::AssertSqlSafe;

use super::JournalError;
use crate::database::Database;
use crate::ledger::LedgerFile;

/// A fact about an entity: a count, or an age in seconds.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct EntityFact {
    /// The entity.
    pub entity_id: String,
    /// The count, or the age in seconds.
    pub value: i64,
    /// More about it, e.g. an error.
    pub about: Option<String>,
}

/// The last run for new rows.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct LastRun {
    /// Its number.
    pub run_id: i64,
    /// Its status.
    pub status: String,
    /// How many seconds ago it began.
    pub begun_s: i64,
    /// Why it failed.
    pub error: Option<String>,
    /// The program that made it.
    pub version: String,
}

/// The tables of the ledger and their files, as a run recorded them (`sync_facts`, name `ledger_files`).
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct RecordedFiles {
    /// The recorded value.
    pub value: FilesValue,
    /// The seconds since the value is as it is.
    pub since_s: i64,
}

/// The value of the fact.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct FilesValue {
    /// The tables and their files.
    pub tables: Vec<LedgerFile>,
    /// The value before the last change.
    #[serde(default)]
    pub before: Option<Box<FilesValue>>,
}

/// The alerts of one name and severity.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct AlertCount {
    /// Their name.
    pub name: String,
    /// Their severity: `critical` or `warning`.
    pub severity: String,
    /// Their number.
    pub alerts: i64,
}

/// Facts about the journal.
#[derive(Clone, Debug, Deserialize)]
pub struct JournalFacts {
    /// Entities with an open pass that no worker works on, with the age of the pass.
    pub open_passes: Vec<EntityFact>,
    /// Entities with batches of unknown outcome and no worker, with their number; and the last error of an entity that
    /// fails.
    pub unanswered: Vec<EntityFact>,
    /// Entities with batches that were announced and have no outcome, in the same way.
    pub announced: Vec<EntityFact>,
    /// Entities whose lease expired and was not released, with the seconds since then and its owner.
    pub expired_leases: Vec<EntityFact>,
    /// Entities with rows that the API refused and that are open, with their number.
    pub rejections: Vec<EntityFact>,
    /// The number of open errors of other kinds.
    pub other_errors: i64,
    /// Entities whose last attempts failed, with the number of failures and the last error.
    pub failing: Vec<EntityFact>,
    /// Entities that are not paused, with the seconds since their last success, the oldest first; since their
    /// registration is not known, those without a success are left out.
    pub last_success: Vec<EntityFact>,
    /// Entities that are not paused and never had a success.
    pub never_succeeded: Vec<String>,
    /// Entities of which the API accepted records.
    pub accepted: i64,
    /// The last run for new rows that has ended.
    pub last_run: Option<LastRun>,
    /// The seconds since the last `verify` that is recorded.
    pub verified_s: Option<i64>,
    /// The alerts that hold, the critical ones first.
    pub alerts: Vec<AlertCount>,
    /// The tables of the ledger and their files. `None`: no run has recorded them.
    pub files: Option<RecordedFiles>,
    /// The timeline of the server, as the last run recorded it. `None`: no run has recorded it.
    pub timeline: Option<i64>,
    /// The size of the sync tables with their indexes, in bytes.
    pub bytes: i64,
    /// The largest sync table.
    pub largest: Option<String>,
}

const FACTS: &str = "
    with live as (
        select s.*, coalesce(s.lease_expires_at > clock_timestamp(), false) as is_leased
          from elven_sync.sync_state s join elven_sync.entities e using (entity_id) where not e.paused),
    facts (kind, entity_id, value, about) as (
        select 'open_passes', l.entity_id, extract(epoch from clock_timestamp() - p.started_at)::bigint, null
          from live l join elven_sync.sync_passes p on p.pass_id = l.pass_id where not l.is_leased
         union all
        select case b.status when 'unknown' then 'unanswered' else 'announced' end, b.entity_id, count(*),
               max(case when l.consecutive_failures > 0 then l.last_error end)
          from elven_sync.sync_batches b join live l using (entity_id)
         where elven_sync.is_open(b.status, b.row_count) and b.status in ('sending', 'unknown') and not l.is_leased
         group by b.status, b.entity_id
         union all
        select 'expired_leases', entity_id, extract(epoch from clock_timestamp() - lease_expires_at)::bigint,
               lease_owner
          from live where lease_expires_at < clock_timestamp()
         union all
        select 'rejections', entity_id, count(*), null from elven_sync.sync_errors
         where resolved_at is null and kind = 'rejected_row' group by entity_id
         union all
        select 'failing', entity_id, consecutive_failures, last_error from live where consecutive_failures > 0
         union all
        select 'last_success', entity_id, extract(epoch from clock_timestamp() - last_success_at)::bigint, null
          from live where last_success_at is not null),
    listed as (
        select f.*, row_number() over (partition by kind order by value desc, entity_id) as place from facts f),
    tables as (
        select c.relname, pg_catalog.pg_total_relation_size(c.oid) as bytes
          from pg_catalog.pg_class c
         where c.relnamespace = 'elven_sync'::regnamespace and c.relkind in ('r', 'm'))
    select json_build_object(
        {lists},
        'other_errors', (select count(*) from elven_sync.sync_errors
                          where resolved_at is null and kind <> 'rejected_row'),
        'never_succeeded', coalesce((
            select json_agg(e.entity_id order by e.entity_id) from elven_sync.entities e
              left join elven_sync.sync_state s using (entity_id)
             where not e.paused and s.last_success_at is null), '[]'),
        'accepted', (select count(*) from elven_sync.sync_state where rows_uploaded > 0),
        'last_run', (
            select json_build_object('run_id', r.run_id, 'status', r.status, 'error', r.error, 'version', r.version,
                       'begun_s', extract(epoch from clock_timestamp() - r.started_at)::bigint)
              from elven_sync.sync_runs r where r.kind = 'incremental' and r.status <> 'running'
             order by r.run_id desc limit 1),
        'verified_s', (select extract(epoch from clock_timestamp() - max(f.checked_at))::bigint
                         from elven_sync.sync_facts f where f.name = 'verify'),
        'alerts', coalesce((
            select json_agg(a order by a.severity <> 'critical', a.name)
              from (select name, severity, count(*) as alerts from elven_sync.alerts group by 1, 2) a), '[]'),
        'files', (select json_build_object('value', f.value,
                             'since_s', extract(epoch from clock_timestamp() - f.since)::bigint)
                    from elven_sync.sync_facts f
                   where f.name = 'ledger_files' and coalesce(f.entity_id, '') = ''),
        'timeline', (select (f.value ->> 'timeline')::bigint from elven_sync.sync_facts f
                      where f.name = 'server' and f.entity_id is null),
        'bytes', (select coalesce(sum(bytes), 0)::bigint from tables),
        'largest', (select relname from tables order by bytes desc limit 1))::text";

/// The lists of facts about entities.
const LISTS: [&str; 7] =
    ["open_passes", "unanswered", "announced", "expired_leases", "rejections", "failing", "last_success"];

/// The most entities of a list.
const LISTED_MAX: usize = 1000;

impl JournalFacts {
    /// Reads the facts.
    pub async fn read(database: &Database) -> Result<Self, JournalError> {
        let list = |name: &str| {
            format!(
                "'{name}', coalesce((select json_agg(json_build_object('entity_id', entity_id, 'value', value, 'about', \
                 about) order by place) from listed where kind = '{name}' and place <= {LISTED_MAX}), '[]')"
            )
        };
        let sql = FACTS.replace("{lists}", &LISTS.map(list).join(",\n        "));
        let read = || sqlx::query_scalar(AssertSqlSafe(sql.clone())).fetch_one(database.single_round_trip());
        let facts: String = database.retry(read).await?;
        serde_json::from_str(&facts).map_err(|problem| sqlx::Error::Decode(problem.into()).into())
    }
}
