//! The turn of a request at the rate of its credential.

use tokio::sync::MutexGuard;
use tokio::time::Instant;

use super::{ApiSession, LATENESS_MAX};

/// The turn of a request: it may be sent now.
#[derive(Debug)]
pub(in crate::sync) struct RequestTurn<'a> {
    pub(super) session: &'a ApiSession,
    pub(super) _alone: Option<MutexGuard<'a, ()>>,
}

impl RequestTurn<'_> {
    /// Ends the turn: the request is sent now. Without this call, the next request has its turn at once.
    pub(in crate::sync) fn end(self) {
        let Self { session, .. } = &self;
        let mut state = session.state();
        let earliest = Instant::now() - LATENESS_MAX.min(session.interval);
        state.next_turn = state.next_turn.max(earliest) + session.interval;
    }
}
