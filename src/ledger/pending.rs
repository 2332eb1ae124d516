//! Counts the pending rows of each entity.

use sqlx::AssertSqlSafe;

use super::unreadable::Parts;
use super::{Ledger, LedgerError, Progress, Table, Unreadables};
use crate::watermark::Xid;

/// An entity, its number of pending rows, and the oldest `captured_at` among them in microseconds of Unix time.
pub(super) type CountRow = (String, i64, Option<i64>);

/// The maximum number of entities whose pending rows are counted in one statement.
pub(super) const ENTITIES_PER_COUNT_MAX: usize = 500;

/// What is counted.
#[derive(Clone, Copy)]
struct Counting<'a> {
    /// Also find the oldest `captured_at`.
    with_oldest: bool,
    /// Transactions that are running, whose rows are not visible.
    running: &'a [Xid],
}

/// The pending rows of an entity.
#[derive(Debug)]
pub struct Pending {
    /// The entity.
    pub entity_id: String,
    /// How many rows.
    pub rows: i64,
    /// The oldest `captured_at` among them.
    pub oldest_at: Option<chrono::DateTime<chrono::Utc>>,
}

impl Ledger {
    /// Counts the pending rows of each entity, except the entities whose rows cannot be read. An entity without new
    /// rows costs no more than a probe.
    pub async fn pending(&self, lanes: &[Progress]) -> Result<(Vec<Pending>, Unreadables), LedgerError> {
        let probed = self.probe(lanes).await?;
        let readable = lanes.iter().filter(|lane| !probed.unreadable.contains_key(&lane.entity_id));
        let (some, none): (Vec<_>, Vec<_>) =
            readable.partition(|lane| lane.target.is_some() || probed.new_rows(&lane.entity_id).has_new_rows);
        let none = none.into_iter().map(|lane| (lane.entity_id.clone(), 0, None));
        let counting = Counting { with_oldest: true, running: probed.target.running() };
        let (counted, unreadable) = self.counted(&some, counting).await?;
        let pending = counted.into_iter().chain(none).map(|(entity_id, rows, oldest_us)| Pending {
            entity_id,
            rows,
            oldest_at: oldest_us.and_then(chrono::DateTime::from_timestamp_micros),
        });
        Ok((pending.collect(), probed.unreadable.into_iter().chain(unreadable).collect()))
    }

    /// Counts the pending rows of each entity without the oldest `captured_at`, which needs only the index.
    pub async fn rows_pending(&self, lanes: &[Progress]) -> Result<Vec<(String, i64)>, LedgerError> {
        let counting = Counting { with_oldest: false, running: &[] };
        let (counted, _) = self.counted(&lanes.iter().collect::<Vec<_>>(), counting).await?;
        Ok(counted.into_iter().map(|(entity_id, rows, _)| (entity_id, rows)).collect())
    }

    async fn counted(
        &self,
        lanes: &[&Progress],
        counting: Counting<'_>,
    ) -> Result<(Vec<CountRow>, Unreadables), LedgerError> {
        let (mut counted, mut unreadable) = (Vec::with_capacity(lanes.len()), Unreadables::new());
        for lanes in lanes.chunks(ENTITIES_PER_COUNT_MAX) {
            match self.count(&self.table, lanes, counting).await {
                Err(problem) if problem.is_about_rows() => {
                    let mut parts = Parts::of(lanes);
                    while let Some(part) = parts.next() {
                        let told = self.count_somehow(part, counting).await;
                        counted.extend(parts.took(part, told)?.into_iter().flatten());
                    }
                    unreadable.extend(parts.unreadable());
                }
                rows => counted.extend(rows?),
            }
        }
        Ok((counted, unreadable))
    }

    /// Counts rows some of which may have a time out of range or may be unreadable.
    async fn count_somehow(
        &self,
        lanes: &[&Progress],
        counting: Counting<'_>,
    ) -> Result<Vec<CountRow>, LedgerError> {
        match self.count(&self.table.careful(), lanes, counting).await {
            // The count without the oldest `captured_at` often works, because it does not read the rows themselves.
            Err(problem) if counting.with_oldest && lanes.len() == 1 && problem.is_about_rows() => {
                self.count(&self.table, lanes, Counting { with_oldest: false, ..counting }).await
            }
            counted => counted,
        }
    }

    async fn count(
        &self,
        table: &Table,
        lanes: &[&Progress],
        counting: Counting<'_>,
    ) -> Result<Vec<CountRow>, LedgerError> {
        let sql = table.pending_sql(lanes, counting.with_oldest, counting.running);
        let count = || sqlx::query_as(AssertSqlSafe(sql.clone())).fetch_all(self.primary.single_round_trip());
        Ok(self.primary.retry(count).await?)
    }
}
