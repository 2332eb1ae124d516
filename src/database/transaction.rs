//! Transactions, also through a proxy that pools them, and what becomes of a commit without an answer.

use std::time::Duration;

use sqlx::{Executor, PgConnection, Row};

use super::Database;
use super::connections::{self, PooledConnection};
use super::transient::{Transient, within};

/// How a transaction begins that only reads.
///
/// `row_security = off`: a policy that would filter rows in silence becomes an error (`PostgreSQL` manual,
/// "Client Connection Defaults"). `jit = off`: what is asked is many small probes of an index, estimated as many
/// rows, and to compile that takes longer than to do it.
pub(super) const BEGIN_READING: &str = "begin read only; set local row_security = off; set local jit = off";

/// The same, to read rows of an index in its order: nothing is put together from bitmaps first, and then sorted.
/// `PostgreSQL` would rather do so where the rows of an entity lie far apart, which costs a third more; and where it
/// expects few rows, of which there may be many, all of them would be read for each page.
const BEGIN_READING_IN_ORDER: &str =
    "begin read only; set local row_security = off; set local jit = off; set local enable_bitmapscan = off";

/// As the first in one snapshot, whatever is written meanwhile.
const BEGIN_SNAPSHOT: &str =
    "begin isolation level repeatable read read only; set local row_security = off; set local jit = off";

/// No statement is given up earlier than that.
const STATEMENT_MAX_MIN: Duration = Duration::from_secs(1);

/// So much later, at least, PostgreSQL ends a statement that was given up.
const SERVER_ENDS_LATER_MIN: Duration = Duration::from_millis(500);

/// The largest `statement_timeout`, in milliseconds.
const STATEMENT_TIMEOUT_MAX_MS: u128 = 2_147_483_647;

/// A transaction. Dropped before its end, it takes its connection with it: whatever that was in the middle
/// of, the next one to use it would get the answer.
#[derive(Debug)]
pub struct Transaction {
    database: Database,
    /// None once it is at its end, and the connection lies idle or is being ended.
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

    /// Draws the number by which it will be known whether it was committed.
    fn number(&mut self) -> i64 {
        let mut commits = self.database.process.commits();
        commits.begun += 1;
        let number = commits.begun;
        commits.open.insert(number);
        self.number = Some(number);
        number
    }

    async fn begin(&mut self, sql: String) -> Result<(), sqlx::Error> {
        let limit = self.database.statement_max();
        let begun = self.connection()?.fetch_optional(sqlx::raw_sql(sqlx::AssertSqlSafe(sql)));
        self.id = within(limit, begun).await?.map(|row| row.try_get(0)).transpose()?;
        Ok(())
    }

    /// The connection, e.g. to copy from.
    pub fn connection(&mut self) -> Result<&mut PgConnection, sqlx::Error> {
        self.connection.as_deref_mut().ok_or(sqlx::Error::PoolClosed)
    }

