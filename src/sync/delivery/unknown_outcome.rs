//! Batches whose outcome stays unknown: after three runs they are split, until the records are found that the API
//! cannot answer.

use std::collections::{BTreeMap, BTreeSet};

use tracing::Instrument;

use super::super::decisions::isolation::{
    NextPart, REQUESTS_MAX, UNKNOWN_RUNS_MAX, UnknownPart, is_unknown_for_good, next_part,
};
use super::super::decisions::proof::Unproven;
use super::super::lane::exit::LaneExit;
use super::super::log::batch_span;
use super::super::messages;
use super::super::messages::OutcomeMessage;
use super::super::proving::Resent;
use super::Delivery;
use super::attempts::Tried;
use super::batch_task::{Answered, BatchTask};
use crate::config::OnAmbiguous;
use crate::elven::{Answer, ResponseClass};
use crate::journal::{AttemptResult, Kind, Problem, RecordedBatch};

/// Such a batch, or a part of it, to be sent.
pub(super) struct Leaf {
    pub task: BatchTask,
    /// The batch that it is a part of.
    pub parent_id: Option<i64>,
}

/// The recorded batches by id, to follow a part to the batch that was split.
pub(super) struct SplitTree<'a> {
    by_id: BTreeMap<i64, &'a RecordedBatch>,
}

impl<'a> SplitTree<'a> {
    pub(super) fn of(recorded: &'a [RecordedBatch]) -> Self {
        Self { by_id: recorded.iter().map(|batch| (batch.batch_id, batch)).collect() }
    }

    /// Whether a run sends a batch once, because the batch, or one that it is a part of, stayed unknown in three runs.
    pub(super) fn is_once(&self, leaf: &RecordedBatch) -> bool {
        let parent = |batch: &&'a RecordedBatch| self.by_id.get(&batch.parent_id?).copied();
        leaf.unknown_runs >= UNKNOWN_RUNS_MAX
            || std::iter::successors(leaf.parent_id.and_then(|id| self.by_id.get(&id).copied()), parent)
                .any(|batch| batch.unknown_runs >= UNKNOWN_RUNS_MAX)
    }

    /// The batches with a part that is processed, or whose own parts are in part: then the other part is unknown
    /// because of its rows.
    pub(super) fn good_parents(&self) -> BTreeSet<i64> {
        let parent = |id: &i64| self.by_id.get(id)?.parent_id;
        let done = self.by_id.values().filter(|batch| batch.state.is_done());
        done.flat_map(|batch| std::iter::successors(batch.parent_id, parent)).collect()
    }
}

/// A batch, or a part, whose outcome stayed unknown in this run. Its answer is recorded.
struct Unknown {
    answered: Answered,
    parent_id: Option<i64>,
}

/// The unprocessed parts of a batch that is split.
#[derive(Default)]
struct Left {
    /// Not sent in this run.
    untried: Vec<Leaf>,
    unknown: Vec<Unknown>,
    refused: Vec<(Answered, ResponseClass)>,
    requests: u32,
}

impl Delivery {
    /// Handles a batch whose outcome is unknown after the last attempt of a run. Stops the lane; but sets a single
    /// record aside that stayed unknown in three runs, and leaves the single record of a retry set aside.
    pub(super) async fn unknown(&self, answered: Answered) -> Result<Vec<BatchTask>, LaneExit> {
        if self.is_retry() && is_alone(&answered.task) && self.is_api_good().await? {
            return self.leave_set_aside(answered).await;
        }
        if self.is_unknown_for_good(&answered.task) && self.is_import_good(true).await? {
            return self.set_aside_single(answered, None).await;
        }
        let Answered { task, outcome, result } = answered;
        Err(self.stop(&task, outcome, result, None).await)
    }

    /// Sends the leaves of a batch that stayed unknown in three runs, each once. Splits a leaf whose other half is
    /// processed, or that stayed unknown in three runs itself. `good_parents`: batches with a processed part.
    pub(super) async fn take_apart(
        &self,
        mut leaves: Vec<Leaf>,
        mut good_parents: BTreeSet<i64>,
    ) -> Result<(), LaneExit> {
        if leaves.is_empty() {
            return Ok(());
        }
        // Taken from the end: the leaves that were sent in the fewest runs come first.
        leaves.sort_by_key(|leaf| std::cmp::Reverse((leaf.task.unknown_runs, leaf.task.batch_id)));
        let mut left = Left { untried: leaves, ..Left::default() };
        let tried = self.halve_and_try(&mut left, &mut good_parents).await;
        let stopped = match tried {
            Ok(()) => self.end_of_taking_apart(&mut left, &good_parents).await,
            Err(exit) => Err(exit),
        };
        for Unknown { answered, .. } in &left.unknown {
            self.worker.journal.count_unknown_run(self.context(), answered.task.batch_id).await?;
        }
        stopped
    }

