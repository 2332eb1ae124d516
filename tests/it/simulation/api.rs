//! The model of the API, and of the network in front of it: requests may arrive late, and answers get lost.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use tokio::time::Instant;

use elven_sync::elven::{Answer, Envelope, Signed, Transport};

use super::process::Process;
use super::world::{Sabotage, State, World};

/// The client's limit for a request with its answer.
const TIMEOUT: Duration = Duration::from_secs(2);
/// The latest that a request arrives that the network has held back.
const LATE_MAX_MS: u64 = 9_000;
/// The rows with this remainder make the API fail with 500, whatever else is in their batch.
const POISON: i64 = 97;

#[derive(Debug, Default)]
pub struct Api {
    /// The balance of each key.
    pub records: BTreeMap<Key, i64>,
    /// The order in which the versions of a key were sent first.
    sent: BTreeMap<Key, Vec<i64>>,
    /// The keys that a process is waiting for an answer about, by its name.
    in_flight: BTreeMap<String, Vec<(usize, BTreeSet<Key>)>>,
    /// Until when the key is revoked.
    revoked_until: Option<Instant>,
    /// The processes of which an import was accepted, or which got a list.
    proven: BTreeSet<String>,
    /// The processes whose key was refused.
    refused: BTreeSet<String>,
    requests: usize,
    /// How often each body was imported, by its SHA-256.
    pub bodies: BTreeMap<String, usize>,
}

/// Account and local second.
pub type Key = (String, String);

#[derive(Clone, Debug, Deserialize)]
struct Record {
    #[serde(rename = "entityAccountId")]
    account: String,
    datetime: String,
    balance: i64,
}

/// A request on its way.
#[derive(Clone, Debug)]
pub struct Request {
    number: usize,
    pub is_import: bool,
    signed_at_ms: i64,
    body: Bytes,
    records: Vec<Record>,
}

impl Request {
    pub fn read(world: &World, signed: Signed) -> Self {
        let request = signed.into_request().unwrap();
        let timestamp = request.headers()["elven-api-timestamp"].to_str().unwrap();
        let body = request.body().and_then(|body| body.as_bytes()).unwrap_or_default();
        let is_import = request.method() == "POST";
        Self {
            number: world.state().next_request(),
            is_import,
            signed_at_ms: timestamp.parse().unwrap(),
            body: Bytes::copy_from_slice(body),
            records: if is_import { serde_json::from_slice(body).unwrap() } else { Vec::new() },
        }
    }
}

/// What the network and the API do with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Answered,
    AnswerLost,
    /// It arrives when the client has given it up.
    DeliveredLate,
    NeverDelivered,
    /// The client could not connect.
    NotSent,
    /// Answered with this status by something that has not processed it.
    Refused(u16),
    /// Processed, and answered with 500.
    FailedAfterwards,
}

fn fate(world: &World) -> Fate {
    let faults = world.faults;
    if world.happens(faults.answer_lost) {
        return if world.below(2) == 0 { Fate::AnswerLost } else { Fate::NeverDelivered };
    }
    if world.happens(faults.delivered_late) {
        return Fate::DeliveredLate;
    }
    if world.happens(faults.not_sent) {
        return Fate::NotSent;
    }
    if world.happens(faults.throttled) {
        return Fate::Refused(if world.below(2) == 0 { 429 } else { 503 });
    }
    if world.happens(faults.failed) {
        return if world.below(2) == 0 { Fate::FailedAfterwards } else { Fate::Refused(502) };
    }
    Fate::Answered
}

/// The way of one process to the API.
#[derive(Debug)]
pub struct Network {
    process: Arc<Process>,
}

impl Network {
    pub fn of(process: &Arc<Process>) -> Arc<Self> {
        Arc::new(Self { process: process.clone() })
    }

    async fn deliver(&self, signed: Signed) -> Answer {
        let process = &self.process;
        let world = &process.world;
        let request = Request::read(world, signed);
        process.step(0, 2).await;
        let fate = fate(world);
        world.log(|| format!("{}: sends {}: {fate:?}", process.name, describe(&request)));
        if fate == Fate::NotSent {
            return Answer::NotSent("connection refused".to_owned());
        }
        world.state().sent(&process.name, &request);
        let begun = Instant::now();
        let delay = match fate {
            Fate::DeliveredLate => world.ms(1_000, LATE_MAX_MS),
            _ => world.ms(5, 300),
        };
        let arrival = self.arrival(request.clone(), fate, delay);
        let answer = match fate {
            Fate::Answered | Fate::FailedAfterwards => {
                // It arrives although its client may be gone by then.
                let (status, text) = tokio::spawn(arrival).await.unwrap();
                process.step(5, 100).await;
                if fate == Fate::FailedAfterwards { answer(500, "") } else { answer(status, text) }
            }
            Fate::Refused(status) => {
                process.step(5, 100).await;
                let retry_after = (status != 502).then(|| Duration::from_secs(world.below(5)));
                match answer(status, "") {
                    Answer::Response { status, envelope, ahead, .. } => {
                        Answer::Response { status, envelope, retry_after, ahead }
                    }
                    other => other,
                }
            }
            Fate::AnswerLost | Fate::DeliveredLate | Fate::NeverDelivered | Fate::NotSent => {
                tokio::spawn(arrival);
                let is_cut = world.below(2) == 0;
                process.step(5, 300).await;
                if !is_cut {
                    tokio::time::sleep_until(begun + TIMEOUT).await;
                }
                Answer::Lost("the connection was cut".to_owned())
            }
        };
        world.state().answered(&process.name, &request);
        answer
    }

