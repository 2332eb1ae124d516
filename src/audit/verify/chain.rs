//! The chain of watermarks: each change begins where the change before it ended, and the last one ends at the present
//! watermark of the entity.
//!
//! A rewind makes each row behind its target pending again. So the proof that no row was skipped needs no change that a
//! rewind took back: what was removed or altered there is a note, and no finding. A rewind that was made up hides
//! nothing: the passes after it have to list each row again.

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::finding::Finding;
use crate::journal::Lane;
use crate::journal::audit::Change;
use crate::sync::watermark_check::start_over;
use crate::watermark::{Cursor, Snapshot};

/// The characters of a watermark that a message shows: a watermark may list many transactions.
const SHOWN_MAX: usize = 60;

/// The changes of a watermark without those that a rewind took back.
#[derive(Debug, Default)]
pub(crate) struct Chain {
    entity_id: String,
    /// The passes, in order; the last one may be open.
    pub links: Vec<Link>,
    /// The other changes: rows skipped at registration, and pruned passes.
    pub others: Vec<Change>,
    /// The last rewind to the start. The chain begins there.
    pub rewound: Option<Rewound>,
    /// The places where the chain is broken.
    pub findings: Vec<Finding>,
    /// The places where it was broken among the changes that a rewind took back, without a hint.
    pub taken_back: Vec<Finding>,
}

/// A rewind to the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Rewound {
    /// Its number in `sync_passes`.
    pub pass_id: i64,
    /// The time of the rewind.
    pub at: Option<DateTime<Utc>>,
}

/// A pass of the chain.
#[derive(Clone, Debug)]
pub(crate) struct Link {
    pub pass_id: i64,
    pub settled: Option<Snapshot>,
    pub target: Snapshot,
    pub stage: Stage,
}

/// Whether a pass is closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Closed, with its end if that is known.
    Closed(Option<Cursor>),
    /// Open, with its cursor.
    Open(Option<Cursor>),
}

impl Link {
    pub(crate) fn is_open(&self) -> bool {
        matches!(self.stage, Stage::Open(_))
    }
}

/// Follows the changes of a watermark up to the present state of the entity.
pub(crate) fn follow(entity_id: &str, changes: Vec<Change>, lane: &Lane) -> Chain {
    let mut chain = Chain { entity_id: entity_id.to_owned(), ..Chain::default() };
    let mut stack: Vec<Change> = Vec::new();
    let mut seen: Vec<Snapshot> = Vec::new();
    let mut watermark: Option<Snapshot> = None;
    for change in changes {
        if change.kind == "rebind" {
            // A rebind accepts another cluster or mapping, and is possible while a pass is open.
            if change.settled != change.target {
                chain.find("chain", &change, "is a rebind, but moves the watermark");
            }
            continue;
        }
        if let Some(open) = stack.pop_if(|top| is_open(top))
            && change.kind != "rewind"
        {
            chain.find("open_pass", &open, "was neither finished nor given up, but other changes follow");
        }
        if change.settled != watermark {
            let (begins, ended) = (shown(change.settled.as_ref()), shown(watermark.as_ref()));
            chain.find(
                "chain",
                &change,
                &format!(
                    "begins at {begins}, but the change before it ended at {ended}: a pass was removed or a watermark \
                     was altered, and the rows between may have been skipped"
                ),
            );
        }
        if change.kind == "rewind" {
            chain.rewind(&change, &mut stack, &seen);
            watermark.clone_from(&change.target);
            continue;
        }
        if !is_open(&change) {
            watermark.clone_from(&change.target);
            seen.extend(change.target.clone());
        }
        stack.push(change);
    }
    chain.ends_at(stack.last().filter(|top| is_open(top)), watermark.as_ref(), lane);
    let (passes, others) = stack.into_iter().partition(|change| change.kind == "pass");
    chain.others = others;
    for change in passes {
        chain.add(change, lane);
    }
    chain
}

