//! Isolation: a refused batch is taken apart until the refused records stand alone, and those are set aside.

use std::sync::atomic::Ordering;

use super::super::channel::Unproven;
use super::super::lane::Halt;
use super::super::words::{self, Words};
use super::{Delivery, Node};
use crate::batch::Batch;
use crate::elven::Verdict;
use crate::fault_point::{Step, around};
use crate::journal::{Problem, Settlement};

impl Delivery {
    /// Halves a refused batch, and returns the parts; a record that stands alone is set aside.
    pub(super) async fn isolate(
        &self,
        node: Node,
        verdict: &Verdict,
        settlement: Settlement,
        words: Words,
    ) -> Result<Vec<Node>, Halt> {
        let settings = &self.worker.settings;
        let halves = node.batch.halves();
        if *verdict == Verdict::TooLarge {
            self.channel.too_large(node.batch.body.len());
        } else {
            let open = self.worker.journal.rejections(&self.pass.lease.entity_id).await?;
            if open >= settings.sync.max_rejections {
                let words = words.too_many(open);
                return Err(self.stop(&node, words, settlement, None).await);
            }
        }
        // A revoked key or a changed contract refuses everything: then nothing is taken apart. That a body is
        // too large says itself what is wrong with it, until it is a single record.
        if *verdict != Verdict::TooLarge || halves.is_none() {
            let proven = match self.or_halt(self.channel.prove(settings.retry.max)).await {
                Ok(proven) => proven,
                Err(halt) => {
                    // That it was refused is known all the same.
                    self.answered(&node, &words, settlement).await?;
                    return Err(halt);
                }
            };
            match proven {
                Ok(()) => {}
                Err(Unproven::Otherwise(instead)) => {
                    return Err(self.stop(&node, words.unproven(&instead), settlement, None).await);
                }
                Err(Unproven::Later(verdict, status)) => {
                    let not_before = if let Verdict::Throttled(asked) = verdict { asked } else { None };
                    let mut words = words::of(&verdict, status, &node.batch, &self.channel.credential.name);
                    // Of the batch it is known that it was refused.
                    words.status = "rejected";
                    return Err(self.stop(&node, words, settlement, not_before).await);
                }
            }
        }
        if let Some(parts) = halves {
            return Ok(self.split(&node, parts, settlement, &words.message).await?.into());
        }
        if let Some(parts) = node.batch.losers_apart() {
            let [winner, losers] = self.split(&node, parts, settlement, &words.message).await?;
            // It was the answer to the whole that refused it: no request is made for it alone.
            let settlement = Settlement { sent: false, ..settlement };
            self.set_aside(&winner, settlement, words).await?;
            return Ok(vec![losers]);
        }
        self.set_aside(&node, settlement, words).await?;
        Ok(Vec::new())
    }

    /// Lets two parts take the place of a batch.
    async fn split(
        &self,
        node: &Node,
        parts: [Batch; 2],
        settlement: Settlement,
        error: &str,
    ) -> Result<[Node; 2], Halt> {
        let (doing, journal) = (self.doing(), &self.worker.journal);
        let split = journal.split(doing, node.batch_id, &node.batch, &parts, settlement, error);
        let ids = around(Step::Split, split).await?;
        self.window.lock().await.add_part(node.root);
        let [first, second] = parts;
        let part = |batch_id, batch| Node {
            batch_id,
            batch,
            root: node.root,
            room: None,
            signed: None,
            lost: false,
            repeated: false,
            unknown_runs: 0,
        };
        Ok([part(ids[0], first), part(ids[1], second)])
    }

    /// Sets the records of a batch aside that cannot be taken apart any further.
    async fn set_aside(&self, node: &Node, settlement: Settlement, words: Words) -> Result<(), Halt> {
        let refused: Vec<Problem> = node
            .batch
            .records
            .iter()
            .map(|&row| words.of_row(node.batch_id, settlement.http_status, &node.batch, row))
            .collect();
        let rejections_max = self.worker.settings.sync.max_rejections;
        let mut window = self.window.lock().await;
        let advance = window.advance_after(node.root);
        let (doing, journal) = (self.doing(), &self.worker.journal);
        let refused = (&refused[..], rejections_max);
        let set_aside = journal.set_aside(doing, node.batch_id, &node.batch, refused, settlement, advance);
        if !around(Step::SetAside, set_aside).await? {
            drop(window);
            let words = words.too_many(rejections_max);
            return Err(self.stop(node, words, settlement, None).await);
        }
        window.part_done(node.root);
        drop(window);
        self.has_set_aside.store(true, Ordering::Relaxed);
        self.report(|report| report.count_set_aside(&node.batch));
        Ok(())
    }
}
