//! What follows from a verdict that is not "accepted": a pure function.
//!
//! Isolation, retries, waiting and the corrected clock have their place here: then a verdict and the
//! number of the attempt decide what is done next. Until they come, each of these stops the lane.

use crate::batch::Batch;
use crate::elven::Verdict;
use crate::journal::Kind;

/// The kind of problem that a verdict is, the status of its batch, and the words for an operator.
pub(super) fn consequence(
    verdict: &Verdict,
    http_status: Option<i32>,
    batch: &Batch,
    credential: &str,
) -> (Kind, &'static str, String) {
    let status = http_status.map_or_else(|| "no answer".to_owned(), |s| format!("HTTP {s}"));
    let (records, bytes) = (batch.records, batch.body.len());
    match verdict {
        // Nothing follows from it; the caller does not ask.
        Verdict::Accepted => (Kind::Config, "accepted", String::new()),
        Verdict::Refused(reason) => (
            Kind::RejectedBatch,
            "rejected",
            format!(
                "the API refused a batch of {records} records ({status}): {reason}; hint: nothing was skipped; \
                 correct the rows and run again"
            ),
        ),
        Verdict::TooLarge => (
            Kind::RejectedBatch,
            "rejected",
            format!(
                "a body of {bytes} bytes is too large for the API ({status}); hint: lower [sync] batch_rows"
            ),
        ),
        Verdict::Unauthorized(reason) => (
            Kind::Auth,
            "rejected",
            format!(
                "the API refused credential `{credential}` ({status}): {reason}; hint: check the key, the secret, \
                 its permission for balances, and this machine's clock"
            ),
        ),
        Verdict::Misdirected => (
            Kind::Config,
            "rejected",
            format!("this is not the documented API ({status}); hint: check ELVEN_API_URL"),
        ),
        Verdict::Throttled => (
            Kind::Throttled,
            "rejected",
            format!("the API asks to come later ({status}); the next run tries again"),
        ),
        Verdict::NotDelivered(reason) => (
            Kind::Unavailable,
            "rejected",
            format!("the API could not be reached: {reason}; hint: check ELVEN_API_URL and the network"),
        ),
        Verdict::Unknown(reason) => (
            Kind::Unavailable,
            "unknown",
            format!(
                "whether a batch of {records} records arrived is unknown ({status}): {reason}; the next run \
                     sends it again"
            ),
        ),
    }
}
