//! The owners of the ledger: they write all the time, whenever the server accepts it.

use std::cell::Cell;
use std::time::{Duration, Instant};

use fastrand::Rng;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

use super::{ENTITIES, Plan, WRITERS, account_refused, entity_id, event_log::EventLog};

/// Maximum number of rows that one statement inserts.
const ROWS_MAX: u64 = 30;
/// One row in this many of an account is refused by the API, so that each entity has about 15 of them: fewer than
/// stop its lane.
const REFUSED_ONE_IN: usize = 15 * ENTITIES;
/// Maximum number of open prepared transactions of one writer. The server has room for ten.
const PREPARED_MAX: usize = 2;
/// A balance that no other version has. One in many cannot be sent; the seed decides which.
const BALANCE: &str = "case when random() < 0.004 then 'NaN' else nextval('soak.version') / 4.0 end";

/// Writes the share of one writer, spread over the time of the faults.
pub async fn write(plan: &Plan, url: &str, mut random: Rng, event_log: &EventLog, over: &Cell<bool>) {
    let share = plan.rows / WRITERS;
    let begun = Instant::now();
    let mut writer = Writer { plan, connection: None, prepared: Vec::new() };
    let mut written = 0;
    let mut broken = 0;
    while written < share {
        let ahead = written as u128 * plan.chaos.as_millis() > begun.elapsed().as_millis() * share as u128;
        if ahead && !over.get() {
            tokio::time::sleep(Duration::from_millis(5)).await;
            continue;
        }
        match writer.transaction(url, random.fork(), over).await {
            Ok(rows) => written += rows,
            Err(problem) => {
                assert!(is_transient(&problem), "{problem}");
                writer.connection = None;
                broken += 1;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
    event_log.note(format!("a writer has written its share; {broken} transactions were broken off"));
}

/// Ends all prepared transactions that are still open.
pub async fn end_prepared(url: &str) {
    let mut connection = PgConnection::connect(url).await.unwrap();
    let prepared: Vec<String> =
        sqlx::query_scalar("select gid from pg_prepared_xacts").fetch_all(&mut connection).await.unwrap();
    for name in prepared {
        connection.execute(AssertSqlSafe(format!("commit prepared '{name}'"))).await.unwrap();
    }
    connection.close().await.unwrap();
}

/// Whether the error means that the server or the session was ended.
fn is_transient(problem: &sqlx::Error) -> bool {
    match problem {
        sqlx::Error::Io(_) | sqlx::Error::Protocol(_) => true,
        // Operator intervention, connection, resources, deadlock; the last two: the outcome of ending a prepared
        // transaction is unknown.
        sqlx::Error::Database(problem) => {
            let code = problem.code().unwrap_or_default();
            ["57", "08", "53", "40"].iter().any(|class| code.starts_with(class)) || code == "42704"
        }
        _ => false,
    }
}

struct Writer<'a> {
    plan: &'a Plan,
    connection: Option<PgConnection>,
    prepared: Vec<String>,
}

impl Writer<'_> {
    /// Executes one transaction, or ends a prepared one. Returns the number of rows it inserted.
    async fn transaction(&mut self, url: &str, mut random: Rng, over: &Cell<bool>) -> sqlx::Result<usize> {
        let plan = self.plan;
        if self.connection.is_none() {
            self.connection = Some(PgConnection::connect(url).await?);
        }
        let connection = self.connection.as_mut().unwrap();
        if !self.prepared.is_empty() && random.u8(..10) < 3 {
            let name = self.prepared.swap_remove(random.usize(..self.prepared.len()));
            let verb = if random.u8(..3) > 0 { "commit" } else { "rollback" };
            connection.execute(AssertSqlSafe(format!("{verb} prepared '{name}'"))).await?;
            return Ok(0);
        }
        // An asynchronous commit may be lost in a crash, but not after its row was sent.
        let waits = if random.bool() { "on" } else { "off" };
        let begin =
            format!("begin; set local synchronous_commit = {waits}; select setseed({})", random.f64());
        connection.execute(sqlx::raw_sql(AssertSqlSafe(begin))).await?;
        let mut rows = 0;
        for _ in 0..random.u8(1..4) {
            let undone = random.u8(..10) == 0;
            if undone {
                connection.execute("savepoint undone").await?;
            }
            let entered = statement(plan, connection, &mut random).await?;
            if undone {
                connection.execute("rollback to undone").await?;
            } else {
                rows += entered;
            }
        }
        if random.u8(..100) < 5 && !over.get() {
            tokio::time::sleep(Duration::from_millis(random.u64(200..2500))).await;
        }
        match random.u8(..100) {
            0..10 => {
                connection.execute("rollback").await?;
                return Ok(0);
            }
            10..15 if self.prepared.len() < PREPARED_MAX => {
                let name = format!("{:x}", random.u64(..));
                self.prepared.push(name.clone());
                connection.execute(AssertSqlSafe(format!("prepare transaction '{name}'"))).await?;
            }
            _ => {
                connection.execute("commit").await?;
            }
        }
        Ok(rows)
    }
}

/// Inserts, updates or deletes some rows of an entity. Returns the number of rows it inserted.
async fn statement(plan: &Plan, connection: &mut PgConnection, random: &mut Rng) -> sqlx::Result<usize> {
    let entity_id = entity_id(random.usize(..ENTITIES));
    let kind = random.u8(..100);
    if kind < 60 {
        return insert(plan, connection, random, &entity_id).await;
    }
    // Some rows that no other session has locked, from a random one on.
    let rows = "array(select id from ledger.balance_snapshots where entity_id = $1 and id >= $2
                order by id limit $3 for update skip locked)";
    let (sql, count) = if kind < 95 {
        (
            format!("update ledger.balance_snapshots set balance = {BALANCE} where id = any ({rows})"),
            random.i64(1..8),
        )
    } else {
        (format!("delete from ledger.balance_snapshots where id = any ({rows})"), random.i64(1..4))
    };
    let first = random.usize(..plan.rows);
    sqlx::query(AssertSqlSafe(sql))
        .bind(&entity_id)
        .bind(i64::try_from(first).unwrap())
        .bind(count)
        .execute(connection)
        .await?;
    Ok(0)
}

