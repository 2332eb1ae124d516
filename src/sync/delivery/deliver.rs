//! A batch and its parts on their way.

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use super::super::lane::exit::{LaneExit, note};
use super::Delivery;
use super::batch_task::BatchTask;

impl Delivery {
    /// Sends a batch until all its rows are accepted or set aside, by whatever it takes.
    ///
    /// The latest parts are sent first: when all is refused, single records soon say so. And they lie side by
    /// side, not one in the other: however often a batch is split, the stack does not grow.
    pub(super) async fn deliver(&self, node: BatchTask) -> Result<(), LaneExit> {
        let at_once = self.worker.settings.sync.requests_in_flight;
        let mut first_exit = None;
        let mut waiting = vec![node];
        let mut on_their_way = FuturesUnordered::new();
        let mut parts_of_proof = 0;
        loop {
            let mut room = waiting.len().saturating_sub(at_once.saturating_sub(on_their_way.len()));
            if self.is_being_proven() {
                // One after the other, so that single records are soon met. What waits for its turn holds nobody up.
                room = waiting.len().saturating_sub(usize::from(parts_of_proof == 0));
            }
            for node in waiting.drain(room..) {
                let is_part_of_proof = node.turn.is_some();
                parts_of_proof += usize::from(is_part_of_proof);
                on_their_way.push(async move { (is_part_of_proof, self.attempts(node).await) });
            }
            let Some((was_part_of_proof, tried)) = on_their_way.next().await else {
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
