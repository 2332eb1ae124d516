//! Signatures that are fresh when their request is written.
//!
//! A request is signed, then the lease is checked, then the request is sent. A takeover waits until the lease has
//! expired and the signatures made under it are too old. So the API refuses what a frozen worker still sends.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use tokio::time::Instant;

use super::api_session::ApiSession;
use super::lane::exit::LaneExit;
use super::lane_worker::LaneWorker;
use crate::batch::Batch;
use crate::elven::{Answer, Signed, is_older_than};
use crate::fault_point::{Step, around};
use crate::journal::Lease;

/// The age up to which a signature is fresh. An older one is made again before its request is sent. With the time that
/// opening a connection may take, a signature is at most 1 s old when its request is written.
const FRESH_FOR: Duration = Duration::from_millis(600);
/// How often in a row a request is signed again because connecting took long.
pub(super) const OPENED_LATE_MAX: usize = 3;

/// How a request was signed: the offset of the clock, the time by the clock of this machine, and the number of the key.
#[derive(Clone, Copy, Debug)]
pub(super) struct SignedBy {
    pub ahead: TimeDelta,
    pub at: DateTime<Utc>,
    pub keys: u32,
}

impl From<&Signed> for SignedBy {
    fn from(signed: &Signed) -> Self {
        Self { ahead: signed.ahead(), at: signed.at(), keys: signed.keys() }
    }
}

/// A request that was sent.
pub(super) struct Sent {
    /// `None`: the answer was not awaited, because the grace period was over.
    pub answer: Option<Answer>,
    pub begun: Instant,
    pub by: SignedBy,
}

impl LaneWorker {
    /// Returns a fresh signature after which the lease was checked. Keeps the given signature, after which it was
    /// checked already, unless that is too old, or the clock or the key was replaced meanwhile. `trial`: a clock under
    /// trial.
    pub(super) async fn fresh(
        &self,
        session: &ApiSession,
        lease: &Lease,
        batch: &Batch,
        trial: Option<TimeDelta>,
        signed: Option<Signed>,
    ) -> Result<Signed, LaneExit> {
        let good_for = FRESH_FOR.min(self.settings.api.signature_window / 2);
        let is_fresh = |signed: &Signed| !is_older_than(signed.at(), good_for);
        let is_right = |signed: &Signed| {
            let ahead = trial.unwrap_or_else(|| session.ahead());
            signed.ahead() == ahead && signed.keys() == session.keys()
        };
        if let Some(signed) = signed.filter(|signed| is_fresh(signed) && is_right(signed)) {
            return Ok(signed);
        }
        loop {
            let signed = session.sign_import(trial, batch)?;
            let lasts = self.journal.check_lease(lease).await?;
            if is_fresh(&signed) {
                return Ok(signed);
            }
            // The check took long. It still holds for a new signature if the lease is known to last.
            let signed = session.sign_import(trial, batch)?;
            if lasts.is_sure() {
                return Ok(signed);
            }
        }
    }

    /// Sends a request, and waits for its answer. Signs it again if connecting took long.
    pub(super) async fn send_fresh(
        &self,
        session: &ApiSession,
        lease: &Lease,
        batch: &Batch,
        trial: Option<TimeDelta>,
        mut signed: Signed,
    ) -> Result<Sent, LaneExit> {
        let mut opened_late = 0;
        loop {
            let (by, begun) = (SignedBy::from(&signed), Instant::now());
            let answer = around(Step::Send, self.answer(session, signed)).await;
            opened_late += 1;
            if answer != Some(Answer::OpenedLate) || opened_late > OPENED_LATE_MAX {
                return Ok(Sent { answer, begun, by });
            }
            signed = self.fresh(session, lease, batch, trial, None).await?;
        }
    }
}
