//! Tells the webhook of alerts after a run, and while a run of `serve` lasts ([`Meanwhile`]), and calls the heartbeat.
//!
//! What is told is decided by [`decision`], from the view `alerts` and what was told before. A message is recorded
//! before it is posted, and claimed by one worker until a time; so it is posted at least once, and under one id. Nothing
//! here fails a run: what cannot be told is the fact `webhook` and a warning, and the next run tries again.
//!
//! Other messages than those about alerts, such as prints of the journal, would be recorded and posted in the same way,
//! under a name of their own.

mod decision;
mod meanwhile;
mod message;
mod signature;
mod webhook;

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use self::decision::{Action, Decision, decide};
pub use self::meanwhile::Meanwhile;
use self::webhook::{Posted, REQUEST_MAX, call, post};
use crate::config::{NotifySettings, Webhook};
use crate::database::{Database, Transient};
use crate::fault_point::{Step, around};
use crate::journal::{
    AlertsNow, ClaimedMessage, Fact, JournalError, PrintLine, RunStatus, Subject, claim_message,
    keep_subjects, note_facts, record_message, undelivered_message,
};
use crate::sync::{RunError, RunReport};
use crate::text::chain;

/// The longest time for all messages after a run. What is left is posted after the next run.
const TOTAL_MAX: Duration = Duration::from_secs(30);
/// A message that was claimed and not recorded as delivered is posted again after this time.
const CLAIM_EXPIRES_IN: Duration = Duration::from_mins(2);
/// A claim that is older, because the process was suspended, is not used any more.
const CLAIM_USED_FOR: Duration = Duration::from_mins(1);
/// The shortest and the longest wait after a message could not be delivered.
const WAITS: (Duration, Duration) = (Duration::from_mins(1), Duration::from_mins(10));

/// Tells the webhook of alerts and calls the heartbeat, after a run that has recorded its end. `is_whole`: the run was
/// about all entities. A request to stop ends it.
pub async fn after_run(
    settings: &NotifySettings,
    database: &Database,
    stop: &watch::Receiver<bool>,
    report: &Result<RunReport, RunError>,
    is_whole: bool,
) {
    let polled = match report {
        // There is little time left; a later run tells what this one would.
        Ok(report) if report.status == RunStatus::Interrupted => return,
        Ok(_) => is_whole,
        // The database cannot be used for this either.
        Err(RunError::Journal(JournalError::Schema(_) | JournalError::Standby)) => return,
        Err(problem) if problem.is_transient() => return,
        Err(_) => false,
    };
    let mut stop = stop.clone();
    let work = async { tokio::join!(tell(settings, database), beat(settings, polled)) };
    tokio::select! {
        biased;
        Ok(_) = stop.wait_for(|stop| *stop) => {}
        _ = work => {}
    }
}

/// Calls the heartbeat, if the run has polled all entities.
async fn beat(settings: &NotifySettings, polled: bool) {
    // The URL was checked when the configuration was read.
    let Ok(Some(url)) = settings.heartbeat() else { return };
    if polled && let Err(problem) = call(&url).await {
        tracing::warn!("the heartbeat failed: {problem}; hint: check [notify] heartbeat_url");
    }
}

/// Tells the webhook of alerts.
async fn tell(settings: &NotifySettings, database: &Database) {
    if !settings.has_webhook() {
        return;
    }
    // Boxed, because it is large.
    let told = timeout(TOTAL_MAX, Box::pin(tell_all(settings, database))).await;
    match told {
        Ok(Ok(())) => {}
        Ok(Err(problem)) => {
            let error = chain(&problem);
            tracing::warn!(error, "the webhook could not be told of alerts; the next run tries again");
        }
        Err(_) => tracing::warn!("the webhook was not told of all alerts in time; the next run continues"),
    }
}

async fn tell_all(settings: &NotifySettings, database: &Database) -> Result<(), JournalError> {
    let webhook = match settings.webhook() {
        Ok(Some(webhook)) => webhook,
        Ok(None) => return Ok(()),
        Err(problem) => return note_failure(database, &problem.to_string(), None).await,
    };
    let state = AlertsNow::read(database).await?;
    let print = PrintLine::latest(database).await?;
    let mut has_messages = state.notifications.iter().any(|known| known.is_undelivered);
    for Decision { name, revision, action } in decide(&state, settings.min_severity) {
        match action {
            Action::Tell { told, critical, alerts, holds_below } => {
                let json = message::json(name, &told, &alerts, holds_below, print.as_ref());
                record_message(database, name, revision, &told, &critical, &json).await?;
                has_messages = true;
            }
            Action::Keep(subjects) => keep_subjects(database, name, revision, &subjects).await?,
        }
    }
    let is_failing = has_messages && !deliver(database, &webhook).await?;
    // A message that could not be delivered, and waits, keeps the alert.
    let is_due = !is_failing && (has_messages || !state.is_webhook_well);
    if is_due && undelivered_message(database).await?.is_none() {
        note_facts(database, &[Fact::of_state(Subject::Webhook, None)]).await?;
    }
    Ok(())
}

