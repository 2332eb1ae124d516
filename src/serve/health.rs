//! Whether the process works: for `/healthz`, `/readyz` and the watchdog of systemd.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::config::Settings;
use crate::database::Statements;
use crate::sync::RowsDone;

/// The process is unhealthy when its runtime has not run for longer than this.
const TICK_AGE_MAX: Duration = Duration::from_secs(10);
/// The process is unhealthy when a run has made no step for longer than this, or than it may wait by its configuration.
const STEP_AGE_MIN: Duration = Duration::from_mins(10);
/// A statement that is under way for longer waits for the database, and so the cycle is not stuck: the connector gives
/// each statement up in time. A shorter one says nothing, because heartbeats come also while the lanes are stuck.
const WAITS_AFTER: Duration = Duration::from_secs(2);
/// The process stays ready for this long while the database is away.
const AWAY_MAX: Duration = Duration::from_mins(1);

/// The health of the process.
#[derive(Debug)]
pub(super) struct Health(Mutex<State>);

#[derive(Debug)]
struct State {
    /// When the main runtime ran last.
    ticked_at: Instant,
    /// The cycle under way.
    cycle: Option<Cycle>,
    /// The longest time without a step.
    stuck_after: Duration,
    has_polled: bool,
    database: DatabaseState,
}

/// A cycle under way.
#[derive(Debug)]
struct Cycle {
    /// When it made its last step.
    stepped_at: Instant,
    /// The number of its steps at that time.
    steps: u64,
    /// `None` before the run begins.
    progress: Option<RowsDone>,
    /// The statements under way. `None` before there is a connection.
    statements: Option<Statements>,
}

/// What is known of the database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum DatabaseState {
    /// It was not asked yet.
    Unknown,
    /// It answered, and has the right schema.
    Well,
    /// It has not answered since then; before that, it did.
    AwaySince(Instant),
    /// It was never reached.
    NeverReached,
    /// It has no schema, or a schema of another version.
    WrongSchema(String),
}

/// The result of a check of the database.
#[derive(Debug)]
pub(super) enum Checked {
    /// It answered, and has the right schema.
    Well,
    /// It did not answer.
    Away,
    /// It has no schema, or a schema of another version.
    WrongSchema(String),
}

impl DatabaseState {
    /// Returns the state after a check.
    fn after(self, checked: Checked, now: Instant) -> Self {
        match (checked, self) {
            (Checked::Well, _) => Self::Well,
            (Checked::WrongSchema(why), _) => Self::WrongSchema(why),
            (Checked::Away, Self::Well) => Self::AwaySince(now),
            (Checked::Away, since @ (Self::AwaySince(_) | Self::WrongSchema(_))) => since,
            (Checked::Away, Self::Unknown | Self::NeverReached) => Self::NeverReached,
        }
    }
}

impl Health {
    pub(super) fn new(settings: &Settings) -> Self {
        let health = Self(Mutex::new(State {
            ticked_at: Instant::now(),
            cycle: None,
            stuck_after: STEP_AGE_MIN,
            has_polled: false,
            database: DatabaseState::Unknown,
        }));
        health.set_stuck_after(settings);
        health
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adapts the longest time without a step to the configuration: a run waits for a lease, and between two attempts.
    pub(super) fn set_stuck_after(&self, settings: &Settings) {
        let waits = settings.sync.lease + settings.api.signature_window + settings.api.timeout;
        self.state().stuck_after = STEP_AGE_MIN.max(2 * (waits + settings.retry.max));
    }

    /// Notes that the main runtime runs, and whether the cycle has made a step or waits for the database.
    pub(super) fn tick(&self) {
        self.state().tick(Instant::now());
    }

    /// Notes that a cycle begins.
    pub(super) fn begin_cycle(&self) {
        self.state().cycle =
            Some(Cycle { stepped_at: Instant::now(), steps: 0, progress: None, statements: None });
    }

    /// Notes the connection of the cycle.
    pub(super) fn note_statements(&self, statements: Statements) {
        if let Some(cycle) = &mut self.state().cycle {
            cycle.statements = Some(statements);
        }
    }

    /// Notes that the run of the cycle begins.
    pub(super) fn begin_run(&self, progress: RowsDone) {
        if let Some(cycle) = &mut self.state().cycle {
            cycle.progress = Some(progress);
        }
    }

    /// Notes that the cycle has ended.
    pub(super) fn end_cycle(&self) {
        let mut state = self.state();
        state.has_polled |= state.polled_now();
        state.cycle = None;
    }

    /// Notes the result of a check of the database.
    pub(super) fn note_database(&self, checked: Checked) {
        let mut state = self.state();
        let before = std::mem::replace(&mut state.database, DatabaseState::Unknown);
        state.database = before.after(checked, Instant::now());
    }

    /// Notes that the database was reached. That says nothing about its schema.
    pub(super) fn note_reached(&self) {
        let mut state = self.state();
        if matches!(state.database, DatabaseState::AwaySince(_)) {
            state.database = DatabaseState::Well;
        }
    }

    /// Returns why the process should be restarted, if it should.
    pub(super) fn ailment(&self) -> Option<String> {
        self.state().ailment(Instant::now())
    }

    /// Returns why the process is not ready, if it is not.
    pub(super) fn unreadiness(&self) -> Option<String> {
        self.state().unreadiness(Instant::now())
    }
}

impl State {
    fn tick(&mut self, now: Instant) {
        self.ticked_at = now;
        let Some(cycle) = &mut self.cycle else { return };
        let steps = cycle.progress.as_ref().map_or(cycle.steps, RowsDone::steps);
        let waits = cycle
            .statements
            .as_ref()
            .and_then(Statements::longest)
            .is_some_and(|longest| longest > WAITS_AFTER);
        if waits || steps != cycle.steps {
            (cycle.steps, cycle.stepped_at) = (steps, now);
        }
    }

