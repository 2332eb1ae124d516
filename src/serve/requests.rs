//! What the service asks of the run under way.

use std::sync::Arc;

use tokio::sync::{Notify, watch};

use crate::sync::Stop;

/// The side of the service.
#[derive(Debug)]
pub(super) struct Requests {
    stop: watch::Sender<bool>,
    end: watch::Sender<bool>,
    poll: Arc<Notify>,
}

/// The side of the run.
#[derive(Debug)]
pub(super) struct AskedOf {
    /// The process stops: requests in flight are finished within the grace.
    pub stop: Stop,
    /// The run ends, or the process stops: requests in flight are finished.
    pub end: Stop,
    /// The run polls again.
    pub poll: Arc<Notify>,
}

/// Returns both sides.
pub(super) fn requests() -> (Requests, AskedOf) {
    let (stop, stopped) = watch::channel(false);
    let (end, ended) = watch::channel(false);
    let poll = Arc::new(Notify::new());
    (Requests { stop, end, poll: poll.clone() }, AskedOf { stop: stopped, end: ended, poll })
}

impl Requests {
    /// Asks the run to poll again.
    pub(super) fn poll(&self) {
        self.poll.notify_one();
    }

    /// Asks the run to end after its requests in flight. Returns whether it was not asked before.
    pub(super) fn end(&self) -> bool {
        !self.end.send_replace(true)
    }

    /// Says that the process stops.
    pub(super) fn stop(&self) {
        self.stop.send_replace(true);
        self.end.send_replace(true);
    }
}
