//! The connector, which may die between any two steps, and the API, which may fail.

use std::collections::HashMap;
use std::future::poll_fn;
use std::panic::resume_unwind;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use elven_sync::sandbox::{Credential, Fault, Gate, Options, Received, Sandbox};
use elven_sync::sync::{RunReport, Worker};
use fastrand::Rng;
use secrecy::ExposeSecret;
use sqlx::{PgConnection, PgPool};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::support::{KEY, SECRET, TestEnv};

/// A sandbox and connections that serve one entity after another.
pub struct Connectors {
    sandbox: Sandbox,
    pool: PgPool,
    /// Workers by the table of the ledger and the number of rows in a batch.
    workers: HashMap<(&'static str, usize), Worker>,
}

impl Connectors {
    pub async fn open(scene: &TestEnv) -> Self {
        let options = Options {
            credentials: vec![Credential::new("default", KEY, SECRET)],
            // More requests than one entity has: all kept requests are read each time.
            keep_records_max: 2000,
            ..Options::default()
        };
        Self {
            sandbox: Sandbox::start(options).await.unwrap(),
            pool: PgPool::connect(scene.settings(&[]).database_url().unwrap().expose_secret()).await.unwrap(),
            workers: HashMap::new(),
        }
    }

    async fn worker(&mut self, scene: &TestEnv, table: &'static str, batch_rows: usize) -> Worker {
        if let Some(worker) = self.workers.get(&(table, batch_rows)) {
            return worker.clone();
        }
        let settings = scene.settings(&[
            ("ELVEN_API_URL", &self.sandbox.url()),
            ("ELVEN_SYNC_LEDGER__TABLE", table),
            ("ELVEN_SYNC_SYNC__BATCH_ROWS", &batch_rows.to_string()),
        ]);
        let worker = Worker::open(settings, self.pool.clone().into(), watch::channel(false).1).await.unwrap();
        self.workers.insert((table, batch_rows), worker.clone());
        worker
    }

    pub async fn close(self) {
        self.pool.close().await;
    }
}

/// The connector of one entity.
pub struct Connector<'a> {
    entity_id: String,
    worker: Worker,
    connectors: &'a Connectors,
    random: Rng,
    /// The current run, which returns `None` when it dies.
    run: Option<JoinHandle<Option<RunReport>>>,
    gates: Vec<Gate>,
}

impl<'a> Connector<'a> {
    pub async fn new(
        scene: &TestEnv,
        connectors: &'a mut Connectors,
        entity_id: &str,
        (table, batch_rows): (&'static str, usize),
        random: Rng,
    ) -> Self {
        let worker = connectors.worker(scene, table, batch_rows).await;
        Self { entity_id: entity_id.to_owned(), worker, connectors, random, run: None, gates: Vec::new() }
    }

    /// Returns the number of records that the API has accepted, of all entities.
    pub fn accepted(&self) -> u64 {
        self.connectors.sandbox.records_accepted()
    }

    /// Returns the accounts and balances that the API accepted, of all entities, in order of arrival.
    pub fn received(&self) -> impl Iterator<Item = (i64, i64)> + use<> {
        let version = |r: Received| (r.entity_account_id.parse().unwrap(), r.balance.parse().unwrap());
        self.connectors.sandbox.received().into_iter().map(version)
    }

    /// Starts a run, advances the current one, or ends it.
    pub async fn act(&mut self, session: &mut PgConnection) {
        let Some(run) = &self.run else {
            self.inject_faults();
            // To die after a number of polls is to die between any two steps.
            let polls = if self.random.bool() { self.random.usize(..150) } else { usize::MAX };
            return self.begin_run(polls);
        };
        match self.random.u8(..10) {
            0..2 => run.abort(),
            2..4 => self.open_gates(),
            _ => {
                tokio::time::sleep(Duration::from_millis(self.random.u64(..4))).await;
                if !run.is_finished() {
                    return;
                }
            }
        }
        self.end_run(session).await;
    }

    /// Lets the current run end.
    pub async fn finish_run(&mut self, session: &mut PgConnection) {
        self.open_gates();
        self.end_run(session).await;
    }

    /// Executes a run to its end. Only faults that were injected earlier can stop it.
    pub async fn run_to_end(&mut self, session: &mut PgConnection) -> RunReport {
        self.begin_run(usize::MAX);
        self.end_run(session).await.unwrap()
    }

    /// Injects faults for the next requests.
    fn inject_faults(&mut self) {
        for _ in 0..self.random.u8(..3) {
            let gate = Gate::new();
            let answer = |status| Fault::Answer { status, body: String::new(), headers: Vec::new() };
            self.connectors.sandbox.inject(match self.random.u8(..8) {
                0 => Fault::FailAfterWrite { status: 500 },
                1 => Fault::CutAfterWrite,
                2 => answer(429),
                3 => answer(500),
                4..6 => Fault::HoldResponse(gate.clone()),
                _ => {
                    // None: the next fault affects a later request.
                    gate.open();
                    Fault::HoldResponse(gate.clone())
                }
            });
            self.gates.push(gate);
        }
    }

    fn open_gates(&mut self) {
        self.gates.drain(..).for_each(|gate| gate.open());
    }

    /// Starts a run that dies after a number of polls.
    fn begin_run(&mut self, mut polls: usize) {
        let (worker, entity_id) = (self.worker.clone(), self.entity_id.clone());
        self.run = Some(tokio::spawn(async move {
            let mut run = pin!(worker.run(std::slice::from_ref(&entity_id)));
            poll_fn(|context| {
                if polls == 0 {
                    return Poll::Ready(None);
                }
                polls -= 1;
                run.as_mut().poll(context).map(|report| Some(report.unwrap()))
            })
            .await
        }));
    }

    /// Waits for the end of the run. Returns its report unless the run died.
    async fn end_run(&mut self, session: &mut PgConnection) -> Option<RunReport> {
        let report = match self.run.take()?.await {
            Ok(report) => report,
            Err(died) if died.is_cancelled() => None,
            Err(died) => resume_unwind(died.into_panic()),
        };
        self.open_gates();
        if report.is_none() {
            self.end_transactions().await;
            // Simulates that the lease has expired, so that another worker may take over.
            let sql = "update elven_sync.sync_state set lease_owner = 'one that died',
                              lease_expires_at = clock_timestamp() - interval '1 hour'
                        where entity_id = $1 and lease_owner is not null";
            sqlx::query(sql).bind(&self.entity_id).execute(session).await.unwrap();
        }
        report
    }

    /// Waits until the connections that a dead run left in use are closed.
    async fn end_transactions(&self) {
        let pool = &self.connectors.pool;
        while pool.num_idle() < pool.size() as usize {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}
