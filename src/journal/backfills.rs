//! Backfills: the requested range, the progress of each entity, and the end.

use chrono::{DateTime, Utc};

use super::actions::Action;
use super::backfill_rows::{alive_run, close_cancelled};
use super::lease_check::commit_if_held;
use super::storable_text::storable_one;
use super::{Asked, BackfillStatus, Journal, JournalError, Lease, OpenWork};
use crate::database::Transaction;
use crate::ledger::{Range, instant_us};
use crate::watermark::{At, Cursor};

/// The advisory lock of a transaction that records a backfill, so that two identical requests at once record one. The
/// number is arbitrary, and the same in each elven-sync.
const ASKING_LOCK_ID: i64 = 0x656c_7665_6e5f_6266;

/// An entity of a backfill.
#[derive(Clone, Debug)]
pub struct BackfillLane {
    /// The rows to read.
    pub range: Range,
    /// The cursor. `None`: at the start of the range.
    pub cursor: Option<Cursor>,
    /// The number of rows in the range when the backfill was recorded.
    pub rows_total: i64,
    /// The number of rows that were processed.
    pub rows_read: i64,
    /// All rows are processed.
    pub is_finished: bool,
}

/// The position of an entity in a backfill.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackfillPosition {
    /// The backfill was cancelled, or belongs to another run.
    Ended,
    /// Its cursor; `None` at the start of the range.
    At(Option<Cursor>),
}

/// The outcome of an attempt to begin a run on a backfill.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Begun {
    /// The run was begun.
    Run(i64),
    /// Another run works on it. If two answers differ in `alive_until`, that run is alive.
    Busy {
        /// The other run.
        run_id: i64,
        /// Its worker.
        worker: String,
        /// Its last heartbeat, plus the time after which it counts as dead.
        alive_until: DateTime<Utc>,
    },
    /// The backfill has ended with this `sync_backfills.status`.
    Ended(String),
    /// No backfill has this id.
    Missing,
}

impl Journal {
    /// Returns the unfinished backfill with the same range and filters, if there is one.
    pub async fn unfinished(&self, asked: &Asked) -> Result<Option<i64>, JournalError> {
        let unfinished = || async {
            let mut transaction = self.database.begin_reading().await?;
            let found = unfinished(&mut transaction, asked).await?;
            transaction.commit().await?;
            Ok::<_, sqlx::Error>(found)
        };
        Ok(self.database.retry(unfinished).await?)
    }

    /// Records a backfill and its lanes, each with the number of rows in its range. Returns its id, and `false` if the
    /// same backfill was recorded meanwhile by somebody else.
    pub async fn ask(&self, asked: &Asked, lanes: &[(Range, i64)]) -> Result<(i64, bool), JournalError> {
        let some = |of: &[String]| if of.is_empty() { None } else { Some(of.to_vec()) };
        let [entities, accounts, currencies] =
            [&asked.entities, &asked.accounts, &asked.currencies].map(|of| some(of));
        let ids: Vec<String> = lanes.iter().map(|(range, _)| range.entity_id.clone()).collect();
        let from: Vec<DateTime<Utc>> = lanes.iter().map(|(range, _)| range.from).collect();
        let to: Vec<DateTime<Utc>> = lanes.iter().map(|(range, _)| range.to).collect();
        let totals: Vec<i64> = lanes.iter().map(|(_, rows)| *rows).collect();
        let ask = || async {
            let mut transaction = self.database.begin().await?;
            sqlx::query!("select pg_advisory_xact_lock($1)", ASKING_LOCK_ID)
                .fetch_one(&mut transaction)
                .await?;
            if let Some(backfill_id) = unfinished(&mut transaction, asked).await? {
                transaction.rollback().await?;
                return Ok((backfill_id, false));
            }
            let backfill_id = sqlx::query_scalar!(
                "insert into elven_sync.sync_backfills
                        (range_from, range_to, entities, accounts, currencies, status, finished_at, rows_total)
                 values ($1, $2, $3, $4, $5, 'interrupted', clock_timestamp(), $6) returning backfill_id",
                asked.from,
                asked.to,
                entities.as_deref(),
                accounts.as_deref(),
                currencies.as_deref(),
                totals.iter().sum::<i64>()
            )
            .fetch_one(&mut transaction)
            .await?;
            sqlx::query!(
                "insert into elven_sync.sync_backfill_lanes (backfill_id, entity_id, range_from, range_to, rows_total)
                 select $1, entity_id, range_from, range_to, rows_total
                   from unnest($2::text[], $3::timestamptz[], $4::timestamptz[], $5::bigint[])
                        l (entity_id, range_from, range_to, rows_total)",
                backfill_id,
                &ids,
                &from,
                &to,
                &totals
            )
            .execute(&mut transaction)
            .await?;
            transaction.commit().await?;
            Ok::<_, sqlx::Error>((backfill_id, true))
        };
        Ok(self.database.retry(ask).await?)
    }