    async fn halve_and_try(&self, left: &mut Left, good_parents: &mut BTreeSet<i64>) -> Result<(), LaneExit> {
        loop {
            let is_sibling_known =
                |unknown: &Unknown| unknown.parent_id.is_some_and(|id| good_parents.contains(&id));
            let part = |unknown: &Unknown| UnknownPart {
                unknown_runs: unknown.answered.task.unknown_runs,
                is_sibling_known: is_sibling_known(unknown),
                is_single: is_alone(&unknown.answered.task),
            };
            let unknown: Vec<UnknownPart> = left.unknown.iter().map(part).collect();
            match next_part(left.requests, !left.untried.is_empty(), &unknown) {
                NextPart::Try => {
                    let Some(leaf) = left.untried.pop() else { return Ok(()) };
                    left.requests += 1;
                    self.try_once(leaf, left, good_parents).await?;
                }
                NextPart::Split(index) if self.is_worth_taking_apart().await? => {
                    let Answered { task, outcome, result } = left.unknown.swap_remove(index).answered;
                    let Some(halves) = task.batch.split_in_half() else { continue };
                    let split = self.split(&task, halves, result, &outcome);
                    let parts = split.instrument(batch_span(task.batch_id)).await?;
                    let parent_id = Some(task.batch_id);
                    left.untried.extend(parts.map(|part| Leaf { task: part, parent_id }));
                }
                NextPart::Split(_) | NextPart::End => return Ok(()),
            }
        }
    }

    async fn try_once(
        &self,
        Leaf { task, parent_id }: Leaf,
        left: &mut Left,
        good_parents: &mut BTreeSet<i64>,
    ) -> Result<(), LaneExit> {
        let span = batch_span(task.batch_id);
        let mut answered = match self.send_until_final(task).instrument(span).await? {
            Tried::Accepted => {
                good_parents.extend(parent_id);
                return Ok(());
            }
            Tried::Refused(answered, verdict) => {
                // The API answered to this part, so the other part is not unknown because of the API.
                good_parents.extend(parent_id);
                left.refused.push((answered, verdict));
                let Some((answered, _)) = left.refused.last_mut() else { return Ok(()) };
                return self.record(answered).await;
            }
            Tried::Unknown(answered) => answered,
        };
        self.record(&mut answered).await?;
        left.unknown.push(Unknown { answered, parent_id });
        Ok(())
    }

    /// Records an answer at once, because the decision about it depends on other answers.
    pub(super) async fn record(&self, answered: &mut Answered) -> Result<(), LaneExit> {
        self.record_answer(&answered.task, &answered.outcome, answered.result).await?;
        answered.result = AttemptResult { sent: false, ..answered.result };
        answered.task.permits = None;
        Ok(())
    }

    /// Bisects the refused parts, sets single records aside that stayed unknown in three runs, and stops the lane if
    /// any part is left.
    async fn end_of_taking_apart(
        &self,
        left: &mut Left,
        good_parents: &BTreeSet<i64>,
    ) -> Result<(), LaneExit> {
        for (answered, verdict) in std::mem::take(&mut left.refused) {
            let root = answered.task.root;
            let span = batch_span(answered.task.batch_id);
            for part in self.refused(answered, &verdict).instrument(span).await? {
                self.deliver(part).await?;
            }
            self.conclude(root).await?;
        }
        let mut index = 0;
        while let Some(Unknown { answered, parent_id }) = left.unknown.get(index) {
            let is_whole = parent_id.is_none_or(|id| good_parents.contains(&id));
            let span = batch_span(answered.task.batch_id);
            let is_good = self.is_import_good(is_whole).instrument(span.clone());
            if !self.is_unknown_for_good(&answered.task) || !is_good.await? {
                index += 1;
                continue;
            }
            let set_aside = self.set_aside_single(left.unknown.swap_remove(index).answered, None);
            for superseded in set_aside.instrument(span).await? {
                self.deliver(superseded).await?;
            }
        }
        if let Some(Unknown { answered, .. }) = left.unknown.first() {
            let Answered { task, outcome, result } = answered;
            let problem = outcome.clone().into_problem(task.batch_id, result.http_status);
            return Err(LaneExit::problem(problem));
        }
        if left.untried.is_empty() {
            return Ok(());
        }
        let message = format!(
            "the outcome of a batch stayed unknown in three runs, and this run sent {REQUESTS_MAX} requests for its \
             parts; the next run sends the rest"
        );
        Err(LaneExit::problem(Problem::of_lane(Kind::Unavailable, message)))
    }

