//! The API part: handles one request, from its body to its answer.

mod call;
mod late;

use std::sync::Arc;

use axum::{
    body::Body,
    extract::{ConnectInfo, Request as HttpRequest, State},
    http::{HeaderMap, HeaderValue, StatusCode, header::DATE, request::Parts},
    response::{IntoResponse, Response},
};
use chrono::{DateTime, Utc};

use self::call::{Call, Content, Outcome, begin_note, gatekeeper, json, judge, usual};
use super::shared::{Shared, lock};
use super::{
    connection::Switch,
    fault::{Fault, wait},
    fault_injector::{Asked, HTTP_DATE, InjectedFaults},
    refusal::{Code, Refusal},
    store::Request,
    validate::Record,
};

/// Answers all requests below `/open/`.
pub(super) async fn answer(
    State(shared): State<Arc<Shared>>,
    ConnectInfo(switch): ConnectInfo<Switch>,
    request: HttpRequest,
) -> Response {
    let (head, body) = request.into_parts();
    // The body is always read: a client whose connection is closed while it sends may never see the answer.
    let content = Content::read(body, shared.options.body_bytes_max).await;
    respond(&shared, &switch, &Arc::new((head, content))).await
}

/// Answers a path that neither the API nor the sandbox has.
pub(super) async fn unknown_path() -> Response {
    let refusal = Refusal::new(Code::PathUnknown, "the sandbox has no such path");
    json(refusal.status(), refusal.body())
}

/// Answers a wrong method on a path of the sandbox.
pub(super) async fn wrong_method() -> Response {
    let refusal = Refusal::new(Code::MethodWrong, "only GET is possible here");
    json(refusal.status(), refusal.body())
}

/// Checks a request, keeps its records if it is accepted, and answers it, with the faults that strike it.
async fn respond(shared: &Arc<Shared>, switch: &Switch, asked: &Arc<(Parts, Content)>) -> Response {
    let (head, content) = &**asked;
    let call = Call::of(head);
    let mut struck = if call.is_ok() { lock(&shared.standing).clock() } else { InjectedFaults::default() };
    let clock_ahead = struck.clock_ahead;
    let gatekeeper = gatekeeper(shared, clock_ahead);
    let judged = call.clone().and_then(|call| judge(shared, &gatekeeper, call, head, content));
    if let Ok(call) = call {
        let accepted = judged.as_ref().ok().map(Outcome::records);
        let import = call.is_import();
        let answers = shared.options.answers;
        let repeats = shared.repeats(accepted.unwrap_or_default());
        let asked = Asked { import, body_bytes: content.bytes, accepted, repeats, answers };
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

/// Applies a fault: keeps the records or not, and makes the answer.
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
            // An answer with 5xx says nothing about the request.
            let refused = response.status().as_u16() < 500;
            shared.note(Request { status, records: 0, message: None, refused, ..note }, &[]);
            response
        }
        Fault::FailAfterWrite { status } => {
            let response = prepared(status, String::new(), &[]);
            let status = Some(response.status().as_u16());
            shared.note(Request { status, refused: false, ..note }, records);
            response
        }
        // The task of the late delivery keeps the records of that import.
        Fault::CutBeforeWrite | Fault::DeliverLate(_) => {
            shared.note(Request { status: None, records: 0, message: None, refused: false, ..note }, &[]);
            switch.cut();
            usual
        }
        Fault::CutAfterWrite => {
            shared.note(Request { status: None, refused: false, ..note }, records);
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

/// Waits for `until`. If the sandbox stops first, the connection is cut.
async fn hold(shared: &Shared, switch: &Switch, until: impl Future<Output = ()>) {
    tokio::select! {
        () = until => {}
        () = wait(&shared.stopping) => switch.cut(),
    }
}

/// Makes the answer of a fault. A fault that is not a valid HTTP answer becomes status 500 with the reason.
fn prepared(status: u16, body: String, headers: &[(String, String)]) -> Response {
    let start = Response::builder().status(status);
    let with_headers = headers.iter().fold(start, |built, (name, value)| built.header(name, value));
    with_headers.body(Body::from(body)).unwrap_or_else(|error| {
        (StatusCode::INTERNAL_SERVER_ERROR, format!("the sandbox cannot send this answer: {error}"))
            .into_response()
    })
}

/// Sets the `Date` of an answer by the sandbox's clock. hyper would use the machine's clock, which may differ.
fn date(headers: &mut HeaderMap, now: DateTime<Utc>) {
    if headers.contains_key(DATE) {
        return;
    }
    if let Ok(now) = HeaderValue::from_str(&now.format(HTTP_DATE).to_string()) {
        headers.insert(DATE, now);
    }
}
