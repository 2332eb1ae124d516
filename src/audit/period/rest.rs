//! Rows of a period that no batch lists: pending rows, and rows that a registration from now on or a pruned pass covers.

use super::collector::{Collector, behind};
use super::outcome::{Judged, Outcome};
use super::waiting::{Undecided, Why};
use crate::database::Transaction;
use crate::ledger::{Row, Unlisted};
use crate::sync::RunError;
use crate::watermark::Cursor;

/// The rows of a page. Without an index for ranges, PostgreSQL sorts the rows of the period for each page.
const PAGE_ROWS: usize = 50_000;

impl Collector<'_> {
    /// Judges the rows that no batch lists. `recorded_to`: the end of the last batch of the open pass.
    pub(super) async fn judge_rest(
        &mut self,
        transaction: &mut Transaction,
        recorded_to: Option<&Cursor>,
    ) -> Result<(), RunError> {
        let ledger = self.ledger()?;
        let lane = self.state.lane.clone();
        let open = lane.open.as_ref().map(|(_, target)| (target, recorded_to));
        let pending = Unlisted::Pending { settled: lane.settled.as_ref(), open };
        let mut after = None;
        loop {
            let rows = ledger.unlisted(transaction, self.range, pending, after.as_ref(), PAGE_ROWS).await?;
            for row in &rows {
                let judged = Judged::new(Outcome::Pending, self.why_pending(row));
                self.judge(row, &judged);
            }
            after = behind(&rows);
            if rows.len() < PAGE_ROWS {
                break;
            }
        }
        for change in self.state.others.clone() {
            let Some(target) = &change.target else { continue };
            let why = match change.kind.as_str() {
                "from_now" => Why::FromNow(change.finished_at),
                _ => Why::Pruned,
            };
            let between = Unlisted::Between { settled: change.settled.as_ref(), target };
            let mut after = None;
            loop {
                let rows =
                    ledger.unlisted(transaction, self.range, between, after.as_ref(), PAGE_ROWS).await?;
                after = behind(&rows);
                let is_last = rows.len() < PAGE_ROWS;
                self.state.undecided.extend(rows.into_iter().map(|row| Undecided { row, why }));
                self.decide(transaction).await?;
                if is_last {
                    break;
                }
            }
        }
        Ok(())
    }

    /// Says why a row outside the watermark is pending.
    fn why_pending(&self, row: &Row) -> String {
        let lane = &self.state.lane;
        match (&lane.open, &lane.settled) {
            (Some((pass_id, target)), _) if target.contains(row.xid) => {
                format!("it belongs to pass {pass_id}, which is open and has not read it yet")
            }
            (_, Some(settled)) if settled.xmax() > row.xid => {
                format!(
                    "transaction {} was open when the last pass began; the next pass includes it",
                    row.xid
                )
            }
            _ => "it was written after the last pass began; the next pass includes it".to_owned(),
        }
    }
}
