//! Signals to a command.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};

use crate::serve::Signals;
use crate::sync::Stop;

const SIGHUP: u8 = 1;
const SIGINT: u8 = 2;
const SIGTERM: u8 = 15;

/// The time that a run may take after the grace to record its end. With the default grace of 25 s it ends before a
/// scheduler sends SIGKILL, often after 30 s.
const RECORD_END_MAX: Duration = Duration::from_secs(3);

/// Turns the first SIGHUP, SIGINT or SIGTERM into a request to stop. A second signal ends the process at once; so does
/// the end of the grace and [`RECORD_END_MAX`], if the process still runs then.
pub(super) fn stop_on_signal(grace: Duration) -> std::io::Result<(Stop, Arc<AtomicU8>)> {
    let (sender, stop) = watch::channel(false);
    let stopped_by = Arc::new(AtomicU8::new(SIGTERM));
    let noted = stopped_by.clone();
    // Under nohup, the end of the session must not stop the work.
    let mut hangup = hangup()?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::spawn(async move {
        let mut next = async || {
            let hung_up = async {
                match &mut hangup {
                    Some(hangup) => hangup.recv().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                _ = hung_up => SIGHUP,
                _ = interrupt.recv() => SIGINT,
                _ = terminate.recv() => SIGTERM,
            }
        };
        let first = next().await;
        noted.store(first, Ordering::Relaxed);
        tracing::warn!("stopping after the requests in flight; a second signal stops at once");
        let _ = sender.send(true);
        let second = tokio::time::timeout(grace + RECORD_END_MAX, next()).await;
        let last = second.unwrap_or_else(|_| {
            tracing::error!(
                "the work did not end within {:?}, because the database or Elven did not answer; the next run \
                 recovers what is open",
                grace + RECORD_END_MAX
            );
            first
        });
        std::process::exit(i32::from(128 + last));
    });
    Ok((stop, stopped_by))
}

/// Returns whether the process was started with this signal ignored. Only Linux says that without unsafe code.
fn ignores(signal: u8) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    ignored.is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
}

/// Returns SIGHUP, unless the process was started with it ignored.
fn hangup() -> std::io::Result<Option<Signal>> {
    if ignores(SIGHUP) { Ok(None) } else { signal(SignalKind::hangup()).map(Some) }
}

/// Turns the first SIGINT or SIGTERM into a request to stop, and each SIGHUP into a request to read the configuration
/// again. A second SIGINT or SIGTERM ends the process at once.
pub(super) fn signals_of_service() -> std::io::Result<Signals> {
    let (stopping, stop) = watch::channel(false);
    // One request that waits is enough.
    let (hung_up, hangups) = mpsc::channel(1);
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    if let Some(mut hangup) = hangup()? {
        tokio::spawn(async move {
            while hangup.recv().await.is_some() {
                let _ = hung_up.try_send(());
            }
        });
    }
    tokio::spawn(async move {
        let mut next = async || {
            tokio::select! {
                _ = interrupt.recv() => SIGINT,
                _ = terminate.recv() => SIGTERM,
            }
        };
        next().await;
        tracing::warn!("stopping after the requests in flight; a second signal stops at once");
        stopping.send_replace(true);
        std::process::exit(i32::from(128 + next().await));
    });
    Ok(Signals { stop, hangups })
}
