//! The API part: what happens to one request, from its body to its answer.

use std::sync::Arc;

use axum::{
    body::{Body, HttpBody as _},
    extract::{ConnectInfo, Request as HttpRequest, State},
    http::{
        HeaderMap, HeaderValue, Method, StatusCode,
        header::{ALLOW, CONTENT_TYPE, DATE},
        request::Parts,
    },
    response::{IntoResponse, Response},
};
use chrono::{TimeDelta, Utc};
use futures_util::StreamExt as _;
use sha2::{Digest as _, Sha256};

use super::{
    Shared,
    auth::Gatekeeper,
    connection::Switch,
    fault::{Fault, wait},
    lists,
    memory::Request,
    refusal::{Code, Refusal, clip_path},
    validate::{Record, Rules, count, validate},
};

/// The import.
const IMPORT_PATH: &str = "/open/v3/account/treasuryBalance";
const CURRENCIES_PATH: &str = "/open/v3/currency";
const ACCOUNTS_PATH: &str = "/open/v3/entityAccount";

/// Bytes beyond the limit that are read and thrown away before a 413, so that a client which is still
/// sending meets an answer and not a reset. Past these the connection is closed on it.
const DISCARDED_BYTES_MAX: u64 = 64 << 20;

/// The answer to an accepted import, as documented.
const SUCCESS: &str = r#"{"success":true}"#;

/// What an admitted request came to.
enum Outcome<'b> {
    /// An import; its records are to be kept.
    Records(Vec<Record<'b>>),
    /// An import that a lax sandbox only counts.
    Counted(usize),
    /// A list, as the JSON to answer with.
    List(String),
}

/// Answers everything below `/open/`.
pub(super) async fn answer(
    State(shared): State<Arc<Shared>>,
    ConnectInfo(switch): ConnectInfo<Switch>,
    request: HttpRequest,
) -> Response {
    let (head, body) = request.into_parts();
    // Read whatever the answer will be: a client that is cut off while it sends may never see one.
    let content = Content::read(body, shared.options.body_bytes_max).await;
    let mut response = respond(&shared, &switch, &head, &content).await;
    date(response.headers_mut(), shared.options.clock_ahead);
    response
}

/// Answers a path that is neither the API's nor the sandbox's own.
pub(super) async fn unknown_path() -> Response {
    let refusal = Refusal::new(Code::PathUnknown, "the sandbox has no such path");
    json(refusal.status(), refusal.body())
}

/// Answers a wrong method on one of the sandbox's own paths.
pub(super) async fn wrong_method() -> Response {
    let refusal = Refusal::new(Code::MethodWrong, "only GET is possible here");
    json(refusal.status(), refusal.body())
}

/// Judges a request, keeps what is to be kept, and answers as usual or as the fault that is due demands.
async fn respond(shared: &Shared, switch: &Switch, head: &Parts, content: &Content) -> Response {
    let judged = judge(shared, head, content);
    let import = head.method == Method::POST && head.uri.path() == IMPORT_PATH;
    let fault = if import { shared.next_fault(judged.is_ok()) } else { None };

    let mut note = begin_note(shared, head, content);
    let mut records = Vec::new();
    let usual = match judged {
        Ok(Outcome::Records(accepted)) => {
            note.records = accepted.len() as u64;
            records = accepted;
            json(StatusCode::OK, SUCCESS.to_owned())
        }
        Ok(Outcome::Counted(count)) => {
            note.records = count as u64;
            json(StatusCode::OK, SUCCESS.to_owned())
        }
        Ok(Outcome::List(list)) => json(StatusCode::OK, list),
        Err(refusal) => {
            note.message = Some(refusal.to_string());
            refused(&refusal, head)
        }
    };
    note.status = Some(usual.status().as_u16());
    note.fault = fault.as_ref().map(Fault::name);

    match fault {
        None => {
            shared.note(note, &records);
            usual
        }
        Some(Fault::Answer { status, body, headers }) => {
            let response = prepared(status, body, &headers);
            let status = Some(response.status().as_u16());
            shared.note(Request { status, records: 0, message: None, ..note }, &[]);
            response
        }
        Some(Fault::FailAfterWrite { status }) => {
            let response = prepared(status, String::new(), &[]);
            shared.note(Request { status: Some(response.status().as_u16()), ..note }, &records);
            response
        }
        Some(Fault::CutAfterWrite) => {
            shared.note(Request { status: None, ..note }, &records);
            switch.cut();
            usual
        }
        Some(Fault::HoldResponse(gate)) => {
            shared.note(note, &records);
            tokio::select! {
                () = gate.hold() => {}
                () = wait(&shared.stopping) => switch.cut(),
            }
            usual
        }
    }
}

