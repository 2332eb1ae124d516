//! The session of a credential, shared by its lanes: rate, pauses, clock, key, and what is known of the API.

#[cfg(test)]
mod tests;
mod turn;

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use chrono::TimeDelta;
use futures_util::FutureExt;
use secrecy::ExposeSecret;
use tokio::sync::OnceCell;
use tokio::time::{Instant, sleep, sleep_until};

pub(super) use self::turn::RequestTurn;
use super::decisions::body_size::{BodyLimit, PROBE_EVERY};
use super::decisions::policy::{SKEW_MIN, Taken};
use super::decisions::proof::{Unproven, of_probe};
use super::log;
use super::names::ApiLists;
use crate::batch::Batch;
use crate::config::{Credential, Settings};
use crate::elven::{Answer, Client, ListPage, Listing, ResponseClass, Signed, classify};

/// How often a run may read another key and secret from their files, so that files that change all the time do not keep
/// it from ending.
const KEYS_READ_MAX: usize = 10;
/// How often, and after how long, a key that cannot be used is read once more.
const KEYS_READ_TIMES: u32 = 5;
const KEYS_READ_EVERY: Duration = Duration::from_millis(50);
/// By how much a request may be late without delaying the one after it, so that timers that fire late do not lower the
/// rate.
const LATENESS_MAX: Duration = Duration::from_millis(5);

/// The session of a credential at the API, for one run.
#[derive(Debug)]
pub(super) struct ApiSession {
    /// The credential as it was read when the run began.
    pub credential: Credential,
    client: Client,
    /// The least time between two requests.
    interval: Duration,
    /// The configured limit for a body in bytes.
    body_bytes: usize,
    state: Mutex<State>,
    /// Held by the request that is sent next, if the rate is limited.
    turn: tokio::sync::Mutex<()>,
    /// The lists of the credential, if a batch was refused.
    pub(super) lists: OnceCell<ApiLists>,
    /// Held by the batch that probes the credential, while others wait for the result.
    probing: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct State {
    paused_until: Instant,
    next_turn: Instant,
    /// How far the clock for signatures is ahead of the clock of this machine.
    ahead: TimeDelta,
    /// An import was accepted in this run, or the probe returned a list.
    proven: bool,
    /// An import was accepted in this run.
    accepted: bool,
    /// The 4xx status of the probe, which then proves nothing in this run.
    no_list: Option<u16>,
    /// The keys and secrets that were read after a refusal, each of them new.
    read_again: Vec<Credential>,
    /// The keys and secrets that were refused.
    refused: Vec<Credential>,
    /// It was logged that the key cannot be read again.
    is_unusable_noted: bool,
    /// The remedies for a refused signature that did not help.
    failed: Taken,
    body_limit: BodyLimit,
    /// The number of the last batch for which the size of its body was asked. It begins at random, because most runs
    /// are too short to reach the next probe of the limit otherwise.
    body_number: u32,
    /// How far this machine's clock is ahead of the API's, by the date of the last answer, and when that came.
    clock: Option<(TimeDelta, Instant)>,
    /// How far the clock of the last signature was ahead of the API's, by the date of the answer.
    ahead_of_api: Duration,
}

impl ApiSession {
    pub(super) fn new(
        credential: Credential,
        client: Client,
        requests_per_second: Option<u32>,
        body_bytes: Option<usize>,
    ) -> Self {
        let now = Instant::now();
        let state = State {
            paused_until: now,
            next_turn: now,
            ahead: TimeDelta::zero(),
            proven: false,
            accepted: false,
            no_list: None,
            read_again: Vec::new(),
            refused: Vec::new(),
            is_unusable_noted: false,
            failed: Taken::default(),
            body_limit: BodyLimit::default(),
            body_number: fastrand::u32(..PROBE_EVERY),
            clock: None,
            ahead_of_api: Duration::ZERO,
        };
        Self {
            credential,
            client,
            interval: requests_per_second.map_or(Duration::ZERO, |rate| Duration::from_secs(1) / rate.max(1)),
            body_bytes: body_bytes.unwrap_or(usize::MAX),
            state: Mutex::new(state),
            turn: tokio::sync::Mutex::default(),
            lists: OnceCell::new(),
            probing: tokio::sync::Mutex::default(),
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        // Each change is a single assignment, so a panic leaves no half-made change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the turn of a request: for the rate, and for a pause of the API. Under a rate limit no other
    /// request has a turn until this one is over, so that requests that waited do not leave together.
    ///
    /// # Errors
    /// The pause is longer than `wait_max`; returns its length.
    pub(super) async fn turn(&self, wait_max: Duration) -> Result<RequestTurn<'_>, Duration> {
        let alone = if self.interval.is_zero() { None } else { Some(self.turn.lock().await) };
        loop {
            self.wait_for_pause(wait_max).await?;
            // Only the request that has the turn changes this time.
            let next_turn = self.state().next_turn;
            if next_turn <= Instant::now() {
                return Ok(RequestTurn { session: self, _alone: alone });
            }
            sleep_until(next_turn).await;
        }
    }

    /// Returns a turn if a request may be sent at once.
    pub(super) fn free_turn(&self) -> Option<RequestTurn<'_>> {
        let alone = if self.interval.is_zero() { None } else { Some(self.turn.try_lock().ok()?) };
        let state = self.state();
        let now = Instant::now();
        let is_free = state.paused_until <= now && state.next_turn <= now;
        drop(state);
        is_free.then_some(RequestTurn { session: self, _alone: alone })
    }

