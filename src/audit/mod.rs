//! Audits of the journal against the ledger: the proof that no row was skipped, the trace of one row, and the
//! evidence of a period. An audit
//! changes nothing and never calls the API.

mod key_search;
mod period;
mod print_lines;
mod row_trace;
mod row_verdict;
mod verify;

pub use key_search::{KeyRows, RecordKey, rows_of_key};
pub use period::{
    AskedPeriod, AuditError, AuditedBatch, AuditedDigests, AuditedRow, EntityAudit, Evidence, EvidenceSink,
    FirstOf, Judged, MadeWith, NamedRow, Names, NoEvidence, Outcome, PeriodAudit, Total, Totals,
    audit_period, summed,
};
pub use print_lines::print_lines;
pub use row_trace::{RowReport, of_row};
pub use row_verdict::Verdict as RowVerdict;
pub(crate) use verify::{Asked, Proof, prove_as};
pub use verify::{EntityProof, Finding, FindingGroup, JournalProof, Rewound, Verification, verify};
