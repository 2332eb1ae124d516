//! Pages from a standby: right as long as it has replayed all that a pass is about.
//!
//! The snapshot of a statement on a standby is as old as the replay. That it covers the target is
//! proven inside each statement by the row of the pass itself: that row was committed on the primary
//! after the target was taken, a standby replays commits in order, and the page sees both in one
//! snapshot. Comparing positions in the write-ahead log would not do within one statement, because the
//! position may advance between the statement's snapshot and the comparison; and in two statements a
//! proxy may ask two different servers.

use std::time::Duration;

use tokio::time::Instant;

use super::LedgerError;
use super::error::is_behind;
use crate::database::Database;
use crate::watermark::Snapshot;

const WAIT_MAX: Duration = Duration::from_mins(2);
const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// A wait of this length is worth a line in the log.
const WAIT_LOGGED: Duration = Duration::from_secs(5);

/// Makes sure that both pools lead to the same database of the same cluster.
pub(super) async fn check(primary: &Database, standby: &Database) -> Result<(), LedgerError> {
    let identity =
        "select system_identifier, (select oid::bigint from pg_database where datname = current_database())
                      from pg_control_system()";
    let here: (i64, i64) = primary.retry(|| sqlx::query_as(identity).fetch_one(primary)).await?;
    let there: (i64, i64) = standby.retry(|| sqlx::query_as(identity).fetch_one(standby)).await?;
    if here.0 != there.0 {
        return Err(LedgerError::Standby(
            "ELVEN_SYNC_LEDGER_URL leads to another PostgreSQL cluster than DATABASE_URL, whose transaction ids mean \
             nothing here; hint: name a streaming standby of the primary, or leave it out"
                .to_owned(),
        ));
    }
    if here.1 != there.1 {
        return Err(LedgerError::Standby(
            "ELVEN_SYNC_LEDGER_URL leads to another database than DATABASE_URL; hint: name the same database on a \
             standby of the primary"
                .to_owned(),
        ));
    }
    Ok(())
}

/// Waits until a server behind the name has replayed a pass, asking more rarely each time.
///
/// On a new connection every time: behind one name may be several servers, and another one may be further.
/// For so long in all that a page is asked for since `begun`; then `behind` is what it failed with last.
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
            tracing::warn!(pass_id, "waiting for the standby to replay what the primary has");
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
        let mut transaction = standby.retry(|| standby.begin_reading()).await?;
        // Asked first, because a page that fails leaves an error in the server's log.
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
            // Dropped, it closes its connection.
            Ok(false) | Err(_) => {}
        }
    }
    Err(LedgerError::Standby(format!(
        "the standby could not show what the pass is about for {} s ({}); hint: is its replay paused, or its connection \
         to the primary broken? Without ELVEN_SYNC_LEDGER_URL pages come from the primary",
        WAIT_MAX.as_secs(),
        crate::text::chain(behind)
    )))
}
