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
use chrono::{DateTime, TimeDelta, Utc};
use futures_util::StreamExt as _;
use sha2::{Digest as _, Sha256};

use super::{
    Shared,
    answers::Answers,
    auth::Gatekeeper,
    connection::Switch,
    fault::{Fault, wait},
    lists, lock,
    memory::Request,
    refusal::{Code, Refusal, clip_path},
    standing::{Asked, HTTP_DATE, Struck},
    validate::{Known, Record, count, validate},
};

mod late;

/// The import.
const IMPORT_PATH: &str = "/open/v3/account/treasuryBalance";
const CURRENCIES_PATH: &str = "/open/v3/currency";
const ACCOUNTS_PATH: &str = "/open/v3/entityAccount";

/// Bytes beyond the limit that are read and thrown away before a 413, so that a client which is still
/// sending meets an answer and not a reset. Past these the connection is closed on it.
const DISCARDED_BYTES_MAX: u64 = 64 << 20;

/// What can be asked of the API.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Call {
    Import,
    Currencies,
    Accounts,
}

impl Call {
    fn of(head: &Parts) -> Result<Self, Refusal> {
        let (call, allowed) = match head.uri.path() {
            IMPORT_PATH => (Self::Import, Method::POST),
            CURRENCIES_PATH => (Self::Currencies, Method::GET),
            ACCOUNTS_PATH => (Self::Accounts, Method::GET),
            _ => return Err(Refusal::new(Code::PathUnknown, "the sandbox has no such path")),
        };
        if head.method == allowed {
            return Ok(call);
        }
        Err(Refusal::new(Code::MethodWrong, format!("only {allowed} is possible here")))
    }
}

/// What an admitted request came to.
enum Outcome<'b> {
    /// An import; its records are to be kept.
    Records(Vec<Record<'b>>),
    /// An import that a lax sandbox only counts.
    Counted(usize),
    /// A list, as the JSON to answer with.
    List(String),
}

impl<'b> Outcome<'b> {
    /// The records, where they were looked at.
    fn records(&self) -> &[Record<'b>] {
        if let Self::Records(records) = self { records } else { &[] }
    }
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
    respond(&shared, &switch, &Arc::new((head, content))).await
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

/// Judges a request, keeps what is to be kept, and answers as usual or as the faults that are due demand.
async fn respond(shared: &Arc<Shared>, switch: &Switch, asked: &Arc<(Parts, Content)>) -> Response {
    let (head, content) = &**asked;
    let call = Call::of(head);
    let mut struck = if call.is_ok() { lock(&shared.standing).clock() } else { Struck::default() };
    let clock_ahead = struck.clock_ahead;
    let gatekeeper = gatekeeper(shared, clock_ahead);
    let judged = call.clone().and_then(|call| judge(shared, &gatekeeper, call, head, content));
    if let Ok(call) = call {
        let accepted = judged.as_ref().ok().map(Outcome::records);
        let import = call == Call::Import;
        let answers = shared.options.answers;
        let asked = Asked { import, body_bytes: content.bytes, accepted, answers };
        shared.strike(&mut struck, &asked);
    }

    let mut note = begin_note(shared, &gatekeeper, head, content);
    note.fault = (!struck.names.is_empty()).then(|| struck.names.join(", "));
    let (usual, records) = usual(judged, head, shared.options.answers, &mut note);
    let mut response = if let Some(Fault::DeliverLate(delay)) = struck.fault {
        tokio::spawn(late::deliver(shared.clone(), asked.clone(), delay, note.fault.clone()));
        carry_out(Fault::CutBeforeWrite, shared, switch, usual, note, &records).await
    } else if let Some(fault) = struck.fault {
        carry_out(fault, shared, switch, usual, note, &records).await
    } else {
        shared.note(note, &records);
        usual
    };
    if !struck.delay.is_zero() {
        hold(shared, switch, tokio::time::sleep(struck.delay)).await;
    }
    date(response.headers_mut(), shared.now(clock_ahead));
    response
}

/// The answer without a fault, and the records to keep; both noted.
fn usual<'b>(
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
        Ok(Outcome::List(list)) => json(StatusCode::OK, answers.list(list)),
        Err(refusal) => {
            note.message = Some(refusal.to_string());
            refused(&refusal, head)
        }
    };
    note.status = Some(response.status().as_u16());
    (response, records)
}

