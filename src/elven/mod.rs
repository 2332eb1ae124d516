//! Elven: sign a request, send it, classify the answer.
//!
//! Deciding what to do about a verdict is the caller's; sleeping and writing happen elsewhere.

mod body;
pub mod client;
mod connecting;
pub mod envelope;
pub mod response;
pub mod signing;

pub use client::{Client, Signed, is_older_than};
pub use envelope::{Envelope, Reason};
pub use response::{Answer, ResponseClass, classify};
