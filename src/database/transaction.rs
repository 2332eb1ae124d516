//! Transactions, also through a proxy that pools them, and the outcome of a commit without an answer.

use std::time::Duration;

use sqlx::{Executor, PgConnection, Row};

use super::Database;
use super::connections::{self, PooledConnection};
use super::statements::Statement;
use super::transient::{Transient, within};

/// The beginning of a transaction that only reads. It names what the role or the database may have set otherwise.
const READ_ONLY: &str = "begin isolation level read committed read only";

/// The same, with one snapshot for all statements.
const SNAPSHOT: &str = "begin isolation level repeatable read read only";

/// What holds in each transaction.
///
/// `row_security = off`: a policy that would silently filter rows becomes an error (`PostgreSQL` manual, "Client
/// Connection Defaults"). `jit = off`: the statements are many small index probes with high row estimates, and
/// compiling them takes longer than running them.
const IN_EACH: &str = "set local row_security = off; set local jit = off";

/// For reading rows in the order of an index, without a bitmap scan and a sort. `PostgreSQL` prefers bitmap scans where
/// the rows of an entity lie far apart, which costs a third more. It also prefers them where it expects few rows; if
/// there are many, it would read all of them for each page.
const IN_ORDER: &str = "set local enable_bitmapscan = off;";

/// The shortest time limit of a statement.
const STATEMENT_MAX_MIN: Duration = Duration::from_secs(1);

/// PostgreSQL cancels a statement at least this much later than the connector gives it up.
const SERVER_ENDS_LATER_MIN: Duration = Duration::from_millis(500);

/// With [`super::Limits`], the connector gives a statement up at this time after its limit.
const LIMITED_LATER: Duration = Duration::from_secs(2);

/// The largest `statement_timeout`, in milliseconds.
const STATEMENT_TIMEOUT_MAX_MS: u128 = 2_147_483_647;

/// A transaction. If it is dropped before its end, its connection is closed: the next user of the connection would get
/// the answers to statements of this transaction.
#[derive(Debug)]
pub struct Transaction {
    database: Database,
    /// `None` after the end, when the connection is idle or being closed.
    pub(super) connection: Option<PooledConnection>,
    /// Its `xid8`, if it writes.
    id: Option<String>,
    /// Its number in `elven_sync.sync_commits`, if it writes.
    number: Option<i64>,
}

impl Transaction {
    pub(super) async fn of(database: &Database) -> Result<Self, sqlx::Error> {
        let connection =
            Some(connections::take(&database.connections, database.connections.timeouts()).await?);
        Ok(Self { database: database.clone(), connection, id: None, number: None })
    }

    /// Notes that a statement is under way.
    pub(super) fn under_way(&self) -> Statement {
        self.database.statements.begin()
    }

    /// Assigns the number that later proves whether the transaction was committed.
    fn number(&mut self) -> i64 {
        let mut commits = self.database.process.commits();
        commits.begun += 1;
        let number = commits.begun;
        commits.open.insert(number);
        self.number = Some(number);
        number
    }

    /// Sends the beginning, whose only row, if there is one, is the id.
    async fn begin(&mut self, sql: String) -> Result<(), sqlx::Error> {
        let limit = self.database.statement_max();
        let _under_way = self.under_way();
        let sql = format!("{}{sql}", self.renaming());
        let begun = self.connection()?.fetch_optional(sqlx::raw_sql(sqlx::AssertSqlSafe(sql)));
        self.id = within(limit, begun).await?.map(|row| row.try_get(0)).transpose()?;
        Ok(())
    }

    /// Returns the statement that gives the session the name that it has by now, if it has another one. It belongs to
    /// the message that begins the transaction. If the transaction fails, its connection is closed.
    pub(super) fn renaming(&mut self) -> String {
        let name = self.database.connections.manager().name();
        match self.connection.as_deref_mut() {
            Some(session) if session.name != name => {
                let set = name.as_ref().map(|name| format!("set application_name = '{name}'; "));
                session.name = name;
                set.unwrap_or_default()
            }
            _ => String::new(),
        }
    }

