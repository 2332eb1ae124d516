//! Finds the entities with new rows: one statement for all entities, in one snapshot.

use std::collections::BTreeMap;

use sqlx::AssertSqlSafe;

use super::open_transactions::{oldest, writers};
use super::unreadable::Parts;
use super::{Ledger, LedgerError, Progress, Unreadables, Writer};
use crate::watermark::Snapshot;

/// Target, cluster, and for an entity: its id, and whether it has new rows, rows from the future, or rows without a
/// stamp.
pub(super) type ProbeRow = (String, i64, Option<String>, Option<bool>, Option<bool>, Option<bool>);

/// The result of one probe of the ledger.
#[derive(Debug)]
pub struct ProbeResult {
    /// The snapshot in which the ledger was probed.
    pub target: Snapshot,
    /// The PostgreSQL cluster that the transaction ids belong to.
    pub system_identifier: i64,
    /// The result for each probed entity.
    pub entities: BTreeMap<String, NewRows>,
    /// The entities whose rows the database cannot read.
    pub unreadable: Unreadables,
}

/// Which kinds of rows an entity has after its watermark.
#[derive(Clone, Copy, Debug, Default)]
pub struct NewRows {
    /// Rows that the watermark does not cover.
    pub has_new_rows: bool,
    /// Rows whose `change_xid` has not been assigned yet.
    pub from_the_future: bool,
    /// Rows whose `change_xid` is NULL.
    pub unstamped: bool,
}

impl ProbeResult {
    pub(super) fn of(rows: Vec<ProbeRow>) -> Result<Self, LedgerError> {
        let (target, system_identifier) = match rows.first() {
            Some((target, system_identifier, ..)) => (parse_snapshot(target)?, *system_identifier),
            None => return Err(LedgerError::Decode("no snapshot")),
        };
        let entities = rows
            .into_iter()
            .filter_map(|(_, _, entity_id, has_new_rows, from_the_future, unstamped)| {
                let (has_new_rows, from_the_future, unstamped) =
                    (has_new_rows?, from_the_future?, unstamped?);
                Some((entity_id?, NewRows { has_new_rows, from_the_future, unstamped }))
            })
            .collect();
        Ok(ProbeResult { target, system_identifier, entities, unreadable: Unreadables::new() })
    }

    /// Returns the result for an entity.
    pub fn new_rows(&self, entity_id: &str) -> NewRows {
        self.entities.get(entity_id).copied().unwrap_or_default()
    }
}

impl Ledger {
    /// Finds out which of the entities have rows after their watermark.
    ///
    /// It is one statement, so that the returned snapshot is the one in which the rows were read: a row that the probe
    /// did not see belongs to a transaction that is not in that snapshot. (A pass takes its own target when it is
    /// recorded.) If the rows of an entity cannot be read, the statement fails. Then a snapshot is taken first, and
    /// the entities are probed in parts after it.
    pub async fn probe(&self, lanes: &[Progress]) -> Result<ProbeResult, LedgerError> {
        match self.probe_by(self.table.new_rows_sql(lanes)).await {
            Err(problem) if problem.is_about_rows() => {}
            probed => return probed,
        }
        // An error that occurs even without any entity, such as a missing privilege on the ledger, concerns all of
        // them.
        let mut probed = self.probe_by(self.table.new_rows_sql(&[])).await?;
        let mut parts = Parts::of(lanes);
        while let Some(part) = parts.next() {
            let told = self.probe_by(self.table.new_rows_sql(part)).await;
            probed.entities.extend(parts.took(part, told)?.into_iter().flat_map(|told| told.entities));
        }
        probed.unreadable = parts.unreadable();
        Ok(probed)
    }

    /// Probes one entity.
    ///
    /// # Errors
    /// Also when its rows cannot be read.
    pub async fn probe_entity(&self, lane: &Progress) -> Result<ProbeResult, LedgerError> {
        let probed = self.probe_by(self.table.new_rows_sql(std::slice::from_ref(lane))).await;
        probed.map_err(|problem| problem.about(&lane.entity_id))
    }

    async fn probe_by(&self, sql: String) -> Result<ProbeResult, LedgerError> {
        let query = || sqlx::query_as(AssertSqlSafe(sql.clone())).fetch_all(self.primary.single_round_trip());
        ProbeResult::of(self.primary.retry(query).await?)
    }

    /// Returns the entities of the ledger that are not in `registered`, with one index probe for each.
    pub async fn unregistered(&self, registered: &[String]) -> Result<Vec<String>, LedgerError> {
        let sql = self.table.unregistered_sql(registered);
        let query =
            || sqlx::query_scalar(AssertSqlSafe(sql.clone())).fetch_all(self.primary.single_round_trip());
        Ok(self.primary.retry(query).await?)
    }

    /// Returns the oldest open transaction that has written to the ledger. Its rows belong to a later pass; other rows
    /// do not wait for it.
    pub async fn oldest_writer(&self) -> Result<Option<Writer>, LedgerError> {
        Ok(oldest(&self.primary, self.table.name()).await?)
    }

    /// Returns the open transactions that have written to the ledger, the oldest first, and at most so many.
    pub async fn writers(&self, max: u16) -> Result<Vec<Writer>, LedgerError> {
        Ok(writers(&self.primary, self.table.name(), max).await?)
    }
}

fn parse_snapshot(text: &str) -> Result<Snapshot, LedgerError> {
    text.parse().map_err(|_| LedgerError::Decode("not a snapshot"))
}
