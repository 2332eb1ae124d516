//! Batches: announced before they are sent, settled together with the watermark.

use sqlx::{Postgres, Transaction};

use super::lanes::commit_if_held;
use super::{Journal, JournalError, Kind, OpenPass, Problem, errors};
use crate::batch::{Batch, InvalidRow};
use crate::watermark::Cursor;

/// A batch of an open pass that no answer was recorded for: it may have arrived.
#[derive(Debug)]
pub struct Unfinished {
    /// The batch.
    pub batch_id: i64,
    /// Where its interval ends.
    pub last: Cursor,
    /// SHA-256 of the body that was sent, in hex.
    pub body_sha256: String,
}

/// The answer to a batch, as it is recorded.
#[derive(Debug)]
pub struct Settlement {
    /// Status of the answer. `None`: nothing was sent.
    pub http_status: Option<i32>,
    /// From sending to the answer.
    pub duration_ms: Option<i64>,
    /// A request went out.
    pub sent: bool,
    /// It repeated one whose outcome is unknown.
    pub repeated: bool,
}

impl Journal {
    /// The batch of an open pass whose outcome is unknown, if there is one.
    ///
    /// One that was being sent when its worker stopped becomes `unknown` here.
    pub async fn unfinished(&self, pass: &OpenPass) -> Result<Option<Unfinished>, JournalError> {
        let row = sqlx::query!(
            r#"update elven_sync.sync_batches b set status = 'unknown'
                where b.pass_id = $1 and b.status in ('sending', 'unknown')
                  and exists (select from elven_sync.sync_state s
                               where s.entity_id = $2 and s.lease_epoch = $3 and s.lease_owner = $4)
            returning b.batch_id, b.last_xid::text as "last_xid!", b.last_id, b.body_sha256"#,
            pass.pass_id,
            pass.lease.entity_id,
            pass.lease.epoch,
            pass.lease.owner
        )
        .fetch_optional(&self.pool)
        .await?;
        row.map(|row| {
            let xid = row.last_xid.parse().map_err(|_| sqlx::Error::Decode("not an xid8".into()))?;
            let last = Cursor { xid, id: row.last_id };
            Ok(Unfinished { batch_id: row.batch_id, last, body_sha256: row.body_sha256 })
        })
        .transpose()
    }

    /// Records a batch that is about to be sent, and checks the lease by doing so.
    pub async fn announce(&self, pass: &OpenPass, run_id: i64, batch: &Batch) -> Result<i64, JournalError> {
        let mut transaction = self.begin().await?;
        let held = hold(&mut transaction, pass, batch.before.as_ref()).await?;
        let batch_id = sqlx::query_scalar!(
            "insert into elven_sync.sync_batches
                    (run_id, pass_id, entity_id, before_xid, before_id, last_xid, last_id, row_ids, rows_read,
                     row_count, rows_rejected, rows_superseded, body_bytes, body_sha256)
             values ($1, $2, $3, $4::text::xid8, $5, $6::text::xid8, $7, $8, $9, $10, $11, $12, $13, $14)
          returning batch_id",
            run_id,
            pass.pass_id,
            pass.lease.entity_id,
            batch.before.as_ref().map(|cursor| cursor.xid.to_string()),
            batch.before.as_ref().map(|cursor| cursor.id.as_str()),
            batch.last.xid.to_string(),
            batch.last.id,
            batch.row_ids,
            count(batch.rows_read),
            count(batch.records),
            count(batch.invalid.len()),
            count(batch.superseded),
            count(batch.body.len()),
            batch.body_sha256
        )
        .fetch_one(&mut *transaction)
        .await?;
        commit_if_held(transaction, held).await?;
        Ok(batch_id)
    }

    /// Records that a batch whose outcome is unknown is about to be sent again.
    ///
    /// Its rows are written anew, since they may have changed meanwhile: then its hash does too.
    pub async fn announce_again(
        &self,
        pass: &OpenPass,
        run_id: i64,
        batch_id: i64,
        batch: &Batch,
    ) -> Result<(), JournalError> {
        let mut transaction = self.begin().await?;
        let held = hold(&mut transaction, pass, batch.before.as_ref()).await?;
        sqlx::query!(
            "update elven_sync.sync_batches
                set status = 'sending', run_id = $2, attempts = attempts + 1, ambiguous = true, finished_at = null,
                    row_ids = $3, rows_read = $4, row_count = $5, rows_rejected = $6, rows_superseded = $7,
                    body_bytes = $8, body_sha256 = $9
              where batch_id = $1",
            batch_id,
            run_id,
            batch.row_ids,
            count(batch.rows_read),
            count(batch.records),
            count(batch.invalid.len()),
            count(batch.superseded),
            count(batch.body.len()),
            batch.body_sha256
        )
        .execute(&mut *transaction)
        .await?;
        commit_if_held(transaction, held).await
    }

