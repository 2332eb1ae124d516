//! The name of the sessions of a process (`application_name`): the version, what the process does, and its run.
//!
//! A new connection gets the name as a start-up parameter. When a run begins or ends, each open connection gets the new
//! name in the message that begins its next transaction, so that the name costs no round trip. It is set for the
//! session, so that a connection that waits for the API shows its run, too. `PgBouncer` carries the name over to the
//! server connection of each transaction; where another pooler does not, a session shows the name of an earlier client,
//! which has no effect but in `pg_stat_activity`.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// PostgreSQL cuts longer names.
const NAME_BYTES_MAX: usize = 63;

/// What precedes the version.
const PROGRAM: &str = "elven-sync";

/// The name of the sessions of a process; cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct SessionName(Arc<Mutex<Names>>);

#[derive(Debug)]
struct Names {
    /// What the process does, e.g. `serve`.
    activity: String,
    name: Arc<str>,
}

impl SessionName {
    /// `activity`: what the process does, in a word or two.
    pub(super) fn of(activity: &str) -> Self {
        Self(Arc::new(Mutex::new(Names { activity: activity.to_owned(), name: name_of(activity) })))
    }

    fn names(&self) -> MutexGuard<'_, Names> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn get(&self) -> Arc<str> {
        self.names().name.clone()
    }

    /// Names the run that the process works on. `None`: it has ended.
    pub(super) fn note_run(&self, run_id: Option<i64>) {
        let mut names = self.names();
        names.name = match run_id {
            Some(run_id) => name_of(&format!("run {run_id}")),
            None => name_of(&names.activity),
        };
    }
}

fn name_of(activity: &str) -> Arc<str> {
    let name = format!("{PROGRAM}/{} {activity}", env!("CARGO_PKG_VERSION"));
    // It is a part of statements.
    let is_plain = |c: &char| c.is_ascii_alphanumeric() || matches!(c, ' ' | '-' | '.' | '/' | '_' | '+');
    name.trim_end().chars().filter(is_plain).take(NAME_BYTES_MAX).collect::<String>().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_version_and_run_and_is_not_too_long() {
        let version = env!("CARGO_PKG_VERSION");
        let name = SessionName::of("serve");
        assert_eq!(&*name.get(), format!("elven-sync/{version} serve"));
        name.note_run(Some(42));
        assert_eq!(&*name.get(), format!("elven-sync/{version} run 42"));
        name.note_run(Some(i64::MAX));
        assert!(name.get().len() <= 63 && name.get().ends_with(&i64::MAX.to_string()));
        name.note_run(None);
        assert_eq!(&*name.get(), format!("elven-sync/{version} serve"));
        assert_eq!(&*SessionName::of("").get(), format!("elven-sync/{version}"));
        assert_eq!(SessionName::of(&"it's \\ ".repeat(40)).get().len(), 63);
    }
}
