//! Fault points: places before and after each durable step, at which a test stops the process.
//!
//! Only tests switch on the feature `fault-points`, and with it the variable `ELVEN_SYNC_FAULT_POINT`, e.g.
//! `settle:before@3=kill`: step, side, occurrence (1 by default), and `kill` (SIGKILL: the process ends without any
//! clean-up), `stop` (SIGSTOP: the process is frozen until SIGCONT) or `panic` (the task panics). Any other build
//! contains no fault points and ignores the variable.

/// A step whose effect PostgreSQL or the API keeps. As text it is `begin_run`, `take_lease` and so on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, strum::AsRefStr, strum::EnumIter, strum::EnumString)]
#[strum(serialize_all = "snake_case")]
pub enum Step {
    /// Record a backfill and its lanes.
    AskBackfill,
    /// Record a run.
    BeginRun,
    /// Take the lease of an entity. While another worker holds the lease, each look at it passes the side `before`.
    TakeLease,
    /// Renew the leases and the heartbeat of the run.
    RenewLease,
    /// Open a pass.
    OpenPass,
    /// Mark the batches that an earlier worker had in flight as `unknown`.
    Recover,
    /// Record a batch, for the first time or again, and check the lease. The request was signed before.
    Announce,
    /// Send a request and receive its answer.
    Send,
    /// Record an answer after which the batch is not done.
    Answer,
    /// Record that a batch is done, and move the cursor.
    Settle,
    /// Replace a refused batch by its parts.
    Split,
    /// Set refused rows aside.
    SetAside,
    /// Record that a batch without remaining rows is done.
    Empty,
    /// Make the target of a pass the watermark.
    ClosePass,
    /// Record that a backfill has processed the range of an entity.
    FinishLane,
    /// Record that an entity is up to date, and resolve the errors of its lane.
    Succeed,
    /// Record that a lane stopped, and why.
    Fail,
    /// Record the result of `errors retry` for a row.
    Resolve,
    /// Release a lease.
    ReleaseLease,
    /// Record how the run ended.
    FinishRun,
    /// Prune a part of the journal.
    Prune,
    /// Post a message about an alert, which was claimed before.
    PostMessage,
}

#[cfg(feature = "fault-points")]
pub use armed::{Side, arm};

#[cfg(feature = "fault-points")]
pub(crate) use armed::{after, around, before};

#[cfg(not(feature = "fault-points"))]
pub(crate) use absent::{after, around, before};

#[cfg(not(feature = "fault-points"))]
mod absent {
    use super::Step;

    pub(crate) fn before(_: Step) {}

    pub(crate) fn after(_: Step) {}

    /// Runs a step without fault points.
    pub(crate) fn around<F: Future>(_: Step, doing: F) -> F {
        doing
    }
}

#[cfg(feature = "fault-points")]
mod armed {
    use std::str::FromStr;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU32, Ordering};

    use nix::sys::signal::{Signal, raise};

    use super::Step;

    /// The side of a step on which its fault point is.
    #[derive(
        Clone, Copy, Debug, PartialEq, Eq, Hash, strum::AsRefStr, strum::EnumIter, strum::EnumString,
    )]
    #[strum(serialize_all = "snake_case")]
    pub enum Side {
        /// Before the step.
        Before,
        /// After the step, also when it failed.
        After,
    }

    /// What happens at a fault point.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Action {
        /// The process gets this signal.
        Signal(Signal),
        /// The task panics.
        Panic,
    }

    /// The fault point at which this process stops, and what stops it.
    #[derive(Debug)]
    struct Armed {
        step: Step,
        side: Side,
        /// Counted from 1.
        occurrence: u32,
        action: Action,
        seen: AtomicU32,
    }

    static ARMED: OnceLock<Armed> = OnceLock::new();

    /// Arms the fault point that the text names, if there is a text, for the rest of this process.
    ///
    /// # Errors
    /// The text does not have the form of a fault point.
    pub fn arm(text: Option<&str>) -> anyhow::Result<()> {
        if let Some(text) = text {
            let armed = parse(text).ok_or_else(|| {
                anyhow::anyhow!("`{text}` is not a fault point; hint: settle:before@3=kill")
            })?;
            ARMED.get_or_init(|| armed);
        }
        Ok(())
    }

    fn parse(text: &str) -> Option<Armed> {
        let (place, action) = text.split_once('=')?;
        let (point, occurrence) = place.split_once('@').unwrap_or((place, "1"));
        let (step, side) = point.split_once(':')?;
        let action = match action {
            "kill" => Action::Signal(Signal::SIGKILL),
            "stop" => Action::Signal(Signal::SIGSTOP),
            "panic" => Action::Panic,
            _ => return None,
        };
        let (step, side) = (Step::from_str(step).ok()?, Side::from_str(side).ok()?);
        Some(Armed { step, side, occurrence: occurrence.parse().ok()?, action, seen: AtomicU32::new(0) })
    }

    /// Runs a step between its two fault points.
    pub(crate) async fn around<F: Future>(step: Step, doing: F) -> F::Output {
        before(step);
        let done = doing.await;
        after(step);
        done
    }

    pub(crate) fn before(step: Step) {
        reach(step, Side::Before);
    }

    pub(crate) fn after(step: Step) {
        reach(step, Side::After);
    }

    #[expect(clippy::panic, reason = "a test asked for it")]
    fn reach(step: Step, side: Side) {
        let Some(armed) = ARMED.get().filter(|armed| (armed.step, armed.side) == (step, side)) else {
            return;
        };
        if armed.seen.fetch_add(1, Ordering::Relaxed) + 1 == armed.occurrence {
            tracing::warn!(step = step.as_ref(), side = side.as_ref(), "stopped at a fault point");
            match armed.action {
                // The signal goes to this thread and not to the process: another thread could receive a signal to the
                // process, and this one would take one more step first.
                Action::Signal(signal) => {
                    if let Err(problem) = raise(signal) {
                        tracing::error!(%problem, "the fault point had no effect");
                    }
                }
                Action::Panic => panic!("a test asked for a panic at this fault point"),
            }
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn only_the_form_of_a_fault_point_is_parsed() {
            let armed = parse("set_aside:after@3=stop").unwrap();
            assert_eq!((armed.step, armed.side, armed.occurrence), (Step::SetAside, Side::After, 3));
            assert_eq!(parse("settle:before=kill").unwrap().occurrence, 1);
            assert_eq!(parse("settle:before=panic").unwrap().action, Action::Panic);
            for wrong in
                ["", "settle", "settle:before", "settle=kill", "settle:by=kill", "settle:before@x=kill"]
            {
                assert!(arm(Some(wrong)).is_err(), "{wrong}");
            }
        }
    }
}