    /// Records an interval whose rows are gone or were written again since: nothing of it is to be sent.
    pub async fn emptied(
        &self,
        pass: &OpenPass,
        before: Option<&Cursor>,
        unfinished: &Unfinished,
    ) -> Result<(), JournalError> {
        let mut transaction = self.begin().await?;
        let moved = advance(&mut transaction, pass, before, &unfinished.last, 0).await?;
        sqlx::query!(
            r#"update elven_sync.sync_batches
                  set status = 'accepted', ambiguous = true, row_ids = '\x01', rows_read = 0, row_count = 0,
                      rows_rejected = 0, rows_superseded = 0, finished_at = clock_timestamp(),
                      error = 'its rows were changed or deleted before its outcome was known'
                where batch_id = $1"#,
            unfinished.batch_id
        )
        .execute(&mut *transaction)
        .await?;
        commit_if_held(transaction, moved).await
    }

    /// Records an accepted batch: batch, watermark, counters and the rows set aside, in one transaction.
    pub async fn settle(
        &self,
        pass: &OpenPass,
        run_id: i64,
        batch_id: i64,
        batch: &Batch,
        settlement: &Settlement,
    ) -> Result<(), JournalError> {
        let mut transaction = self.begin().await?;
        let records = i64::from(count(batch.records));
        let moved = advance(&mut transaction, pass, batch.before.as_ref(), &batch.last, records).await?;
        let problems: Vec<Problem> = batch.invalid.iter().map(|row| set_aside(batch_id, row)).collect();
        errors::record(&mut transaction, run_id, &pass.lease.entity_id, &problems).await?;
        resolve_newer(&mut transaction, &pass.lease.entity_id, batch_id).await?;
        sqlx::query!(
            "update elven_sync.sync_batches
                set status = 'accepted', http_status = $2, duration_ms = $3, error = null,
                    finished_at = clock_timestamp()
              where batch_id = $1",
            batch_id,
            settlement.http_status,
            settlement.duration_ms
        )
        .execute(&mut *transaction)
        .await?;
        count_in_run(&mut transaction, run_id, batch, settlement, true).await?;
        commit_if_held(transaction, moved).await
    }

    /// Records an answer that stops the lane: the watermark stays where it is.
    ///
    /// `status` is `unknown` when the batch may have arrived, else `rejected`; one that was ever unknown
    /// stays so, because an earlier attempt may have arrived.
    pub async fn refused(
        &self,
        pass: &OpenPass,
        run_id: i64,
        (batch_id, batch): (i64, &Batch),
        status: &str,
        settlement: &Settlement,
        error: &str,
    ) -> Result<(), JournalError> {
        let mut transaction = self.begin().await?;
        let done = sqlx::query!(
            "update elven_sync.sync_batches b
                set status = case when b.ambiguous then 'unknown' else $4 end, http_status = $5, duration_ms = $6,
                    error = $7, finished_at = clock_timestamp()
              where b.batch_id = $3
                and exists (select from elven_sync.sync_state s
                             where s.entity_id = $1 and s.lease_epoch = $2 and s.lease_owner = $8)",
            pass.lease.entity_id,
            pass.lease.epoch,
            batch_id,
            status,
            settlement.http_status,
            settlement.duration_ms,
            error,
            pass.lease.owner
        )
        .execute(&mut *transaction)
        .await?;
        count_in_run(&mut transaction, run_id, batch, settlement, false).await?;
        commit_if_held(transaction, done.rows_affected()).await
    }
}

