//! Late delivery of a request.

use std::sync::Arc;
use std::time::Duration;

use axum::http::request::Parts;
use chrono::TimeDelta;

use super::super::fault::wait;
use super::super::shared::Shared;
use super::call::{Call, Content, begin_note, gatekeeper, judge, usual};

/// Checks an import after a delay, as if it were received then, keeps its records if it is accepted, and lists it as a
/// further request. Its answer is not sent. If the sandbox stops first, the import is lost.
pub(super) async fn deliver(
    shared: Arc<Shared>,
    asked: Arc<(Parts, Content)>,
    delay: Duration,
    fault: Option<String>,
) {
    tokio::select! {
        () = tokio::time::sleep(delay) => {}
        () = wait(&shared.stopping) => return,
    }
    let (head, content) = &*asked;
    let gatekeeper = gatekeeper(&shared, TimeDelta::zero());
    let judged = Call::of(head).and_then(|call| judge(&shared, &gatekeeper, call, head, content));
    let mut note = begin_note(&shared, &gatekeeper, head, content);
    note.fault = fault.map(|fault| format!("{fault}, delivered"));
    let (_, records) = usual(judged, head, shared.options.answers, &mut note);
    shared.note(note, &records);
}