    /// Returns the connection, e.g. for a copy.
    pub fn connection(&mut self) -> Result<&mut PgConnection, sqlx::Error> {
        self.connection.as_deref_mut().map(|session| &mut **session).ok_or(sqlx::Error::PoolClosed)
    }

    /// Commits. If the connection is lost during the commit, finds out whether it was committed, so that an error
    /// always means that nothing was written.
    pub async fn commit(mut self) -> Result<(), sqlx::Error> {
        let Err(problem) = self.end("commit").await else { return Ok(()) };
        // The connection is closed first, because the pool may need its slot for the check.
        self.close();
        let (true, Some(id), Some(number)) = (problem.is_transient(), self.id.take(), self.number) else {
            return Err(problem);
        };
        match self.database.was_committed(&id, number).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(problem),
            // Not a transient error: the transaction may have been committed, so it must not be retried.
            Err(unknown) => {
                let unknown = crate::text::chain(&unknown);
                Err(sqlx::Error::Protocol(format!("the outcome of a commit is unknown: {unknown}")))
            }
        }
    }

    /// Rolls back the transaction.
    pub async fn rollback(mut self) -> Result<(), sqlx::Error> {
        // What the transaction has set is undone as well, the name included.
        if let Some(session) = self.connection.as_deref_mut() {
            session.name = None;
        }
        self.end("rollback").await
    }

    fn close(&mut self) {
        if let Some(connection) = self.connection.take() {
            connections::end(&self.database.connections, connection);
        }
    }

    async fn end(&mut self, how: &'static str) -> Result<(), sqlx::Error> {
        let limit = self.limit();
        let _under_way = self.under_way();
        within(limit, self.connection()?.execute(how)).await?;
        self.connection = None;
        Ok(())
    }

    /// Returns the time limit of a statement: reads may return many rows.
    pub(crate) fn limit(&self) -> Duration {
        if self.number.is_some() { self.database.statement_max() } else { self.database.read_max() }
    }
}

impl Drop for Transaction {
    fn drop(&mut self) {
        self.close();
        if let Some(number) = self.number {
            self.database.process.commits().open.remove(&number);
        }
    }
}

impl Database {
    /// Begins a transaction that writes. Its commit is durable regardless of the database's default. PostgreSQL ends
    /// it when its worker freezes in the middle, because it may hold locks on the rows of an entity.
    pub async fn begin(&self) -> Result<Transaction, sqlx::Error> {
        let idle_max = self.statement_max().as_millis();
        let mut transaction = Transaction::of(self).await?;
        let (process, number) = (self.process.number, transaction.number());
        let begun = transaction
            .begin(format!(
                "{}; set local synchronous_commit = on; \
                 set local idle_in_transaction_session_timeout = {idle_max}; {} \
                 insert into elven_sync.sync_commits (process, number) values ({process}, {number}) \
                     returning pg_current_xact_id()::text",
                self.writing(),
                self.server_ends_after(self.statement_max())
            ))
            .await;
        begun.map_err(read_only)?;
        Ok(transaction)
    }

    /// Begins a transaction that only reads.
    pub async fn begin_reading(&self) -> Result<Transaction, sqlx::Error> {
        self.begin_by(READ_ONLY, "").await
    }

    /// Begins a transaction that only reads, for rows in the order of an index.
    pub async fn begin_reading_in_order(&self) -> Result<Transaction, sqlx::Error> {
        self.begin_by(READ_ONLY, IN_ORDER).await
    }

    /// Begins a transaction that only reads, with the snapshot of its first statement for all statements.
    pub async fn begin_snapshot(&self) -> Result<Transaction, sqlx::Error> {
        self.begin_by(SNAPSHOT, "").await
    }

    async fn begin_by(&self, mode: &str, settings: &str) -> Result<Transaction, sqlx::Error> {
        let mut transaction = Transaction::of(self).await?;
        let limited = self.server_ends_after(self.read_max());
        transaction.begin(format!("{}; {settings} {limited}", self.beginning(mode))).await?;
        Ok(transaction)
    }