/// Moves the cursor over an interval: by the lease and in the pass that are named, and from where the
/// interval begins.
/// Returns how many lanes moved, 1 or 0.
async fn advance(
    transaction: &mut Transaction<'static, Postgres>,
    pass: &OpenPass,
    before: Option<&Cursor>,
    last: &Cursor,
    records: i64,
) -> Result<u64, sqlx::Error> {
    let done = sqlx::query!(
        "update elven_sync.sync_state
            set cursor_xid = $5::text::xid8, cursor_id = $6, rows_uploaded = rows_uploaded + $7
          where entity_id = $1 and lease_epoch = $2 and lease_owner = $8 and pass_id = $9
            and cursor_xid is not distinct from $3::text::xid8 and cursor_id is not distinct from $4",
        pass.lease.entity_id,
        pass.lease.epoch,
        before.map(|cursor| cursor.xid.to_string()),
        before.map(|cursor| cursor.id.as_str()),
        last.xid.to_string(),
        last.id,
        records,
        pass.lease.owner,
        pass.pass_id
    )
    .execute(&mut **transaction)
    .await?;
    Ok(done.rows_affected())
}

/// Counts a request, and the rows of an accepted batch, in the run's row.
///
/// A statement of its own and the last before the commit: all lanes write this row, and a join against
/// a statement that writes would lose the update when PostgreSQL has to look at the row again.
async fn count_in_run(
    transaction: &mut Transaction<'static, Postgres>,
    run_id: i64,
    batch: &Batch,
    settlement: &Settlement,
    accepted: bool,
) -> Result<(), sqlx::Error> {
    let rows = |number: usize| if accepted { i64::from(count(number)) } else { 0 };
    sqlx::query!(
        "update elven_sync.sync_runs
            set rows_read = rows_read + $2, rows_uploaded = rows_uploaded + $3,
                rows_rejected = rows_rejected + $4, rows_superseded = rows_superseded + $5,
                requests = requests + $6, retries = retries + $7, bytes_sent = bytes_sent + $8
          where run_id = $1",
        run_id,
        rows(batch.rows_read),
        rows(batch.records),
        rows(batch.invalid.len()),
        rows(batch.superseded),
        i64::from(settlement.sent),
        i64::from(settlement.sent && settlement.repeated),
        if settlement.sent { i64::from(count(batch.body.len())) } else { 0 }
    )
    .execute(&mut **transaction)
    .await?;
    Ok(())
}

/// Checks, and holds until the transaction ends, that the lease is ours and has not run out, and
/// that the pass is open and stands where the batch begins.
async fn hold(
    transaction: &mut Transaction<'static, Postgres>,
    pass: &OpenPass,
    before: Option<&Cursor>,
) -> Result<u64, sqlx::Error> {
    let held = sqlx::query!(
        r#"select 1 as "held!" from elven_sync.sync_state
            where entity_id = $1 and lease_epoch = $2 and lease_owner = $5 and lease_expires_at > clock_timestamp()
              and pass_id = $6 and cursor_xid is not distinct from $3::text::xid8 and cursor_id is not distinct from $4
              for update"#,
        pass.lease.entity_id,
        pass.lease.epoch,
        before.map(|cursor| cursor.xid.to_string()),
        before.map(|cursor| cursor.id.as_str()),
        pass.lease.owner,
        pass.pass_id
    )
    .fetch_optional(&mut **transaction)
    .await?;
    Ok(u64::from(held.is_some()))
}

/// The upload of a newer version of a row resolves the error of an older one.
async fn resolve_newer(
    transaction: &mut Transaction<'static, Postgres>,
    entity_id: &str,
    batch_id: i64,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "update elven_sync.sync_errors e
            set resolved_at = clock_timestamp(), resolution = 'a newer version of the row was uploaded'
          where e.entity_id = $1 and e.ledger_id is not null and e.resolved_at is null
            and e.batch_id is distinct from $2
            and e.ledger_id in (select elven_sync.batch_row_ids($2))",
        entity_id,
        batch_id
    )
    .execute(&mut **transaction)
    .await?;
    Ok(())
}

fn set_aside(batch_id: i64, row: &InvalidRow) -> Problem {
    Problem {
        kind: Kind::InvalidRow,
        batch_id: Some(batch_id),
        ledger_id: Some(row.id.to_string()),
        http_status: None,
        api_code: None,
        message: format!("{}; hint: correct the row, and the next run uploads it", row.reason),
        record: Some(row.record.clone()),
    }
}

/// A batch has at most 1000 records of bounded columns; a count of it fits into an integer.
fn count(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}