    /// Whether a pause that the API asked for has not ended yet.
    pub(super) fn is_paused(&self) -> bool {
        !self.pause_left().is_zero()
    }

    /// Returns how long a pause lasts that the API asked for.
    pub(super) fn pause_left(&self) -> Duration {
        self.state().paused_until.saturating_duration_since(Instant::now())
    }

    /// Waits for the end of a pause that the API asked for.
    ///
    /// # Errors
    /// It is longer than `wait_max`; returns its length.
    pub(super) async fn wait_for_pause(&self, wait_max: Duration) -> Result<(), Duration> {
        loop {
            let paused_until = self.state().paused_until;
            let pause = paused_until.saturating_duration_since(Instant::now());
            if pause.is_zero() {
                return Ok(());
            }
            if pause > wait_max {
                return Err(pause);
            }
            sleep_until(paused_until).await;
        }
    }

    /// Pauses all lanes of the credential.
    pub(super) fn pause(&self, pause: Duration) {
        let mut state = self.state();
        state.paused_until = state.paused_until.max(Instant::now() + pause);
    }

    /// Signs the import of a batch. `ahead`: the offset of a clock under trial; without it, the clock that is known to be right.
    ///
    /// # Errors
    /// The key or the signature has characters that a header must not have.
    pub(super) fn sign_import(
        &self,
        ahead: Option<TimeDelta>,
        batch: &Batch,
    ) -> Result<Signed, reqwest::header::InvalidHeaderValue> {
        let ahead = ahead.unwrap_or_else(|| self.ahead());
        let (credential, keys) = self.in_use();
        let (version, body) = (batch.rules.form.version(), batch.body.clone());
        Ok(self.client.sign_import(&credential, ahead, version, body)?.with_keys(keys))
    }

    /// Signs a request for a page of a list. `ahead`: as for an import.
    ///
    /// # Errors
    /// The key or the signature has characters that a header must not have.
    pub(super) fn sign_list(
        &self,
        ahead: Option<TimeDelta>,
        list: Listing,
        page: u32,
    ) -> Result<Signed, reqwest::header::InvalidHeaderValue> {
        let (credential, keys) = self.in_use();
        let ahead = ahead.unwrap_or_else(|| self.ahead());
        Ok(self.client.sign_list(&credential, ahead, list, page)?.with_keys(keys))
    }

    /// Sends a request for a page of a list, as [`Client::send_list`] does.
    pub(super) async fn send_list(
        &self,
        signed: Signed,
        list: Listing,
    ) -> (Answer, Option<Result<ListPage, &'static str>>) {
        self.client.send_list(signed, list).boxed().await
    }

    /// The key and the secret in use, and their number, counted from 0.
    fn in_use(&self) -> (Credential, u32) {
        let state = self.state();
        let credential = state.read_again.last().unwrap_or(&self.credential).clone();
        (credential, u32::try_from(state.read_again.len()).unwrap_or(u32::MAX))
    }

