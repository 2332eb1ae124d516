//! Asks the API once with each credential, for preflight checks: a signed call that lists accounts. Nothing is sent or
//! recorded.

use std::time::Duration;

use chrono::TimeDelta;
use futures_util::{FutureExt, StreamExt, stream};
use tokio::time::Instant;

use super::api_session::ApiSession;
use super::messages;
use super::reference::whole_list_of;
use super::worker::client;
use crate::config::{RetrySettings, Settings};
use crate::elven::{Answer, List, ListEntry, ResponseClass};

/// How many credentials ask at once.
const AT_ONCE: usize = 4;

/// A difference of clocks that is worth another signature.
const SKEW_MIN: TimeDelta = TimeDelta::seconds(2);

/// What the API answered to one credential.
#[derive(Clone, Debug)]
pub struct ApiProbe {
    /// The credential.
    pub credential: String,
    /// What the answer means.
    pub outcome: ProbeOutcome,
    /// The HTTP status, if there was an answer.
    pub http_status: Option<u16>,
    /// The list is under `data`.
    pub is_wrapped: bool,
    /// How far the API's clock (`Date`) is ahead of this machine's. `None`: the answer has no date.
    pub ahead: Option<TimeDelta>,
    /// How long the answer took.
    pub round_trip: Duration,
}

/// What an answer to a probe means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProbeOutcome {
    /// The accounts were listed.
    Listed,
    /// The credential cannot be read.
    NoCredential(String),
    /// The API could not be reached, or did not process the request.
    Unreachable(String),
    /// The API limits the rate.
    Throttled(String),
    /// The API refused the key or the signature.
    Refused(String),
    /// The key may not list accounts. It may still be permitted to import.
    NotPermitted(String),
    /// The API refused the request itself, which says nothing about the key.
    Rejected(String),
    /// Something else answered: another API, a proxy or a firewall.
    OtherApi(String),
}

impl ProbeOutcome {
    /// Returns why the same credential cannot read lists either, if it cannot. A key that may not list accounts may list
    /// currencies.
    pub fn keeps_from_listing(&self) -> Option<&str> {
        match self {
            Self::Listed | Self::NotPermitted(_) => None,
            Self::NoCredential(why)
            | Self::Unreachable(why)
            | Self::Throttled(why)
            | Self::Refused(why)
            | Self::Rejected(why)
            | Self::OtherApi(why) => Some(why),
        }
    }
}

/// Reads a whole list of names with a credential, or says why it could not be read. No request is repeated, so that an
/// API that throttles costs no time.
pub async fn read_names(settings: &Settings, credential: &str, list: List) -> Result<Vec<ListEntry>, String> {
    let retry = RetrySettings { attempts: 1, ..settings.retry.clone() };
    let settings = &Settings { retry, ..settings.clone() };
    let credential = settings.credential(credential).map_err(|problem| problem.to_string())?;
    let client = client(settings).map_err(|problem| problem.to_string())?;
    let session = ApiSession::new(credential, client, settings.api.requests_per_second, None);
    whole_list_of(settings, &session, list).await.map_err(|failure| failure.message)
}

/// Asks the API with each of these credentials.
pub async fn probe_api(settings: &Settings, credentials: &[String]) -> Vec<ApiProbe> {
    let ask = |name: String| async move { probe(settings, &name).await }.boxed();
    stream::iter(credentials.to_vec()).map(ask).buffered(AT_ONCE).collect().await
}

