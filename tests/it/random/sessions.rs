//! The owner of the ledger: sessions that write in any order, and the expected state of the rows.

use std::collections::BTreeMap;

use fastrand::Rng;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

const SESSIONS: usize = 4;
/// The test server has room for 20 sessions for all seeds that run at once.
const PREPARED_MAX: usize = 2;

/// Row versions: balances by account. No two versions of an entity have the same balance.
pub type Versions = BTreeMap<i64, i64>;

/// A session, with the versions that its transaction has written, then those of each savepoint.
struct Session {
    connection: PgConnection,
    /// Empty when no transaction is open.
    open: Vec<Versions>,
}

/// Sessions that serve one entity after another.
pub struct Sessions(Vec<Session>);

impl Sessions {
    pub async fn open(url: &str) -> Self {
        let mut sessions = Vec::new();
        for _ in 0..SESSIONS {
            sessions
                .push(Session { connection: PgConnection::connect(url).await.unwrap(), open: Vec::new() });
        }
        Self(sessions)
    }
}

/// The owner of the rows of one entity.
pub struct Owner<'a> {
    entity_id: String,
    table: &'static str,
    sessions: &'a mut [Session],
    random: Rng,
    /// Accounts and balances are numbered from here.
    first: i64,
    accounts: i64,
    balances: i64,
    /// Prepared transactions by name.
    prepared: Vec<(String, Versions)>,
    /// The account of each version that was ever committed, by balance.
    pub committed: BTreeMap<i64, i64>,
    /// The versions that the ledger holds.
    pub current: Versions,
}

impl<'a> Owner<'a> {
    pub fn new(
        entity_id: &str,
        table: &'static str,
        first: i64,
        sessions: &'a mut Sessions,
        random: Rng,
    ) -> Self {
        Self {
            entity_id: entity_id.to_owned(),
            table,
            sessions: &mut sessions.0,
            random,
            first,
            accounts: first,
            balances: first,
            prepared: Vec::new(),
            committed: BTreeMap::new(),
            current: BTreeMap::new(),
        }
    }

    pub fn owns(&self, account: i64) -> bool {
        (self.first..self.accounts).contains(&account)
    }

    /// Executes one statement of one session.
    pub async fn act(&mut self) {
        let number = self.random.usize(..SESSIONS);
        let depth = self.sessions[number].open.len();
        let choice = self.random.u8(..100);
        match (depth, choice) {
            (_, 0..30) => self.insert(number).await,
            (_, 30..50) => self.update(number).await,
            (0, _) => {
                // A transaction may get its id long before it writes.
                let begin = if choice < 75 { "begin; select pg_current_xact_id()" } else { "begin" };
                self.execute_in(number, begin).await.push(Versions::new());
            }
            (_, 50..65) => {
                self.execute_in(number, &format!("savepoint s{depth}")).await.push(Versions::new());
            }
            (2.., 65..72) => {
                let savepoint = self.random.usize(1..depth);
                let open = self.execute_in(number, &format!("release savepoint s{savepoint}")).await;
                let written = open.split_off(savepoint).into_iter().flatten();
                open[savepoint - 1].extend(written);
            }
            (2.., 72..80) => {
                let savepoint = self.random.usize(1..depth);
                let open = self.execute_in(number, &format!("rollback to savepoint s{savepoint}")).await;
                open.truncate(savepoint);
                open.push(Versions::new());
            }
            (_, 80..93) => self.end(number, choice < 88).await,
            (_, 93..) if self.prepared.len() < PREPARED_MAX => {
                let name = format!("{} {} {}", std::process::id(), self.entity_id, self.balances);
                let open = self.execute_in(number, &format!("prepare transaction '{name}'")).await;
                let written = open.drain(..).flatten().collect();
                self.prepared.push((name, written));
                // A name is used once.
                self.balances += 1;
            }
            _ => {}
        }
    }

    /// Ends a prepared transaction, if there is one, from a session without an open transaction.
    pub async fn end_prepared(&mut self, session: &mut PgConnection) {
        if self.prepared.is_empty() {
            return;
        }
        let (name, written) = self.prepared.swap_remove(self.random.usize(..self.prepared.len()));
        let commits = self.random.u8(..3) > 0;
        let verb = if commits { "commit" } else { "rollback" };
        session.execute(AssertSqlSafe(format!("{verb} prepared '{name}'"))).await.unwrap();
        if commits {
            self.commit(written);
        }
    }