fn is_open(change: &Change) -> bool {
    change.kind == "pass" && change.finished_at.is_none()
}

impl Chain {
    fn find(&mut self, what: &'static str, change: &Change, message: &str) {
        let message = format!(
            "the change of the watermark in sync_passes {message}; hint: restore the row from a backup, or {}",
            start_over(&self.entity_id)
        );
        self.findings.push(Finding::new(what, message).of_pass(change.pass_id).mended_by_rewind());
    }

    /// Removes the changes that a rewind took back: all changes after the one that includes the rewind's target.
    fn rewind(&mut self, rewind: &Change, stack: &mut Vec<Change>, seen: &[Snapshot]) {
        let Some(to) = &rewind.target else {
            stack.clear();
            self.take_back(None);
            self.rewound = Some(Rewound { pass_id: rewind.pass_id, at: rewind.finished_at });
            return;
        };
        let covers = |change: &Change| change.target.as_ref().is_some_and(|target| to.is_within(target));
        let exact = stack.iter().rposition(|change| change.target.as_ref() == Some(to));
        let kept = exact.or_else(|| stack.iter().position(covers));
        let is_known = seen.contains(to) || stack.iter().any(|c| c.kind == "pruned" && covers(c));
        match kept {
            Some(kept) if is_known => {
                stack.truncate(kept + 1);
                if let Some(last) = stack.last_mut() {
                    // The rows that it processed beyond the target are pending again.
                    last.target = Some(to.clone());
                    let kept = last.pass_id;
                    self.take_back(Some(kept));
                }
            }
            _ => self.find(
                "chain",
                rewind,
                &format!("is a rewind to {}, where the watermark never was", shown(Some(to))),
            ),
        }
    }

    /// Turns the findings about the changes after `kept` into notes: a rewind took these changes back.
    fn take_back(&mut self, kept: Option<i64>) {
        let is_kept = |finding: &Finding| finding.pass_id <= kept;
        let (kept, taken_back): (Vec<_>, Vec<_>) = self.findings.drain(..).partition(is_kept);
        self.findings = kept;
        self.taken_back.extend(taken_back.into_iter().map(Finding::without_hint));
    }

    /// Checks that the state of the entity has the watermark of the last change, and the same open pass.
    fn ends_at(&mut self, open: Option<&Change>, watermark: Option<&Snapshot>, lane: &Lane) {
        if lane.settled.as_ref() != watermark {
            let (stands, ended) = (shown(lane.settled.as_ref()), shown(watermark));
            let message = format!(
                "the watermark in sync_state is {stands}, but the last change in sync_passes ended at {ended}: it was \
                 moved by hand, or a pass was removed; the rows between may have been skipped; hint: {}",
                start_over(&self.entity_id)
            );
            self.findings.push(Finding::new("watermark", message).mended_by_rewind());
        }
        let recorded = open.map(|open| (open.pass_id, open.target.as_ref()));
        let stated = lane.open.as_ref().map(|(pass_id, target)| (*pass_id, Some(target)));
        if recorded != stated {
            let pass_id = stated.or(recorded).map(|(pass_id, _)| pass_id);
            let message = format!(
                "the open pass in sync_state and the unfinished pass in sync_passes differ: one of them was altered; \
                 hint: {}",
                start_over(&self.entity_id)
            );
            self.findings.push(Finding { pass_id, ..Finding::new("open_pass", message).mended_by_rewind() });
        }
    }

    fn add(&mut self, change: Change, lane: &Lane) {
        let is_open = is_open(&change);
        let Change { pass_id, settled, target: Some(target), last, .. } = change else {
            return self.find("chain", &change, "is a pass without a target");
        };
        if settled.as_ref().is_some_and(|settled| !settled.is_within(&target)) {
            let message = format!(
                "a pass moves the watermark back: its target was altered; hint: restore it from a backup, or {}",
                start_over(&self.entity_id)
            );
            self.findings.push(Finding::new("chain", message).of_pass(pass_id).mended_by_rewind());
        }
        let stage = if is_open { Stage::Open(lane.cursor.clone()) } else { Stage::Closed(last) };
        self.links.push(Link { pass_id, settled, target, stage });
    }
}

