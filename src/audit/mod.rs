//! What the journal and the ledger say together: the proof that nothing was skipped, and the trace of one row. Nothing here
//! changes anything or calls the API.

mod row_trace;
mod verify;

pub use row_trace::{RowReport, Verdict as RowVerdict, of_row};
pub(crate) use verify::{Asked, Proof, prove_as};
pub use verify::{EntityProof, Finding, verify};
