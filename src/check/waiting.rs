//! Locks and limits: a check rather gives up than waits, and says for whom it would have waited.

use std::convert::Infallible;
use std::sync::PoisonError;
use std::time::Duration;

use super::connection::LIMITS;
use super::finding::{Finding, Status, foreign};
use super::surroundings::Surroundings;
use crate::database::Blocker;

/// How often it is looked at who keeps a statement waiting. Less than half of the limit for locks.
const LOOK_EVERY: Duration = Duration::from_millis(300);

impl Surroundings {
    /// Looks again and again whether a statement waits for a lock, and for whom, while a check is made.
    pub(super) async fn look_at_waits(&self) -> Infallible {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let Some(database) = self.connected_already() else { continue };
            if let Ok(Some(waits)) = database.waits().await {
                *self.waits.lock().unwrap_or_else(PoisonError::into_inner) = Some(waits);
            }
        }
    }

    /// Returns the finding of a check that waited in vain for a lock. Later checks that read the sync tables are skipped:
    /// each of them would wait, too.
    pub(super) fn locked(&self, id: &'static str) -> Finding {
        let waits = self.waits.lock().unwrap_or_else(PoisonError::into_inner).clone();
        // Whether the ledger can be read is a check of its own, whose result is kept.
        if id != "ledger.readable" {
            self.locked_by.get_or_init(|| id);
        }
        let limit = format!("{} s", LIMITS.lock.as_secs());
        let Some(waits) = waits else {
            return Finding::failed(
                format!("another session holds a lock, so that nothing could be read within {limit}"),
                "select pid, pg_blocking_pids(pid), query from pg_stat_activity where wait_event_type = 'Lock';",
            );
        };
        let message = format!(
            "{} could not be read within {limit}: it is locked by {}",
            waits.what(),
            waits.for_whom(Blocker::who_and_statement)
        );
        Finding::failed(foreign(&message), waits.hint())
    }

    /// Returns the finding of a check whose statement took too long.
    pub(super) fn slow(&self) -> Finding {
        let limit_of_role = self.connected_already().and_then(crate::database::Database::limit_of_role);
        match limit_of_role.filter(|limit| *limit < LIMITS.statement) {
            Some(limit) => Finding::failed(
                format!(
                    "a statement was ended by the statement_timeout of the role or the database ({limit:?})"
                ),
                "as the owner: alter role NAME set statement_timeout = '1min';",
            ),
            None => Finding {
                status: Status::Skipped,
                message: format!("its statement was ended after {} s", LIMITS.statement.as_secs()),
                hint: None,
            },
        }
    }
}
