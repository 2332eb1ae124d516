//! What the journal has about the rows of a period, for an audit: all in the snapshot of the caller's transaction.

use std::collections::{HashMap, HashSet};

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::{BatchState, JournalError};
use crate::batch::unpack_ids;
use crate::database::Transaction;
use crate::watermark::LedgerId;

/// The most lists of rows that are read together.
const LISTS_PER_PAGE: i64 = 1000;

/// The most errors or actions that are read together. An error may hold 1,000 rows.
const ERRORS_PER_PAGE: i64 = 500;

/// A batch of a backfill or a retry.
#[derive(Clone, Debug)]
pub struct LooseBatch {
    /// Its number.
    pub batch_id: i64,
    /// Its rows, packed.
    pub row_ids: Vec<u8>,
    /// Those of them that it set aside, packed.
    pub rejected_ids: Option<Vec<u8>>,
    /// Rows set aside.
    pub rows_rejected: i32,
    /// Records in its body.
    pub row_count: i32,
    /// Its state.
    pub state: BatchState,
    /// An attempt had an unknown outcome.
    pub ambiguous: bool,
    /// When it was recorded.
    pub created_at: DateTime<Utc>,
    /// SHA-256 of its body, in hex.
    pub body_sha256: String,
    /// The zone that its body was made with, if that was noted.
    pub timezone: Option<String>,
    /// The rules of the zone that its body was made with, if they were noted.
    pub zone_rules: Option<String>,
    /// The version of the maps that its body was made with.
    pub map_version: Option<i64>,
    /// The version of the import that its body was made for, if that was noted.
    pub api_version: Option<i32>,
    /// The source that its records name.
    pub source_id: Option<String>,
    /// The version of the zone rules of the run that sent it last.
    pub tzdata: String,
}

/// Returns the next batches of an entity that belong to no pass and were not split, in order, behind the one named.
/// `open`: only those with an attempt whose outcome was unknown, or without a recorded answer.
pub async fn loose_batches(
    transaction: &mut Transaction,
    entity_id: &str,
    behind: i64,
    open: bool,
) -> Result<Vec<LooseBatch>, JournalError> {
    let rows = sqlx::query!(
        "select b.batch_id, b.row_ids, b.rejected_ids, b.rows_rejected, b.row_count, b.status, b.attempts, b.ambiguous,
                b.created_at, b.body_sha256, b.timezone, b.zone_rules, b.map_version, b.api_version, b.source_id,
                r.tzdata
           from elven_sync.sync_batches b join elven_sync.sync_runs r using (run_id)
          where b.entity_id = $1 and b.pass_id is null and b.batch_id > $2 and b.status <> 'split'
            and (not $4 or b.ambiguous or b.status in ('sending', 'unknown'))
          order by b.batch_id limit $3",
        entity_id,
        behind,
        LISTS_PER_PAGE,
        open
    )
    .fetch_all(transaction)
    .await?;
    rows.into_iter()
        .map(|row| {
            Ok(LooseBatch {
                batch_id: row.batch_id,
                row_ids: row.row_ids,
                rejected_ids: row.rejected_ids,
                rows_rejected: row.rows_rejected,
                row_count: row.row_count,
                state: BatchState::decode(&row.status, row.row_count, row.attempts)?,
                ambiguous: row.ambiguous,
                created_at: row.created_at,
                body_sha256: row.body_sha256,
                timezone: row.timezone,
                zone_rules: row.zone_rules,
                map_version: row.map_version,
                api_version: row.api_version,
                source_id: row.source_id,
                tzdata: row.tzdata,
            })
        })
        .collect()
}

/// The newest error of a row.
#[derive(Clone, Debug)]
pub struct NewestError {
    /// Its number.
    pub error_id: i64,
    /// Its kind, as in the table.
    pub kind: String,
    /// Error code in the answer.
    pub api_code: Option<String>,
    /// The message without the values of the row.
    pub cause: String,
    /// What resolved it. `None`: it is open.
    pub resolution: Option<String>,
    /// A person closed it.
    pub dismissed: bool,
}