async fn probe(settings: &Settings, name: &str) -> ApiProbe {
    let unasked = |outcome| ApiProbe {
        credential: name.to_owned(),
        outcome,
        http_status: None,
        is_wrapped: false,
        ahead: None,
        round_trip: Duration::ZERO,
    };
    let credential = match settings.credential(name) {
        Ok(credential) => credential,
        Err(problem) => return unasked(ProbeOutcome::NoCredential(problem.to_string())),
    };
    let client = match client(settings) {
        Ok(client) => client,
        Err(problem) => return unasked(ProbeOutcome::Unreachable(problem.to_string())),
    };
    let session = ApiSession::new(credential, client, None, None);
    let mut clock = None;
    let mut asked = ask(&session, clock).await;
    // A connection that opened late is open by now. A clock that is off is corrected, as a run does.
    if let Ok(Asked { answer: Answer::OpenedLate, .. }) = &asked {
        asked = ask(&session, clock).await;
    }
    if let Ok(Asked { class: ResponseClass::Unauthorized(_, Some(ahead)), .. }) = &asked
        && ahead.abs() >= SKEW_MIN
    {
        clock = Some(*ahead);
        asked = ask(&session, clock).await;
    }
    let Asked { answer, class, round_trip } = match asked {
        Ok(asked) => asked,
        Err(problem) => return unasked(ProbeOutcome::NoCredential(problem)),
    };
    let (http_status, is_wrapped, ahead) = match &answer {
        // `ahead` is relative to the clock that signed.
        Answer::Response { status, envelope, ahead, .. } => {
            (Some(*status), envelope.is_wrapped, ahead.map(|ahead| ahead + clock.unwrap_or_default()))
        }
        Answer::NotSent(_) | Answer::OpenedLate | Answer::Lost(_) => (None, false, None),
    };
    let outcome = outcome(&answer, class, http_status);
    ApiProbe { credential: name.to_owned(), outcome, http_status, is_wrapped, ahead, round_trip }
}

/// A request and its answer.
struct Asked {
    answer: Answer,
    class: ResponseClass,
    round_trip: Duration,
}

async fn ask(session: &ApiSession, ahead: Option<TimeDelta>) -> Result<Asked, String> {
    let list = List::Accounts.into();
    let signed = session.sign_list(ahead, list, 1).map_err(|problem| problem.to_string())?;
    let begun = Instant::now();
    let (answer, _) = session.send_list(signed, list).await;
    let round_trip = begun.elapsed();
    let class = session.classify_and_record(&answer, &mut None);
    Ok(Asked { answer, class, round_trip })
}

fn outcome(answer: &Answer, class: ResponseClass, http_status: Option<u16>) -> ProbeOutcome {
    let status = http_status.map_or_else(|| "no answer".to_owned(), |status| format!("HTTP {status}"));
    if let Answer::Response { status: 200..300, envelope, .. } = answer
        && envelope.is_list
    {
        return ProbeOutcome::Listed;
    }
    match class {
        ResponseClass::Unauthorized(reason, _) if http_status == Some(401) => {
            ProbeOutcome::Refused(format!("{status}: {reason}"))
        }
        ResponseClass::Unauthorized(reason, _) => ProbeOutcome::NotPermitted(format!("{status}: {reason}")),
        ResponseClass::Refused(reason) if http_status == Some(403) => {
            ProbeOutcome::NotPermitted(format!("{status}: {reason}"))
        }
        ResponseClass::Refused(reason) => ProbeOutcome::Rejected(format!("{status}: {reason}")),
        ResponseClass::Accepted => {
            ProbeOutcome::OtherApi(format!("the API did not answer with a list ({status})"))
        }
        ResponseClass::TooLarge | ResponseClass::UnexpectedApi => {
            ProbeOutcome::OtherApi(messages::other_api(&status))
        }
        ResponseClass::Intercepted => ProbeOutcome::OtherApi(messages::intercepted(&status)),
        ResponseClass::Throttled(Some(pause)) => ProbeOutcome::Throttled(format!(
            "{}; {}",
            messages::rate_limited(&status),
            messages::not_before(pause)
        )),
        ResponseClass::Throttled(None) => ProbeOutcome::Throttled(messages::rate_limited(&status)),
        ResponseClass::NotSent(reason) if http_status.is_some() => {
            ProbeOutcome::Unreachable(format!("the API did not process the request ({status}): {reason}"))
        }
        ResponseClass::NotSent(reason) => ProbeOutcome::Unreachable(messages::unreachable(&reason)),
        ResponseClass::Unknown(reason) => ProbeOutcome::Unreachable(format!("{reason} ({status})")),
    }
}