    /// Begins a run on a backfill, unless another run works on it.
    pub async fn begin_backfill(&self, backfill_id: i64, tzdata: &str) -> Result<Begun, JournalError> {
        let begin = || async {
            let mut transaction = self.database.begin().await?;
            let found = sqlx::query!(
                r#"select b.status, (select count(*) from elven_sync.sync_backfill_lanes l
                                      where l.backfill_id = b.backfill_id and l.finished_at is null) as "left!",
                          b.entities, jsonb_build_object(
                              'backfill_id', b.backfill_id, 'from', b.range_from, 'to', b.range_to,
                              'entities', b.entities, 'accounts', b.accounts, 'currencies', b.currencies) as "details!"
                     from elven_sync.sync_backfills b where backfill_id = $1 for update"#,
                backfill_id
            )
            .fetch_optional(&mut transaction)
            .await?;
            let begun = match &found {
                None => Begun::Missing,
                Some(found) if is_over(&found.status, found.left) => Begun::Ended(found.status.clone()),
                Some(_) => match alive_run(&mut transaction, backfill_id).await? {
                    Some((run_id, worker, alive_until)) => Begun::Busy { run_id, worker, alive_until },
                    None => Begun::Run(self.insert_run(&mut transaction, "backfill", tzdata).await?),
                },
            };
            let Begun::Run(run_id) = begun else {
                transaction.rollback().await?;
                return Ok(begun);
            };
            sqlx::query!(
                "update elven_sync.sync_backfills
                    set status = 'running', run_id = $2, finished_at = null, error = null
                  where backfill_id = $1",
                backfill_id,
                run_id
            )
            .execute(&mut transaction)
            .await?;
            if let Some(found) = found {
                let entities = found.entities.unwrap_or_default();
                let entity_id = if let [entity_id] = &*entities { Some(entity_id.as_str()) } else { None };
                let mut details = found.details;
                details["run_id"] = run_id.into();
                let action = Action { what: "backfill", entity_id, reason: None, details: &details };
                action.record(&mut transaction, &self.worker).await?;
            }
            transaction.commit().await?;
            Ok::<_, JournalError>(begun)
        };
        self.database.retry(begin).await
    }

    /// Returns the lanes of a backfill, by entity.
    pub async fn backfill_lanes(&self, backfill_id: i64) -> Result<Vec<BackfillLane>, JournalError> {
        let lanes = || {
            sqlx::query!(
                r#"select l.entity_id, l.range_from, l.range_to, l.cursor_at, l.cursor_id, l.rows_total, l.rows_read,
                          l.finished_at is not null as "is_finished!", coalesce(b.accounts, '{}') as "accounts!",
                          coalesce(b.currencies, '{}') as "currencies!"
                     from elven_sync.sync_backfill_lanes l join elven_sync.sync_backfills b using (backfill_id)
                    where backfill_id = $1 order by l.entity_id"#,
                backfill_id
            )
            .fetch_all(&self.database)
        };
        let lanes = self.database.retry(lanes).await?;
        Ok(lanes
            .into_iter()
            .map(|row| BackfillLane {
                cursor: row
                    .cursor_at
                    .zip(row.cursor_id)
                    .map(|(at, id)| Cursor { at: At::Instant(instant_us(at)), id }),
                range: Range {
                    entity_id: row.entity_id,
                    from: row.range_from,
                    to: row.range_to,
                    accounts: row.accounts,
                    currencies: row.currencies,
                },
                rows_total: row.rows_total,
                rows_read: row.rows_read,
                is_finished: row.is_finished,
            })
            .collect())
    }

    /// Returns the position of an entity in a backfill of a run.
    pub async fn backfill_position(
        &self,
        backfill_id: i64,
        run_id: i64,
        entity_id: &str,
    ) -> Result<BackfillPosition, JournalError> {
        let position = || {
            sqlx::query!(
                "select l.cursor_at, l.cursor_id
                   from elven_sync.sync_backfill_lanes l join elven_sync.sync_backfills b using (backfill_id)
                  where l.backfill_id = $1 and l.entity_id = $2 and b.run_id = $3 and b.status = 'running'
                    and l.finished_at is null",
                backfill_id,
                entity_id,
                run_id
            )
            .fetch_optional(&self.database)
        };
        let position = self.database.retry(position).await?;
        let Some(row) = position else { return Ok(BackfillPosition::Ended) };
        let cursor = row.cursor_at.zip(row.cursor_id);
        Ok(BackfillPosition::At(cursor.map(|(at, id)| Cursor { at: At::Instant(instant_us(at)), id })))
    }

    /// Records that all rows of the range of an entity are processed, and releases the lease.
    pub async fn finish_backfill_lane(&self, open: &OpenWork) -> Result<(), JournalError> {
        let Some(backfill_id) = open.work.backfill_id() else { return Ok(()) };
        let Lease { entity_id, owner, epoch, fence } = &open.lease;
        let finish = || async {
            let mut transaction = self.database.begin().await?;
            let released = sqlx::query!(
                "update elven_sync.sync_state
                    set lease_owner = null, lease_expires_at = null, lease_kind = null,
                        fence_until = greatest(fence_until, clock_timestamp() + make_interval(secs => $4))
                  where entity_id = $1 and lease_epoch = $2 and lease_owner = $3",
                entity_id,
                epoch,
                owner,
                fence.seconds_left()
            )
            .execute(&mut transaction)
            .await?;
            let done = sqlx::query!(
                "update elven_sync.sync_backfill_lanes set finished_at = clock_timestamp(), closed = true
                  where backfill_id = $1 and entity_id = $2
                    and (select true from elven_sync.sync_batches b
                          where b.entity_id between $2 and $2 and elven_sync.is_open(b.status, b.row_count)
                            and b.backfill_id = $1
                          order by b.entity_id, b.batch_id limit 1) is null",
                backfill_id,
                entity_id
            )
            .execute(&mut transaction)
            .await?;
            if released.rows_affected() == 1 && done.rows_affected() == 0 {
                transaction.rollback().await?;
                return Err(JournalError::UnfinishedRange(backfill_id));
            }
            sqlx::query!(
                "select elven_sync.add_link(entity_id, 'backfill', backfill_id,
                            array[elven_sync.microseconds(range_from), elven_sync.microseconds(range_to),
                                  elven_sync.microseconds(cursor_at), cursor_id], running)
                   from elven_sync.sync_backfill_lanes where backfill_id = $1 and entity_id = $2",
                backfill_id,
                entity_id
            )
            .fetch_optional(&mut transaction)
            .await?;
            commit_if_held(transaction, released.rows_affected()).await
        };
        self.database.retry(finish).await
    }

    /// Records the end of a run on a backfill. A cancelled backfill stays cancelled.
    pub async fn finish_backfill(
        &self,
        backfill_id: i64,
        run_id: i64,
        status: BackfillStatus,
        error: Option<&str>,
    ) -> Result<(), JournalError> {
        let error = self.database.retry(|| storable_one(&self.database, error)).await?;
        self.database
            .execute(|| {
                sqlx::query!(
                    "update elven_sync.sync_backfills set status = $3, error = $4, finished_at = clock_timestamp()
                      where backfill_id = $1 and run_id = $2 and status = 'running'",
                    backfill_id,
                    run_id,
                    status.as_ref(),
                    error
                )
            })
            .await?;
        Ok(())
    }

    /// Closes the batches of a backfill that was cancelled while this worker worked on it.
    pub async fn close_cancelled(&self, backfill_id: i64) -> Result<(), JournalError> {
        close_cancelled(&self.database, backfill_id).await
    }
}

/// Returns whether a backfill has ended. A run that died after all rows were processed has not recorded the end yet.
fn is_over(status: &str, entities_left: i64) -> bool {
    matches!(status, "cancelled" | "succeeded") || (status == "incomplete" && entities_left == 0)
}

async fn unfinished(transaction: &mut Transaction, asked: &Asked) -> Result<Option<i64>, sqlx::Error> {
    let Asked { from, to, entities, accounts, currencies } = asked;
    sqlx::query_scalar!(
        "select backfill_id from elven_sync.sync_backfills b
          where status not in ('succeeded', 'cancelled') and range_from = $1 and range_to = $2
            and coalesce(entities, '{}') = $3 and coalesce(accounts, '{}') = $4 and coalesce(currencies, '{}') = $5
            and (status <> 'incomplete'
                 or exists (select from elven_sync.sync_backfill_lanes l
                             where l.backfill_id = b.backfill_id and l.finished_at is null))
          order by backfill_id desc limit 1",
        from,
        to,
        entities,
        accounts,
        currencies
    )
    .fetch_optional(transaction)
    .await
}
