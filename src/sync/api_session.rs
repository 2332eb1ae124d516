//! What all lanes of a credential share: its pauses, its clock, and what is known of the other side.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use chrono::TimeDelta;
use secrecy::ExposeSecret;
use tokio::time::{Instant, sleep_until};

use super::log;
use super::policy::{SKEW_MIN, Taken};
use crate::config::{Credential, Settings};
use crate::elven::{Answer, Client, ResponseClass, Signed, classify};

/// When the largest body that was accepted is within this share of the smallest one that was refused, the
/// limit is known well enough: one part in so many.
const LIMIT_KNOWN_WITHIN: usize = 20;

/// The way to the API with one credential, for the length of a run.
#[derive(Debug)]
pub(super) struct ApiSession {
    /// The credential, as it was read when the run began.
    pub credential: Credential,
    client: Client,
    /// The least time between two requests.
    interval: Duration,
    /// The most bytes that a body may have, as configured.
    body_bytes: usize,
    state: Mutex<State>,
    /// One batch asks whether the credential is good, and the others wait for what it finds out.
    probing: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct State {
    paused_until: Instant,
    next_turn: Instant,
    /// How far ahead of this machine's the clock is that requests are signed by.
    ahead: TimeDelta,
    /// The API took something from this credential in this run.
    proven: bool,
    /// It took an import from this credential in this run.
    accepted: bool,
    /// The call that reads was answered with this 4xx status, so that it proves nothing in this run.
    no_list: Option<u16>,
    /// The key and the secret that were read after a refusal, each time that they were new.
    read_again: Vec<Credential>,
    /// What was done about a refused signature, and did not help.
    failed: Taken,
    accepted_bytes: usize,
    refused_bytes: usize,
    /// How far the clock that the last answer was signed for is ahead of the API's, as far as its date tells.
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
            failed: Taken::default(),
            accepted_bytes: 0,
            refused_bytes: usize::MAX,
            ahead_of_api: Duration::ZERO,
        };
        Self {
            credential,
            client,
            interval: requests_per_second.map_or(Duration::ZERO, |rate| Duration::from_secs(1) / rate.max(1)),
            body_bytes: body_bytes.unwrap_or(usize::MAX),
            state: Mutex::new(state),
            probing: tokio::sync::Mutex::default(),
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        // Each change is a single assignment: there is no half of one to fear.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until a request may be made: for the rate, and for a pause that the API asked for.
    ///
    /// # Errors
    /// The pause is longer than `wait_max`; returns how long.
    pub(super) async fn acquire_turn(&self, wait_max: Duration) -> Result<(), Duration> {
        let turn = {
            let mut state = self.state();
            let turn = state.next_turn.max(Instant::now());
            state.next_turn = turn + self.interval;
            turn
        };
        sleep_until(turn).await;
        self.wait_for_pause(wait_max).await
    }

    /// Whether the API has asked for a pause that has not ended.
    pub(super) fn is_paused(&self) -> bool {
        self.state().paused_until > Instant::now()
    }

    /// Waits for the end of a pause that the API asked for.
    ///
    /// # Errors
    /// It is longer than `wait_max`; returns how long.
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

    /// Keeps everybody who uses the credential from calling for a while.
    pub(super) fn pause(&self, pause: Duration) {
        let mut state = self.state();
        state.paused_until = state.paused_until.max(Instant::now() + pause);
    }

    /// Signs an import, by a clock that is so far `ahead` of this machine's, or else by the one that is known
    /// to be right.
    ///
    /// # Errors
    /// Key or signature are not fit for a header.
    pub(super) fn sign_import(
        &self,
        ahead: Option<TimeDelta>,
        body: Bytes,
    ) -> Result<Signed, reqwest::header::InvalidHeaderValue> {
        let ahead = ahead.unwrap_or_else(|| self.ahead());
        let (credential, keys) = self.in_use();
        Ok(self.client.sign_import(&credential, ahead, body)?.with_keys(keys))
    }

    /// The key and the secret that requests are signed by, and which of those that were read they are.
    fn in_use(&self) -> (Credential, u32) {
        let state = self.state();
        let credential = state.read_again.last().unwrap_or(&self.credential).clone();
        (credential, u32::try_from(state.read_again.len()).unwrap_or(u32::MAX))
    }

    /// Which of the keys that were read in this run signs requests, counted from 0.
    pub(super) fn keys(&self) -> u32 {
        self.in_use().1
    }

    /// Reads the files of the credential. `None`: they hold the key and the secret that are in use, or cannot be read.
    pub(super) fn new_keys(&self, settings: &Settings) -> Option<Credential> {
        let read = settings.credential(&self.credential.name).ok()?;
        let (used, _) = self.in_use();
        let is_same = read.key.expose_secret() == used.key.expose_secret()
            && read.secret.expose_secret() == used.secret.expose_secret();
        (!is_same).then_some(read)
    }

    /// Signs by another key and secret from now on.
    pub(super) fn use_keys(&self, read: Credential) {
        tracing::warn!(
            credential = self.credential.name,
            "the API refused the key; its files hold a new one"
        );
        self.state().read_again.push(read);
    }

    /// What was done about a refused signature in this run, and did not help.
    pub(super) fn failed(&self) -> Taken {
        self.state().failed
    }

    /// Notes what was done about a refused signature, and did not help.
    pub(super) fn note_failed(&self, taken: Taken) {
        let mut state = self.state();
        state.failed = state.failed.and(taken);
    }

    pub(super) async fn send(&self, signed: Signed) -> Answer {
        self.client.send(signed).await
    }

    /// Judges an answer. Where it repeats key or secret, those are left out: its words are recorded.
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

    /// Judges an answer to a request that was signed by a clock under trial, if one is; keeps that clock when it
    /// has worked. What else comes back may be from somebody who did not look at the signature.
    pub(super) fn classify_and_record(
        &self,
        answer: &Answer,
        corrected: &mut Option<TimeDelta>,
    ) -> ResponseClass {
        if let Answer::Response { ahead: Some(ahead), .. } = answer {
            // Less than that is no skew.
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

    /// How far ahead of this machine's the clock is that requests are signed by.
    pub(super) fn ahead(&self) -> TimeDelta {
        self.state().ahead
    }

    /// How far signatures are dated ahead of the API's clock, which takes them for so much longer.
    pub(super) fn ahead_of_api(&self) -> Duration {
        self.state().ahead_of_api
    }

    /// Keeps a clock that has worked: how far it is ahead of this machine's.
    fn keep_clock(&self, ahead: TimeDelta) {
        let before = std::mem::replace(&mut self.state().ahead, ahead);
        if (ahead - before).abs() < SKEW_MIN {
            // Found by several requests that were under way at once.
            return;
        }
        let ahead_ms = ahead.num_milliseconds();
        tracing::warn!(
            credential = self.credential.name,
            ahead_ms,
            "the API's clock is off from this machine's; requests are signed by the API's; hint: check NTP"
        );
    }

    /// Notes that a body of this size was accepted.
    pub(super) fn accepted(&self, bytes: usize) {
        let mut state = self.state();
        state.proven = true;
        state.accepted = true;
        state.accepted_bytes = state.accepted_bytes.max(bytes);
        // The limit was lifted, or differs from record to record.
        if state.refused_bytes <= bytes {
            state.refused_bytes = usize::MAX;
        }
    }

    /// Notes that a body of this size was too large.
    pub(super) fn too_large(&self, bytes: usize) {
        let mut state = self.state();
        state.refused_bytes = state.refused_bytes.min(bytes);
        if state.accepted_bytes >= bytes {
            state.accepted_bytes = 0;
        }
    }

    /// The largest body to make: below what was refused, and closer to that the more is known.
    pub(super) fn body_bytes_max(&self) -> usize {
        let state = self.state();
        let (accepted, refused) = (state.accepted_bytes, state.refused_bytes);
        let learned = if refused == usize::MAX {
            refused
        } else if refused - accepted <= refused / LIMIT_KNOWN_WITHIN {
            accepted
        } else {
            accepted + (refused - accepted) / 2
        };
        learned.min(self.body_bytes)
    }

    /// Credential and endpoint are known to be good: an import was accepted in this run, or the call that reads gave a
    /// list.
    pub(super) fn is_proven(&self) -> bool {
        self.state().proven
    }

    /// An import was accepted in this run.
    pub(super) fn has_accepted(&self) -> bool {
        self.state().accepted
    }

    /// Says whether credential and endpoint are good: something was accepted in this run, or a signed call
    /// that reads is answered as documented.
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
        self.acquire_turn(wait_max)
            .await
            .map_err(|pause| Unproven::Later(ResponseClass::Throttled(Some(pause)), None))?;
        let probe = async || {
            let ahead = self.state().ahead;
            let signed = self.client.sign_probe(&self.in_use().0, ahead);
            let signed = signed.map_err(|problem| Unproven::Otherwise(problem.to_string()))?;
            let begun = std::time::Instant::now();
            let answer = self.client.send(signed).await;
            log::probe(&answer, begun);
            Ok(answer)
        };
        let mut answer = probe().await?;
        if answer == Answer::OpenedLate {
            // The connection is open now.
            answer = probe().await?;
        }
        let status = match &answer {
            Answer::Response { status: 200..300, envelope, .. } if envelope.is_list => {
                self.state().proven = true;
                return Ok(());
            }
            Answer::Response { status, .. } => Some(i32::from(*status)),
            Answer::NotSent(_) | Answer::OpenedLate | Answer::Lost(_) => None,
        };
        Err(match self.classify(&answer) {
            verdict @ (ResponseClass::Throttled(_) | ResponseClass::NotSent(_)) => {
                Unproven::Later(verdict, status)
            }
            verdict @ ResponseClass::Unknown(_) if status.is_none_or(|status| status >= 500) => {
                Unproven::Later(verdict, status)
            }
            _ if let Some(status) = status.and_then(|status| u16::try_from(status).ok())
                && (400..500).contains(&status) =>
            {
                self.state().no_list = Some(status);
                Unproven::NoList(status)
            }
            _ => Unproven::Otherwise(status.map_or_else(String::new, |status| format!("HTTP {status}"))),
        })
    }
}

/// Why credential and endpoint are not known to be good.
pub(super) enum Unproven {
    /// They could not be asked now: what came back, and its status.
    Later(ResponseClass, Option<i32>),
    /// The call that reads was answered with this 4xx status: the key may be one that may only import.
    NoList(u16),
    /// They were, and something else came back than is documented.
    Otherwise(String),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Settings;

    fn session(requests_per_second: Option<u32>) -> ApiSession {
        let variables = [("ELVEN_API_KEY", "k"), ("ELVEN_API_SECRET", "s")];
        let environment = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let settings = Settings::load(&crate::config::Flags::default(), environment.into_iter().collect());
        let settings = settings.unwrap();
        let client = Client::new(&settings.api_url, Duration::from_secs(1)).unwrap();
        ApiSession::new(settings.credential("default").unwrap(), client, requests_per_second, None)
    }

    #[test]
    fn the_limit_of_bodies_is_closed_in_on() {
        let session = session(None);
        assert_eq!(session.body_bytes_max(), usize::MAX);
        // What the other side allows.
        let limit = 100_000;
        let mut refusals = 0;
        let mut body = 120_000;
        for _ in 0..20 {
            if body > limit {
                session.too_large(body);
                refusals += 1;
            } else {
                session.accepted(body);
            }
            body = session.body_bytes_max();
        }
        assert!((95_000..=limit).contains(&body), "{body}");
        assert!(refusals <= 5, "{refusals} refusals");
        // It was lifted.
        session.accepted(150_000);
        assert_eq!(session.body_bytes_max(), usize::MAX);
    }

    #[tokio::test(start_paused = true)]
    async fn turns_keep_the_rate_and_the_pause() {
        let session = session(Some(10));
        let begun = Instant::now();
        for _ in 0..11 {
            session.acquire_turn(Duration::from_secs(30)).await.unwrap();
        }
        assert_eq!(begun.elapsed().as_millis(), 1000);
        session.pause(Duration::from_secs(5));
        session.acquire_turn(Duration::from_secs(30)).await.unwrap();
        assert_eq!(begun.elapsed().as_secs(), 6);
        session.pause(Duration::from_mins(1));
        assert!(session.acquire_turn(Duration::from_secs(30)).await.is_err());
    }
}
