//! What the log shows of a run: the spans of run, lane and batch, and the line of a request.
//!
//! A span puts its id on each line that is logged in it, so the events do not repeat the id. The spans have the level
//! ERROR, because a span is on the lines of its own level and of the levels that show more.

use tokio::time::Instant;

use tracing::Span;

use super::EntityReport;
use crate::elven::{Answer, Listing};
use crate::journal::{Counters, PrintLine, RunStatus};

/// The span of a run.
pub(crate) fn run_span(run_id: i64) -> Span {
    tracing::error_span!("run", run_id)
}

/// The span of a lane.
pub(crate) fn lane_span(entity_id: &str) -> Span {
    tracing::error_span!("lane", entity_id)
}

/// The span of a batch, or of a part of one.
pub(super) fn batch_span(batch_id: i64) -> Span {
    tracing::error_span!("batch", batch_id)
}

/// Logs that a run started.
pub(super) fn run_started(kind: &str, entities: usize) {
    tracing::info!(kind, entities, "run started");
}

/// Logs how a run finished.
pub(super) fn run_finished(
    status: RunStatus,
    counters: &Counters,
    since: Instant,
    print: Option<&PrintLine>,
) {
    tracing::info!(
        status = status.as_ref(),
        rows_read = counters.rows_read,
        rows_uploaded = counters.rows_uploaded,
        rows_set_aside = counters.rows_rejected,
        rows_superseded = counters.rows_superseded,
        requests = counters.requests,
        elapsed_ms = elapsed_ms(since),
        print_id = print.map(|print| print.print_id),
        root = print.map(|print| print.root.as_str()),
        "run finished"
    );
}

/// Logs the failures of lanes whose run ends without a summary.
pub(super) fn failures_without_summary(reports: &[EntityReport]) {
    for report in reports {
        failure(report);
    }
}

/// Logs why a lane failed, if it did.
pub(crate) fn failure(report: &EntityReport) {
    if let Some(failure) = report.failure_to_log() {
        lane_span(&report.entity_id).in_scope(|| tracing::warn!("{failure}"));
    }
}

/// Logs a request: status, duration, number of the attempt and size. `answer`: `None` if it was not awaited.
pub(super) fn request(answer: Option<&Answer>, begun: Instant, attempt: u32, body_bytes: usize) {
    let elapsed_ms = elapsed_ms(begun);
    match answer {
        Some(Answer::Response { status, .. }) => {
            tracing::debug!(http_status = status, elapsed_ms, attempt, body_bytes, "request answered");
        }
        Some(Answer::NotSent(reason)) => {
            tracing::debug!(elapsed_ms, attempt, body_bytes, reason, "request not sent");
        }
        Some(Answer::OpenedLate) => {
            tracing::debug!(elapsed_ms, attempt, body_bytes, "request not sent: the connection opened late");
        }
        Some(Answer::Lost(reason)) => {
            tracing::debug!(elapsed_ms, attempt, body_bytes, reason, "request without an answer");
        }
        None => tracing::debug!(elapsed_ms, attempt, body_bytes, "request not awaited: shutdown"),
    }
}

/// Logs a signed call that only reads.
pub(super) fn probe(answer: &Answer, begun: Instant) {
    let elapsed_ms = elapsed_ms(begun);
    match answer {
        Answer::Response { status, .. } => {
            tracing::debug!(http_status = status, elapsed_ms, "credential probe answered");
        }
        Answer::NotSent(_) | Answer::OpenedLate | Answer::Lost(_) => {
            tracing::debug!(elapsed_ms, "credential probe without an answer");
        }
    }
}

/// Logs a request for a page of a list.
pub(super) fn list_page(answer: &Answer, begun: Instant, list: Listing, page: u32) {
    let (list, elapsed_ms) = (list.many(), elapsed_ms(begun));
    match answer {
        Answer::Response { status, .. } => {
            tracing::debug!(list, page, http_status = status, elapsed_ms, "page of a list answered");
        }
        Answer::NotSent(_) | Answer::OpenedLate | Answer::Lost(_) => {
            tracing::debug!(list, page, elapsed_ms, "page of a list without an answer");
        }
    }
}

fn elapsed_ms(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}
