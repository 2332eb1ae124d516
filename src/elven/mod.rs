//! Elven's API: signs a request, sends it, classifies the answer.
//!
//! The caller decides what to do about a class of answer; sleeping and writing happen elsewhere.

mod body;
pub mod client;
mod connecting;
pub mod envelope;
mod http;
mod lists;
pub mod response;
pub mod signing;

pub use client::{Client, Signed, Transport, is_older_than};
pub use envelope::{Envelope, Reason};
pub use http::{RETRY_AFTER_MAX, client_builder, retry_after};
pub use lists::{List, ListEntry, ListPage, Listing, SOURCE_TYPE, SOURCES_PATH};
pub use response::{Answer, ResponseClass, classify};
