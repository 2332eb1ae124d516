//! The answers of the status page.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;

use super::answer::{PLAIN, text};
use super::pages::Reading;
use super::rules::{Refusal, refresh_s};
use super::shared::Shared;
use crate::page::{self, POLICY};

const HTML: &str = "text/html; charset=utf-8";
const JSON: &str = "application/json";

/// Answers with the status page.
pub(super) async fn status(shared: &Shared, query: Option<&str>) -> Response {
    let refresh_s = match refresh_s(query) {
        Ok(refresh_s) => refresh_s,
        Err(refusal) => return refused(refusal),
    };
    match shared.status_page().await {
        Reading::Page(page) => html(StatusCode::OK, page::status(&page, refresh_s)),
        Reading::Unregistered | Reading::Failed => unavailable(shared, refresh_s),
    }
}

/// Answers with the data of the status page.
pub(super) async fn json(shared: &Shared) -> Response {
    let (status, written) = match shared.status_page().await {
        Reading::Page(page) => (StatusCode::OK, page::status_json(&page)),
        Reading::Unregistered | Reading::Failed => {
            (StatusCode::SERVICE_UNAVAILABLE, Ok(page::unavailable_json(shared.observer.last_read())))
        }
    };
    match written {
        Ok(written) => guarded(text(status, JSON, written)),
        Err(problem) => text(StatusCode::INTERNAL_SERVER_ERROR, PLAIN, format!("{problem}\n")),
    }
}

/// Answers with the page of an entity.
pub(super) async fn entity(shared: &Shared, entity_id: &str, query: Option<&str>) -> Response {
    let refresh_s = match refresh_s(query) {
        Ok(refresh_s) => refresh_s,
        Err(refusal) => return refused(refusal),
    };
    match shared.entity_page(entity_id).await {
        Reading::Page(page) => html(StatusCode::OK, page::entity(&page, refresh_s)),
        Reading::Unregistered => html(StatusCode::NOT_FOUND, page::unknown_entity(entity_id)),
        Reading::Failed => unavailable(shared, refresh_s),
    }
}

/// The answer while the sync tables cannot be read.
fn unavailable(shared: &Shared, refresh_s: Option<u32>) -> Response {
    html(StatusCode::SERVICE_UNAVAILABLE, page::unavailable(shared.observer.last_read(), refresh_s))
}

fn refused(refusal: Refusal) -> Response {
    text(refusal.status(), PLAIN, format!("{}\n", refusal.text()))
}

fn html(status: StatusCode, rendered: askama::Result<String>) -> Response {
    match rendered {
        Ok(rendered) => guarded(text(status, HTML, rendered)),
        Err(problem) => text(StatusCode::INTERNAL_SERVER_ERROR, PLAIN, format!("{problem}\n")),
    }
}

/// Adds what keeps a browser from doing more than to show the answer.
fn guarded(mut response: Response) -> Response {
    let headers = response.headers_mut();
    if let Ok(policy) = HeaderValue::from_str(&POLICY) {
        headers.insert(header::CONTENT_SECURITY_POLICY, policy);
    }
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    response
}