/// Posts the messages that are due. Returns whether none of them failed.
async fn deliver(database: &Database, webhook: &Webhook) -> Result<bool, JournalError> {
    let mut tried = Vec::new();
    let mut is_well = true;
    while let Some(claimed) = claim_message(database, CLAIM_EXPIRES_IN, &tried).await? {
        let claimed_at = Instant::now();
        tried.push(claimed.name.clone());
        let posted = around(Step::PostMessage, post_in_time(webhook, &claimed, claimed_at)).await;
        let Some(posted) = posted else { break };
        match posted {
            Posted::Delivered => {
                claimed.delivered(database).await?;
                tracing::info!(alert = claimed.name, message_id = claimed.message_id, "the webhook was told");
            }
            Posted::Refused(problem) => {
                let wait = wait(claimed.attempts, None);
                claimed.not_delivered(database, &problem, wait, false).await?;
                note_failure(database, &problem, Some(wait)).await?;
                is_well = false;
            }
            Posted::Failed { problem, retry_after } => {
                let wait = wait(claimed.attempts, retry_after);
                claimed.not_delivered(database, &problem, wait, true).await?;
                note_failure(database, &problem, Some(wait)).await?;
                return Ok(false);
            }
        }
    }
    Ok(is_well)
}

/// Posts a message that was claimed. `None`: the process was suspended meanwhile, so that another worker may have posted
/// the message, and even its end.
async fn post_in_time(webhook: &Webhook, claimed: &ClaimedMessage, claimed_at: Instant) -> Option<Posted> {
    if claimed_at.elapsed() > CLAIM_USED_FOR {
        return None;
    }
    Some(post(webhook, claimed).await)
}

/// Records that alerts cannot be delivered. `wait`: how long a message is not posted again.
async fn note_failure(
    database: &Database,
    problem: &str,
    wait: Option<Duration>,
) -> Result<(), JournalError> {
    let again = wait.map_or_else(|| "with the next run".to_owned(), |wait| format!("in {wait:?}"));
    let (problem, hint) =
        problem.split_once("; hint: ").unwrap_or((problem, "elven-sync check --only configuration"));
    tracing::warn!(
        "alerts cannot be delivered to the webhook: {problem}; they are tried again {again}; hint: {hint}"
    );
    note_facts(database, &[Fact::of_state(Subject::Webhook, Some(problem))]).await.map(drop)
}

/// Returns how long a message is not posted again. `attempts`: those that were made.
fn wait(attempts: i32, retry_after: Option<Duration>) -> Duration {
    let (first, longest) = WAITS;
    let doubled = u32::try_from(attempts - 1).unwrap_or_default().min(10);
    let wait = (first * 2_u32.pow(doubled)).min(longest);
    // Half of a minute earlier, so that a run each minute is not late by one. The webhook may ask for more.
    wait.saturating_sub(first / 2).max(retry_after.unwrap_or_default())
}

// A claim must outlast the post, and the process that uses it.
const _: () = assert!(CLAIM_USED_FOR.as_secs() + REQUEST_MAX.as_secs() < CLAIM_EXPIRES_IN.as_secs());

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn claim_that_is_old_is_not_used() {
        let unused = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let url = format!("http://{unused}/");
        let settings = NotifySettings { webhook_url: Some(url.into()), ..NotifySettings::default() };
        let webhook = settings.webhook().unwrap().unwrap();
        let claimed = ClaimedMessage {
            name: "Failing".to_owned(),
            message_id: "msg_1".to_owned(),
            json: "{}".to_owned(),
            attempts: 1,
            claimed_at_s: 0,
            claimed_until: chrono::DateTime::UNIX_EPOCH,
        };
        for (age_s, is_used) in [(0, true), (61, false)] {
            let claimed_at = Instant::now().checked_sub(Duration::from_secs(age_s)).unwrap();
            assert_eq!(post_in_time(&webhook, &claimed, claimed_at).await.is_some(), is_used, "{age_s}");
        }
    }

    #[test]
    fn waits_grow_up_to_a_bound_and_obey_the_webhook() {
        let seconds = |attempts, retry_after: Option<u64>| {
            wait(attempts, retry_after.map(Duration::from_secs)).as_secs()
        };
        let grown: Vec<u64> = [1, 2, 3, 4, 5, 6, i32::MAX].map(|attempts| seconds(attempts, None)).to_vec();
        assert_eq!(grown, [30, 90, 210, 450, 570, 570, 570]);
        assert_eq!(seconds(1, Some(5)), 30);
        assert_eq!(seconds(1, Some(3600)), 3600);
    }
}