/// Inserts rows of few accounts in few seconds of repeated hours, so that many rows share a key, and many tie.
async fn insert(
    plan: &Plan,
    connection: &mut PgConnection,
    random: &mut Rng,
    entity_id: &str,
) -> sqlx::Result<usize> {
    let count = usize::try_from(random.u64(1..=ROWS_MAX)).unwrap();
    let refused_one_in = (plan.rows / REFUSED_ONE_IN).max(20);
    let seconds = plan.rows / ENTITIES / 20 + 1;
    let (mut accounts, mut currencies, mut offsets_ms) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..count {
        accounts.push(if random.usize(..refused_one_in) == 0 {
            account_refused(entity_id)
        } else {
            format!("{entity_id}-{}", random.u8(..6))
        });
        currencies.push(if random.bool() { "BTC" } else { "EUR" });
        let (hour, second, half) = (random.usize(..3), random.usize(..seconds), random.usize(..2));
        offsets_ms.push(i64::try_from(hour * 3_600_000 + second * 1000 + half * 500).unwrap());
    }
    let sql = format!(
        "insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
         select $1, account, currency, '2024-10-27Z'::timestamptz + offset_ms * interval '1 ms', {BALANCE}
           from unnest($2::text[], $3::text[], $4::bigint[]) u (account, currency, offset_ms)"
    );
    sqlx::query(AssertSqlSafe(sql))
        .bind(entity_id)
        .bind(accounts)
        .bind(currencies)
        .bind(offsets_ms)
        .execute(connection)
        .await?;
    Ok(count)
}
