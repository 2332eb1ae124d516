//! Which statements of this process are under way, and for how long: what waits for the database is not stuck.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// The statements of a process that are under way, with their retries; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Statements(Arc<Mutex<UnderWay>>);

#[derive(Debug, Default)]
struct UnderWay {
    /// The number of the next one.
    next: u64,
    /// When each of them began, by number.
    begun: BTreeMap<u64, Instant>,
}

/// A statement that is under way until this is dropped.
#[derive(Debug)]
pub(crate) struct Statement {
    statements: Statements,
    number: u64,
}

impl Statements {
    fn lock(&self) -> MutexGuard<'_, UnderWay> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a statement begins.
    pub(crate) fn begin(&self) -> Statement {
        let mut under_way = self.lock();
        let number = under_way.next;
        under_way.next += 1;
        under_way.begun.insert(number, Instant::now());
        Statement { statements: self.clone(), number }
    }

    /// Returns for how long the oldest statement is under way. `None`: none is.
    pub fn longest(&self) -> Option<Duration> {
        self.lock().begun.first_key_value().map(|(_, begun)| begun.elapsed())
    }
}

impl Drop for Statement {
    fn drop(&mut self) {
        self.statements.lock().begun.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_oldest_statement_under_way_counts() {
        let statements = Statements::default();
        assert_eq!(statements.longest(), None);
        let first = statements.begin();
        tokio::time::advance(Duration::from_secs(3)).await;
        let second = statements.clone().begin();
        assert_eq!(statements.longest(), Some(Duration::from_secs(3)));
        drop(first);
        assert_eq!(statements.longest(), Some(Duration::ZERO));
        drop(second);
        assert_eq!(statements.longest(), None);
    }
}
