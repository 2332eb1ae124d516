//! What an operator is told about a verdict: the kind of problem, the status of the batch, and the words.

use std::time::Duration;

use crate::batch::Batch;
use crate::elven::ResponseClass;
use crate::journal::{Kind, Problem, WorkKind};
use crate::text::{quoted_argument, quoted_option};
use crate::watermark::LedgerId;

/// What is recorded about an answer.
#[derive(Clone, Debug)]
pub(super) struct OutcomeMessage {
    /// The kind of problem.
    pub kind: Kind,
    /// `sync_batches.status`.
    pub status: &'static str,
    /// What happened and what to do.
    pub message: String,
    /// The API's own code.
    code: Option<String>,
    /// What it says of each record, once that stands alone.
    of_row: String,
}

/// What is recorded of a batch that was ready to be sent when its lane had to stop.
pub(super) const NOT_SENT: &str = "it was not sent, since the lane stopped first; the next run sends it";

/// What is recorded when an answer was not waited for.
pub(super) fn cut_off() -> OutcomeMessage {
    let message =
        "the process had to stop before the answer came ([sync] shutdown_grace); the next run sends it again";
    OutcomeMessage {
        kind: Kind::Unavailable,
        status: "unknown",
        message: message.to_owned(),
        code: None,
        of_row: String::new(),
    }
}

/// Said of a pass or a backfill whose batches do not touch.
pub(super) fn gap(course: WorkKind, batch_id: i64, entity_id: &str) -> String {
    let (of, remedy) = match course {
        WorkKind::Pass(pass_id) => (
            format!("pass {pass_id}"),
            format!("`elven-sync entity rewind {}` uploads everything again", quoted_argument(entity_id)),
        ),
        WorkKind::Backfill(backfill_id) => (
            format!("backfill {backfill_id}"),
            format!("`elven-sync backfill cancel {backfill_id}`, and ask for the range again"),
        ),
    };
    format!(
        "{of} has no batch for what lies before batch {batch_id}, so its rows may never have been sent; was \
         elven_sync.sync_batches changed by hand, or restored? hint: {remedy}"
    )
}

/// Said of a batch without an answer that cannot be sent again any more.
pub(super) fn followed(batch_id: i64, entity_id: &str) -> String {
    format!(
        "no answer to batch {batch_id} is recorded, and another row of one of its accounts, currencies and seconds was \
         sent after it, so the batch is not sent again; hint: `elven-sync entity rewind {}` uploads everything \
         again, in order",
        quoted_argument(entity_id)
    )
}

/// The words for a verdict on a batch that was sent with a credential.
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
            let clock = ahead.map_or_else(String::new, |ahead| {
                format!("; the API's clock is {} s ahead of the signature", ahead.num_seconds())
            });
            OutcomeMessage {
                code: reason.code.clone(),
                ..words(
                    Kind::Auth,
                    "rejected",
                    format!(
                        "the API refused credential `{credential}` ({status}): {reason}{clock}; hint: check the key, the \
                         secret, its permission for balances, and this machine's clock"
                    ),
                )
            }
        }
        ResponseClass::UnexpectedApi => words(
            Kind::Config,
            "rejected",
            format!("this is not the documented API ({status}); hint: check ELVEN_API_URL"),
        ),
        ResponseClass::Intercepted => words(Kind::Config, "rejected", intercepted(&status)),
        ResponseClass::Throttled(wait) => words(
            Kind::Throttled,
            "rejected",
            wait.map_or_else(
                || format!("the API asks to come later ({status}); the next run tries again"),
                come_later,
            ),
        ),
        ResponseClass::NotSent(reason) => {
            words(Kind::Unavailable, "rejected", not_delivered(reason, http_status))
        }
        ResponseClass::Unknown(reason) => OutcomeMessage {
            of_row: format!(
                "whether it arrived is unknown: it was sent alone, and three runs ended so ({status}: {reason})"
            ),
            ..words(
                Kind::Unavailable,
                "unknown",
                format!(
                    "whether a batch of {records} records arrived is unknown ({status}): {reason}; it is sent again, the \
                     same bytes"
                ),
            )
        },
    }
}