    fn polled_now(&self) -> bool {
        self.cycle.as_ref().and_then(|cycle| cycle.progress.as_ref()).is_some_and(RowsDone::has_polled)
    }

    fn ailment(&self, now: Instant) -> Option<String> {
        let ticked = now.saturating_duration_since(self.ticked_at);
        if ticked > TICK_AGE_MAX {
            return Some(format!("the runtime has not run for {} s", ticked.as_secs()));
        }
        let stepped = now.saturating_duration_since(self.cycle.as_ref()?.stepped_at);
        (stepped > self.stuck_after)
            .then(|| format!("the run under way has made no step for {} s", stepped.as_secs()))
    }

    fn unreadiness(&self, now: Instant) -> Option<String> {
        match &self.database {
            DatabaseState::Well => {}
            DatabaseState::AwaySince(since) => {
                let away = now.saturating_duration_since(*since);
                if away > AWAY_MAX {
                    return Some(format!("the database has been away for {} s", away.as_secs()));
                }
            }
            DatabaseState::Unknown | DatabaseState::NeverReached => {
                return Some("the database was not reached yet".to_owned());
            }
            DatabaseState::WrongSchema(why) => return Some(why.clone()),
        }
        (!self.has_polled && !self.polled_now())
            .then(|| "the ledger was not polled yet since the start of the process".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(now: Instant) -> State {
        State {
            ticked_at: now,
            cycle: None,
            stuck_after: STEP_AGE_MIN,
            has_polled: true,
            database: DatabaseState::Well,
        }
    }

    #[test]
    fn only_a_frozen_runtime_and_a_stuck_run_are_ailments() {
        let (now, second) = (Instant::now(), Duration::from_secs(1));
        let cycle = || Cycle { stepped_at: now, steps: 0, progress: None, statements: None };
        for (after, ticked, cycle, expected) in [
            (11 * second, now, None, Some("the runtime has not run for 11 s")),
            (10 * second, now, None, None),
            (
                601 * second,
                now + 600 * second,
                Some(cycle()),
                Some("the run under way has made no step for 601 s"),
            ),
            (600 * second, now + 600 * second, Some(cycle()), None),
            (6000 * second, now + 6000 * second, None, None),
        ] {
            let state =
                State { ticked_at: ticked, cycle, database: DatabaseState::NeverReached, ..state(now) };
            assert_eq!(state.ailment(now + after).as_deref(), expected, "after {after:?}");
        }
    }

    /// A lock on the ledger, or a server that gives no answer: a restart would not help.
    #[tokio::test(start_paused = true)]
    async fn run_that_waits_for_the_database_is_no_ailment() {
        let (begun, second) = (Instant::now(), Duration::from_secs(1));
        let statements = Statements::default();
        let cycle =
            Cycle { stepped_at: begun, steps: 0, progress: None, statements: Some(statements.clone()) };
        let mut state = State { cycle: Some(cycle), ..state(begun) };
        let waiting = statements.begin();
        tokio::time::advance(3 * second).await;
        state.tick(begun + 3600 * second);
        assert_eq!(state.ailment(begun + 3601 * second), None);
        drop(waiting);
        // A heartbeat is short, and goes on while the lanes are stuck.
        let heartbeat = statements.begin();
        for after in 3601..=4201 {
            state.tick(begun + after * second);
        }
        drop(heartbeat);
        let ailment = state.ailment(begun + 4201 * second);
        assert_eq!(ailment.as_deref(), Some("the run under way has made no step for 601 s"));
    }

    #[test]
    fn readiness_survives_an_outage_of_a_minute() {
        let (now, second) = (Instant::now(), Duration::from_secs(1));
        let away = DatabaseState::Well.after(Checked::Away, now).after(Checked::Away, now + 59 * second);
        let at = |database: &DatabaseState, after: Duration| {
            State { database: database.clone(), ..state(now) }.unreadiness(now + after)
        };
        assert_eq!(at(&away, 60 * second), None);
        assert_eq!(at(&away, 61 * second).as_deref(), Some("the database has been away for 61 s"));
        let back = away.after(Checked::Well, now + 70 * second);
        assert_eq!(at(&back, 71 * second), None);
        let again = back.after(Checked::Away, now + 80 * second);
        assert_eq!(at(&again, 100 * second), None, "the minute begins anew");
        let never = DatabaseState::Unknown.after(Checked::Away, now);
        assert!(at(&never, second).is_some(), "a database that was never reached has no grace");
        let wrong = DatabaseState::Well.after(Checked::WrongSchema("old".to_owned()), now);
        assert_eq!(at(&wrong, second).as_deref(), Some("old"));
        assert_eq!(wrong.after(Checked::Away, now), DatabaseState::WrongSchema("old".to_owned()));
    }

    #[test]
    fn readiness_needs_a_poll() {
        let now = Instant::now();
        let unready = State { has_polled: false, ..state(now) }.unreadiness(now).unwrap();
        assert!(unready.contains("not polled yet"), "{unready}");
    }
}
