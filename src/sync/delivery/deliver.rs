//! Delivery of one batch and its parts.

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use super::super::lane::exit::{LaneExit, note};
use super::Delivery;
use super::batch_task::BatchTask;

impl Delivery {
    /// Sends a batch and its parts until all rows are accepted or set aside.
    ///
    /// The newest parts are sent first, so that single records are reached soon if everything is refused. All parts are
    /// in one list and not in nested calls: however often a batch is split, the stack does not grow.
    pub(super) async fn deliver(&self, task: BatchTask) -> Result<(), LaneExit> {
        let at_once = self.worker.settings.sync.requests_in_flight;
        let mut first_exit = None;
        let mut waiting = vec![task];
        let mut in_flight = FuturesUnordered::new();
        let mut parts_of_proof = 0;
        loop {
            // The number of parts at the front that are not sent yet.
            let mut still_waiting = waiting.len().saturating_sub(at_once.saturating_sub(in_flight.len()));
            if self.is_being_proven() {
                // One after the other, so that single records are reached soon.
                still_waiting = waiting.len().saturating_sub(usize::from(parts_of_proof == 0));
            }
            for task in waiting.drain(still_waiting..) {
                let is_part_of_proof = task.turn.is_some();
                parts_of_proof += usize::from(is_part_of_proof);
                in_flight.push(async move { (is_part_of_proof, self.send_or_split(task).await) });
            }
            let Some((was_part_of_proof, tried)) = in_flight.next().await else {
                return first_exit.map_or(Ok(()), Err);
            };
            parts_of_proof -= usize::from(was_part_of_proof);
            match tried {
                Ok(parts) => waiting.extend(parts),
                Err(exit) => {
                    self.halted.send_replace(true);
                    waiting.clear();
                    note(exit, &mut first_exit);
                }
            }
        }
    }
}
