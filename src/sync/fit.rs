//! Whether a watermark belongs to the database and the ledger that are there.

use super::Worker;
use crate::journal::{Kind, Lane, Problem};
use crate::ledger::Look;

/// A watermark does not fit: to go on would skip rows in silence.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Misfit(String);

impl From<Misfit> for Problem {
    fn from(misfit: Misfit) -> Self {
        Problem::of_lane(Kind::Watermark, misfit.0)
    }
}

impl Worker {
    /// Refuses a watermark that does not belong to this cluster, this ledger table or this past.
    pub(super) fn fits(&self, entity_id: &str, lane: &Lane, look: &Look) -> Result<(), Misfit> {
        let refuse = |what: String| Err(Misfit(what));
        if lane.system_identifier.is_some_and(|identifier| identifier != look.system_identifier) {
            return refuse(format!(
                "the watermark of `{entity_id}` belongs to another PostgreSQL cluster, whose transaction ids mean \
                 nothing here; was a dump restored?"
            ));
        }
        if let Some(before) = lane.ledger_table.as_deref().filter(|before| *before != self.ledger.name()) {
            return refuse(format!(
                "the watermark of `{entity_id}` belongs to the ledger table {before}, but {} is configured",
                self.ledger.name()
            ));
        }
        let snapshots = [lane.settled.as_ref(), lane.open.as_ref().map(|(_, target)| target)];
        if snapshots.into_iter().flatten().any(|snapshot| snapshot.xmax() > look.target.xmax()) {
            return refuse(format!(
                "the watermark of `{entity_id}` speaks of transactions that have not happened yet in this database"
            ));
        }
        if look.news(entity_id).from_the_future {
            return refuse(format!(
                "the ledger has rows of `{entity_id}` whose change_xid has not been given out yet in this database; \
                 hint: stamp them anew, e.g. by updating each to its own values"
            ));
        }
        Ok(())
    }
}