/// Said of a page that a proxy or a firewall wrote.
fn intercepted(status: &str) -> String {
    format!(
        "a proxy or firewall answered with a page of its own instead of the API ({status}); hint: check ELVEN_API_URL, \
         HTTPS_PROXY, and what the firewall's log says of the request"
    )
}

/// Said of a batch that the API did not take.
fn not_delivered(reason: &str, http_status: Option<i32>) -> String {
    match http_status {
        Some(status) => {
            format!("the API did not take the batch (HTTP {status}): {reason}; the next run sends it again")
        }
        None => format!("the API could not be reached: {reason}; hint: check ELVEN_API_URL and the network"),
    }
}

/// The API named a time before which it is not to be called.
pub(super) fn come_later(pause: Duration) -> String {
    format!("the API asks to come later, in {} s; a run after that tries again", pause.as_secs().max(1))
}

/// A request whose answer was lost may arrive for so long.
pub(super) fn fenced(left: Duration) -> String {
    format!(
        "the answer to a request was lost, and the network may still deliver that request; nothing else is sent for \
         {} s (sync_state.fence_until); hint: the next run after that sends the rows that are left",
        seconds_up(left)
    )
}

/// The same of a row that is tried again.
pub(super) fn fenced_retry(left: Duration) -> String {
    format!(
        "the answer to an earlier request was lost, and the network may still deliver that request \
         (sync_state.fence_until); hint: elven-sync errors retry, in {} s",
        seconds_up(left)
    )
}

/// Said of the error of a row that is superseded once a pending row was uploaded.
pub(super) fn superseded_later(newer: &LedgerId) -> String {
    format!(
        "row {newer} of the same account, currency and second is newer and still pending, so this row is not sent; \
         hint: elven-sync run, then elven-sync errors retry"
    )
}

/// In whole seconds, the next one up.
fn seconds_up(left: Duration) -> u64 {
    left.as_secs() + u64::from(left.subsec_nanos() > 0)
}

/// A batch whose outcome is unknown is not sent again unless a person says so.
pub(super) fn held(batch_id: i64, entity_id: &str) -> Problem {
    let message = format!(
        "whether batch {batch_id} arrived is unknown, and [sync] on_ambiguous = \"hold\"; hint: look it up at Elven \
         (select * from elven_sync.batch_row_ids({batch_id})), then send it again by \
         ELVEN_SYNC_SYNC__ON_AMBIGUOUS=resend elven-sync run {}",
        quoted_option("--entity", entity_id)
    );
    Problem { batch_id: Some(batch_id), ..Problem::of_lane(Kind::Unavailable, message) }
}

impl OutcomeMessage {
    /// As the problem that stops a lane.
    pub(super) fn into_problem(self, batch_id: i64, http_status: Option<i32>) -> Problem {
        Problem {
            batch_id: Some(batch_id),
            http_status,
            api_code: self.code,
            ..Problem::of_lane(self.kind, self.message)
        }
    }

    /// As the problem that a row has by itself.
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
                    "{}; hint: correct the row in the ledger table, and the next run uploads it; after a correction \
                     elsewhere, `elven-sync errors retry`",
                    self.of_row
                ),
            )
        }
    }

    /// Nothing more is set aside.
    pub(super) fn too_many(self, open: usize) -> Self {
        Self {
            kind: Kind::RejectedBatch,
            message: format!(
                "{}; nothing more is set aside, since {open} rows of the entity are already ([sync] max_rejections); \
                 hint: see to those, `elven-sync errors list`",
                self.message
            ),
            ..self
        }
    }

    /// Nothing is set aside, because it may be the key or the API that is wrong.
    pub(super) fn unproven(self, instead: &str) -> Self {
        Self {
            kind: Kind::RejectedBatch,
            message: format!(
                "{}; nothing is set aside, since nothing shows that key and API are good (a call that only reads gave: \
                 {instead}); hint: check the key, its permissions and ELVEN_API_URL",
                self.message
            ),
            ..self
        }
    }
}
