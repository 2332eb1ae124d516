//! The batches and errors of a ledger row.

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::{JournalError, RecordedError};
use crate::batch::unpack_ids;
use crate::database::Transaction;
use crate::watermark::LedgerId;

/// The number of batches whose lists are read at a time.
const LISTS_PER_PAGE: i64 = 1000;

/// A batch that lists a row.
#[derive(Clone, Debug, Serialize)]
pub struct BatchOfRow {
    /// Its entity.
    pub entity_id: String,
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
    /// `sending`, `accepted`, `rejected`, `split` or `unknown`.
    pub status: String,
    /// How often it was sent.
    pub attempts: i32,
    /// An attempt had an unknown outcome, so it may have been imported.
    pub ambiguous: bool,
    /// HTTP status of the last answer.
    pub http_status: Option<i32>,
    /// The time from sending to that answer, in milliseconds.
    pub duration_ms: Option<i64>,
    /// SHA-256 of the body, in hex.
    pub body_sha256: String,
    /// What was wrong with the last answer.
    pub error: Option<String>,
    /// When it was recorded.
    pub created_at: DateTime<Utc>,
    /// When its answer was recorded.
    pub finished_at: Option<DateTime<Utc>>,
    /// It set the row aside.
    pub set_aside: bool,
    /// Some of its rows were superseded.
    pub has_superseded: bool,
    /// The zone of its wall-clock times, if it was recorded.
    pub timezone: Option<String>,
    /// The zone rules of its wall-clock times, if they were recorded.
    pub zone_rules: Option<String>,
    /// The version of the maps of its names.
    pub map_version: Option<i64>,
    /// The version of the import that it was made for, if it was recorded.
    pub api_version: Option<i32>,
    /// The source that its records name.
    pub source_id: Option<String>,
    /// The ids of all its rows.
    #[serde(skip)]
    pub ids: Vec<LedgerId>,
}

/// Returns the batches that list a row, in order. All lists are read, so the time grows with the number of batches.
pub async fn carried(
    transaction: &mut Transaction,
    id: &LedgerId,
    entity_id: Option<&str>,
) -> Result<Vec<BatchOfRow>, JournalError> {
    let mut found = Vec::new();
    let mut behind = 0;
    loop {
        let page = sqlx::query!(
            "select batch_id, row_ids from elven_sync.sync_batches
              where batch_id > $1 and ($2::text is null or entity_id = $2) order by batch_id limit $3",
            behind,
            entity_id,
            LISTS_PER_PAGE
        )
        .fetch_all(&mut *transaction)
        .await?;
        let Some(last) = page.last() else { break };
        behind = last.batch_id;
        let lists = |packed: &[u8]| unpack_ids(packed).is_some_and(|ids| ids.contains(id));
        found.extend(page.iter().filter(|batch| lists(&batch.row_ids)).map(|batch| batch.batch_id));
    }
    let rows = sqlx::query!(
        "select b.entity_id, b.batch_id, b.parent_id, b.pass_id, b.backfill_id, b.run_id, r.kind, b.status, b.attempts,
                b.ambiguous, b.http_status, b.duration_ms, b.body_sha256, b.error, b.created_at, b.finished_at,
                b.rejected_ids, b.rows_superseded, b.timezone, b.zone_rules, b.map_version, b.api_version,
                b.source_id, b.row_ids, b.rows_rejected, b.row_count
           from elven_sync.sync_batches b join elven_sync.sync_runs r using (run_id)
          where b.batch_id = any ($1) order by b.batch_id",
        &found
    )
    .fetch_all(transaction)
    .await?;
    let carried = rows.into_iter().map(|row| {
        let is_rejected = |packed: &[u8]| unpack_ids(packed).is_some_and(|ids| ids.contains(id));
        BatchOfRow {
            entity_id: row.entity_id,
            batch_id: row.batch_id,
            parent_id: row.parent_id,
            pass_id: row.pass_id,
            backfill_id: row.backfill_id,
            run_id: row.run_id,
            run_kind: row.kind,
            set_aside: row
                .rejected_ids
                .as_deref()
                .map_or(row.rows_rejected > 0 && row.row_count == 0, is_rejected),
            status: row.status,
            attempts: row.attempts,
            ambiguous: row.ambiguous,
            http_status: row.http_status,
            duration_ms: row.duration_ms,
            body_sha256: row.body_sha256,
            error: row.error,
            created_at: row.created_at,
            finished_at: row.finished_at,
            has_superseded: row.rows_superseded > 0,
            timezone: row.timezone,
            zone_rules: row.zone_rules,
            map_version: row.map_version,
            api_version: row.api_version,
            source_id: row.source_id,
            ids: unpack_ids(&row.row_ids).unwrap_or_default(),
        }
    });
    Ok(carried.collect())
}

/// Returns the errors of a row, the newest first, including resolved ones. `batches`: those that list the row; one of
/// them may hold it.
pub async fn errors_of(
    transaction: &mut Transaction,
    id: &LedgerId,
    entity_id: Option<&str>,
    batches: &[BatchOfRow],
) -> Result<Vec<RecordedError>, JournalError> {
    let batch_ids: Vec<i64> = batches.iter().map(|batch| batch.batch_id).collect();
    let held = sqlx::query!(
        r#"select error_id, ledger_ids as "ledger_ids!", released_ids from elven_sync.sync_errors
            where batch_id = any ($1) and ledger_ids is not null"#,
        &batch_ids
    )
    .fetch_all(&mut *transaction)
    .await?;
    let lists = |packed: &[u8]| unpack_ids(packed).is_some_and(|ids| ids.contains(id));
    let (mut released, mut still_held) = (Vec::new(), Vec::new());
    for held in held.iter().filter(|held| lists(&held.ledger_ids)) {
        let is_released = held.released_ids.as_deref().is_some_and(lists);
        if is_released { &mut released } else { &mut still_held }.push(held.error_id);
    }
    Ok(sqlx::query_as!(
        RecordedError,
        r#"select error_id, kind, entity_id, ledger_id, name, rows, message, http_status, api_code, cause, record::text,
                  occurrences, first_seen_at, last_seen_at, resolved_at,
                  case when error_id = any ($4) then coalesce(resolution, 'the row is not held any more')
                       else resolution end as resolution,
                  run_id, batch_id
             from elven_sync.sync_errors
            where ledger_id = $1 and ($2::text is null or entity_id = $2)
               or error_id = any ($3) or error_id = any ($4)
            order by error_id desc"#,
        id.to_string(),
        entity_id,
        &still_held,
        &released
    )
    .fetch_all(transaction)
    .await?)
}
