//! `reference`: reads the lists of the accounts and the currencies that the API knows, and stores them; and reads the
//! sources.

use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::time::{Instant, sleep, timeout};

use super::RunError;
use super::api_session::ApiSession;
use super::decisions::list_reading::{ListReading, NextPage};
use super::decisions::policy::{Attempt, Decision, decide};
use super::decisions::proof::{Unproven, of_probe};
use super::remedies::SignatureRemedies;
use super::signing::{OPENED_LATE_MAX, SignedBy};
use super::worker::client;
use super::{log, messages};
use crate::config::{ConfigError, Settings};
use crate::database::Database;
use crate::elven::{Answer, List, ListEntry, ListPage, Listing, ResponseClass, SOURCE_TYPE, is_older_than};
use crate::journal::{self, Entity, JournalError, StoredList};

/// The longest time for which a list is read.
const LIST_TIME_MAX: Duration = Duration::from_mins(1);

/// What became of one list of a credential.
#[derive(Debug)]
pub struct PulledList {
    /// The credential.
    pub credential: String,
    /// The list.
    pub list: List,
    /// The number of entries that were stored, or why the list does not count.
    pub outcome: Result<usize, PullFailure>,
    /// The list that is stored now.
    pub stored: Option<StoredList>,
}

/// Why a list could not be pulled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PullFailure {
    /// What happened.
    pub message: String,
    /// What it is about.
    pub about: FailureSubject,
    /// The status of the answer, if there was one.
    pub http_status: Option<u16>,
}

/// What a failure is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureSubject {
    /// The API refused the key for the list.
    Permission,
    /// The list.
    List,
    /// The credential or the API, and so every list.
    Credential,
}

impl PullFailure {
    fn of(about: FailureSubject, message: impl Into<String>) -> Self {
        Self { message: message.into(), about, http_status: None }
    }

    /// Whether both are one problem. The API may refuse a key in other words each time, e.g. with the time; and the end
    /// of a pause is named to the second.
    pub fn is_same(&self, other: &Self) -> bool {
        let is_refusal = self.about == FailureSubject::Permission;
        if [self, other].iter().all(|failure| failure.message.starts_with(messages::RATE_LIMITED)) {
            return true;
        }
        self.about == other.about
            && self.http_status == other.http_status
            && (is_refusal || self.message == other.message)
    }
}

/// Reads both lists for each credential that a registered entity has, one request at a time, and stores each list that
/// counts in place of the list before. A list that does not count leaves the stored one as it is.
pub async fn pull_reference(settings: &Settings, database: &Database) -> Result<Vec<PulledList>, RunError> {
    journal::refuse_standby(database).await?;
    let credentials = Entity::credentials(&Entity::list(database).await?);
    let mut pulled = Vec::new();
    for (name, session) in sessions(settings, database, credentials).await? {
        pulled.extend(pull(settings, database, &name, session.as_ref()).await?);
    }
    let stored = StoredList::all(database).await?;
    for PulledList { credential, list, stored: kept, .. } in &mut pulled {
        *kept =
            stored.iter().find(|stored| stored.credential == *credential && stored.list == *list).cloned();
    }
    Ok(pulled)
}

/// The sources for balances that one credential may use.
#[derive(Debug)]
pub struct ListedSources {
    /// The credential.
    pub credential: String,
    /// The registered entities that have it, with their sources.
    pub entities: Vec<Entity>,
    /// The sources, or why they could not be read.
    pub outcome: Result<Vec<ListEntry>, PullFailure>,
}

/// Reads the sources for balances with each credential that one of these entities has.
pub async fn list_sources(
    settings: &Settings,
    database: &Database,
    entities: &[Entity],
) -> Result<Vec<ListedSources>, RunError> {
    let mut listed = Vec::new();
    for (name, session) in sessions(settings, database, Entity::credentials(entities)).await? {
        let outcome = match &session {
            Ok(session) => Reader { settings, session, list: Listing::Sources }.entries().await,
            Err(problem) => Err(PullFailure::of(FailureSubject::Credential, problem.to_string())),
        };
        // The API may not know the filter, or may not say the type.
        let is_for_balances =
            |entry: &ListEntry| entry.kind.as_deref().is_none_or(|kind| kind == SOURCE_TYPE);
        let outcome = outcome.map(|sources| sources.into_iter().filter(is_for_balances).collect());
        let of_credential = entities.iter().filter(|entity| entity.credential == name);
        listed.push(ListedSources { entities: of_credential.cloned().collect(), credential: name, outcome });
    }
    Ok(listed)
}

