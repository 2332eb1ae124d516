//! Messages to systemd (`sd_notify`). Without `NOTIFY_SOCKET`, nothing is sent.

use std::time::Duration;

use sd_notify::NotifyState;

/// Says that the service has started.
pub(super) fn ready() {
    send(&[NotifyState::Ready, NotifyState::Status("started")]);
}

/// Says that the configuration is read again, and returns after that was said.
pub(super) fn reloading() {
    if let Ok(now) = NotifyState::monotonic_usec_now() {
        send(&[NotifyState::Reloading, now]);
    }
}

/// Says that the configuration was read again.
pub(super) fn reloaded(status: &str) {
    send(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// Says that the service stops.
pub(super) fn stopping() {
    send(&[NotifyState::Stopping, NotifyState::Status("stopping after the requests in flight")]);
}

/// Says what the service does.
pub(super) fn status(text: &str) {
    send(&[NotifyState::Status(text)]);
}

/// Returns how often systemd wants to hear that the process is well: twice per limit, as its manual recommends.
pub(super) fn watchdog_every() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|limit| limit / 2).filter(|every| !every.is_zero())
}

/// Says that the process is well.
pub(super) fn is_well() {
    send(&[NotifyState::Watchdog]);
}

fn send(states: &[NotifyState<'_>]) {
    if let Err(problem) = sd_notify::notify(states) {
        tracing::debug!(error = %problem, "systemd could not be notified");
    }
}
