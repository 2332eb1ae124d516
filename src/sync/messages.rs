//! Messages for the operator about an answer of the API: the kind of problem, the status of the batch, and the text.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::Value;

use crate::batch::Batch;
use crate::elven::{List, ResponseClass};
use crate::journal::{Blocker, Kind, Problem, WorkKind};
use crate::text::{quoted_argument, quoted_option};
use crate::watermark::LedgerId;

/// What is recorded about an answer.
#[derive(Clone, Debug)]
pub(super) struct OutcomeMessage {
    /// The kind of problem.
    pub kind: Kind,
    /// `sync_batches.status`.
    pub status: &'static str,
    /// What happened, and what to do.
    pub message: String,
    /// The API's own code.
    code: Option<String>,
    /// The message for a record that was sent alone.
    of_row: String,
}

/// A smaller difference of the clocks is not named, in seconds.
const SKEW_SHOWN_MIN_S: i64 = 2;

/// The message for a batch that was announced and not sent because its lane had to stop.
pub(super) const NOT_SENT: &str = "not sent, because the entity stopped first; the next run sends it";

/// The message for a batch that was split before it was sent.
pub(super) const SPLIT_BY_NAME: &str =
    "not sent as a whole, because the API does not know a name of some of its rows";

/// The message for a request whose answer was not awaited, because the grace period was over.
pub(super) fn cut_off() -> OutcomeMessage {
    let message =
        "the process stopped before the answer ([sync] shutdown_grace); the next run sends the batch again";
    OutcomeMessage {
        kind: Kind::Unavailable,
        status: "unknown",
        message: message.to_owned(),
        code: None,
        of_row: String::new(),
    }
}

/// The message for a lane whose rows other sessions have locked; they may be unknown.
pub(super) fn locked(entity_id: &str, blockers: &[Blocker]) -> String {
    let who = match blockers {
        [] => String::new(),
        [one] => format!(" ({})", one.identity()),
        [first, others @ ..] => format!(" ({}) and {} more", first.identity(), others.len()),
    };
    let ending = blockers.first().and_then(Blocker::ending).unwrap_or_else(|| {
        "select pid, usename, application_name, xact_start from pg_stat_activity order by xact_start"
            .to_owned()
    });
    format!(
        "rows of entity `{entity_id}` in the schema elven_sync are locked by another session{who}, so nothing can be \
         recorded for the entity; hint: {ending}"
    )
}

/// The message for a pass or a backfill with a gap between two batches.
pub(super) fn gap(work: WorkKind, batch_id: i64, entity_id: &str) -> String {
    let (of, remedy) = match work.backfill_id() {
        None => (
            format!("pass {}", work.pass_id().unwrap_or_default()),
            format!("`elven-sync entity rewind {}` uploads everything again", quoted_argument(entity_id)),
        ),
        Some(backfill_id) => (
            format!("backfill {backfill_id}"),
            format!("`elven-sync backfill cancel {backfill_id}`, and ask for the range again"),
        ),
    };
    format!(
        "{of} has no batch for the rows right before batch {batch_id}, so they may never have been sent; was \
         elven_sync.sync_batches changed by hand, or restored? hint: {remedy}"
    )
}

/// The message for a batch without an answer that cannot be sent again.
pub(super) fn followed(batch_id: i64, entity_id: &str) -> String {
    format!(
        "no answer to batch {batch_id} is recorded, and a row with the same account, currency and second as one of its \
         rows was sent after it, so the batch is not sent again; hint: `elven-sync entity rewind {}` uploads \
         everything again, in order",
        quoted_argument(entity_id)
    )
}

