//! The watermark: which transactions have been processed, and how far an open pass has come.
//!
//! A sequence or a timestamp cannot be a safe watermark, because transactions commit out of order: a row with a
//! lower value can become visible after a row with a higher value was read. A PostgreSQL snapshot is safe, because
//! it says of *every* transaction whether it had ended. (PostgreSQL manual, "Transaction ID and Snapshot
//! Information Functions".)

mod cursor;
mod segments;
mod snapshot;

pub use cursor::{At, Cursor, LedgerId, Order};
pub use segments::{RUNNING_MAX, Segment, around_running, segments, segments_between};
pub use snapshot::{NotASnapshot, Snapshot, Xid};
