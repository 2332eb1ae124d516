//! Fault points: places before and after each durable step, at which a test stops the process.
//!
//! Only tests switch on the feature `fault-points`, and with it the variable `ELVEN_SYNC_FAULT_POINT`, e.g.
//! `settle:before@3=kill`: step, side, occurrence (1 if it is left out), and `kill` (SIGKILL: nothing is said
//! or put in order) or `stop` (SIGSTOP: it lies there until SIGCONT). In any other build nothing is left of a
//! fault point, and the variable has no meaning.

/// A step that PostgreSQL or the API remembers. As text it is `begin_run`, `take_lease` and so on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, strum::AsRefStr, strum::EnumIter, strum::EnumString)]
#[strum(serialize_all = "snake_case")]
pub enum Step {
    /// A backfill and its lanes get their rows.
    AskBackfill,
    /// The run gets its row.
    BeginRun,
    /// The lease of an entity is taken. Waiting for another worker's comes before that, each look once.
    TakeLease,
    /// Leases and the run's sign of life are renewed.
    RenewLease,
    /// A pass is opened.
    OpenPass,
    /// What an earlier worker was sending becomes `unknown`.
    Recover,
    /// A batch is recorded, for the first time or again, and the lease checked: it was signed before that.
    Announce,
    /// A request is sent, and its answer received.
    Send,
    /// An answer is recorded that is not the last word.
    Answer,
    /// A batch is done, and the cursor moves.
    Settle,
    /// Parts take the place of a refused batch.
    Split,
    /// Refused rows are set aside.
    SetAside,
    /// A batch is done of which no row is left.
    Empty,
    /// The target of a pass becomes the watermark.
    ClosePass,
    /// The range of an entity is through, in a backfill.
    FinishLane,
    /// An entity is up to date, and the errors of its lane resolved.
    Succeed,
    /// A lane stops where it is, and says why.
    Fail,
    /// What became of a row that `errors retry` tried again.
    Resolve,
    /// A lease is given back.
    ReleaseLease,
    /// The run's row says how it ended.
    FinishRun,
    /// Something that ended long ago is pruned.
    Prune,
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

    /// A step, as it is.
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

    /// On which side of a step.
    #[derive(
        Clone, Copy, Debug, PartialEq, Eq, Hash, strum::AsRefStr, strum::EnumIter, strum::EnumString,
    )]
    #[strum(serialize_all = "snake_case")]
    pub enum Side {
        /// It has not begun.
        Before,
        /// It has ended, by an error too.
        After,
    }

    /// Where this process stops, and how.
    #[derive(Debug)]
    struct Armed {
        point: (Step, Side),
        /// The first is 1.
        occurrence: u32,
        signal: Signal,
        seen: AtomicU32,
    }

    static ARMED: OnceLock<Armed> = OnceLock::new();

    /// Arms the fault point that is written so, if any is, for the rest of this process.
    ///
    /// # Errors
    /// It is not written as a fault point is.
    pub fn arm(text: Option<&str>) -> anyhow::Result<()> {
        if let Some(text) = text {
            let armed = parse(text)
                .ok_or_else(|| anyhow::anyhow!("`{text}` is no fault point; hint: settle:before@3=kill"))?;
            ARMED.get_or_init(|| armed);
        }
        Ok(())
    }

    fn parse(text: &str) -> Option<Armed> {
        let (place, action) = text.split_once('=')?;
        let (point, occurrence) = place.split_once('@').unwrap_or((place, "1"));
        let (step, side) = point.split_once(':')?;
        let signal = match action {
            "kill" => Signal::SIGKILL,
            "stop" => Signal::SIGSTOP,
            _ => return None,
        };
        let point = (Step::from_str(step).ok()?, Side::from_str(side).ok()?);
        Some(Armed { point, occurrence: occurrence.parse().ok()?, signal, seen: AtomicU32::new(0) })
    }

    /// A step, between its two fault points.
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

    fn reach(step: Step, side: Side) {
        let Some(armed) = ARMED.get().filter(|armed| armed.point == (step, side)) else { return };
        if armed.seen.fetch_add(1, Ordering::Relaxed) + 1 == armed.occurrence {
            tracing::warn!(step = step.as_ref(), side = side.as_ref(), "stopped at a fault point");
            // To this thread and not to the process: it does not take one more step, whichever thread of the
            // process would have got the signal.
            if let Err(problem) = raise(armed.signal) {
                tracing::error!(%problem, "the fault point had no effect");
            }
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn a_fault_point_is_written_so_and_not_otherwise() {
            let armed = parse("set_aside:after@3=stop").unwrap();
            assert_eq!((armed.point, armed.occurrence), ((Step::SetAside, Side::After), 3));
            assert_eq!(parse("settle:before=kill").unwrap().occurrence, 1);
            for wrong in
                ["", "settle", "settle:before", "settle=kill", "settle:by=kill", "settle:before@x=kill"]
            {
                assert!(arm(Some(wrong)).is_err(), "{wrong}");
            }
        }
    }
}