/// Returns the message for an answer to a batch that was sent with a credential.
pub(super) fn of(
    verdict: &ResponseClass,
    http_status: Option<i32>,
    batch: &Batch,
    credential: &str,
) -> OutcomeMessage {
    let status = http_status.map_or_else(|| "no answer".to_owned(), |s| format!("HTTP {s}"));
    let (records, bytes) = (batch.records.len(), batch.body.len());
    let words =
        |kind, status, message| OutcomeMessage { kind, status, message, code: None, of_row: String::new() };
    match verdict {
        ResponseClass::Accepted => words(Kind::Config, "accepted", String::new()),
        ResponseClass::Refused(reason) => OutcomeMessage {
            code: reason.code.clone(),
            of_row: format!("the API refused it ({status}): {reason}"),
            ..words(
                Kind::RejectedBatch,
                "rejected",
                format!("the API refused a batch of {records} records ({status}): {reason}"),
            )
        },
        ResponseClass::TooLarge => OutcomeMessage {
            of_row: format!("its body of {bytes} bytes is too large for the API ({status})"),
            ..words(
                Kind::RejectedBatch,
                "rejected",
                format!("a body of {bytes} bytes is too large for the API ({status})"),
            )
        },
        ResponseClass::Unauthorized(reason, ahead) => {
            // A `Date` has whole seconds.
            let is_skew = |ahead: &TimeDelta| ahead.num_seconds().abs() >= SKEW_SHOWN_MIN_S;
            let clock = ahead.filter(is_skew).map_or_else(String::new, |ahead| {
                format!("; the API's clock is {} s ahead of the signature", ahead.num_seconds())
            });
            OutcomeMessage {
                code: reason.code.clone(),
                ..words(
                    Kind::Auth,
                    "rejected",
                    format!(
                        "the API refused credential `{credential}` ({status}): {reason}{clock}; hint: check the key, \
                         the secret, its permission for balances, and this machine's clock"
                    ),
                )
            }
        }
        ResponseClass::UnexpectedApi => words(Kind::Config, "rejected", other_api(&status)),
        ResponseClass::Intercepted => words(Kind::Config, "rejected", intercepted(&status)),
        ResponseClass::Throttled(wait) => words(
            Kind::Throttled,
            "rejected",
            wait.map_or_else(
                || format!("{}; the next run sends the batch again", rate_limited(&status)),
                |pause| format!("{}; {}", rate_limited(&status), not_before(pause)),
            ),
        ),
        ResponseClass::NotSent(reason) => {
            words(Kind::Unavailable, "rejected", not_delivered(reason, http_status))
        }
        ResponseClass::Unknown(reason) => OutcomeMessage {
            of_row: format!(
                "the outcome is unknown after three runs that sent the record alone ({status}: {reason})"
            ),
            ..words(
                Kind::Unavailable,
                "unknown",
                format!(
                    "the outcome of a batch of {records} records is unknown ({status}): {reason}; the same bytes are \
                     sent again"
                ),
            )
        },
    }
}

/// The message for a refusal that counts as acceptance.
pub(super) fn counts_as_imported(refusal: &str) -> String {
    format!("{refusal}; it counts as accepted ([api] already_imported_codes)")
}

/// The end of the message for a refusal after an attempt whose answer was lost.
pub(super) fn perhaps_imported(code: &str) -> String {
    format!(
        "; the answer to an earlier attempt was lost, so Elven may have the records already: if code {code} says so, \
         set [api] already_imported_codes = [{}]",
        Value::from(code)
    )
}

/// The message for an answer that the documented API does not give.
pub(super) fn other_api(status: &str) -> String {
    format!("this is not the documented API ({status}); hint: check ELVEN_API_URL")
}

/// The message for a page that a proxy or a firewall wrote.
pub(super) fn intercepted(status: &str) -> String {
    format!(
        "a proxy or firewall answered with a page of its own instead of the API ({status}); hint: check ELVEN_API_URL, \
         HTTPS_PROXY, and the log of the firewall"
    )
}

/// The message for a batch that did not reach the API, or that the API did not process.
fn not_delivered(reason: &str, http_status: Option<i32>) -> String {
    match http_status {
        Some(status) => {
            format!(
                "the API did not process the batch (HTTP {status}): {reason}; the next run sends it again"
            )
        }
        None => unreachable(reason),
    }
}

/// The message for an API that cannot be reached.
pub(super) fn unreachable(reason: &str) -> String {
    format!("the API could not be reached: {reason}; hint: check ELVEN_API_URL and the network")
}

/// The begin of the messages for a request that the API asked to send later.
pub(super) const RATE_LIMITED: &str = "rate limited by the API";

/// The message for a request that the API asked to send later. `status`: `HTTP 429`.
pub(super) fn rate_limited(status: &str) -> String {
    format!("{RATE_LIMITED} ({status})")
}

/// The message for a pause that the API asked for. It is stored, so it names the end and not the length.
pub(super) fn come_later(pause: Duration) -> String {
    format!("{RATE_LIMITED}; {}", not_before(pause))
}

/// The end of a pause, in words.
pub(super) fn not_before(pause: Duration) -> String {
    let pause = TimeDelta::from_std(pause).unwrap_or(TimeDelta::MAX);
    let end = Utc::now().checked_add_signed(pause).unwrap_or(DateTime::<Utc>::MAX_UTC);
    format!("not before {}", end.format("%Y-%m-%d %H:%M:%SZ"))
}

