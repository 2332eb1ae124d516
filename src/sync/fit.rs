//! Whether a watermark belongs to the database and the ledger that are there.

use super::Worker;
use crate::journal::{Kind, Lane, Problem};
use crate::ledger::Look;
use crate::output::quoted_argument;

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
    /// Refuses a watermark that does not belong to this cluster, this ledger table or this past. Each
    /// refusal prints the way out.
    pub(super) fn fits(&self, entity_id: &str, lane: &Lane, look: &Look) -> Result<(), Misfit> {
        fits(self.ledger.name(), entity_id, lane, look)
    }
}

/// The same for whoever has no worker.
pub(super) fn fits(table: &str, entity_id: &str, lane: &Lane, look: &Look) -> Result<(), Misfit> {
    let refuse = |what: String| Err(Misfit(what));
    if lane.system_identifier.is_some_and(|identifier| identifier != look.system_identifier) {
        return refuse(format!(
            "the watermark of `{entity_id}` belongs to another PostgreSQL cluster, whose transaction ids mean \
             nothing here; hint: after pg_upgrade, `elven-sync entity rebind {}`; after a dump was restored, {}",
            quoted_argument(entity_id),
            start_over(entity_id)
        ));
    }
    if let Some(before) = lane.ledger_table.as_deref().filter(|before| *before != table) {
        return refuse(format!(
            "the watermark of `{entity_id}` belongs to the ledger table {before}, but {table} is configured; hint: \
             correct [ledger] table, or {}",
            start_over(entity_id)
        ));
    }
    let snapshots = [lane.settled.as_ref(), lane.open.as_ref().map(|(_, target)| target)];
    if snapshots.into_iter().flatten().any(|snapshot| snapshot.xmax() > look.target.xmax()) {
        return refuse(format!(
            "the watermark of `{entity_id}` speaks of transactions that have not happened yet in this database; \
             was its write-ahead log reset? hint: {}",
            start_over(entity_id)
        ));
    }
    let news = look.news(entity_id);
    if news.from_the_future || news.unstamped {
        let what = if news.unstamped { "is NULL" } else { "has not been given out yet in this database" };
        return refuse(format!(
            "the ledger has rows of `{entity_id}` whose change_xid {what}; hint: `elven-sync attach` makes sure \
             that a trigger stamps what is written; stamp what is there by updating it, e.g. update {table} set \
             <a column> = <itself> where <it is one of these>"
        ));
    }
    Ok(())
}

fn start_over(entity_id: &str) -> String {
    format!("`elven-sync entity rewind {}` uploads everything again", quoted_argument(entity_id))
}