    /// The number of the key in use, among the keys that were read in this run, counted from 0.
    pub(super) fn keys(&self) -> u32 {
        self.in_use().1
    }

    /// Reads the files of the credential again, because the API refused the key with this number. `None`: their key and
    /// secret were refused before in this run, or they cannot be used.
    pub(super) async fn new_keys(&self, settings: &Settings, refused_keys: u32) -> Option<Credential> {
        let mut times = 1;
        let read = loop {
            match settings.credential(&self.credential.name) {
                Ok(read) => break read,
                // The file is empty or away while it is being replaced.
                Err(_) if times < KEYS_READ_TIMES => sleep(KEYS_READ_EVERY).await,
                Err(problem) => {
                    if !std::mem::replace(&mut self.state().is_unusable_noted, true) {
                        tracing::warn!(
                            "the API refused the key, and the key cannot be read again: {problem}"
                        );
                    }
                    return None;
                }
            }
            times += 1;
        };
        let mut state = self.state();
        // Not the key in use: another request may have found a new one meanwhile.
        let index = usize::try_from(refused_keys).unwrap_or(usize::MAX).checked_sub(1);
        let used = index.map_or(Some(&self.credential), |index| state.read_again.get(index)).cloned();
        if let Some(used) = used.filter(|used| !state.refused.iter().any(|refused| refused.is(used))) {
            state.refused.push(used);
        }
        let is_refused = state.refused.iter().any(|refused| refused.is(&read));
        (!is_refused && state.read_again.len() < KEYS_READ_MAX).then_some(read)
    }

    /// Signs with another key and secret from now on, unless another request has found them already.
    pub(super) fn use_keys(&self, read: Credential) {
        if self.in_use().0.is(&read) {
            return;
        }
        self.state().read_again.push(read);
        tracing::warn!(
            credential = self.credential.name,
            "the API refused the key; the new key from its file is used"
        );
    }

    /// The remedies for a refused signature that did not help in this run.
    pub(super) fn failed(&self) -> Taken {
        self.state().failed
    }

    /// Notes remedies for a refused signature that did not help.
    pub(super) fn note_failed(&self, taken: Taken) {
        let mut state = self.state();
        state.failed = state.failed.and(taken);
    }

    pub(super) async fn send(&self, signed: Signed) -> Answer {
        let signed_ahead = signed.ahead();
        // Boxed with its type erased: the types of nested futures are too deep for the compiler otherwise.
        let answer = self.client.send(signed).boxed().await;
        if let Answer::Response { ahead: Some(ahead), .. } = answer {
            self.state().clock = Some((-(ahead + signed_ahead), Instant::now()));
        }
        answer
    }

    /// How far this machine's clock is ahead of the API's, and when that was seen. `None`: no answer of this run had a
    /// date.
    pub(super) fn clock(&self) -> Option<(TimeDelta, Instant)> {
        self.state().clock
    }

    /// Classifies an answer. Removes the key and the secret from its text, because the text is recorded.
    fn classify(&self, answer: &Answer) -> ResponseClass {
        let mut verdict = classify(answer);
        if let ResponseClass::Refused(reason) | ResponseClass::Unauthorized(reason, _) = &mut verdict {
            let read_again = self.state().read_again.clone();
            for Credential { key, secret, .. } in std::iter::once(&self.credential).chain(&read_again) {
                reason.without(&[key.expose_secret(), secret.expose_secret()]);
            }
        }
        verdict
    }

    /// Classifies an answer. Keeps the clock under trial, if the API accepted the signature; another answer may come
    /// from a proxy that did not check the signature.
    pub(super) fn classify_and_record(
        &self,
        answer: &Answer,
        corrected: &mut Option<TimeDelta>,
    ) -> ResponseClass {
        if let Answer::Response { ahead: Some(ahead), .. } = answer {
            // A smaller difference is no skew.
            let behind = (-*ahead).to_std().ok().filter(|_| -*ahead >= SKEW_MIN);
            self.state().ahead_of_api = behind.unwrap_or_default();
        }
        let verdict = self.classify(answer);
        if matches!(verdict, ResponseClass::Accepted | ResponseClass::Refused(_))
            && let Some(ahead) = corrected.take()
        {
            self.keep_clock(ahead);
        }
        verdict
    }