    /// Commits. When the connection is lost over that, finds out whether it was, so that an error always means
    /// that nothing was written.
    pub async fn commit(mut self) -> Result<(), sqlx::Error> {
        let Err(problem) = self.end("commit").await else { return Ok(()) };
        // Given up first: it takes the place of one to ask with.
        self.close();
        let (true, Some(id), Some(number)) = (problem.is_transient(), self.id.take(), self.number) else {
            return Err(problem);
        };
        match self.database.was_committed(&id, number).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(problem),
            // Nothing that passes: it may have been done, so it is not to be done again.
            Err(unknown) => {
                let unknown = crate::text::chain(&unknown);
                Err(sqlx::Error::Protocol(format!(
                    "whether a commit was done could not be found out: {unknown}"
                )))
            }
        }
    }

    /// Undoes everything.
    pub async fn rollback(mut self) -> Result<(), sqlx::Error> {
        self.end("rollback").await
    }

    fn close(&mut self) {
        if let Some(connection) = self.connection.take() {
            connections::end(&self.database.connections, connection);
        }
    }

    async fn end(&mut self, how: &'static str) -> Result<(), sqlx::Error> {
        let limit = self.limit();
        within(limit, self.connection()?.execute(how)).await?;
        self.connection = None;
        Ok(())
    }

    /// How long a statement may take: what is read may be much.
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
    /// Begins a transaction that writes. It is durable whatever the database's default is, and PostgreSQL ends it
    /// when its worker freezes in the middle of it, since it may hold the rows of an entity locked.
    pub async fn begin(&self) -> Result<Transaction, sqlx::Error> {
        let idle_max = self.statement_max().as_millis();
        let mut transaction = Transaction::of(self).await?;
        let (process, number) = (self.process.number, transaction.number());
        transaction
            .begin(format!(
                "begin; set local synchronous_commit = on; set local row_security = off; set local jit = off; \
                 set local idle_in_transaction_session_timeout = {idle_max}; {} \
                 insert into elven_sync.sync_commits (process, number) values ({process}, {number}) \
                     returning pg_current_xact_id()::text",
                self.server_ends_after(self.statement_max())
            ))
            .await?;
        Ok(transaction)
    }

    /// Begins a transaction that only reads.
    pub async fn begin_reading(&self) -> Result<Transaction, sqlx::Error> {
        self.begin_by(BEGIN_READING).await
    }

    /// Begins a transaction that only reads, rows in the order of an index.
    pub async fn begin_reading_in_order(&self) -> Result<Transaction, sqlx::Error> {
        self.begin_by(BEGIN_READING_IN_ORDER).await
    }

    /// Begins a transaction that only reads, all of it in the snapshot of its first statement.
    pub async fn begin_snapshot(&self) -> Result<Transaction, sqlx::Error> {
        self.begin_by(BEGIN_SNAPSHOT).await
    }

    async fn begin_by(&self, sql: &str) -> Result<Transaction, sqlx::Error> {
        let mut transaction = Transaction::of(self).await?;
        transaction.begin(format!("{sql}; {}", self.server_ends_after(self.read_max()))).await?;
        Ok(transaction)
    }

    /// Says whether a transaction was committed whose commit got no answer, by the row that it has left then. Asked
    /// once the transaction cannot be under way any more: its server process may not have noticed that we are gone,
    /// and a server in recovery does not know the end.
    async fn was_committed(&self, id: &str, number: i64) -> Result<bool, sqlx::Error> {
        self.retry(async || {
            let under_way = "select pg_is_in_recovery() or pg_xact_status($1::text::xid8) = 'in progress'";
            match sqlx::query_scalar(under_way).bind(id).fetch_one(self).await {
                Ok(Some(true)) => {
                    return Err(sqlx::Error::Io(std::io::Error::other("a commit has no outcome yet")));
                }
                Ok(Some(false) | None) => {}
                // An id that has not been given out yet: a crash or a failover has lost it.
                Err(sqlx::Error::Database(refused)) if refused.code().as_deref() == Some("22023") => {}
                Err(problem) => return Err(problem),
            }
            // Not by the id, which is given out again when it was lost.
            let is_there =
                "select exists (select from elven_sync.sync_commits where process = $1 and number = $2)";
            sqlx::query_scalar(is_there).bind(self.process.number).bind(number).fetch_one(self).await
        })
        .await
    }

    /// Sets that PostgreSQL ends a statement which the connector has given up: it would not notice that nobody waits
    /// for the answer, and go on. A little later than the connector, whose own limit says what may be done again. A
    /// shorter limit of the role or the database stays.
    pub(super) fn server_ends_after(&self, limit: Duration) -> String {
        let limit = limit + (limit / 10).max(SERVER_ENDS_LATER_MIN);
        if !self.server_limit.is_zero() && self.server_limit <= limit {
            return String::new();
        }
        format!("set local statement_timeout = {};", limit.as_millis().min(STATEMENT_TIMEOUT_MAX_MS))
    }

    /// How long a statement of a writing transaction may take, and how long its connection may then lie idle.
    pub(super) fn statement_max(&self) -> Duration {
        (self.reconnect_timeout / 3).max(STATEMENT_MAX_MIN)
    }

    /// How long a statement may take that reads, or a page that is copied.
    pub(super) fn read_max(&self) -> Duration {
        self.reconnect_timeout * 10
    }
}
