//! Which session keeps a statement of this process waiting for a lock.

use sqlx::FromRow;

use super::Database;

/// The most bytes of the statement of another session that are shown.
const QUERY_CHARS_MAX: usize = 80;

/// A statement of this process that waits for a lock, and the sessions that keep it waiting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waits {
    /// What is locked: a table, or another object.
    pub locked: Option<String>,
    /// The session that it waits for.
    pub blocker: Blocker,
    /// The session that this one waits for itself, at the end of the queue.
    pub behind: Option<Blocker>,
}

/// A session that holds a lock, or waits for one in front of others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blocker {
    /// The server process; 0: a prepared transaction, which belongs to no session.
    pub pid: i32,
    /// Its user, application and state, as far as the role may see them.
    pub about: String,
    /// The beginning of its statement, as far as the role may see it. It may have values of rows.
    pub statement: Option<String>,
}

impl Waits {
    /// Returns what is locked, in words.
    pub fn what(&self) -> &str {
        self.locked.as_deref().unwrap_or("an object")
    }

    /// Returns the sessions that it waits for, in words. `shown`: how a session is shown.
    pub fn for_whom(&self, shown: impl Fn(&Blocker) -> String) -> String {
        match &self.behind {
            Some(last) => {
                format!("{}, which waits itself for {}", shown(&self.blocker), shown(last))
            }
            None => shown(&self.blocker),
        }
    }

    /// Returns how the wait can be ended.
    pub fn hint(&self) -> String {
        match self.behind.as_ref().unwrap_or(&self.blocker).pid {
            0 => "select * from pg_prepared_xacts;".to_owned(),
            pid => format!(
                "wait for the end of that transaction, or end it: select pg_terminate_backend({pid});"
            ),
        }
    }
}

impl Blocker {
    /// Returns the session without its statement.
    pub fn who(&self) -> String {
        self.with(&self.about)
    }

    /// Returns the session with its statement.
    pub fn who_and_statement(&self) -> String {
        let statement = self.statement.as_ref().map(|statement| format!("statement: {statement}"));
        let parts = [Some(self.about.clone()).filter(|about| !about.is_empty()), statement];
        self.with(&parts.into_iter().flatten().collect::<Vec<_>>().join(", "))
    }

    fn with(&self, about: &str) -> String {
        match (self.pid, about) {
            (0, _) => "a prepared transaction (end it with commit prepared or rollback prepared)".to_owned(),
            (pid, "") => format!("pid {pid}"),
            (pid, about) => format!("pid {pid} ({about})"),
        }
    }
}

#[derive(FromRow)]
struct Found {
    locked: Option<String>,
    pid: i32,
    user_name: Option<String>,
    application_name: Option<String>,
    state: Option<String>,
    open_s: Option<i64>,
    query: Option<String>,
}

impl From<Found> for Blocker {
    fn from(found: Found) -> Self {
        let Found { pid, user_name, application_name, state, open_s, query, .. } = found;
        let one_line = |text: String| {
            let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
            let shown: String = text.chars().take(QUERY_CHARS_MAX).collect();
            if shown.len() < text.len() { format!("{shown}...") } else { shown }
        };
        let about = [
            user_name.map(|name| format!("user {name}")),
            application_name.map(|name| format!("application {}", one_line(name))),
            state
                .zip(open_s)
                .map(|(state, open_s)| format!("{state}, its transaction is open for {open_s} s")),
        ];
        let about = about.into_iter().flatten().collect::<Vec<_>>().join(", ");
        Self { pid, about, statement: query.map(one_line) }
    }
}

/// The waiting sessions of this process are found by their name, and their blockers followed to the end of the queue.
const WAITS: &str = "
    with recursive waiting as (
        select w.pid, (select coalesce(l.relation::pg_catalog.regclass::text, l.locktype)
                         from pg_catalog.pg_locks l where l.pid = w.pid and not l.granted limit 1) as locked
          from pg_catalog.pg_stat_activity w
         where w.datname = current_database() and w.application_name = current_setting('application_name')
           and w.wait_event_type = 'Lock' and w.pid <> pg_catalog.pg_backend_pid()),
    queue (pid, locked, depth) as (
        select b.pid, w.locked, 1 from waiting w cross join lateral unnest(pg_catalog.pg_blocking_pids(w.pid)) b (pid)
        union
        select b.pid, q.locked, q.depth + 1
          from queue q cross join lateral unnest(pg_catalog.pg_blocking_pids(q.pid)) b (pid)
         where q.pid <> 0 and q.depth < 10)
    select q.locked, q.pid, a.usename::text as user_name, nullif(a.application_name, '') as application_name,
           a.state, extract(epoch from clock_timestamp() - a.xact_start)::bigint as open_s, nullif(a.query, '') as query
      from queue q left join pg_catalog.pg_stat_activity a on a.pid = q.pid
     order by q.depth, a.xact_start nulls last, q.pid";

impl Database {
    /// Returns what keeps a statement of this process waiting at this moment. `None`: none waits.
    pub async fn waits(&self) -> Result<Option<Waits>, sqlx::Error> {
        let found: Vec<Found> = sqlx::query_as(WAITS).fetch_all(self.single_round_trip()).await?;
        let mut found = found.into_iter();
        let Some(first) = found.next() else { return Ok(None) };
        let (locked, pid) = (first.locked.clone(), first.pid);
        let behind = found.last().filter(|last| last.pid != pid).map(Blocker::from);
        Ok(Some(Waits { locked, blocker: Blocker::from(first), behind }))
    }
}
