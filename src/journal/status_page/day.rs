//! The last day by quarter hours.
//!
//! A batch counts in the quarter hour of its last answer, and a run in that of its end.

use chrono::{DateTime, TimeDelta, Utc};
use serde::Serialize;

use super::super::JournalError;
use crate::database::Transaction;

/// The number of quarter hours of a day, the one under way included.
pub const QUARTERS: usize = 96;
/// The seconds of a quarter hour.
const QUARTER_S: i64 = 15 * 60;
/// The most batches that are read. With more batches in a day, the page shows a shorter time.
const BATCHES_MAX: i64 = 50_000;
/// The most runs that are read.
const RUNS_MAX: i64 = 20_000;

/// What happened in the last day.
#[derive(Clone, Debug, Serialize)]
pub struct Day {
    /// The beginning of what is shown: at most 24 hours ago.
    pub from: DateTime<Utc>,
    /// The day has more batches than are read, so a shorter time than a day is shown.
    pub is_cut: bool,
    /// The day has more runs than are read, so the earliest ones are missing.
    pub lacks_runs: bool,
    /// The quarter hours, oldest first. The last one is under way.
    pub quarters: Vec<Quarter>,
}

/// What happened in a quarter hour.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Quarter {
    /// When it began.
    pub from: DateTime<Utc>,
    /// Records that the API accepted.
    pub rows_uploaded: i64,
    /// Rows of accepted and of refused batches that were set aside.
    pub rows_set_aside: i64,
    /// Batches with an answer, or that ended without one.
    pub batches: i64,
    /// Those of them that were not accepted, or were split.
    pub batches_not_accepted: i64,
    /// Runs that ended, of all entities.
    pub runs: i64,
    /// Those of them that did not succeed.
    pub runs_not_succeeded: i64,
}

impl Day {
    /// Reads the last day, of all entities or of one. Runs are of all entities, so an entity has none.
    pub(super) async fn read(
        transaction: &mut Transaction,
        now: DateTime<Utc>,
        entity_id: Option<&str>,
    ) -> Result<Self, JournalError> {
        let wanted_from = first_quarter(now);
        let too_old = oldest_read(transaction, wanted_from).await?;
        let from = too_old.map_or(wanted_from, |at| next_quarter(at).max(wanted_from));
        let mut day =
            Self { from, is_cut: from > wanted_from, lacks_runs: false, quarters: quarters(from, now) };
        day.add_batches(transaction, entity_id).await?;
        if entity_id.is_none() {
            day.add_runs(transaction).await?;
        }
        Ok(day)
    }

    async fn add_batches(
        &mut self,
        transaction: &mut Transaction,
        entity_id: Option<&str>,
    ) -> Result<(), JournalError> {
        let found = sqlx::query!(
            r#"select floor(date_part('epoch', finished_at - $1) / $2::float8)::bigint as "quarter!",
                      coalesce(sum(row_count) filter (where status = 'accepted'), 0)::bigint as "rows_uploaded!",
                      sum(rows_rejected)::bigint as "rows_set_aside!",
                      count(*) as "batches!",
                      count(*) filter (where status <> 'accepted') as "batches_not_accepted!"
                 from elven_sync.sync_batches
                where finished_at >= $1 and ($3::text is null or entity_id = $3)
                group by 1"#,
            self.from,
            seconds(QUARTER_S),
            entity_id
        )
        .fetch_all(transaction)
        .await?;
        for found in found {
            if let Some(quarter) = self.quarter(found.quarter) {
                quarter.rows_uploaded = found.rows_uploaded;
                quarter.rows_set_aside = found.rows_set_aside;
                quarter.batches = found.batches;
                quarter.batches_not_accepted = found.batches_not_accepted;
            }
        }
        Ok(())
    }

    async fn add_runs(&mut self, transaction: &mut Transaction) -> Result<(), JournalError> {
        let found = sqlx::query!(
            r#"select floor(date_part('epoch', finished_at - $1) / $2::float8)::bigint as "quarter!",
                      count(*) as "runs!",
                      count(*) filter (where status <> 'succeeded') as "not_succeeded!"
                 from (select finished_at, status from elven_sync.sync_runs order by run_id desc limit $3) r
                where finished_at >= $1
                group by 1"#,
            self.from,
            seconds(QUARTER_S),
            RUNS_MAX
        )
        .fetch_all(transaction)
        .await?;
        self.lacks_runs = found.iter().map(|found| found.runs).sum::<i64>() >= RUNS_MAX;
        for found in found {
            if let Some(quarter) = self.quarter(found.quarter) {
                (quarter.runs, quarter.runs_not_succeeded) = (found.runs, found.not_succeeded);
            }
        }
        Ok(())
    }

    /// A clock that was set back leaves times after now, which count in the last quarter hour.
    fn quarter(&mut self, number: i64) -> Option<&mut Quarter> {
        let last = self.quarters.len().checked_sub(1)?;
        self.quarters.get_mut(usize::try_from(number).ok()?.min(last))
    }
}

