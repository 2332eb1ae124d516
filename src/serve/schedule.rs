//! When runs begin: the first at once, then one per interval, never two at a time; and at once on SIGHUP. A run that
//! lasts longer than the interval polls again with each interval.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use super::configuration::Configuration;
use super::connected::Connected;
use super::cycle::{CycleEnd, cycle};
use super::failures::Failures;
use super::outcome::CycleOutcome;
use super::requests::{Requests, requests};
use super::shared::Shared;
use super::systemd;
use crate::sync::Stop;

/// The longest random delay of a run.
const JITTER_MAX: Duration = Duration::from_secs(10);
/// A cycle that could not work is tried again after this time, if the interval is longer.
const RETRY_AFTER: Duration = Duration::from_secs(10);
/// A run that lasts longer than this and than the interval ends after its requests in flight, and the next one
/// continues. So each run is recorded, and what is read or looked at once per run does not become old.
const RUN_MAX: Duration = Duration::from_hours(1);
/// The time that a run may take after the grace to record its end.
const RECORD_END_MAX: Duration = Duration::from_secs(3);

/// The signals to a service.
#[derive(Debug)]
pub struct Signals {
    /// Becomes true when the service is asked to stop.
    pub stop: Stop,
    /// Asks to read the configuration and the entities again at once.
    pub hangups: mpsc::Receiver<()>,
}

/// Runs until the service is asked to stop, and until the run under way has ended.
pub(super) async fn run(
    shared: &Arc<Shared>,
    mut configuration: Configuration,
    every: Duration,
    mut signals: Signals,
) {
    let mut connected = None;
    let mut asked = false;
    let mut failures = Failures::default();
    loop {
        let begun = Instant::now();
        if !asked {
            configuration.read(shared, false);
        }
        shared.health.begin_cycle();
        let ended = one(shared, &mut configuration, connected.take(), every, &mut signals).await;
        shared.health.end_cycle();
        let Some(ended) = ended else { return };
        failures.note(ended.failure);
        shared.process.count_cycle(ended.outcome, begun.elapsed());
        if *signals.stop.borrow() {
            systemd::stopping();
            return;
        }
        connected = ended.connected;
        asked = ended.asked;
        if asked {
            continue;
        }
        let next = begun + wait(every, ended.outcome, fastrand::f64());
        tokio::select! {
            biased;
            _ = signals.stop.wait_for(|stop| *stop) => {
                systemd::stopping();
                return;
            }
            Some(()) = signals.hangups.recv() => {
                reload(shared, &mut configuration);
                asked = true;
            }
            () = tokio::time::sleep_until(next) => {}
        }
    }
}

/// Returns how long after the start of a cycle the next one begins. `random`: 0 to 1. An interval that is over already
/// is not waited for.
fn wait(every: Duration, outcome: CycleOutcome, random: f64) -> Duration {
    let every = if matches!(outcome, CycleOutcome::Ran(_)) { every } else { every.min(RETRY_AFTER) };
    every + (every / 10).min(JITTER_MAX).mul_f64(random)
}

/// How a cycle ended.
struct Ended {
    outcome: CycleOutcome,
    connected: Option<Connected>,
    /// Why the run could not work, if it could not.
    failure: Option<String>,
    /// The configuration was read again meanwhile, and somebody waits for its effect.
    asked: bool,
}

