//! What checks expect of a connection: limits for its statements, and transactions that stay together.

use std::time::Duration;

use crate::database::Limits;

/// The limits of each statement.
pub(super) const LIMITS: Limits = Limits { lock: Duration::from_secs(1), statement: Duration::from_secs(10) };

/// Returns whether a pooler in statement mode has refused to begin a transaction.
pub(super) fn refuses_transactions(message: &str) -> bool {
    message.contains("statement pooling mode")
}

/// Returns whether each transaction had one server process, by those of its first and its second statement.
pub(super) fn stay_together(processes: &[(i32, i32)]) -> bool {
    processes.iter().all(|(first, second)| first == second)
}