    /// Whether a single record stays unknown in the third run or a later one.
    fn is_unknown_for_good(&self, task: &BatchTask) -> bool {
        let may_be_sent_again = self.worker.settings.sync.on_ambiguous != OnAmbiguous::Hold;
        may_be_sent_again && is_unknown_for_good(task.unknown_runs, is_alone(task))
    }

    /// Whether the API accepts imports in this run, so that a record stays unknown because of its content. If no import
    /// was accepted in this run, a record is sent again that was accepted before. If there is none, the probe suffices
    /// for a record that is not a part (`is_whole`) or whose other half is known.
    async fn is_import_good(&self, is_whole: bool) -> Result<bool, LaneExit> {
        if self.session.has_accepted() {
            return Ok(true);
        }
        match self.resend_known().await? {
            Resent::Accepted => Ok(true),
            Resent::Otherwise(why) => {
                tracing::warn!(
                    "a record that was accepted before is not accepted now, so no row is set aside: {why}"
                );
                Ok(false)
            }
            Resent::Nothing if !is_whole => Ok(false),
            Resent::Nothing => self.is_api_good().await,
        }
    }

    /// Whether a batch was accepted in this run, or the probe shows that the API is good.
    async fn is_api_good(&self) -> Result<bool, LaneExit> {
        let proven = self.session.probe_credential(self.worker.settings.retry.max);
        Ok(self.unless_halted(proven).await?.is_ok())
    }

    /// Whether the API answers at all; otherwise batches are not split.
    async fn is_worth_taking_apart(&self) -> Result<bool, LaneExit> {
        let proven =
            self.unless_halted(self.session.probe_credential(self.worker.settings.retry.max)).await?;
        // A key that may only import is proven by the parts. If both stay unknown, they are not split any further.
        Ok(matches!(proven, Ok(()) | Err(Unproven::NoList(_))))
    }

    /// Returns the message for a batch whose outcome is unknown after the last attempt. `None`: the outcome is known.
    /// The page of a firewall for one batch, while others are accepted, counts as unknown, too: the firewall refuses
    /// its rows.
    pub(super) async fn unknown_after_all(
        &self,
        answer: &Answer,
        verdict: &ResponseClass,
        task: &BatchTask,
    ) -> Result<Option<OutcomeMessage>, LaneExit> {
        if self.worker.settings.sync.on_ambiguous == OnAmbiguous::Hold {
            return Ok(None);
        }
        let name = &self.session.credential.name;
        let status =
            if let Answer::Response { status, .. } = answer { Some(i32::from(*status)) } else { None };
        if matches!(verdict, ResponseClass::Unknown(_)) {
            return Ok(Some(messages::of(verdict, status, &task.batch, name)));
        }
        if !is_page_of_firewall(answer) {
            return Ok(None);
        }
        let is_good = self.session.has_accepted()
            || (!self.is_retry() && self.resend_known().await? == Resent::Accepted);
        if !is_good {
            return Ok(None);
        }
        let verdict =
            ResponseClass::Unknown("a page came instead of an answer, as from a firewall".to_owned());
        Ok(Some(messages::of(&verdict, status, &task.batch, name)))
    }
}

/// Whether the batch cannot be split any further.
fn is_alone(task: &BatchTask) -> bool {
    task.batch.split_in_half().is_none()
}

/// Whether the answer is 403 or 406 with a page, which the API itself never sends.
fn is_page_of_firewall(answer: &Answer) -> bool {
    matches!(answer, Answer::Response { status: 403 | 406, envelope, .. } if envelope.is_page)
}