/// Keeps what the fault lets be kept, and answers as it demands.
async fn carry_out(
    fault: Fault,
    shared: &Shared,
    switch: &Switch,
    usual: Response,
    note: Request,
    records: &[Record<'_>],
) -> Response {
    match fault {
        Fault::Answer { status, body, headers } => {
            let response = prepared(status, body, &headers);
            let status = Some(response.status().as_u16());
            shared.note(Request { status, records: 0, message: None, ..note }, &[]);
            response
        }
        Fault::FailAfterWrite { status } => {
            let response = prepared(status, String::new(), &[]);
            shared.note(Request { status: Some(response.status().as_u16()), ..note }, records);
            response
        }
        // What is delivered late is taken care of by whoever does that.
        Fault::CutBeforeWrite | Fault::DeliverLate(_) => {
            shared.note(Request { status: None, records: 0, message: None, ..note }, &[]);
            switch.cut();
            usual
        }
        Fault::CutAfterWrite => {
            shared.note(Request { status: None, ..note }, records);
            switch.cut();
            usual
        }
        Fault::HoldResponse(gate) => {
            shared.note(note, records);
            hold(shared, switch, gate.hold()).await;
            usual
        }
    }
}

/// Waits for something, at the longest until the sandbox stops; then the connection is cut.
async fn hold(shared: &Shared, switch: &Switch, until: impl Future<Output = ()>) {
    tokio::select! {
        () = until => {}
        () = wait(&shared.stopping) => switch.cut(),
    }
}

/// Checks signature and content, in this order, after path and method. Order and codes of the real API are
/// not documented.
fn judge<'b>(
    shared: &Shared,
    gatekeeper: &Gatekeeper<'_>,
    call: Call,
    head: &Parts,
    content: &'b Content,
) -> Result<Outcome<'b>, Refusal> {
    gatekeeper.admit(&head.headers, head.method.as_str(), target(head))?;
    match call {
        Call::Import => import(shared, &head.headers, content),
        Call::Currencies => lists::currency_list(shared, &head.uri).map(Outcome::List),
        Call::Accounts => lists::account_list(shared, &head.uri).map(Outcome::List),
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
    let known = Known { accounts: options.accounts.as_ref(), currencies: &options.currencies };
    validate(body, &known).map(Outcome::Records)
}

/// Parameters such as a charset may follow the type.
fn is_json(headers: &HeaderMap) -> bool {
    let value = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let media_type = value.split(';').next().unwrap_or_default();
    media_type.trim().eq_ignore_ascii_case("application/json")
}

fn gatekeeper(shared: &Shared, clock_ahead: TimeDelta) -> Gatekeeper<'_> {
    Gatekeeper {
        credentials: &shared.options.credentials,
        now_ms: shared.now(clock_ahead).timestamp_millis(),
        window: shared.options.signature_window,
    }
}

/// Path and query string, exactly as received: what the signature covers.
fn target(head: &Parts) -> &str {
    head.uri.path_and_query().map_or("/", |target| target.as_str())
}

/// What is known of a request before it is judged.
fn begin_note(shared: &Shared, gatekeeper: &Gatekeeper<'_>, head: &Parts, content: &Content) -> Request {
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

/// Dates an answer by the sandbox's clock, which may differ from the machine's, which hyper goes by.
fn date(headers: &mut HeaderMap, now: DateTime<Utc>) {
    if headers.contains_key(DATE) {
        return;
    }
    if let Ok(now) = HeaderValue::from_str(&now.format(HTTP_DATE).to_string()) {
        headers.insert(DATE, now);
    }
}
