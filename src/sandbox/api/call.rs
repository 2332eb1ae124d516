//! One request: its call, its checks and its answer.

use super::super::shared::{Shared, lock};

use axum::{
    body::{Body, HttpBody as _},
    http::{
        HeaderMap, HeaderValue, Method, StatusCode,
        header::{ALLOW, CONTENT_TYPE},
        request::Parts,
    },
    response::{IntoResponse, Response},
};
use chrono::{TimeDelta, Utc};
use futures_util::StreamExt as _;
use sha2::{Digest as _, Sha256};

use super::super::{
    answers::Answers,
    auth::Gatekeeper,
    lists,
    refusal::{Code, Refusal, clip_path},
    store::Request,
    validate::{Known, Record, Version, count, validate},
};

/// The paths of the two versions of the import.
const IMPORT_PATH: &str = "/open/v3/account/treasuryBalance";
const IMPORT_PATH_V4: &str = "/open/v4/account/treasuryBalance";

const CURRENCIES_PATH: &str = "/open/v3/currency";

const ACCOUNTS_PATH: &str = "/open/v3/entityAccount";

const SOURCES_PATH: &str = "/open/v3/transaction/source";

/// The bytes beyond the limit that are read and discarded before a 413, so that a client that is still sending gets an
/// answer and not a connection reset. After these bytes the connection is closed.
const DISCARDED_BYTES_MAX: u64 = 64 << 20;

/// A call of the API.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Call {
    Import(Version),
    Currencies,
    Accounts,
    Sources,
    NewSource,
}

impl Call {
    pub(super) fn of(head: &Parts) -> Result<Self, Refusal> {
        let calls = Self::at(head.uri.path());
        if calls.is_empty() {
            return Err(Refusal::new(Code::PathUnknown, "the sandbox has no such path"));
        }
        let call = calls.iter().find(|(method, _)| *method == head.method);
        call.map(|(_, call)| *call).ok_or_else(|| {
            let allowed = allowed(calls);
            Refusal::new(Code::MethodWrong, format!("only {allowed} is possible here"))
        })
    }

    /// Returns the calls at a path, each with its method.
    fn at(path: &str) -> &'static [(Method, Self)] {
        match path {
            IMPORT_PATH => &[(Method::POST, Self::Import(Version::V3))],
            IMPORT_PATH_V4 => &[(Method::POST, Self::Import(Version::V4))],
            CURRENCIES_PATH => &[(Method::GET, Self::Currencies)],
            ACCOUNTS_PATH => &[(Method::GET, Self::Accounts)],
            SOURCES_PATH => &[(Method::GET, Self::Sources), (Method::POST, Self::NewSource)],
            _ => &[],
        }
    }

    /// Whether the call imports records.
    pub(super) fn is_import(self) -> bool {
        matches!(self, Self::Import(_))
    }
}

/// Returns the methods of calls, as in the header `Allow`.
fn allowed(calls: &[(Method, Call)]) -> String {
    calls.iter().map(|(method, _)| method.as_str()).collect::<Vec<_>>().join(", ")
}

/// The result of an accepted request.
pub(super) enum Outcome<'b> {
    /// The records of an import, which are kept.
    Records(Vec<Record<'b>>),
    /// The number of records of an import, which a lax sandbox does not keep.
    Counted(usize),
    /// A list, or an id, as JSON.
    Read(String),
}

impl<'b> Outcome<'b> {
    /// The records that are kept.
    pub(super) fn records(&self) -> &[Record<'b>] {
        if let Self::Records(records) = self { records } else { &[] }
    }
}

/// Makes the answer without faults and the records to keep, and notes both.
pub(super) fn usual<'b>(
    judged: Result<Outcome<'b>, Refusal>,
    head: &Parts,
    answers: Answers,
    note: &mut Request,
) -> (Response, Vec<Record<'b>>) {
    let mut records = Vec::new();
    let response = match judged {
        Ok(Outcome::Records(accepted)) => {
            note.records = accepted.len() as u64;
            records = accepted;
            json(StatusCode::OK, answers.success().to_owned())
        }
        Ok(Outcome::Counted(count)) => {
            note.records = count as u64;
            json(StatusCode::OK, answers.success().to_owned())
        }
        Ok(Outcome::Read(list)) => json(StatusCode::OK, answers.list(list)),
        Err(refusal) => {
            note.refused = true;
            note.message = Some(refusal.to_string());
            refused(&refusal, head)
        }
    };
    note.status = Some(response.status().as_u16());
    (response, records)
}

