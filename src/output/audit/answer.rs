//! The answer of an audit, and what its report says of itself.

use crate::audit::{EntityAudit, Outcome, PeriodAudit};
use crate::text::{counted_noun, thousands};

/// What a sum of the report is.
pub(super) const SUMS_ARE: &str = "a sum of snapshots is a control total, not a balance";

/// What an audit never proves.
pub(super) const NOT_PROVEN: &str = "that Elven still holds the records that it accepted; rows that were deleted from the ledger, \
                          and values that a row had before it was changed; what was changed in the ledger and in the \
                          journal together";

/// Answers the question whether the period is complete, in one sentence.
pub(super) fn answer(audit: &PeriodAudit) -> String {
    let period = format!("{} to {}", audit.from, audit.to);
    let rows: i64 = audit.entities.iter().map(|entity| entity.rows).sum();
    let all = counted_noun(rows, "row", "rows");
    let counts = |outcomes: &[Outcome]| {
        let counted = outcomes.iter().map(|outcome| (audit.count(*outcome), outcome.words()));
        counted
            .filter(|(count, _)| *count > 0)
            .map(|(count, words)| format!("{} {words}", thousands(count)))
            .collect::<Vec<_>>()
    };
    let fine = counts(&[Outcome::Uploaded, Outcome::Superseded, Outcome::NotSynced]);
    let is = if audit.is_complete() { "is complete" } else { "is NOT complete" };
    let problems = problems(audit);
    let parts: Vec<String> = if problems.is_empty() {
        std::iter::once(all).chain(fine).collect()
    } else {
        let rest = format!("of {all}{}{}", if fine.is_empty() { "" } else { ", " }, fine.join(", "));
        problems.into_iter().chain([rest]).collect()
    };
    format!("{period} {is}: {}", parts.join(", "))
}

/// What keeps the period from being complete, most important first.
fn problems(audit: &PeriodAudit) -> Vec<String> {
    let sum = |of: fn(&EntityAudit) -> i64| audit.entities.iter().map(of).sum::<i64>();
    let count = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
    let unsettled = count(audit.entities.iter().map(|entity| entity.unsettled).sum());
    let findings = count(audit.entities.iter().map(EntityAudit::findings).sum());
    [
        (audit.count(Outcome::Pending), "row pending", "rows pending"),
        (audit.count(Outcome::SetAside), "row set aside", "rows set aside"),
        (audit.count(Outcome::Unaccounted), "row unaccounted", "rows unaccounted"),
        (
            sum(EntityAudit::uploaded_with_open_error),
            "other row with an open error",
            "other rows with an open error",
        ),
        (unsettled, "batch of unknown outcome", "batches of unknown outcome"),
        (findings, "finding of verify", "findings of verify"),
    ]
    .into_iter()
    .filter(|(count, ..)| *count > 0)
    .map(|(count, one, many)| counted_noun(count, one, many))
    .collect()
}
