//! The time in which the trigger of the ledger was broken, as runs have recorded it.

use super::JournalError;
use crate::database::Database;
use crate::ledger::{GuardGap, Ledger};

/// Returns the gap that runs have seen in this ledger, if rows may still be without a stamp. `None` also where no run saw
/// the trigger intact before: then the ledger may be stamped in another way.
pub async fn guard_gap(database: &Database, ledger: &Ledger) -> Result<Option<GuardGap>, JournalError> {
    let read = || {
        sqlx::query!(
            r#"select (value ->> 'gap_from')::bigint as "from!", (value ->> 'gap_seen')::bigint as "seen!",
                      (value ->> 'gap_until')::bigint as until
                 from elven_sync.sync_facts
                where name = 'guard' and entity_id is null and value ->> 'ledger' = $1 and value ? 'gap_from'"#,
            ledger.name()
        )
        .fetch_optional(database)
    };
    let gap = database.retry(read).await?;
    Ok(gap.map(|gap| GuardGap {
        from: u64::try_from(gap.from).unwrap_or(0),
        seen: u64::try_from(gap.seen).unwrap_or(0),
        until: gap.until.and_then(|until| u64::try_from(until).ok()),
    }))
}

/// Records that each row of a gap is stamped. A gap that is still open, or that has become longer, stays.
pub async fn close_guard_gap(database: &Database, gap: GuardGap) -> Result<(), JournalError> {
    let [from, until] = [Some(gap.from), gap.until].map(|xid| xid.and_then(|xid| i64::try_from(xid).ok()));
    let close = || {
        sqlx::query!(
            "update elven_sync.sync_facts set value = value - '{gap_from,gap_seen,gap_until,gap_since}'::text[]
              where name = 'guard' and entity_id is null and not elven_sync.is_bad(value)
                and (value ->> 'gap_from')::bigint = $1 and (value ->> 'gap_until')::bigint = $2",
            from,
            until
        )
    };
    database.execute(close).await?;
    Ok(())
}
