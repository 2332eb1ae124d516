//! Tells the webhook of alerts, and calls the heartbeat, while a run of `serve` lasts.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::sleep;

use super::{beat, tell};
use crate::config::NotifySettings;
use crate::database::{Database, Limits};
use crate::sync::RowsDone;

/// Without a poll, alerts are told after two intervals, and after this time at the latest.
const TOLD_WITHIN: Duration = Duration::from_mins(2);
/// The limits of the connection for alerts. All others are left to the lanes, or wait.
const LIMITS: Limits = Limits { lock: Duration::from_secs(5), statement: Duration::from_secs(10) };

/// What is told while a run lasts.
#[derive(Debug)]
pub struct Meanwhile<'a> {
    /// The webhook and the heartbeat.
    pub settings: &'a NotifySettings,
    /// The database of the run.
    pub database: &'a Database,
    /// The interval of the service.
    pub every: Duration,
    /// Becomes true when the process is asked to stop.
    pub stop: watch::Receiver<bool>,
}

impl Meanwhile<'_> {
    /// Makes a run, and tells of alerts after each poll but the first, of which the end of a short run tells. Calls the
    /// heartbeat after a poll, if the lanes have made a step since the last one. The lanes wait for nothing of that;
    /// the end of the run waits for a message that is being posted.
    pub async fn tell_during<T>(&self, progress: &RowsDone, run: impl Future<Output = T>) -> T {
        let (ended, has_ended) = watch::channel(false);
        let run = async {
            let report = run.await;
            ended.send_replace(true);
            report
        };
        // Boxed, because it is large, and is used by long runs alone.
        let (report, ()) = tokio::join!(run, Box::pin(self.tell_until(has_ended, progress)));
        report
    }

    async fn tell_until(&self, mut has_ended: watch::Receiver<bool>, progress: &RowsDone) {
        if !self.settings.has_webhook() && matches!(self.settings.heartbeat(), Ok(None)) {
            return;
        }
        let (mut stop, mut polls) = (self.stop.clone(), progress.polls());
        let mut steps = progress.lane_steps();
        loop {
            let has_polled = tokio::select! {
                biased;
                _ = has_ended.wait_for(|ended| *ended) => return,
                Ok(_) = stop.wait_for(|stop| *stop) => return,
                Ok(()) = polls.changed() => true,
                () = sleep((2 * self.every).min(TOLD_WITHIN)) => false,
            };
            let now = progress.lane_steps();
            let has_progress = has_polled && now != steps;
            steps = now;
            tokio::select! {
                biased;
                Ok(_) = stop.wait_for(|stop| *stop) => return,
                () = self.tell_now(has_progress) => {}
            }
        }
    }

    async fn tell_now(&self, has_progress: bool) {
        let told = async {
            if self.settings.has_webhook() {
                let beside = self.database.beside(LIMITS);
                tell(self.settings, &beside).await;
                beside.close().await;
            }
        };
        tokio::join!(told, beat(self.settings, has_progress));
    }
}