/// Makes the statements about the day read through the index by the time of the answer, whatever the planner expects.
/// For statements that follow in the transaction.
pub(super) async fn read_by_time(transaction: &mut Transaction) -> Result<(), JournalError> {
    sqlx::query(
        "select set_config(name, 'off', true)
           from unnest(array['enable_seqscan', 'enable_bitmapscan', 'enable_nestloop']) s (name)
          union all
         select set_config('max_parallel_workers_per_gather', '0', true)",
    )
    .execute(transaction)
    .await?;
    Ok(())
}

/// Returns when the newest batch was answered that is too old to be read, if the day has so many.
async fn oldest_read(
    transaction: &mut Transaction,
    from: DateTime<Utc>,
) -> Result<Option<DateTime<Utc>>, JournalError> {
    Ok(sqlx::query_scalar!(
        r#"select finished_at as "finished_at!" from elven_sync.sync_batches
            where finished_at >= $1 order by finished_at desc offset $2 limit 1"#,
        from,
        BATCHES_MAX
    )
    .fetch_optional(transaction)
    .await?)
}

/// The rows that an entity uploaded in the last 24 hours, by hours.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Hours(pub Vec<i64>);

impl Hours {
    /// Reads the hours of some entities, in their order: since `from`, which is less than a day ago.
    pub(super) async fn read(
        transaction: &mut Transaction,
        entity_ids: &[String],
        from: DateTime<Utc>,
    ) -> Result<Vec<Self>, JournalError> {
        let mut hours = vec![Self(vec![0; 24]); entity_ids.len()];
        let found = sqlx::query!(
            r#"select w.place as "place!",
                      least(floor(date_part('epoch', b.finished_at - $2) / 3600)::integer, 23) as "hour!",
                      sum(b.row_count)::bigint as "rows!"
                 from elven_sync.sync_batches b
                 join unnest($1::text[]) with ordinality w (entity_id, place) using (entity_id)
                where b.finished_at >= $2 and b.status = 'accepted'
                group by 1, 2"#,
            entity_ids,
            from
        )
        .fetch_all(transaction)
        .await?;
        for found in found {
            let place = usize::try_from(found.place - 1).unwrap_or(usize::MAX);
            let hour = usize::try_from(found.hour).unwrap_or(usize::MAX);
            if let Some(rows) = hours.get_mut(place).and_then(|hours| hours.0.get_mut(hour)) {
                *rows = found.rows;
            }
        }
        Ok(hours)
    }

    /// The rows of all hours.
    pub fn sum(&self) -> i64 {
        self.0.iter().sum()
    }
}

fn seconds(seconds: i64) -> f64 {
    TimeDelta::seconds(seconds).as_seconds_f64()
}

/// The beginning of the quarter hour of a time.
fn quarter_of(at: DateTime<Utc>) -> DateTime<Utc> {
    at - TimeDelta::seconds(at.timestamp().rem_euclid(QUARTER_S))
        - TimeDelta::nanoseconds(i64::from(at.timestamp_subsec_nanos()))
}

/// The beginning of the first of the last 96 quarter hours.
fn first_quarter(now: DateTime<Utc>) -> DateTime<Utc> {
    quarter_of(now) - TimeDelta::seconds(QUARTER_S * 95)
}

/// The beginning of the quarter hour after a time.
fn next_quarter(at: DateTime<Utc>) -> DateTime<Utc> {
    quarter_of(at) + TimeDelta::seconds(QUARTER_S)
}

/// The quarter hours from one up to that of a time.
fn quarters(from: DateTime<Utc>, now: DateTime<Utc>) -> Vec<Quarter> {
    let begins = (0..).map(|number| from + TimeDelta::seconds(QUARTER_S * number));
    begins
        .take_while(|begin| *begin <= now)
        .map(|begin| Quarter { from: begin, ..Quarter::default() })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_has_96_quarter_hours_of_the_clock() {
        let now: DateTime<Utc> = "2026-12-01T12:34:56.789Z".parse().unwrap();
        let quarters = quarters(first_quarter(now), now);
        assert_eq!(quarters.len(), QUARTERS);
        assert_eq!(quarters[0].from.to_rfc3339(), "2026-11-30T12:45:00+00:00");
        assert_eq!(quarters[95].from.to_rfc3339(), "2026-12-01T12:30:00+00:00");
    }

    /// What is not read wholly is not shown.
    #[test]
    fn a_cut_day_begins_with_a_whole_quarter_hour() {
        let now: DateTime<Utc> = "2026-12-01T12:34:56Z".parse().unwrap();
        let from = next_quarter("2026-12-01T11:10:00Z".parse().unwrap());
        let begins: Vec<String> =
            quarters(from, now).iter().map(|q| q.from.format("%H:%M").to_string()).collect();
        assert_eq!(begins, ["11:15", "11:30", "11:45", "12:00", "12:15", "12:30"]);
        // A batch at the very beginning of a quarter hour may have others beside it that were not read.
        let at: DateTime<Utc> = "2026-12-01T11:15:00Z".parse().unwrap();
        assert_eq!(next_quarter(at).format("%H:%M").to_string(), "11:30");
    }
}
