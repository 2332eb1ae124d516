//! The limits: how fast the database delivers rows, and how fast bodies can be sent.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bytes::Bytes;
use chrono::TimeDelta;
use elven_sync::config::{ApiVersion, Credential};
use elven_sync::elven::{Client, ResponseClass, classify};
use futures_util::TryStreamExt;
use sqlx::postgres::PgPoolCopyExt;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use url::Url;

use crate::ledgers::Ledger;

pub(crate) const KEY: &str = "bench-key";
pub(crate) const SECRET: &str = "bench-secret";
const RECORDS_PER_BODY: u32 = 1000;
/// The page size of the connector.
const PAGE_ROWS: u32 = 4000;
/// The default of the connector.
const TIMEOUT: Duration = Duration::from_secs(30);

/// The columns that are read, in heap order.
const COPY: &str = "
    copy (select entity_account_id, currency, captured_at, balance, entity_id from ledger.balance_snapshots)
      to stdout (format binary)";

/// Copies all rows without storing them. Returns rows per second.
pub(crate) async fn copy(ledger: &Ledger) -> anyhow::Result<f64> {
    copy_while(ledger, |_| ()).await
}

/// Calls `every` for each message of the copy, of which there is one per row.
async fn copy_while(ledger: &Ledger, mut every: impl FnMut(u32)) -> anyhow::Result<f64> {
    let began = Instant::now();
    let mut messages = ledger.pool.copy_out_raw(COPY).await?;
    let mut count = 0;
    while messages.try_next().await?.is_some() {
        count += 1;
        every(count);
    }
    Ok(f64::from(ledger.rows) / began.elapsed().as_secs_f64())
}

/// Reads all rows as the contract demands, entity by entity in the order `(change_xid, id)` and in pages, in several
/// lanes at once, without storing them. Returns rows per second.
pub(crate) async fn pages(ledger: &Ledger, lanes: usize) -> anyhow::Result<f64> {
    let began = Instant::now();
    let slots = Arc::new(Semaphore::new(lanes));
    let mut tasks = JoinSet::new();
    for entity in 0..ledger.entities {
        let (pool, slots) = (ledger.pool.clone(), slots.clone());
        tasks.spawn(async move {
            let _slot = slots.acquire_owned().await?;
            let mut after = (0, 0);
            while let Some(last) = page(&pool, entity, after).await? {
                after = last;
            }
            anyhow::Ok(())
        });
    }
    while let Some(read) = tasks.join_next().await {
        read??;
    }
    Ok(f64::from(ledger.rows) / began.elapsed().as_secs_f64())
}

/// Reads the rows after a transaction and an id. Returns the transaction and the id of the last row.
async fn page(pool: &sqlx::PgPool, entity: u32, after: (u64, i64)) -> anyhow::Result<Option<(u64, i64)>> {
    let (xid, id) = after;
    let page = format!(
        "copy (select change_xid, id, entity_account_id, currency, captured_at, balance from ledger.balance_snapshots
                where entity_id = 'entity-{entity}' and (change_xid, id) > ('{xid}'::xid8, {id})
                order by change_xid, id fetch first {PAGE_ROWS} rows with ties) to stdout (format binary)"
    );
    let mut messages = pool.copy_out_raw(&page).await?;
    let mut last = None;
    while let Some(message) = messages.try_next().await? {
        // A row has its number of columns in 2 bytes, and a length of 4 bytes before each column.
        if message.starts_with(&[0, 6]) {
            last = Some(message);
        }
    }
    last.map(|row| {
        let eight = |at: usize| row.get(at..).and_then(|rest| rest.first_chunk::<8>()).copied();
        let cursor = eight(6).zip(eight(18)).context("a row is too short")?;
        Ok((u64::from_be_bytes(cursor.0), i64::from_be_bytes(cursor.1)))
    })
    .transpose()
}

/// Bodies that were built beforehand, sent by the client of the connector.
#[derive(Clone)]
pub(crate) struct Replay {
    client: Client,
    credential: Arc<Credential>,
    bodies: Arc<[Bytes]>,
    in_flight: u32,
}

impl Replay {
    pub(crate) fn new(api_url: &str, in_flight: u32) -> anyhow::Result<Self> {
        let client = Client::new(&Url::parse(api_url)?, TIMEOUT)?;
        let credential = Credential { name: "bench".to_owned(), key: KEY.into(), secret: SECRET.into() };
        let bodies = (0..16).map(body).collect();
        Ok(Self { client, credential: credential.into(), bodies, in_flight })
    }

    /// Sends this many rows. Returns rows per second.
    pub(crate) async fn send(&self, rows: u32) -> anyhow::Result<f64> {
        let bodies = rows.div_ceil(RECORDS_PER_BODY);
        let elapsed = self.send_when_due(Semaphore::new(bodies as usize).into(), bodies).await?;
        Ok(f64::from(bodies * RECORDS_PER_BODY) / elapsed.as_secs_f64())
    }

    /// Copies all rows without storing them, and sends a body for each 1000. Returns rows per second.
    pub(crate) async fn send_beside_copy(&self, ledger: &Ledger) -> anyhow::Result<f64> {
        let due = Arc::new(Semaphore::new(0));
        let began = Instant::now();
        let sending = self.send_when_due(due.clone(), ledger.rows / RECORDS_PER_BODY);
        let copying = copy_while(ledger, |count| {
            if count % RECORDS_PER_BODY == 0 {
                due.add_permits(1);
            }
        });
        tokio::try_join!(sending, copying)?;
        Ok(f64::from(ledger.rows) / began.elapsed().as_secs_f64())
    }

    /// Sends this many bodies, each once there is a permit for it.
    async fn send_when_due(&self, due: Arc<Semaphore>, bodies: u32) -> anyhow::Result<Duration> {
        let began = Instant::now();
        let mut tasks = JoinSet::new();
        for lane in 0..self.in_flight {
            let (replay, due) = (self.clone(), due.clone());
            tasks.spawn(async move {
                for number in (lane..bodies).step_by(replay.in_flight as usize) {
                    due.acquire().await?.forget();
                    replay.send_one(number as usize).await?;
                }
                anyhow::Ok(())
            });
        }
        while let Some(sent) = tasks.join_next().await {
            sent??;
        }
        Ok(began.elapsed())
    }

    async fn send_one(&self, number: usize) -> anyhow::Result<()> {
        let body = self.bodies[number % self.bodies.len()].clone();
        let signed = self.client.sign_import(&self.credential, TimeDelta::zero(), ApiVersion::V3, body)?;
        let verdict = classify(&self.client.send(signed).await);
        ensure!(verdict == ResponseClass::Accepted, "a body was not accepted: {verdict:?}");
        Ok(())
    }
}

/// Builds 1000 records, as long as those of the ledger.
fn body(number: u32) -> Bytes {
    let mut body = String::from("[");
    for record in 0..RECORDS_PER_BODY {
        let separator = if record == 0 { "" } else { "," };
        let balance = 1_234_567 + number * RECORDS_PER_BODY + record;
        // Writing to a String cannot fail.
        let _ = write!(
            body,
            "{separator}{{\"entityAccountId\":\"8nfrslW3U7pIvQDT8nfrslW3U7pIvQDT-{}\",\"currency\":\"BTC\",\
             \"datetime\":\"2020-01-{:02} 00:00:00\",\"balance\":{balance}.{record:09}}}",
            1000 + record,
            1 + record % 28
        );
    }
    body.push(']');
    body.into()
}
