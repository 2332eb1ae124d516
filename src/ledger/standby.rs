//! Reads pages from a standby. They are correct once it has replayed everything that the pass covers.
//!
//! The snapshot of a statement on a standby is as old as the replay. Each statement proves that its snapshot covers
//! the target by reading the row of the pass itself: that row was committed on the primary after the target was taken,
//! a standby replays commits in order, and the page sees both in one snapshot. A comparison of positions in the
//! write-ahead log does not prove it within one statement, because the position may advance between the statement's
//! snapshot and the comparison. With two statements, a proxy may send them to two different servers.

use std::time::Duration;

use tokio::time::Instant;

use super::LedgerError;
use super::error::is_behind;
use crate::database::Database;
use crate::watermark::Snapshot;

const WAIT_MAX: Duration = Duration::from_mins(2);
const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// A wait longer than this is logged.
const WAIT_LOGGED: Duration = Duration::from_secs(5);

/// Checks that both addresses lead to the same database of the same cluster.
pub async fn check(primary: &Database, standby: &Database) -> Result<(), LedgerError> {
    let identity =
        "select system_identifier, (select oid::bigint from pg_database where datname = current_database())
                      from pg_control_system()";
    let here: (i64, i64) = primary.retry(|| sqlx::query_as(identity).fetch_one(primary)).await?;
    let there: (i64, i64) = standby.retry(|| sqlx::query_as(identity).fetch_one(standby)).await?;
    if here.0 != there.0 {
        return Err(LedgerError::Standby(
            "ELVEN_SYNC_LEDGER_URL leads to another PostgreSQL cluster than DATABASE_URL, and their transaction ids \
             differ; hint: set it to a streaming standby of the primary, or unset it"
                .to_owned(),
        ));
    }
    if here.1 != there.1 {
        return Err(LedgerError::Standby(
            "ELVEN_SYNC_LEDGER_URL leads to another database than DATABASE_URL; hint: set it to the same database on \
             a standby of the primary"
                .to_owned(),
        ));
    }
    Ok(())
}

/// Waits until a server at the standby's address has replayed a pass, with growing pauses between the checks.
///
/// Each check uses a new connection, because several servers may share the address and another one may be further. The
/// limit of two minutes counts from `begun`, the first request for the page. `behind` is the last error of the page;
/// it is part of the message.
pub(super) async fn replayed(
    standby: &Database,
    pass_id: i64,
    target: &Snapshot,
    begun: Instant,
    behind: &LedgerError,
) -> Result<(), LedgerError> {
    let mut pause = PAUSE_MIN;
    let mut logged = false;
    while begun.elapsed() < WAIT_MAX {
        if !logged && begun.elapsed() > WAIT_LOGGED {
            logged = true;
            tracing::warn!(pass_id, "waiting for the standby to replay the pass");
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
        let mut transaction = standby.retry(|| standby.begin_reading()).await?;
        // The page is not tried before this check succeeds, because a failed page leaves an error in the server's log.
        let seen = sqlx::query_scalar(
            "select exists (select from elven_sync.sync_passes where pass_id = $1 and target::text = $2)",
        )
        .bind(pass_id)
        .bind(target.to_string())
        .fetch_one(&mut transaction)
        .await
        .map_err(LedgerError::from);
        match seen {
            Ok(true) => return Ok(transaction.commit().await?),
            Err(problem) if !is_behind(&problem) => return Err(problem),
            // The dropped transaction closes its connection.
            Ok(false) | Err(_) => {}
        }
    }
    Err(LedgerError::Standby(format!(
        "the standby has not replayed the pass within {} s ({}); hint: check on the standby whether replay is paused \
         (`select pg_is_wal_replay_paused()`) or disconnected, or unset ELVEN_SYNC_LEDGER_URL to read from the primary",
        WAIT_MAX.as_secs(),
        crate::text::chain(behind)
    )))
}
