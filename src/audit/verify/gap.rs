//! The check of the rows that were written while the trigger of the ledger was broken. They keep the stamp of an earlier
//! transaction, so they are behind the watermark, and neither a batch nor an interval shows that they have changed.

use super::checker::ROWS_NAMED_MAX;
use super::{EntityProof, Finding};
use crate::database::Database;
use crate::journal::guard_gap;
use crate::ledger::{GuardGap, Ledger};
use crate::sync::RunError;
use crate::text::and_more;

/// Adds a finding to each entity that has such rows. Returns the gap if no entity has any, also none that is not among
/// these, and the trigger is intact again.
pub(crate) async fn check(
    database: &Database,
    ledger: &Ledger,
    entities: &mut [EntityProof],
) -> Result<Option<GuardGap>, RunError> {
    let Some(gap) = guard_gap(database, ledger).await? else { return Ok(None) };
    let unstamped = match ledger.unstamped(gap, ROWS_NAMED_MAX).await {
        // The proof of their entity has a finding about rows that cannot be read.
        Err(problem) if problem.is_about_rows() => return Ok(None),
        unstamped => unstamped?,
    };
    let Some(unstamped) = unstamped else {
        tracing::warn!(
            "the trigger of the ledger was broken, and the rows of a view do not show which of them were written then; \
             hint: docs/operating.md, \"Alert GuardBroken\""
        );
        return Ok(None);
    };
    for found in &unstamped {
        let Some(proof) = entities.iter_mut().find(|proof| proof.entity_id == found.entity_id) else {
            continue;
        };
        let named = and_more(&found.ledger_ids, usize::try_from(found.rows).unwrap_or(0));
        let first = if gap.until.is_none() { "elven-sync attach and elven-sync run; then " } else { "" };
        let message = format!(
            "rows {named} of the ledger were written while the trigger was broken, and were not stamped, so no \
             run reads them; hint: {first}{}; the next run uploads them",
            ledger.stamping_gap(gap)
        );
        proof.find(Finding::new("unstamped_row", message).of_rows(found.ledger_ids.clone()));
    }
    Ok(Some(gap).filter(|gap| unstamped.is_empty() && gap.until.is_some()))
}