/// Checks a request in the order path, method, signature, content. Order and codes of the real API are
/// not documented.
fn judge<'b>(shared: &Shared, head: &Parts, content: &'b Content) -> Result<Outcome<'b>, Refusal> {
    let path = head.uri.path();
    let allowed = match path {
        IMPORT_PATH => Method::POST,
        CURRENCIES_PATH | ACCOUNTS_PATH => Method::GET,
        _ => return Err(Refusal::new(Code::PathUnknown, "the sandbox has no such path")),
    };
    if head.method != allowed {
        return Err(Refusal::new(Code::MethodWrong, format!("only {allowed} is possible here")));
    }
    gatekeeper(shared).admit(&head.headers, head.method.as_str(), target(head))?;
    match path {
        CURRENCIES_PATH => lists::currency_list(shared, &head.uri).map(Outcome::List),
        ACCOUNTS_PATH => lists::account_list(shared, &head.uri).map(Outcome::List),
        _ => import(shared, &head.headers, content),
    }
}

fn import<'b>(shared: &Shared, headers: &HeaderMap, content: &'b Content) -> Result<Outcome<'b>, Refusal> {
    if !is_json(headers) {
        return Err(Refusal::new(Code::ContentTypeWrong, "content-type has to be application/json"));
    }
    let body = content.body.as_ref().map_err(Refusal::clone)?;
    if shared.options.lax {
        return count(body).map(Outcome::Counted);
    }
    let options = &shared.options;
    let rules = Rules { accounts: options.accounts.as_ref(), currencies: &options.currencies };
    validate(body, &rules).map(Outcome::Records)
}

/// Parameters such as a charset may follow the type.
fn is_json(headers: &HeaderMap) -> bool {
    let value = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let media_type = value.split(';').next().unwrap_or_default();
    media_type.trim().eq_ignore_ascii_case("application/json")
}

fn gatekeeper(shared: &Shared) -> Gatekeeper<'_> {
    Gatekeeper {
        credentials: &shared.options.credentials,
        now_ms: (Utc::now() + shared.options.clock_ahead).timestamp_millis(),
        window: shared.options.signature_window,
    }
}

/// Path and query string, exactly as received: what the signature covers.
fn target(head: &Parts) -> &str {
    head.uri.path_and_query().map_or("/", |target| target.as_str())
}

/// What is known of a request before it is judged.
fn begin_note(shared: &Shared, head: &Parts, content: &Content) -> Request {
    let digest = |body: &Vec<u8>| hex::encode(Sha256::digest(body));
    Request {
        at: Utc::now(),
        method: head.method.to_string(),
        path: clip_path(target(head)),
        credential: gatekeeper(shared).named(&head.headers).map(|known| known.label.clone()),
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
struct Content {
    /// Bytes that arrived, kept or not.
    bytes: u64,
    /// All of them, or why they were not kept.
    body: Result<Vec<u8>, Refusal>,
}

impl Content {
    async fn read(body: Body, bytes_max: usize) -> Self {
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
        let message = format!("a body of {bytes} bytes, at most {bytes_max} are accepted");
        Self { bytes, body: Err(Refusal::new(Code::BodyTooLarge, message)) }
    }
}

fn refused(refusal: &Refusal, head: &Parts) -> Response {
    let mut response = json(refusal.status(), refusal.body());
    if refusal.code == Code::MethodWrong {
        let allowed = if head.uri.path() == IMPORT_PATH { "POST" } else { "GET" };
        response.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    }
    response
}

fn json(status: StatusCode, text: String) -> Response {
    (status, [(CONTENT_TYPE, "application/json")], text).into_response()
}

/// The answer of a fault. A fault that is no possible HTTP answer says so, with status 500.
fn prepared(status: u16, body: String, headers: &[(String, String)]) -> Response {
    let start = Response::builder().status(status);
    let with_headers = headers.iter().fold(start, |built, (name, value)| built.header(name, value));
    with_headers.body(Body::from(body)).unwrap_or_else(|error| {
        (StatusCode::INTERNAL_SERVER_ERROR, format!("the sandbox cannot answer so: {error}")).into_response()
    })
}

/// Dates an answer by the sandbox's clock where that differs from the machine's, which hyper goes by.
fn date(headers: &mut HeaderMap, clock_ahead: TimeDelta) {
    if clock_ahead.is_zero() || headers.contains_key(DATE) {
        return;
    }
    let now = (Utc::now() + clock_ahead).format("%a, %d %b %Y %H:%M:%S GMT").to_string();
    if let Ok(now) = HeaderValue::from_str(&now) {
        headers.insert(DATE, now);
    }
}
