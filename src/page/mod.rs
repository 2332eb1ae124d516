//! The status page, as HTML and as JSON, of what `journal::status_page` has read. Pure.
//!
//! Templates are beside this file. They escape each value for HTML; [`words`] escapes what could reorder or hide text.

mod chart;
mod html;
mod verdict;
mod words;

use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use chrono::{DateTime, Utc};
use serde::Serialize;
use sha2::{Digest, Sha256};

pub use self::html::{entity, status, unavailable, unknown_entity};
use self::verdict::Verdict;
use crate::journal::status_page::StatusPage;
use crate::text::escaped_json;

/// The style of each page.
const STYLE: &str = include_str!("page.css");

/// The content security policy of each page: no script, no image, nothing from elsewhere, no form, no frame; and the
/// style of this program, identified by its digest.
pub static POLICY: LazyLock<String> = LazyLock::new(|| {
    let digest = STANDARD.encode(Sha256::digest(STYLE));
    format!(
        "default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
});

/// The same data as the status page.
#[derive(Serialize)]
struct Status<'p> {
    version: &'static str,
    verdict: Verdict,
    #[serde(flatten)]
    page: &'p StatusPage,
}

/// Returns the data of the status page as JSON.
///
/// # Errors
/// None in practice: the data can always be written.
pub fn status_json(page: &StatusPage) -> serde_json::Result<String> {
    let status = Status { version: env!("CARGO_PKG_VERSION"), verdict: Verdict::of(page), page };
    Ok(escaped_json(&serde_json::to_value(status)?))
}

/// Returns, as JSON, that the sync tables cannot be read. `last_read`: when they were read last.
pub fn unavailable_json(last_read: Option<DateTime<Utc>>) -> String {
    serde_json::json!({ "error": verdict::UNAVAILABLE, "last_read_at": last_read }).to_string()
}