/// Opens a session with each of these credentials, or says why there is none.
async fn sessions(
    settings: &Settings,
    database: &Database,
    credentials: Vec<String>,
) -> Result<Vec<(String, Result<ApiSession, ConfigError>)>, RunError> {
    let client = client(settings)?;
    let pauses = Entity::pauses_of_credentials(database).await?;
    let open = |name: String| {
        let open =
            |credential| ApiSession::new(credential, client.clone(), settings.api.requests_per_second, None);
        let session = settings.credential(&name).map(open);
        let pause = pauses.iter().find(|(credential, _)| *credential == name);
        if let (Ok(session), Some((_, pause))) = (&session, pause) {
            session.pause(*pause);
        }
        (name, session)
    };
    Ok(credentials.into_iter().map(open).collect())
}

/// Pulls the lists of one credential.
async fn pull(
    settings: &Settings,
    database: &Database,
    credential: &str,
    session: Result<&ApiSession, &ConfigError>,
) -> Result<Vec<PulledList>, JournalError> {
    let mut pulled: Vec<PulledList> = Vec::new();
    for list in List::ALL {
        let before = pulled.iter().find_map(|pulled| {
            pulled.outcome.as_ref().err().filter(|failure| failure.about == FailureSubject::Credential)
        });
        let entries = match (before, session) {
            (Some(failure), _) => Err(failure.clone()),
            (None, Err(problem)) => Err(PullFailure::of(FailureSubject::Credential, problem.to_string())),
            (None, Ok(session)) => whole_list_of(settings, session, list).await,
        };
        let outcome = match entries {
            Ok(entries) => Ok(StoredList::replace(database, credential, list, &entries).await?),
            Err(failure) => Err(failure),
        };
        pulled.push(PulledList { credential: credential.to_owned(), list, outcome, stored: None });
    }
    Ok(pulled)
}

/// Reads a whole list with a credential.
pub(super) fn whole_list_of<'a>(
    settings: &'a Settings,
    session: &'a ApiSession,
    list: List,
) -> BoxFuture<'a, Result<Vec<ListEntry>, PullFailure>> {
    async move { Reader { settings, session, list: list.into() }.entries().await }.boxed()
}

/// Reads a whole list within [`LIST_TIME_MAX`]. `page` reads the page with a number.
async fn whole_list<'p>(
    mut reading: ListReading,
    mut page: impl FnMut(u32) -> BoxFuture<'p, Result<ListPage, PullFailure>>,
) -> Result<Vec<ListEntry>, PullFailure> {
    let read = async {
        let mut number = 1;
        loop {
            let taken = reading.take(page(number).await?);
            match taken.map_err(|why| PullFailure::of(FailureSubject::List, why))? {
                NextPage::Read(next) => number = next,
                NextPage::Whole => return Ok(()),
            }
        }
    };
    let Ok(read) = timeout(LIST_TIME_MAX, read).await else {
        let seconds = LIST_TIME_MAX.as_secs();
        let why = format!("the list was not read to its end within {seconds} s: {}", reading.progress());
        return Err(PullFailure::of(FailureSubject::List, why));
    };
    read.map(|()| reading.into_entries())
}

/// Reads one list with one credential.
struct Reader<'a> {
    settings: &'a Settings,
    session: &'a ApiSession,
    list: Listing,
}