/// Runs one cycle. `None`: the service was asked to stop meanwhile.
async fn one(
    shared: &Arc<Shared>,
    configuration: &mut Configuration,
    connected: Option<Connected>,
    every: Duration,
    signals: &mut Signals,
) -> Option<Ended> {
    let (begun, settings) = (Instant::now(), configuration.current().clone());
    let (requests, asked_of) = requests();
    let fact = configuration.fact();
    let mistake = fact.mistake.clone();
    // In a task of its own, so that a panic ends it alone.
    let mut task = tokio::spawn(cycle(settings.clone(), every, connected, asked_of, shared.clone(), fact));
    let mut asked = false;
    let mut intervals = interval_at(begun + every, every);
    intervals.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            ended = &mut task => {
                let ended = ended.unwrap_or_else(|problem| {
                    tracing::error!(
                        "a run ended in a panic, and the next one is tried in time: {problem}; hint: report it"
                    );
                    CycleEnd::of(CycleOutcome::Panicked)
                });
                let CycleEnd { outcome, connected, failure, fact_recorded } = ended;
                if fact_recorded {
                    configuration.note_recorded(mistake);
                }
                return Some(Ended { outcome, connected, failure, asked });
            }
            () = asked_to_stop(&mut signals.stop) => break,
            Some(()) = signals.hangups.recv() => {
                reload(shared, configuration);
                asked = true;
            }
            _ = intervals.tick() => configuration.read(shared, false),
        }
        let is_changed = !settings.are_read_like(configuration.current());
        during_run(&requests, is_changed, begun.elapsed() >= RUN_MAX.max(every));
    }
    systemd::stopping();
    requests.stop();
    let limit = settings.sync.shutdown_grace + RECORD_END_MAX;
    match tokio::time::timeout(limit, task).await {
        Ok(Ok(CycleEnd { failure: Some(failure), .. })) => tracing::error!("{failure}"),
        Ok(_) => {}
        Err(_) => tracing::error!(
            "the run did not end within {limit:?}, because the database or Elven did not answer; the next run \
             recovers what is open"
        ),
    }
    None
}

/// Asks a run that is under way after its interval to poll again. `is_changed`: another configuration is in use now.
/// `is_old`: the run has lasted for long enough.
fn during_run(requests: &Requests, is_changed: bool, is_old: bool) {
    if is_changed || is_old {
        if requests.end() {
            let why =
                if is_changed { "the configuration has changed" } else { "the run has lasted for long" };
            tracing::info!(
                target: "elven_sync::serve",
                "{why}, so the run under way ends after its requests in flight, and the next one continues"
            );
        }
    } else {
        requests.poll();
    }
}

/// Waits for the request to stop.
async fn asked_to_stop(stop: &mut Stop) {
    if stop.wait_for(|stop| *stop).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Reads the configuration again because somebody asked for it.
fn reload(shared: &Shared, configuration: &mut Configuration) {
    systemd::reloading();
    configuration.read(shared, true);
    systemd::reloaded(configuration.mistake().map_or(
        "the configuration was read again",
        |_| "the configuration has a mistake, so the one before stays in use",
    ));
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::journal::RunStatus;

    #[test]
    fn a_run_polls_again_until_it_is_old_or_the_configuration_has_changed() {
        for (is_changed, is_old, ends) in
            [(false, false, false), (true, false, true), (false, true, true), (true, true, true)]
        {
            let (requests, asked_of) = requests();
            during_run(&requests, is_changed, is_old);
            let polls = asked_of.poll.notified().now_or_never().is_some();
            assert_eq!((*asked_of.end.borrow(), polls), (ends, !ends), "{is_changed} {is_old}");
            assert!(!*asked_of.stop.borrow(), "no request in flight is given up");
        }
    }

    #[test]
    fn a_run_begins_an_interval_after_the_one_before_with_little_jitter() {
        let (ran, away) = (CycleOutcome::Ran(RunStatus::Succeeded), CycleOutcome::DatabaseAway);
        let second = Duration::from_secs(1);
        for (every, outcome, random, expected) in [
            (60 * second, ran, 0.0, 60 * second),
            (60 * second, ran, 1.0, 66 * second),
            (3600 * second, ran, 1.0, 3610 * second),
            (3600 * second, CycleOutcome::Ran(RunStatus::Failed), 0.0, 3600 * second),
            (3600 * second, CycleOutcome::Failed, 0.0, 10 * second),
            (3600 * second, CycleOutcome::Panicked, 0.0, 10 * second),
            (second, CycleOutcome::Failed, 0.0, second),
            (3600 * second, away, 0.0, 10 * second),
            (3600 * second, away, 1.0, 11 * second),
            (second, away, 0.0, second),
        ] {
            assert_eq!(wait(every, outcome, random), expected, "{every:?} {outcome:?} {random}");
        }
    }
}