    /// How far the clock for signatures is ahead of the clock of this machine.
    pub(super) fn ahead(&self) -> TimeDelta {
        self.state().ahead
    }

    /// How far signatures are dated ahead of the API's clock. The API accepts them for that much longer.
    pub(super) fn ahead_of_api(&self) -> Duration {
        self.state().ahead_of_api
    }

    /// Keeps a clock that worked. `ahead`: its offset to the clock of this machine.
    pub(super) fn keep_clock(&self, ahead: TimeDelta) {
        let before = std::mem::replace(&mut self.state().ahead, ahead);
        if (ahead - before).abs() < SKEW_MIN {
            // Several requests in flight found the same skew.
            return;
        }
        let ahead_ms = ahead.num_milliseconds();
        tracing::warn!(
            credential = self.credential.name,
            ahead_ms,
            "this machine's clock is off from the API's; requests are signed with the API's clock; hint: check NTP"
        );
    }

    /// Notes that a body of this size was accepted.
    pub(super) fn accepted(&self, bytes: usize) {
        let mut state = self.state();
        state.proven = true;
        state.accepted = true;
        state.body_limit = state.body_limit.after_accepted(bytes);
    }

    /// Notes that a body of this size was too large.
    pub(super) fn too_large(&self, bytes: usize) {
        let mut state = self.state();
        state.body_limit = state.body_limit.after_too_large(bytes);
    }

    /// The largest body that is likely to be accepted, in bytes.
    pub(super) fn body_bytes_max(&self) -> usize {
        self.state().body_limit.max().min(self.body_bytes)
    }

    /// The largest body of the next batch, in bytes. One batch in [`PROBE_EVERY`] may exceed the learned limit.
    pub(super) fn next_body_bytes_max(&self) -> usize {
        let mut state = self.state();
        state.body_number = state.body_number.wrapping_add(1);
        state.body_limit.max_of_request(state.body_number).min(self.body_bytes)
    }

    /// Whether the credential and the endpoint are known to be good: an import was accepted in this run, or the probe
    /// returned a list.
    pub(super) fn is_proven(&self) -> bool {
        self.state().proven
    }

    /// Whether an import was accepted in this run.
    pub(super) fn has_accepted(&self) -> bool {
        self.state().accepted
    }

    /// Finds out whether the credential and the endpoint are good: an import was accepted in this run, or the probe, a
    /// signed call that only reads, returns a list as documented.
    pub(super) async fn probe_credential(&self, wait_max: Duration) -> Result<(), Unproven> {
        let _alone = self.probing.lock().await;
        let no_list = {
            let state = self.state();
            if state.proven {
                return Ok(());
            }
            state.no_list
        };
        if let Some(status) = no_list {
            return Err(Unproven::NoList(status));
        }
        let turn = self.turn(wait_max).await;
        let turn = turn.map_err(|pause| Unproven::Later(ResponseClass::Throttled(Some(pause)), None))?;
        turn.end();
        let probe = async || {
            let ahead = self.state().ahead;
            let signed = self.client.sign_probe(&self.in_use().0, ahead);
            let signed = signed.map_err(|problem| Unproven::Otherwise(problem.to_string()))?;
            let begun = Instant::now();
            let answer = self.send(signed).await;
            log::probe(&answer, begun);
            Ok(answer)
        };
        let mut answer = probe().await?;
        if answer == Answer::OpenedLate {
            // The connection is open by now.
            answer = probe().await?;
        }
        let proven = of_probe(&answer, self.classify(&answer));
        self.note_probe(&proven);
        proven
    }

    /// Notes what a call that lists has proven.
    pub(super) fn note_probe(&self, proven: &Result<(), Unproven>) {
        match proven {
            Ok(()) => self.state().proven = true,
            Err(Unproven::NoList(status)) => self.state().no_list = Some(*status),
            Err(Unproven::Later(..) | Unproven::Otherwise(_)) => {}
        }
    }
}