/// Returns the newest error of each of these rows that has one, of its own or as a row that is or was held.
pub async fn newest_errors(
    transaction: &mut Transaction,
    entity_id: &str,
    ids: &[String],
) -> Result<HashMap<String, NewestError>, JournalError> {
    let own = sqlx::query!(
        r#"select distinct on (ledger_id) ledger_id as "ledger_id!", error_id, kind, api_code,
                  coalesce(cause, message) as "cause!", resolution, dismissed
             from elven_sync.sync_errors where entity_id = $1 and ledger_id = any ($2)
            order by ledger_id, error_id desc"#,
        entity_id,
        ids
    )
    .fetch_all(&mut *transaction)
    .await?;
    let mut found: HashMap<String, NewestError> = HashMap::new();
    for row in own {
        let error = NewestError {
            error_id: row.error_id,
            kind: row.kind,
            api_code: row.api_code,
            cause: row.cause,
            resolution: row.resolution,
            dismissed: row.dismissed,
        };
        found.insert(row.ledger_id, error);
    }
    let mut wanted: HashSet<&str> = ids.iter().map(String::as_str).collect();
    let mut before = i64::MAX;
    loop {
        let held = sqlx::query!(
            r#"select error_id, kind, api_code, coalesce(cause, message) as "cause!", resolution, dismissed,
                      ledger_ids as "ledger_ids!", released_ids
                 from elven_sync.sync_errors
                where entity_id = $1 and ledger_ids is not null and error_id < $2
                order by error_id desc limit $3"#,
            entity_id,
            before,
            ERRORS_PER_PAGE
        )
        .fetch_all(&mut *transaction)
        .await?;
        let Some(last) = held.last() else { return Ok(found) };
        before = last.error_id;
        for row in held {
            let released: Vec<LedgerId> =
                row.released_ids.as_deref().and_then(unpack_ids).unwrap_or_default();
            for id in unpack_ids(&row.ledger_ids).unwrap_or_default() {
                let text = id.to_string();
                // The newest held error of a row comes first.
                let is_new = wanted.remove(text.as_str());
                if !is_new || found.get(&text).is_some_and(|own| own.error_id > row.error_id) {
                    continue;
                }
                let is_released = released.contains(&id);
                let not_held = is_released.then(|| "the row is not held any more".to_owned());
                let error = NewestError {
                    error_id: row.error_id,
                    kind: row.kind.clone(),
                    api_code: row.api_code.clone(),
                    cause: row.cause.clone(),
                    resolution: row.resolution.clone().or(not_held),
                    dismissed: row.dismissed && !is_released,
                };
                found.insert(text, error);
            }
        }
    }
}

/// An error about rows of a period, and who settled it.
#[derive(Clone, Debug, Serialize)]
pub struct RowException {
    /// The entity.
    pub entity_id: String,
    /// Its number.
    pub error_id: i64,
    /// Its kind, as in the table.
    pub kind: String,
    /// HTTP status of the answer.
    pub http_status: Option<i32>,
    /// Error code in the answer.
    pub api_code: Option<String>,
    /// The message without the values of the row.
    pub cause: String,
    /// The number of rows of the period that it is about.
    pub rows: usize,
    /// The ids of these rows, or of the first of them.
    pub ledger_ids: Vec<String>,
    /// Those of them that are set aside because of it now.
    pub open_rows: usize,
    /// When it occurred first.
    pub first_seen_at: DateTime<Utc>,
    /// When it occurred last.
    pub last_seen_at: DateTime<Utc>,
    /// When it was resolved; `None`: open.
    pub resolved_at: Option<DateTime<Utc>>,
    /// What resolved it: the reason that a person gave, or what the connector did.
    pub resolution: Option<String>,
    /// A person closed it.
    pub dismissed: bool,
    /// The database role of the person who closed it. `None`: the connector did, or the action is not recorded.
    pub settled_by: Option<String>,
    /// The process with which the person closed it: a claim, not a proof.
    pub settled_with: Option<String>,
    /// Those of its rows that are not held any more.
    #[serde(skip)]
    pub released: Vec<String>,
}

/// Returns the next errors about rows of an entity, in order, behind the one named, each with all its rows.
pub async fn row_exceptions(
    transaction: &mut Transaction,
    entity_id: &str,
    behind: i64,
) -> Result<Vec<RowException>, JournalError> {
    let rows = sqlx::query!(
        r#"select e.error_id, e.kind, e.http_status, e.api_code, coalesce(e.cause, e.message) as "cause!", e.ledger_id,
                  e.ledger_ids, e.released_ids, e.first_seen_at, e.last_seen_at, e.resolved_at, e.resolution,
                  e.dismissed, a.actor as "actor?", a.client as "client?"
             from elven_sync.sync_errors e
             left join lateral (
                  select s.actor, s.client from elven_sync.sync_actions s
                   where e.dismissed and s.action = 'resolve' and s.entity_id = e.entity_id and s.at >= e.resolved_at
                     and s.reason is not distinct from e.resolution
                   order by s.at limit 1) a on true
            where e.entity_id = $1 and e.error_id > $2 and (e.ledger_id is not null or e.ledger_ids is not null)
            order by e.error_id limit $3"#,
        entity_id,
        behind,
        ERRORS_PER_PAGE
    )
    .fetch_all(transaction)
    .await?;
    let ids = |packed: Option<&[u8]>| -> Vec<String> {
        let ids = packed.and_then(unpack_ids).unwrap_or_default();
        ids.iter().map(ToString::to_string).collect()
    };
    Ok(rows
        .into_iter()
        .map(|row| RowException {
            entity_id: entity_id.to_owned(),
            error_id: row.error_id,
            kind: row.kind,
            http_status: row.http_status,
            api_code: row.api_code,
            cause: row.cause,
            ledger_ids: row.ledger_id.map_or_else(|| ids(row.ledger_ids.as_deref()), |id| vec![id]),
            rows: 0,
            open_rows: 0,
            first_seen_at: row.first_seen_at,
            last_seen_at: row.last_seen_at,
            resolved_at: row.resolved_at,
            resolution: row.resolution,
            dismissed: row.dismissed,
            settled_by: row.actor,
            settled_with: row.client,
            released: ids(row.released_ids.as_deref()),
        })
        .collect())
}