/// The message for a fenced lane: a request whose answer was lost may still arrive within this time.
pub(super) fn fenced(left: Duration) -> String {
    format!(
        "the answer to a request was lost, and the network may still deliver that request; nothing else is sent for \
         {} s (sync_state.fence_until); hint: elven-sync run, after that",
        seconds_up(left)
    )
}

/// The message for a fenced row of `errors retry`.
pub(super) fn fenced_retry(left: Duration) -> String {
    format!(
        "the answer to an earlier request was lost, and the network may still deliver that request \
         (sync_state.fence_until); hint: elven-sync errors retry, after {} s",
        seconds_up(left)
    )
}

/// The message for the error of a row that will be superseded when a pending row is uploaded.
pub(super) fn superseded_later(newer: &LedgerId) -> String {
    format!(
        "row {newer} of the same account, currency and second is newer and still pending, so this row is not sent; \
         hint: elven-sync run, then elven-sync errors retry"
    )
}

/// A duration in whole seconds, rounded up.
fn seconds_up(left: Duration) -> u64 {
    left.as_secs() + u64::from(left.subsec_nanos() > 0)
}

/// The problem of a batch with an unknown outcome under `on_ambiguous = "hold"`: it waits for a decision of the
/// operator.
pub(super) fn held(batch_id: i64, entity_id: &str) -> Problem {
    let message = format!(
        "the outcome of batch {batch_id} is unknown, and [sync] on_ambiguous = \"hold\"; hint: look it up at Elven \
         (select * from elven_sync.batch_row_ids({batch_id})), then send it again with \
         ELVEN_SYNC_SYNC__ON_AMBIGUOUS=resend elven-sync run {}",
        quoted_option("--entity", entity_id)
    );
    Problem { batch_id: Some(batch_id), ..Problem::of_lane(Kind::Unavailable, message) }
}

impl OutcomeMessage {
    /// Returns the problem that stops a lane.
    pub(super) fn into_problem(self, batch_id: i64, http_status: Option<i32>) -> Problem {
        Problem {
            batch_id: Some(batch_id),
            http_status,
            api_code: self.code,
            ..Problem::of_lane(self.kind, self.message)
        }
    }

    /// Returns the problem of a single row.
    pub(super) fn of_row(
        &self,
        batch_id: i64,
        http_status: Option<i32>,
        batch: &Batch,
        row: usize,
    ) -> Problem {
        Problem {
            batch_id: Some(batch_id),
            ledger_id: batch.rows.get(row).map(|row| row.id.to_string()),
            http_status,
            api_code: self.code.clone(),
            record: Some(batch.record(row)),
            ..Problem::of_lane(
                Kind::RejectedRow,
                format!(
                    "{}; hint: correct the row in the ledger, and the next run uploads it; after a correction \
                     elsewhere, `elven-sync errors retry`",
                    self.of_row
                ),
            )
        }
    }

    /// Returns what the API said about a record, and its code.
    pub(super) fn said(&self) -> (String, Option<String>) {
        (self.of_row.clone(), self.code.clone())
    }

    /// Returns the message for a refused batch of which the API knows no name. `names`: the commonest of its names;
    /// `more`: the number of the others.
    pub(super) fn strange(self, list: List, names: &str, more: usize, credential: &str) -> Self {
        let more = if more == 0 { String::new() } else { format!(" and {more} more") };
        let (many, hint) = match list {
            List::Accounts => ("accounts", "elven-sync reference accounts --unknown"),
            List::Currencies => ("currencies", "elven-sync reference currencies --unknown"),
        };
        Self {
            kind: Kind::Config,
            message: format!(
                "{}; Elven lists none of its {many}: {names}{more}; no row is set aside, because no record of the \
                 entity was ever accepted; is credential `{credential}` the key of another entity? hint: {hint}",
                self.message
            ),
            ..self
        }
    }

    /// Adds that no more rows are set aside, because `open` rows of the entity are.
    pub(super) fn too_many(self, open: usize) -> Self {
        Self {
            kind: Kind::RejectedBatch,
            message: format!(
                "{}; no more rows are set aside, because the entity has {open} already ([sync] max_rejections); hint: \
                 elven-sync errors list",
                self.message
            ),
            ..self
        }
    }

    /// Adds that no row is set aside, because the key or the endpoint may be wrong. `instead`: what the probe returned.
    pub(super) fn unproven(self, instead: &str) -> Self {
        Self {
            kind: Kind::RejectedBatch,
            message: format!(
                "{}; the API key could not be verified (the probe returned {instead}), so no row is set aside; hint: \
                 check the key, its permissions and ELVEN_API_URL",
                self.message
            ),
            ..self
        }
    }
}