impl Reader<'_> {
    async fn entries(&self) -> Result<Vec<ListEntry>, PullFailure> {
        let reading = match self.list {
            Listing::Names(_) => ListReading::default(),
            Listing::Sources => ListReading::of_any_length(),
        };
        whole_list(reading, |number| self.page(number).boxed()).await
    }

    /// Reads one page. The same rate, pauses, back-off and remedies as for an import apply.
    async fn page(&self, number: u32) -> Result<ListPage, PullFailure> {
        let Self { settings, session, list } = *self;
        let mut remedies = SignatureRemedies::default();
        let (mut attempt, mut opened_late) = (1, 0);
        loop {
            let turn = session.turn(settings.retry.max).await;
            turn.map_err(|pause| PullFailure::of(FailureSubject::Credential, messages::come_later(pause)))?
                .end();
            let signed = session.sign_list(remedies.trial, list, number);
            let signed =
                signed.map_err(|why| PullFailure::of(FailureSubject::Credential, why.to_string()))?;
            let (by, begun) = (SignedBy::from(&signed), Instant::now());
            let (answer, page) = session.send_list(signed, list).await;
            log::list_page(&answer, begun, list, number);
            if answer == Answer::OpenedLate && opened_late < OPENED_LATE_MAX {
                opened_late += 1;
                continue;
            }
            if let Answer::Response { status: 200..300, envelope, .. } = &answer
                && envelope.is_list
            {
                if let Some(ahead) = remedies.trial {
                    session.keep_clock(ahead);
                }
                session.note_probe(&Ok(()));
                let page = page.unwrap_or(Err("the list was not read"));
                return page.map_err(|why| PullFailure::of(FailureSubject::List, why));
            }
            let class = session.classify_and_record(&answer, &mut remedies.trial);
            let asked = Attempt {
                number: attempt,
                attempts_max: settings.retry.attempts,
                possible: remedies.possible(session, settings, &by, &class).await,
                aged: is_older_than(by.at, settings.api.signature_window),
            };
            match decide(&class, asked, &settings.retry, fastrand::u32(..)) {
                Decision::Again { after, all, .. } => {
                    attempt += 1;
                    if all { session.pause(after) } else { sleep(after).await }
                }
                remedy @ (Decision::SignAgain | Decision::ReadKeys | Decision::CorrectClock(_)) => {
                    remedies.take(&remedy, &by, session);
                }
                Decision::Settle | Decision::Isolate | Decision::Stop { .. } => {
                    // The probe of a credential is this call, too.
                    let proven = of_probe(&answer, class.clone());
                    if let (Listing::Names(List::Accounts), Err(Unproven::NoList(_))) = (list, &proven) {
                        session.note_probe(&proven);
                    }
                    return Err(failure(&class, &answer, &session.credential.name));
                }
            }
        }
    }
}

/// Returns what an answer means that is no list.
fn failure(class: &ResponseClass, answer: &Answer, credential: &str) -> PullFailure {
    let http_status = match answer {
        Answer::Response { status, .. } => Some(*status),
        Answer::NotSent(_) | Answer::OpenedLate | Answer::Lost(_) => None,
    };
    let status = http_status.map_or_else(|| "no answer".to_owned(), |status| format!("HTTP {status}"));
    let (about, message) = match class {
        ResponseClass::Accepted => {
            (FailureSubject::List, format!("the API did not answer with a list ({status})"))
        }
        ResponseClass::Refused(reason) | ResponseClass::Unauthorized(reason, _) => (
            FailureSubject::Permission,
            format!("the API refused credential `{credential}` ({status}): {reason}"),
        ),
        ResponseClass::TooLarge | ResponseClass::UnexpectedApi => {
            (FailureSubject::List, messages::other_api(&status))
        }
        ResponseClass::Intercepted => (FailureSubject::List, messages::intercepted(&status)),
        ResponseClass::Throttled(Some(pause)) => (
            FailureSubject::Credential,
            format!("{}; {}", messages::rate_limited(&status), messages::not_before(*pause)),
        ),
        ResponseClass::Throttled(None) => (FailureSubject::Credential, messages::rate_limited(&status)),
        ResponseClass::NotSent(reason) if http_status.is_some() => {
            (FailureSubject::Credential, format!("the API did not process the request ({status}): {reason}"))
        }
        ResponseClass::NotSent(reason) => (FailureSubject::Credential, messages::unreachable(reason)),
        ResponseClass::Unknown(reason) => (FailureSubject::List, format!("{reason} ({status})")),
    };
    PullFailure { message, about, http_status }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_list_is_read_for_at_most_60_seconds() {
        let read = AtomicU32::new(0);
        let page = |number: u32| {
            let read = &read;
            let page = async move {
                sleep(Duration::from_secs(7)).await;
                read.store(number, Ordering::Relaxed);
                let entries = vec![ListEntry { id: number.to_string(), name: None, kind: None }];
                Ok(ListPage { total: 100, entries })
            };
            page.boxed()
        };
        let begun = Instant::now();
        let failure = whole_list(ListReading::default(), page).await.unwrap_err();
        assert_eq!(begun.elapsed(), Duration::from_mins(1));
        assert_eq!(read.load(Ordering::Relaxed), 8);
        let expected = "the list was not read to its end within 60 s: 8 of 100 entries were read";
        assert_eq!(failure, PullFailure::of(FailureSubject::List, expected));
    }
}