    /// Ends all open transactions.
    pub async fn end_all(&mut self, session: &mut PgConnection) {
        for number in 0..SESSIONS {
            if !self.sessions[number].open.is_empty() {
                let commits = self.random.bool();
                self.end(number, commits).await;
            }
        }
        while !self.prepared.is_empty() {
            self.end_prepared(session).await;
        }
    }

    async fn end(&mut self, number: usize, commits: bool) {
        let open = self.execute_in(number, if commits { "commit" } else { "rollback" }).await;
        let written = open.drain(..).flatten().collect();
        if commits {
            self.commit(written);
        }
    }

    /// Executes a statement. Returns the versions that the transaction of the session has written so far.
    async fn execute_in(&mut self, number: usize, sql: &str) -> &mut Vec<Versions> {
        let session = &mut self.sessions[number];
        session.connection.execute(sqlx::raw_sql(AssertSqlSafe(sql))).await.unwrap();
        &mut session.open
    }

    /// Records what a session wrote: in its transaction, or committed by the statement itself.
    fn note(&mut self, number: usize, written: Versions) {
        match self.sessions[number].open.last_mut() {
            Some(open) => open.extend(written),
            None => self.commit(written),
        }
    }

    fn commit(&mut self, written: Versions) {
        self.committed.extend(written.iter().map(|(&account, &balance)| (balance, account)));
        self.current.extend(written);
    }

    /// Inserts some rows in one statement, with a `change_xid` that the trigger has to replace.
    async fn insert(&mut self, number: usize) {
        let count = if self.random.bool() { 1 } else { self.random.i64(2..8) };
        let written: Versions = (0..count).map(|n| (self.accounts + n, self.balances + n)).collect();
        self.accounts += count;
        self.balances += count;
        let (entity_id, table) = (&self.entity_id, self.table);
        let into =
            format!("{table} (entity_id, entity_account_id, currency, captured_at, balance, change_xid)");
        // The instants have no order.
        let rows = written.iter().map(|(account, balance)| (account, account * 37 % 60, balance));
        let connection = &mut self.sessions[number].connection;
        if self.random.u8(..3) == 0 {
            let line = |(account, minute, balance)| {
                format!("{entity_id}\t{account}\tBTC\t2024-01-01 00:{minute}:00Z\t{balance}\t3\n")
            };
            let mut copy = connection.copy_in_raw(&format!("copy {into} from stdin")).await.unwrap();
            copy.send(rows.map(line).collect::<String>().as_bytes()).await.unwrap();
            copy.finish().await.unwrap();
        } else {
            let row = |(account, minute, balance)| {
                format!("('{entity_id}', {account}, 'BTC', '2024-01-01 00:{minute}:00Z', {balance}, '3')")
            };
            let rows: Vec<String> = rows.map(row).collect();
            let sql = format!("insert into {into} values {}", rows.join(", "));
            connection.execute(AssertSqlSafe(sql)).await.unwrap();
        }
        self.note(number, written);
    }

    /// Updates some rows in one statement: rows that the session sees and that no other session has locked.
    async fn update(&mut self, number: usize) {
        let count = self.random.i64(1..4);
        let accounts: Vec<i64> = (0..count).map(|_| self.random.i64(self.first..=self.accounts)).collect();
        let balances: Vec<i64> = (0..count).map(|n| self.balances + n).collect();
        self.balances += count;
        let table = self.table;
        let sql = format!(
            "update {table} t set balance = v.balance
               from (select distinct on (account) * from unnest($2::bigint[], $3::bigint[]) u (account, balance)) v
              where t.entity_id = $1 and t.entity_account_id = v.account::text
                and t.entity_account_id in (select entity_account_id from {table}
                                             where entity_id = $1 and entity_account_id = any ($2::bigint[]::text[])
                                               for update skip locked)
             returning v.account, v.balance"
        );
        let written: Vec<(i64, i64)> = sqlx::query_as(AssertSqlSafe(sql))
            .bind(&self.entity_id)
            .bind(accounts)
            .bind(balances)
            .fetch_all(&mut self.sessions[number].connection)
            .await
            .unwrap();
        self.note(number, written.into_iter().collect());
    }
}
