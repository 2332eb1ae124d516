//! What is new in the ledger: one statement for all entities, in a single snapshot.

use std::collections::BTreeMap;

use sqlx::AssertSqlSafe;

use super::open_transactions::{oldest, without_trigger};
use super::unreadable::Parts;
use super::{Ledger, LedgerError, Progress, Unreadables, Writer};
use crate::watermark::Snapshot;

/// Target, cluster, and for an entity: its id, whether it has news, whether from the future, whether
/// without a stamp.
pub(super) type ProbeRow = (String, i64, Option<String>, Option<bool>, Option<bool>, Option<bool>);

/// What one look at the ledger told, all of it in a single snapshot.
#[derive(Debug)]
pub struct ProbeResult {
    /// The snapshot in which the ledger was looked at.
    pub target: Snapshot,
    /// Identifies the cluster whose transaction ids these are.
    pub system_identifier: i64,
    /// By entity, for those asked for.
    pub entities: BTreeMap<String, NewRows>,
    /// Those whose rows the database cannot read.
    pub unreadable: Unreadables,
}

/// Whether an entity has rows behind its watermark.
#[derive(Clone, Copy, Debug, Default)]
pub struct NewRows {
    /// There are rows that its watermark does not cover.
    pub has_new_rows: bool,
    /// There are rows that claim a transaction which has not been given out yet.
    pub from_the_future: bool,
    /// There are rows that name no transaction at all.
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

    /// What the look told about an entity.
    pub fn new_rows(&self, entity_id: &str) -> NewRows {
        self.entities.get(entity_id).copied().unwrap_or_default()
    }
}

impl Ledger {
    /// Looks which of the entities have rows behind their watermark.
    ///
    /// One statement, so that the snapshot it returns is the very one it looked in: a row that it did not
    /// see belongs to a transaction that is not in that. (A pass takes its target when it is recorded.) When the rows of an
    /// entity cannot be read the statement fails; then the entities are asked for in parts, behind a snapshot.
    pub async fn probe(&self, lanes: &[Progress]) -> Result<ProbeResult, LedgerError> {
        match self.probe_by(self.table.new_rows_sql(lanes)).await {
            Err(problem) if problem.is_about_rows() => {}
            looked => return looked,
        }
        // What fails even when no entity is asked for, such as a missing right on the ledger, concerns all of them.
        let mut look = self.probe_by(self.table.new_rows_sql(&[])).await?;
        let mut parts = Parts::of(lanes);
        while let Some(part) = parts.next() {
            let told = self.probe_by(self.table.new_rows_sql(part)).await;
            look.entities.extend(parts.took(part, told)?.into_iter().flat_map(|told| told.entities));
        }
        look.unreadable = parts.unreadable();
        Ok(look)
    }

    /// Looks at one entity.
    ///
    /// # Errors
    /// Also when its rows cannot be read.
    pub async fn probe_entity(&self, lane: &Progress) -> Result<ProbeResult, LedgerError> {
        let look = self.probe_by(self.table.new_rows_sql(std::slice::from_ref(lane))).await;
        look.map_err(|problem| problem.about(&lane.entity_id))
    }

    async fn probe_by(&self, sql: String) -> Result<ProbeResult, LedgerError> {
        let look = || sqlx::query_as(AssertSqlSafe(sql.clone())).fetch_all(self.primary.single_round_trip());
        ProbeResult::of(self.primary.retry(look).await?)
    }

    /// The entities of the ledger that are not in `registered`, one index probe each.
    pub async fn unregistered(&self, registered: &[String]) -> Result<Vec<String>, LedgerError> {
        let sql = self.table.unregistered_sql(registered);
        let look =
            || sqlx::query_scalar(AssertSqlSafe(sql.clone())).fetch_all(self.primary.single_round_trip());
        Ok(self.primary.retry(look).await?)
    }

    /// The oldest transaction that has written to the ledger and not ended, if there is one: later
    /// passes will have its rows, and wait for nothing else.
    pub async fn oldest_writer(&self) -> Result<Option<Writer>, LedgerError> {
        Ok(oldest(&self.primary, self.table.name()).await?)
    }

    /// The tables of the ledger in which no trigger is sure to stamp what is written: what is written to them
    /// may land behind the watermark. None for a view, which may be over other tables as well.
    pub async fn without_trigger(&self) -> Result<Vec<String>, LedgerError> {
        Ok(without_trigger(&self.primary, self.table.name()).await?)
    }
}

fn parse_snapshot(text: &str) -> Result<Snapshot, LedgerError> {
    text.parse().map_err(|_| LedgerError::Decode("not a snapshot"))
}
