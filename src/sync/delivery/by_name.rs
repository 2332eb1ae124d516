//! Finding the refused rows by name: a refused batch is split by the names that the API may not know, and the rows of a
//! name that it does not know are held without a request each.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;

use super::super::decisions::naming::{ByName, Name, by_name, is_strange};
use super::super::lane::exit::LaneExit;
use super::super::messages::{self, OutcomeMessage};
use super::super::names::{ApiLists, Cut};
use super::Delivery;
use super::batch_task::{Answered, BatchTask};
use crate::batch::Batch;
use crate::elven::List;
use crate::fault_point::{Step, around};
use crate::journal::{AttemptResult, Hold, Split};

/// The names of a strange batch that its error names.
const NAMES_SHOWN_MAX: usize = 5;

/// What the names of a refused batch say.
pub(super) enum Finding {
    /// All its names were refused in this run.
    Held,
    /// It is split by name: the number of the part of each row.
    Parts {
        rows: Vec<usize>,
        /// Because a list lacks the names, or because they were refused in this run.
        by_list: bool,
    },
    /// The refusal shows that the API does not know this name.
    Unknown(Name),
    /// A single record of a name in doubt, which is not enough to show that the name is unknown.
    Single(Name),
    /// Nothing.
    Nothing,
}

/// A batch that is to be sent, without the records whose names were refused.
pub(super) enum ToSend {
    Whole(Box<BatchTask>),
    /// The parts to send instead.
    Parts(Vec<BatchTask>),
}

impl Delivery {
    /// Holds the records of a batch whose names were refused in this run, without a request. A batch that may have
    /// arrived is left as it is: only the same rows may be sent for its keys.
    pub(super) async fn without_refused_names(&self, task: BatchTask) -> Result<ToSend, LaneExit> {
        let cut = if task.lost { Cut::Nothing } else { self.target.names.cut(&task.batch) };
        match cut {
            Cut::Nothing => Ok(ToSend::Whole(task.into())),
            Cut::All => {
                self.hold(&task, AttemptResult::default()).await?;
                Ok(ToSend::Parts(Vec::new()))
            }
            Cut::Parts(rows) => {
                let error = messages::SPLIT_BY_NAME;
                let reason = Split { error, ambiguous: false, withdrawn: task.signed.is_some() };
                self.split_by(task, &rows, AttemptResult::default(), reason).await.map(ToSend::Parts)
            }
        }
    }

    /// Returns the lists of the credential. If they have to be requested, the refusal is recorded before.
    async fn lists(&self, answered: &mut Answered) -> Result<&ApiLists, LaneExit> {
        if let Some(lists) = self.session.lists.get() {
            return Ok(lists);
        }
        if answered.result.sent {
            self.record(answered).await?;
        }
        Ok(self.unless_halted(self.session.lists(&self.worker)).await??)
    }

    /// Finds out what the names of a refused batch say.
    ///
    /// # Errors
    /// The API knows none of the names, and no record of the entity was ever accepted: the lane stops.
    pub(super) async fn finding(&self, answered: &mut Answered) -> Result<Finding, LaneExit> {
        let lists = self.lists(answered).await?;
        let (batch, names) = (&answered.task.batch, &self.target.names);
        names.note_refused(batch);
        match names.cut(batch) {
            Cut::All => return Ok(Finding::Held),
            Cut::Parts(rows) => return Ok(Finding::Parts { rows, by_list: true }),
            Cut::Nothing => {}
        }
        let groups = batch.named_groups();
        let standing = |list: List, id: &str| names.standing(lists, list, id);
        if !answered.task.is_part
            && !self.is_retry()
            && is_strange(&groups, &standing)
            && !self.worker.journal.has_accepted(&self.pass.lease.entity_id).await?
        {
            let outcome = self.strange(batch, lists, &answered.outcome);
            return Err(self.stop(&answered.task, outcome, answered.result, None).await);
        }
        Ok(match by_name(&groups, &standing) {
            ByName::Unlisted(name) => Finding::Unknown(name),
            ByName::Unheard(name) if groups.len() == 1 && names.shows_unknown(&name) => {
                Finding::Unknown(name)
            }
            ByName::Unheard(name) if groups.len() == 1 => Finding::Single(name),
            ByName::Unheard(_) | ByName::Position => Finding::Nothing,
            ByName::Parts { parts, by_list } => {
                Finding::Parts { rows: batch.parts_of_rows(&groups, &parts), by_list }
            }
        })
    }