/// Checks signature and content, in this order, after path and method. The order and the codes of the real API are not
/// documented.
pub(super) fn judge<'b>(
    shared: &Shared,
    gatekeeper: &Gatekeeper<'_>,
    call: Call,
    head: &Parts,
    content: &'b Content,
) -> Result<Outcome<'b>, Refusal> {
    gatekeeper.admit(&head.headers, head.method.as_str(), target(head))?;
    match call {
        Call::Import(version) => import(shared, &head.headers, version, content),
        Call::Currencies => lists::currency_list(shared, &head.uri).map(Outcome::Read),
        Call::Accounts => lists::account_list(shared, &head.uri).map(Outcome::Read),
        Call::Sources => lock(&shared.sources).get(&head.uri).map(Outcome::Read),
        Call::NewSource => {
            let body = json_body(&head.headers, content)?;
            lock(&shared.sources).post(body).map(Outcome::Read)
        }
    }
}

/// Returns the body of a request whose content type is JSON.
fn json_body<'b>(headers: &HeaderMap, content: &'b Content) -> Result<&'b [u8], Refusal> {
    if !is_json(headers) {
        return Err(Refusal::new(Code::ContentTypeWrong, "content-type must be application/json"));
    }
    content.body.as_deref().map_err(Refusal::clone)
}

fn import<'b>(
    shared: &Shared,
    headers: &HeaderMap,
    version: Version,
    content: &'b Content,
) -> Result<Outcome<'b>, Refusal> {
    let body = json_body(headers, content)?;
    if shared.options.lax {
        return count(body).map(Outcome::Counted);
    }
    let options = &shared.options;
    let is_source = |id: &str| lock(&shared.sources).has_balances(id);
    let known =
        Known { accounts: options.accounts.as_ref(), currencies: &options.currencies, is_source: &is_source };
    validate(body, version, &known).map(Outcome::Records)
}

/// Returns whether the content type is JSON. Parameters such as a charset may follow the type.
fn is_json(headers: &HeaderMap) -> bool {
    let value = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let media_type = value.split(';').next().unwrap_or_default();
    media_type.trim().eq_ignore_ascii_case("application/json")
}

pub(super) fn gatekeeper(shared: &Shared, clock_ahead: TimeDelta) -> Gatekeeper<'_> {
    Gatekeeper {
        credentials: &shared.options.credentials,
        now_ms: shared.now(clock_ahead).timestamp_millis(),
        window: shared.options.signature_window,
    }
}

/// The path and query string exactly as received, which the signature covers.
pub(super) fn target(head: &Parts) -> &str {
    head.uri.path_and_query().map_or("/", |target| target.as_str())
}

/// Begins the entry of a request in the list, before its checks.
pub(super) fn begin_note(
    shared: &Shared,
    gatekeeper: &Gatekeeper<'_>,
    head: &Parts,
    content: &Content,
) -> Request {
    let digest = |body: &Vec<u8>| hex::encode(Sha256::digest(body));
    Request {
        at: Utc::now(),
        method: head.method.to_string(),
        path: clip_path(target(head)),
        credential: gatekeeper.named(&head.headers).map(|known| known.label.clone()),
        body_bytes: content.bytes,
        body_sha256: if shared.options.lax {
            String::new()
        } else {
            content.body.as_ref().map(digest).unwrap_or_default()
        },
        ..Request::default()
    }
}

/// The body of a request, read to its end or to its limit.
pub(super) struct Content {
    /// The number of bytes received, kept or not.
    pub(super) bytes: u64,
    /// The bytes, or why they were not kept.
    body: Result<Vec<u8>, Refusal>,
}

impl Content {
    pub(super) async fn read(body: Body, bytes_max: usize) -> Self {
        let declared = usize::try_from(body.size_hint().lower()).unwrap_or(bytes_max);
        let mut kept = Vec::with_capacity(declared.min(bytes_max));
        let mut bytes = 0_u64;
        let mut chunks = body.into_data_stream();
        while let Some(chunk) = chunks.next().await {
            let Ok(chunk) = chunk else {
                let refusal = Refusal::new(Code::BodyIncomplete, "the body ended too early");
                return Self { bytes, body: Err(refusal) };
            };
            bytes += chunk.len() as u64;
            if bytes <= bytes_max as u64 {
                kept.extend_from_slice(&chunk);
            } else if bytes > DISCARDED_BYTES_MAX.saturating_add(bytes_max as u64) {
                break;
            }
        }
        if bytes <= bytes_max as u64 {
            return Self { bytes, body: Ok(kept) };
        }
        let message = format!("the body has {bytes} bytes, at most {bytes_max} are accepted");
        Self { bytes, body: Err(Refusal::new(Code::BodyTooLarge, message)) }
    }
}

pub(super) fn refused(refusal: &Refusal, head: &Parts) -> Response {
    let mut response = json(refusal.status(), refusal.body());
    if refusal.code == Code::MethodWrong
        && let Ok(allowed) = HeaderValue::from_str(&allowed(Call::at(head.uri.path())))
    {
        response.headers_mut().insert(ALLOW, allowed);
    }
    response
}

pub(super) fn json(status: StatusCode, text: String) -> Response {
    (status, [(CONTENT_TYPE, "application/json")], text).into_response()
}
