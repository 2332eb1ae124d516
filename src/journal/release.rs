//! The release of held rows.

use std::collections::{BTreeMap, HashSet};

use crate::batch::{pack_ids, unpack_ids};
use crate::database::Transaction;
use crate::watermark::LedgerId;

/// The smallest and the greatest of some ids. `None`: they are no numbers.
pub(super) fn range(ids: impl Iterator<Item = Option<i64>> + Clone) -> (Option<i64>, Option<i64>) {
    if ids.clone().any(|id| id.is_none()) {
        return (None, None);
    }
    (ids.clone().flatten().min(), ids.flatten().max())
}

/// Releases rows, each for a reason, from the errors that hold them, apart from those that `batch_id` has recorded. An error that holds no
/// row any more is resolved.
pub(super) async fn release(
    transaction: &mut Transaction,
    entity_id: &str,
    batch_id: Option<i64>,
    rows: &[(&str, &str)],
) -> Result<(), sqlx::Error> {
    let (first, last) = range(rows.iter().map(|(id, _)| id.parse().ok()));
    let errors = sqlx::query!(
        r#"select error_id, ledger_ids as "ledger_ids!", released_ids, rows as "rows!" from elven_sync.sync_errors
            where entity_id = $1 and ledger_ids is not null and resolved_at is null
              and ($2::bigint is null or batch_id is distinct from $2)
              and coalesce(first_id <= $4 and last_id >= $3, true)
            order by error_id for update"#,
        entity_id,
        batch_id,
        first,
        last
    )
    .fetch_all(&mut *transaction)
    .await?;
    if errors.is_empty() {
        return Ok(());
    }
    let why: BTreeMap<&str, &str> = rows.iter().copied().collect();
    for error in errors {
        let before = error.released_ids.as_deref().and_then(unpack_ids).unwrap_or_default();
        let held = still_held(&error.ledger_ids, error.released_ids.as_deref());
        let named = held.iter().filter_map(|id| Some((id, *why.get(id.to_string().as_str())?)));
        let (released, reasons): (Vec<&LedgerId>, Vec<&str>) = named.unzip();
        if released.is_empty() {
            continue;
        }
        let left = held.len() - released.len();
        let is_done = left == 0;
        let rows = if is_done { unpack_ids(&error.ledger_ids).map_or(0, |ids| ids.len()) } else { left };
        sqlx::query!(
            "update elven_sync.sync_errors
                set released_ids = $2, rows = $3,
                    resolved_at = case when $4::text is null then null else clock_timestamp() end, resolution = $4
              where error_id = $1",
            error.error_id,
            pack_ids(before.iter().chain(released)),
            i32::try_from(rows).unwrap_or(i32::MAX),
            reasons.last().filter(|_| is_done).copied()
        )
        .execute(&mut *transaction)
        .await?;
    }
    Ok(())
}

/// Returns the rows of an error that are held: those that it was recorded with, without those that were released.
pub(super) fn still_held(ledger_ids: &[u8], released_ids: Option<&[u8]>) -> Vec<LedgerId> {
    let released: HashSet<LedgerId> =
        released_ids.and_then(unpack_ids).unwrap_or_default().into_iter().collect();
    let mut ids = unpack_ids(ledger_ids).unwrap_or_default();
    ids.retain(|id| !released.contains(id));
    ids
}
