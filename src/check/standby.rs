//! The standby from which pages are read.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::finding::{Finding, Outcome, Status, Unmade, age, size};
use super::surroundings::Surroundings;
use crate::database::{Database, ReplayState};
use crate::ledger::check_standby;
use crate::sync::standby_address;
use crate::text::chain;

/// A standby that is further behind makes runs wait for it, in seconds.
const LAG_MAX_S: i64 = 60;

/// How long the standby may take to replay what the primary has written by the beginning of the check.
const CATCH_UP_MAX: Duration = Duration::from_secs(2);

const CATCH_UP_LOOK_EVERY: Duration = Duration::from_millis(50);

/// The standby for reading belongs to the primary and follows it.
pub(super) async fn standby(surroundings: &Surroundings) -> Outcome {
    let (settings, primary) = (surroundings.settings()?, surroundings.database().await?);
    let Some(address) = standby_address(settings) else {
        return Err(Unmade::NotApplicable(
            "pages are read from the primary (no ELVEN_SYNC_LEDGER_URL)".to_owned(),
        ));
    };
    let hint = "check ELVEN_SYNC_LEDGER_URL, or unset it to read from the primary";
    let standby = match primary.connect_like(address).await {
        Ok(standby) => standby,
        Err(problem) => {
            let problem = format!("the standby cannot be reached: {}", chain(&problem));
            return Ok(Finding::failed(problem, hint));
        }
    };
    let checked = standby_of(primary, &standby, hint).await;
    standby.close().await;
    checked
}

async fn standby_of(primary: &Database, standby: &Database, hint: &str) -> Outcome {
    if let Err(problem) = check_standby(primary, standby).await {
        return Ok(Finding::of(Status::Failed, &chain(&problem)));
    }
    // The position first, so that a standby that has reached it is not behind, whatever is written meanwhile.
    let written = primary.flushed().await;
    let begun = Instant::now();
    loop {
        let Some(state) = standby.replay_state().await? else {
            return Ok(Finding::warning(
                "ELVEN_SYNC_LEDGER_URL leads to the primary itself, or to a promoted copy",
                hint,
            ));
        };
        let behind = match &written {
            Ok(written) => written.saturating_sub(state.replayed.unwrap_or(0)).max(0),
            // The address of the primary leads to a standby, which another check reports.
            Err(_) => return Err(Unmade::Needs("database.primary")),
        };
        if behind == 0 || state.is_paused || begun.elapsed() > CATCH_UP_MAX {
            return Ok(of_replay(&state, behind));
        }
        sleep(CATCH_UP_LOOK_EVERY).await;
    }
}

/// Returns the finding for a standby that still has to replay this many bytes.
fn of_replay(state: &ReplayState, behind: i64) -> Finding {
    let ReplayState { is_paused, is_receiving, last_commit_s, .. } = state;
    let lag = size(behind);
    if *is_paused {
        return Finding::warning(
            format!(
                "the replay of the standby is paused, {lag} behind the primary; runs wait at most 120 s for it"
            ),
            "select pg_wal_replay_resume(); on the standby",
        );
    }
    if behind == 0 {
        return Finding::ok("a standby of the primary, which has replayed everything");
    }
    let last = match last_commit_s {
        Some(seconds) => format!("the last transaction that it has replayed is {} old", age(*seconds)),
        None => "it has replayed no transaction since its start".to_owned(),
    };
    if !is_receiving {
        return Finding::warning(
            format!("the standby is {lag} behind and not connected to the primary; {last}"),
            "select * from pg_stat_wal_receiver; on the standby, and look at its log; a standby that only reads an \
             archive of the log is always behind",
        );
    }
    // Within the age of what was replayed last, since the primary has written more.
    if last_commit_s.is_none_or(|seconds| seconds > LAG_MAX_S) {
        return Finding::warning(
            format!("the standby is {lag} behind; {last}, and runs wait at most 120 s for it"),
            "select pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn(); on the standby: if they differ, a query may \
             delay the replay",
        );
    }
    Finding::ok(format!("a standby of the primary, {lag} behind"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Days without a commit are no lag.
    #[test]
    fn a_quiet_primary_a_pause_and_a_lag_are_told_apart() {
        let quiet = ReplayState {
            replayed: Some(7),
            is_paused: false,
            is_receiving: true,
            last_commit_s: Some(400_000),
        };
        let found = |state: &ReplayState, behind| {
            let Finding { status, message, hint } = of_replay(state, behind);
            (status, format!("{message}; {}", hint.unwrap_or_default()))
        };
        assert_eq!(found(&quiet, 0).0, Status::Ok);
        let archive = ReplayState { is_receiving: false, ..quiet.clone() };
        assert_eq!(found(&archive, 0).0, Status::Ok);
        for (state, behind, words) in [
            (ReplayState { is_paused: true, ..quiet.clone() }, 0, "is paused"),
            (
                ReplayState { is_paused: true, last_commit_s: None, ..quiet.clone() },
                9000,
                "paused, 8 KiB behind",
            ),
            (archive, 9000, "not connected"),
            (quiet.clone(), 9000, "8 KiB behind; the last transaction that it has replayed is 4 days old"),
            (ReplayState { last_commit_s: None, ..quiet.clone() }, 9000, "no transaction since its start"),
        ] {
            let (status, said) = found(&state, behind);
            assert_eq!(status, Status::Warning, "{said}");
            assert!(said.contains(words), "{said}");
        }
        assert_eq!(found(&ReplayState { last_commit_s: Some(5), ..quiet }, 9000).0, Status::Ok);
    }
}
