//! Audits of the journal against the ledger: the proof that no row was skipped, and the trace of one row. An audit
//! changes nothing and never calls the API.

mod key_search;
mod row_trace;
mod verify;

pub use key_search::{KeyRows, RecordKey, rows_of_key};
pub use row_trace::{RowReport, Verdict as RowVerdict, of_row};
pub(crate) use verify::{Asked, Proof, prove_as};
pub use verify::{EntityProof, Finding, FindingGroup, Rewound, Verification, verify};
