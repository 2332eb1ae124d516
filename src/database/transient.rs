//! Transient errors, and time limits for answers.

use std::time::Duration;

use sqlx::error::DatabaseError;
use sqlx::postgres::{PgDatabaseError, PgSeverity};
use tokio::time::timeout;

/// SQLSTATEs after which a retry of the same transaction may succeed (manual, "`PostgreSQL` Error Codes"): shut down,
/// crashed and starting up, idle for too long (its worker was frozen), read-only during a failover, no connection
/// free, serialization failure and deadlock. In addition, all of class 08, connections.
const PASSING: [&str; 9] = ["57P01", "57P02", "57P03", "25P03", "25006", "53300", "40001", "40P01", "57P05"];

/// Tells transient errors, after which a retry may succeed, from others.
pub trait Transient {
    /// Returns whether a retry may succeed.
    fn is_transient(&self) -> bool;
}

impl Transient for sqlx::Error {
    fn is_transient(&self) -> bool {
        match self {
            sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut | sqlx::Error::WorkerCrashed => true,
            // The code is of class 08, but the mode of a pooler does not pass.
            sqlx::Error::Database(refused) if refused.message().contains("statement pooling mode") => false,
            sqlx::Error::Database(refused) => {
                refused.code().is_some_and(|code| code.starts_with("08") || PASSING.contains(&code.as_ref()))
                    || is_full(refused.as_ref())
            }
            _ => false,
        }
    }
}

/// Returns whether a pooler has no connection free. Poolers say so with the code of an internal error, in words such as
/// "max clients reached" or "no more connections allowed".
fn is_full(refused: &dyn DatabaseError) -> bool {
    let Some(refused) = refused.try_downcast_ref::<PgDatabaseError>() else { return false };
    let is_fatal = matches!(refused.severity(), PgSeverity::Fatal | PgSeverity::Panic);
    let message = refused.message().to_lowercase();
    let words = ["max client", "max_client", "maximum client", "too many c", "no more connection"];
    is_fatal
        && matches!(refused.code(), "XX000" | "58000")
        && words.iter().any(|words| message.contains(words))
}

/// Waits for an answer up to a limit: a network may lose a message without any sign.
pub(crate) async fn within<T, E: From<sqlx::Error>>(
    limit: Duration,
    answer: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    timeout(limit, answer).await.unwrap_or_else(|_| Err(no_answer(limit).into()))
}

pub(super) fn no_answer(limit: Duration) -> sqlx::Error {
    let problem = format!("the database gave no answer for {limit:?}");
    sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, problem))
}