    /// Returns the beginning of a transaction that only reads, without its time limit.
    pub(super) fn reading(&self) -> String {
        self.beginning(READ_ONLY)
    }

    /// Returns the beginning of a transaction that writes, without its time limit.
    pub fn writing(&self) -> String {
        self.beginning(&format!("begin isolation level read committed{}", self.defaults.writing_mode()))
    }

    /// Returns the beginning of a transaction in which the settings of the role and the database have no effect.
    fn beginning(&self, mode: &str) -> String {
        format!("{mode}; {}{IN_EACH}", self.defaults.statements())
    }

    /// Returns whether a transaction whose commit got no answer was committed, which its row in `sync_commits` proves.
    /// The row is read only after the transaction cannot be in progress any more: its server process may not have
    /// noticed that the client is gone, and a server in recovery does not know the outcome.
    async fn was_committed(&self, id: &str, number: i64) -> Result<bool, sqlx::Error> {
        self.retry(async || {
            let under_way = "select pg_is_in_recovery() or pg_xact_status($1::text::xid8) = 'in progress'";
            match sqlx::query_scalar(under_way).bind(id).fetch_one(self).await {
                Ok(Some(true)) => {
                    return Err(sqlx::Error::Io(std::io::Error::other("a commit is still in progress")));
                }
                Ok(Some(false) | None) => {}
                // An id that has not been assigned yet: a crash or a failover has lost the transaction.
                Err(sqlx::Error::Database(refused)) if refused.code().as_deref() == Some("22023") => {}
                Err(problem) => return Err(problem),
            }
            // The transaction id is no proof, because an id that was lost is assigned again.
            let is_there =
                "select exists (select from elven_sync.sync_commits where process = $1 and number = $2)";
            sqlx::query_scalar(is_there).bind(self.process.number).bind(number).fetch_one(self).await
        })
        .await
    }

    /// Returns the setting with which PostgreSQL cancels a statement that the connector has given up, because the
    /// server would not notice that no client waits for the answer. The server's limit is a little later than the
    /// connector's limit, whose error decides what may be retried. A shorter limit of the role or the database stays.
    pub(super) fn server_ends_after(&self, limit: Duration) -> String {
        let (lock, limit) = match self.limits {
            Some(limits) => {
                let lock = format!("set local lock_timeout = {};", limits.lock.as_millis());
                (lock, limits.statement)
            }
            None => (String::new(), limit + (limit / 10).max(SERVER_ENDS_LATER_MIN)),
        };
        if !self.server_limit.is_zero() && self.server_limit <= limit {
            return lock;
        }
        format!("{lock} set local statement_timeout = {};", limit.as_millis().min(STATEMENT_TIMEOUT_MAX_MS))
    }

    /// Returns the time limit of a statement in a writing transaction, and of its idle time between statements.
    pub(super) fn statement_max(&self) -> Duration {
        (self.reconnect_timeout / 3).max(STATEMENT_MAX_MIN)
    }

    /// Returns the time limit of a statement that reads, or of a page that is copied.
    pub(super) fn read_max(&self) -> Duration {
        // With limits, the server ends the statement first.
        self.limits.map_or(self.reconnect_timeout * 10, |limits| limits.statement + LIMITED_LATER)
    }
}

/// Adds the reason to the refusal of a writing transaction, which is retried: a server is read-only during a failover.
fn read_only(problem: sqlx::Error) -> sqlx::Error {
    match &problem {
        sqlx::Error::Database(refused)
            // read_only_sql_transaction; feature_not_supported: a standby refuses the mode "read write".
            if matches!(refused.code().as_deref(), Some("25006" | "0A000")) =>
        {
            sqlx::Error::Io(std::io::Error::other(format!(
                "the database is read-only ({}): it is a standby, or the configuration of the server has \
                 default_transaction_read_only = on",
                refused.message()
            )))
        }
        _ => problem,
    }
}