    /// Returns the message for a batch of which the API knows no name.
    fn strange(&self, batch: &Batch, lists: &ApiLists, outcome: &OutcomeMessage) -> OutcomeMessage {
        let list = if lists.of(List::Accounts).is_some() { List::Accounts } else { List::Currencies };
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for [account, currency] in batch.names() {
            *counts.entry(if list == List::Accounts { account } else { currency }).or_default() += 1;
        }
        let mut common: Vec<(&str, usize)> = counts.into_iter().collect();
        common.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        let shown = common.iter().take(NAMES_SHOWN_MAX).map(|(id, count)| {
            let near = lists.near(&Name { list, id: (*id).to_owned() });
            let near =
                if near.is_empty() { String::new() } else { format!(", near `{}`", near.join("`, `")) };
            format!("`{id}` ({count} of {} records{near})", batch.records.len())
        });
        let shown: Vec<String> = shown.collect();
        let more = common.len().saturating_sub(NAMES_SHOWN_MAX);
        let credential = &self.session.credential.name;
        outcome.clone().strange(list, &shown.join(", "), more, credential)
    }

    /// Notes a name that a refusal shows to be unknown, and holds the rows of the batch, which all have it.
    pub(super) async fn hold_unknown(
        &self,
        task: &BatchTask,
        outcome: &OutcomeMessage,
        result: AttemptResult,
        name: Name,
    ) -> Result<(), LaneExit> {
        let lists = self.session.lists(&self.worker).await?;
        self.target.names.note_unknown(name, lists, outcome, result.http_status);
        self.hold(task, result).await
    }

    /// Holds the rows of a batch, all of whose names were refused in this run. `result`: the refusal of the batch, if
    /// it was sent.
    pub(super) async fn hold(&self, task: &BatchTask, result: AttemptResult) -> Result<(), LaneExit> {
        let mut window = self.window.lock().await;
        let by_name = self.target.names.held_rows(&self.pass.lease.entity_id, &task.batch, self.is_retry());
        let rows: usize = by_name.iter().map(|held| held.ids.len()).sum();
        let advance = window.advance_after(task.root);
        let holding = Hold { held: by_name, advance, withdrawn: task.signed.is_some() };
        let written = self.worker.journal.hold(self.context(), task.batch_id, &task.batch, result, holding);
        around(Step::SetAside, written).await?;
        window.part_done(task.root);
        drop(window);
        self.has_set_aside.store(true, Ordering::Relaxed);
        if !self.is_retry() {
            self.report(|report| report.count_held(&task.batch));
        } else if self.is_resend {
            self.report(|report| report.rows_held_again += i64::try_from(rows).unwrap_or(i64::MAX));
        }
        tracing::info!(rows, "rows held, because the API does not know a name of theirs");
        Ok(())
    }

    /// Replaces a batch by parts. `part_of_row`: the number of the part of each row. The journal knows only two parts
    /// of a batch, so what is left after the first part is split in turn, without a request.
    pub(super) async fn split_by(
        &self,
        task: BatchTask,
        part_of_row: &[usize],
        mut result: AttemptResult,
        mut reason: Split<'_>,
    ) -> Result<Vec<BatchTask>, LaneExit> {
        let numbers: BTreeSet<usize> = part_of_row.iter().copied().collect();
        let last = numbers.last().copied().unwrap_or_default();
        let (mut parts, mut left): (Vec<BatchTask>, Option<BatchTask>) = (Vec::new(), None);
        for number in numbers.into_iter().filter(|number| *number < last) {
            let first = task.batch.only(|row| part_of_row[row] == number);
            let others = task.batch.only(|row| part_of_row[row] > number);
            let whole = left.as_ref().unwrap_or(&task);
            let [first, others] = self.split_as(whole, [first, others], result, reason).await?;
            parts.push(first);
            left = Some(others);
            result = AttemptResult::default();
            reason.withdrawn = false;
        }
        parts.extend(left);
        Ok(parts)
    }
}