fn shown(watermark: Option<&Snapshot>) -> String {
    let Some(watermark) = watermark else { return "the start".to_owned() };
    let text = watermark.to_string();
    match text.char_indices().nth(SHOWN_MAX) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(pass_id: i64, kind: &str, settled: &str, target: &str) -> Change {
        let snapshot = |text: &str| (!text.is_empty()).then(|| text.parse().unwrap());
        Change {
            pass_id,
            kind: kind.to_owned(),
            settled: snapshot(settled),
            target: snapshot(target),
            finished_at: Some(chrono::DateTime::UNIX_EPOCH),
            last: None,
        }
    }

    const A: &str = "10:10:";
    const B: &str = "20:20:";
    const C: &str = "30:30:";

    /// The passes that are left, and the kinds of findings.
    fn followed(
        changes: Vec<Change>,
        settled: &str,
        open: Option<(i64, &str)>,
    ) -> (Vec<i64>, Vec<&'static str>) {
        let lane = Lane {
            settled: (!settled.is_empty()).then(|| settled.parse().unwrap()),
            open: open.map(|(pass_id, target)| (pass_id, target.parse().unwrap())),
            ..Lane::default()
        };
        let chain = follow("acme", changes, &lane);
        let whats = chain.findings.iter().map(|finding| finding.what).collect();
        (chain.links.iter().map(|link| link.pass_id).collect(), whats)
    }

    fn open(change: Change) -> Change {
        Change { finished_at: None, ..change }
    }

    /// What was removed or altered among the changes that a rewind took back is a note: its rows are pending again.
    #[test]
    fn a_rewind_turns_findings_about_the_changes_that_it_took_back_into_notes() {
        let pass = |id, settled, target| change(id, "pass", settled, target);
        let rewind = |id, settled, target| change(id, "rewind", settled, target);
        for (changes, settled, noted, rewound, kept) in [
            // A pass was removed, the entity was rewound to the start, and a run uploaded everything.
            (
                vec![pass(1, "", A), pass(3, B, C), rewind(4, C, ""), pass(5, "", C)],
                C,
                vec![3],
                Some(4),
                vec![],
            ),
            // The watermark of sync_state was altered.
            (vec![pass(1, "", A), rewind(2, B, ""), pass(3, "", C)], C, vec![2], Some(2), vec![]),
            // The journal was lost.
            (vec![rewind(9, C, "")], "", vec![9], Some(9), vec![]),
            (vec![pass(1, "", A), change(2, "rebind", A, B), rewind(3, A, "")], "", vec![2], Some(3), vec![]),
            (vec![open(pass(1, "", A)), pass(2, "", B), rewind(3, B, "")], "", vec![1], Some(3), vec![]),
            // A rewind to an instant takes back only what came after it.
            (
                vec![pass(1, "", A), pass(2, A, B), pass(4, C, C), rewind(5, C, A), pass(6, A, C)],
                C,
                vec![4],
                None,
                vec![],
            ),
            (vec![pass(1, A, B), pass(3, B, C), rewind(4, C, B)], B, vec![], None, vec![1]),
            // A rewind does not answer for what comes after it.
            (vec![pass(1, "", A), rewind(2, A, ""), pass(4, B, C)], C, vec![], Some(2), vec![4]),
            (vec![pass(1, "", A), rewind(2, A, B)], B, vec![], None, vec![2]),
        ] {
            let lane =
                Lane { settled: (!settled.is_empty()).then(|| settled.parse().unwrap()), ..Lane::default() };
            let chain = follow("acme", changes.clone(), &lane);
            let passes = |findings: &[Finding]| -> Vec<i64> {
                findings.iter().filter_map(|finding| finding.pass_id).collect()
            };
            assert_eq!(passes(&chain.taken_back), noted, "{changes:?}");
            assert_eq!(passes(&chain.findings), kept, "{changes:?}");
            assert_eq!(chain.rewound.map(|rewound| rewound.pass_id), rewound, "{changes:?}");
            assert!(chain.taken_back.iter().all(|note| !note.message.contains("hint:")), "{changes:?}");
        }
    }

    #[test]
    fn changes_that_a_person_or_a_prune_may_make_break_no_chain() {
        let pass = |id, settled, target| change(id, "pass", settled, target);
        for (changes, settled, opened, links) in [
            (vec![], "", None, vec![]),
            (vec![pass(1, "", A), pass(2, A, B)], B, None, vec![1, 2]),
            (vec![pass(1, "", A), open(pass(2, A, B))], A, Some((2, B)), vec![1, 2]),
            (vec![pass(1, "", A), pass(2, A, B), change(3, "rewind", B, A)], A, None, vec![1]),
            (
                vec![pass(1, "", A), pass(2, A, B), change(3, "rewind", B, ""), pass(4, "", C)],
                C,
                None,
                vec![4],
            ),
            // A pass that was open when its entity was rewound.
            (
                vec![pass(1, "", A), open(pass(2, A, B)), change(3, "rewind", A, A), pass(4, A, C)],
                C,
                None,
                vec![1, 4],
            ),
            // Back to where an earlier rewind came from: the third pass includes it.
            (
                vec![
                    pass(1, "", A),
                    pass(2, A, B),
                    change(3, "rewind", B, A),
                    pass(4, A, C),
                    change(5, "rewind", C, B),
                ],
                B,
                None,
                vec![1, 4],
            ),
            (
                vec![pass(1, "", A), open(pass(2, A, B)), change(3, "rebind", A, A)],
                A,
                Some((2, B)),
                vec![1, 2],
            ),
            (
                vec![pass(1, "", A), pass(2, A, B), change(3, "rebind", A, A), pass(4, B, C)],
                C,
                None,
                vec![1, 2, 4],
            ),
            (vec![change(1, "from_now", "", A), pass(2, A, B)], B, None, vec![2]),
            (vec![change(2, "pruned", "", B), pass(3, B, C)], C, None, vec![3]),
            (vec![change(2, "pruned", "", B), change(3, "rewind", B, A), pass(4, A, C)], C, None, vec![4]),
        ] {
            assert_eq!(followed(changes.clone(), settled, opened), (links, vec![]), "{changes:?}");
        }
    }

    #[test]
    fn any_other_change_is_found() {
        let pass = |id, settled, target| change(id, "pass", settled, target);
        for (changes, settled, opened, what) in [
            (vec![pass(1, "", A), pass(3, B, C)], C, None, "chain"),
            (vec![pass(2, A, B)], B, None, "chain"),
            (vec![pass(1, "", A)], B, None, "watermark"),
            (vec![pass(1, "", B)], A, None, "watermark"),
            (vec![], A, None, "watermark"),
            (vec![pass(1, "", A), open(pass(2, A, B))], A, None, "open_pass"),
            (vec![pass(1, "", A)], A, Some((2, B)), "open_pass"),
            (vec![pass(1, "", A), open(pass(2, A, B))], A, Some((2, C)), "open_pass"),
            (vec![open(pass(1, "", A)), pass(2, "", B)], B, None, "open_pass"),
            (vec![pass(1, "", A), change(2, "rewind", A, B)], B, None, "chain"),
            (vec![pass(1, "", C), change(2, "rewind", C, B)], B, None, "chain"),
            (vec![pass(1, "", A), change(2, "rebind", A, B)], A, None, "chain"),
            (vec![pass(1, "", B), pass(2, B, A)], A, None, "chain"),
        ] {
            let (_, found) = followed(changes.clone(), settled, opened);
            assert_eq!(found, [what], "{changes:?}");
        }
    }
}