/// A batch that has rows of a period, as `sync_batches` and `sync_runs` have it.
#[derive(Clone, Debug, Serialize)]
pub struct BatchFacts {
    /// Its number.
    pub batch_id: i64,
    /// The batch that it is a part of.
    pub parent_id: Option<i64>,
    /// Its pass. `None`: a backfill or a retry.
    pub pass_id: Option<i64>,
    /// Its backfill.
    pub backfill_id: Option<i64>,
    /// The run that sent it last.
    pub run_id: i64,
    /// `incremental`, `backfill` or `retry`.
    pub run_kind: String,
    /// The version of elven-sync of that run.
    pub version: String,
    /// `sending`, `accepted`, `rejected`, `split` or `unknown`.
    pub status: String,
    /// How often it was sent.
    pub attempts: i32,
    /// An attempt had an unknown outcome, so it may have been imported more than once, or without a recorded answer.
    pub ambiguous: bool,
    /// HTTP status of the last answer.
    pub http_status: Option<i32>,
    /// What was wrong with the last answer.
    pub error: Option<String>,
    /// When it was recorded.
    pub created_at: DateTime<Utc>,
    /// When its answer was recorded.
    pub finished_at: Option<DateTime<Utc>>,
    /// Rows in its list.
    pub rows_read: i32,
    /// Records in its body.
    pub row_count: i32,
    /// Rows set aside.
    pub rows_rejected: i32,
    /// Rows superseded.
    pub rows_superseded: i32,
    /// SHA-256 of its body, in hex.
    pub body_sha256: String,
    /// The zone of its wall-clock times.
    pub timezone: Option<String>,
    /// The zone rules of its wall-clock times.
    pub zone_rules: Option<String>,
    /// The version of the maps of its names.
    pub map_version: Option<i64>,
    /// The version of the import.
    pub api_version: Option<i32>,
    /// The source that its records name.
    pub source_id: Option<String>,
}

/// Returns these batches, and the batches that they are parts of with an attempt whose outcome was unknown, in order.
pub async fn batch_facts(
    transaction: &mut Transaction,
    batch_ids: &[i64],
) -> Result<Vec<BatchFacts>, JournalError> {
    Ok(sqlx::query_as!(
        BatchFacts,
        "with recursive up (batch_id, parent_id) as (
             select w.batch_id, w.parent_id from elven_sync.sync_batches w where w.batch_id = any ($1)
              union
             select w.batch_id, w.parent_id from up join elven_sync.sync_batches w on w.batch_id = up.parent_id)
         select b.batch_id, b.parent_id, b.pass_id, b.backfill_id, b.run_id, r.kind as run_kind, r.version, b.status,
                b.attempts, b.ambiguous, b.http_status, b.error, b.created_at, b.finished_at, b.rows_read, b.row_count,
                b.rows_rejected, b.rows_superseded, b.body_sha256, b.timezone, b.zone_rules, b.map_version,
                b.api_version, b.source_id
           from up join elven_sync.sync_batches b using (batch_id) join elven_sync.sync_runs r using (run_id)
          where b.batch_id = any ($1) or b.ambiguous order by b.batch_id",
        batch_ids
    )
    .fetch_all(transaction)
    .await?)
}

/// An action of a person.
#[derive(Clone, Debug, Serialize)]
pub struct PersonsAction {
    /// Its number.
    pub action_id: i64,
    /// When.
    pub at: DateTime<Utc>,
    /// The database role.
    pub actor: String,
    /// The process or session: a claim, not a proof.
    pub client: Option<String>,
    /// What, as in `sync_actions.action`.
    pub action: String,
    /// The entity. `None`: all, or several.
    pub entity_id: Option<String>,
    /// Why, if a reason was given.
    pub reason: Option<String>,
    /// The changes.
    pub details: serde_json::Value,
}

/// Returns the next actions since a time that are about one of these entities or about no single entity, in order, behind
/// the one named.
pub async fn actions_since(
    transaction: &mut Transaction,
    entity_ids: &[String],
    since: DateTime<Utc>,
    behind: i64,
) -> Result<Vec<PersonsAction>, JournalError> {
    Ok(sqlx::query_as!(
        PersonsAction,
        "select action_id, at, actor, client, action, entity_id, reason, details
           from elven_sync.sync_actions
          where at >= $2 and (entity_id is null or entity_id = any ($1)) and action_id > $3
          order by action_id limit $4",
        entity_ids,
        since,
        behind,
        ERRORS_PER_PAGE
    )
    .fetch_all(transaction)
    .await?)
}