    /// The arrival of a request at the API, in a while.
    fn arrival(
        &self,
        request: Request,
        fate: Fate,
        delay: Duration,
    ) -> impl Future<Output = (u16, &'static str)> + Send + 'static {
        let (world, run) = (self.process.world.clone(), self.process.name.clone());
        let failovers = world.state().failovers;
        async move {
            if matches!(fate, Fate::NeverDelivered) {
                return (0, "");
            }
            tokio::time::sleep(delay).await;
            // A failover that loses a lease loses its fence, so nothing can be promised of its late requests.
            if fate == Fate::DeliveredLate && world.state().failovers > failovers {
                return (0, "");
            }
            let (status, text) = world.state().arrive(&world, &request, &run);
            world.log(|| format!("API: {} of {run}: {status}", describe(&request)));
            (status, text)
        }
    }
}

impl Transport for Network {
    fn send(&self, signed: Signed) -> BoxFuture<'_, Answer> {
        self.deliver(signed).boxed()
    }
}

fn describe(request: &Request) -> String {
    let balances: Vec<i64> = request.records.iter().map(|record| record.balance).collect();
    if request.is_import { format!("import {balances:?}") } else { "the list call".to_owned() }
}

pub fn answer(status: u16, text: &str) -> Answer {
    let envelope = Envelope::read(text.as_bytes(), Some("application/json"));
    Answer::Response { status, envelope, retry_after: None, ahead: None }
}

impl State {
    fn next_request(&mut self) -> usize {
        self.api.requests += 1;
        self.api.requests
    }

    /// Notes that a process sends an import. No two imports of one process that have a key in common are in flight.
    pub fn sent(&mut self, process: &str, request: &Request) {
        let keys: BTreeSet<Key> = keys(request);
        let mut violation = None;
        for (number, others) in self.api.in_flight.entry(process.to_owned()).or_default() {
            if !keys.is_disjoint(others) {
                violation = Some(format!(
                    "{process} has two batches with one key in flight: request {number} and {}",
                    describe(request)
                ));
            }
        }
        for record in request.records.clone() {
            let versions = self.api.sent.entry((record.account, record.datetime)).or_default();
            if !versions.contains(&record.balance) {
                versions.push(record.balance);
            }
        }
        self.api.in_flight.entry(process.to_owned()).or_default().push((request.number, keys));
        if let Some(what) = violation {
            self.violated(what);
        }
    }

    pub fn answered(&mut self, process: &str, request: &Request) {
        let in_flight = self.api.in_flight.entry(process.to_owned()).or_default();
        if let Some(index) = in_flight.iter().position(|(number, _)| *number == request.number) {
            in_flight.swap_remove(index);
        }
    }

    /// A request arrives and is processed. Returns the status and the body of the answer.
    pub fn arrive(&mut self, world: &World, request: &Request, run: &str) -> (u16, &'static str) {
        let now = Instant::now();
        let age_ms = elven_sync::wall_clock::now().timestamp_millis() - request.signed_at_ms;
        let is_expired = age_ms.unsigned_abs() > u64::try_from(world.window.as_millis()).unwrap();
        if is_expired && !world.is(Sabotage::SignaturesNeverExpire) {
            return (401, r#"{"data":{"code":"EXPIRED","message":"the timestamp is too old"}}"#);
        }
        if world.happens(world.faults.key_revoked) {
            self.api.revoked_until = Some(now + world.ms(1_000, 20_000));
        }
        // A process keeps the key that it has read: a run that was refused once is refused to its end.
        let is_revoked =
            self.api.revoked_until.is_some_and(|until| now < until) || self.api.refused.contains(run);
        let is_known_good = self.api.proven.contains(run);
        if is_revoked && (request.is_import || !world.is(Sabotage::ProbeAlwaysGood)) {
            self.api.refused.insert(run.to_owned());
            // In the worst case the API says of a wrong key what it says of wrong records.
            let status = if is_known_good { 401 } else { 400 };
            return (status, r#"{"data":{"code":"KEY","message":"not you"}}"#);
        }
        if !request.is_import {
            self.api.proven.insert(run.to_owned());
            return (200, r#"{"data":{"list":[],"total":0}}"#);
        }
        let records = &request.records;
        if records.iter().any(|record| record.balance % POISON == POISON - 1) {
            return (500, "");
        }
        if records.iter().any(|record| record.account.starts_with("bad")) {
            return (400, r#"{"data":{"code":"ACCOUNT","message":"unknown account"}}"#);
        }
        for record in records.clone() {
            self.import(record);
        }
        *self.api.bodies.entry(hex::encode(Sha256::digest(&request.body))).or_default() += 1;
        self.api.proven.insert(run.to_owned());
        (200, r#"{"success":true}"#)
    }

    /// Nothing older arrives after something newer: no version that was sent first before the one that the API has.
    /// (Batches that a failover has lost are sent again, in their order.)
    fn import(&mut self, record: Record) {
        let key = (record.account, record.datetime);
        let sent = &self.api.sent[&key];
        let place = |balance| sent.iter().position(|version| *version == balance);
        let before = self.api.records.get(&key).copied();
        if let (Some(old), Some(new)) = (before.and_then(place), place(record.balance))
            && old > new
            && self.failovers == 0
        {
            let balance = record.balance;
            self.violated(format!(
                "balance {balance} of {key:?} overwrites {before:?}, which was sent after it"
            ));
        }
        self.api.records.insert(key, record.balance);
    }
}

fn keys(request: &Request) -> BTreeSet<Key> {
    request.records.iter().map(|record| (record.account.clone(), record.datetime.clone())).collect()
}

/// The API fails with 500 for a batch that contains this version.
pub fn is_poison(balance: i64) -> bool {
    balance % POISON == POISON - 1
}
