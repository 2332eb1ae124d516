//! Posts a message, and calls the heartbeat. No message about a failure has the URL.

use std::time::Duration;

use reqwest::header::{CONTENT_TYPE, HeaderName};
use reqwest::{Client, Request};

use super::signature::signatures;
use crate::config::{SecretUrl, Webhook};
use crate::elven::{client_builder, retry_after};
use crate::journal::ClaimedMessage;
use crate::text::chain;
use crate::wall_clock;

/// The time limit of a request.
pub(super) const REQUEST_MAX: Duration = Duration::from_secs(10);

const ID_HEADER: HeaderName = HeaderName::from_static("webhook-id");
const TIMESTAMP_HEADER: HeaderName = HeaderName::from_static("webhook-timestamp");
const SIGNATURE_HEADER: HeaderName = HeaderName::from_static("webhook-signature");

/// What became of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Posted {
    Delivered,
    /// This content is refused. Another message may be delivered.
    Refused(String),
    /// Nothing can be delivered now. It is not known whether a message without an answer was.
    Failed {
        problem: String,
        retry_after: Option<Duration>,
    },
}

impl Posted {
    fn failed(problem: impl Into<String>) -> Self {
        Self::Failed { problem: problem.into(), retry_after: None }
    }
}

/// Posts a message.
pub(super) async fn post(webhook: &Webhook, message: &ClaimedMessage) -> Posted {
    let Webhook { url, secrets } = webhook;
    let ClaimedMessage { message_id, json, claimed_at_s, .. } = message;
    let request = |client: &Client| {
        let mut request = client
            .post(url.expose().clone())
            .header(CONTENT_TYPE, "application/json")
            .header(ID_HEADER, message_id)
            .header(TIMESTAMP_HEADER, *claimed_at_s);
        if !secrets.is_empty() {
            request = request.header(SIGNATURE_HEADER, signatures(secrets, message_id, *claimed_at_s, json));
        }
        request.body(json.clone()).build()
    };
    answer(url, request).await
}

/// Calls the heartbeat. Returns why it failed.
pub(super) async fn call(url: &SecretUrl) -> Result<(), String> {
    match answer(url, |client| client.get(url.expose().clone()).build()).await {
        Posted::Delivered => Ok(()),
        Posted::Refused(problem) | Posted::Failed { problem, .. } => Err(problem),
    }
}

/// Sends a request, and says what its answer means. The body of the answer is not read.
async fn answer(url: &SecretUrl, request: impl FnOnce(&Client) -> reqwest::Result<Request>) -> Posted {
    let sent = async {
        let client = client_builder(url.expose(), REQUEST_MAX).build()?;
        let request = request(&client)?;
        client.execute(request).await
    };
    match sent.await {
        Ok(response) => {
            let wait = retry_after(&response, wall_clock::now());
            of_status(response.status().as_u16(), wait)
        }
        Err(problem) if problem.is_timeout() => Posted::failed(format!("no answer within {REQUEST_MAX:?}")),
        Err(problem) => Posted::failed(chain(&problem.without_url())),
    }
}

fn of_status(status: u16, retry_after: Option<Duration>) -> Posted {
    let status_text = format!("HTTP {status}");
    match status {
        200..=299 => Posted::Delivered,
        300..=399 => Posted::failed(format!("{status_text}, a redirect, which is not followed")),
        400 | 413 | 422 => Posted::Refused(status_text),
        404 | 410 => Posted::failed(format!("{status_text}, so the URL is not in use any more")),
        _ => Posted::Failed { problem: status_text, retry_after },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_says_whether_other_messages_can_be_delivered() {
        let wait = Some(Duration::from_secs(7));
        for status in [200, 202, 204] {
            assert_eq!(of_status(status, wait), Posted::Delivered);
        }
        for status in [400, 413, 422] {
            assert_eq!(of_status(status, None), Posted::Refused(format!("HTTP {status}")));
        }
        for status in [301, 401, 403, 404, 410, 500, 502] {
            assert!(matches!(of_status(status, None), Posted::Failed { retry_after: None, .. }), "{status}");
        }
        for status in [429, 503] {
            let expected = Posted::Failed { problem: format!("HTTP {status}"), retry_after: wait };
            assert_eq!(of_status(status, wait), expected);
        }
    }
}
