//! How the API answered the batches of the last day, and how fast.

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::super::JournalError;
use crate::database::Transaction;

/// The batches of the day whose last answer had one outcome and one HTTP status.
#[derive(Clone, Debug, Serialize)]
pub struct AnswerTimes {
    /// `accepted`, `refused`, `throttled` or `unknown`, as in the metrics, or `not delivered`.
    pub outcome: String,
    /// HTTP status of the last answer. `None`: no answer came.
    pub http_status: Option<i32>,
    /// The number of batches.
    pub batches: i64,
    /// The median of the time to the last answer, in milliseconds.
    pub p50_ms: Option<i64>,
    /// The time in which 95 of 100 last answers came, in milliseconds.
    pub p95_ms: Option<i64>,
}

impl AnswerTimes {
    /// Reads the batches that were sent and answered since a time. They are grouped before they are ordered, because
    /// there are far more batches than different times.
    pub(super) async fn since(
        transaction: &mut Transaction,
        from: DateTime<Utc>,
    ) -> Result<Vec<Self>, JournalError> {
        Ok(sqlx::query_as!(
            Self,
            r#"with times as (
                   select case when status in ('accepted', 'unknown') then status
                               when http_status in (408, 425, 429, 503) then 'throttled'
                               when http_status is null then 'not delivered'
                               else 'refused' end as outcome,
                          http_status, duration_ms, count(*) as batches
                     from elven_sync.sync_batches
                    where finished_at >= $1 and attempts > 0
                    group by 1, 2, 3)
               select outcome as "outcome!", http_status, sum(batches)::bigint as "batches!",
                      min(duration_ms) filter (where up_to >= 0.5 * timed) as p50_ms,
                      min(duration_ms) filter (where up_to >= 0.95 * timed) as p95_ms
                 from (select t.*,
                              sum(batches) over (partition by outcome, http_status order by duration_ms) as up_to,
                              sum(batches) filter (where duration_ms is not null)
                                  over (partition by outcome, http_status) as timed
                         from times t) t
                group by 1, 2
                order by 3 desc, 1, 2"#,
            from
        )
        .fetch_all(transaction)
        .await?)
    }
}
