//! The connector, which may die between any two steps, and the API, which may fail.

use std::collections::HashMap;
use std::future::poll_fn;
use std::panic::resume_unwind;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use elven_sync::database::Database;
use elven_sync::sandbox::{Credential, Fault, Gate, Options, Received, Sandbox};
use elven_sync::sync::{RunReport, Worker};
use fastrand::Rng;
use secrecy::ExposeSecret;
use sqlx::PgConnection;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::support::{KEY, SECRET, TestEnv};

/// The name that the next worker has at the database. Each has another one.
static NAMES: AtomicUsize = AtomicUsize::new(0);

/// A sandbox and workers that serve one entity after another.
pub struct Connectors {
    sandbox: Sandbox,
    options: PgConnectOptions,
    /// By the table of the ledger and the number of rows in a batch.
    workers: HashMap<(&'static str, usize), OpenWorker>,
}

/// A worker, and its connections, which have a name of their own.
#[derive(Clone)]
struct OpenWorker {
    worker: Worker,
    database: Database,
    name: String,
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
            options: scene.settings(&[]).database_url().unwrap().expose_secret().parse().unwrap(),
            workers: HashMap::new(),
        }
    }

    async fn worker(&mut self, scene: &TestEnv, table: &'static str, batch_rows: usize) -> OpenWorker {
        if let Some(worker) = self.workers.get(&(table, batch_rows)) {
            return worker.clone();
        }
        let settings = scene.settings(&[
            ("ELVEN_API_URL", &self.sandbox.url()),
            ("ELVEN_SYNC_LEDGER__TABLE", table),
            ("ELVEN_SYNC_SYNC__BATCH_ROWS", &batch_rows.to_string()),
        ]);
        let name = format!("worker {}", NAMES.fetch_add(1, Ordering::Relaxed));
        let options = self.options.clone().application_name(&name);
        let database = Database::from(PgPoolOptions::new().connect_lazy_with(options));
        let worker = Worker::open(settings, database.clone(), watch::channel(false).1).await.unwrap();
        let open = OpenWorker { worker, database, name };
        self.workers.insert((table, batch_rows), open.clone());
        open
    }

    pub async fn close(self) {
        for open in self.workers.into_values() {
            open.database.close().await;
        }
    }
}

/// The connector of one entity.
pub struct Connector<'a> {
    entity_id: String,
    scene: &'a TestEnv,
    connectors: &'a mut Connectors,
    table: &'static str,
    batch_rows: usize,
    random: Rng,
    /// The current run, which returns `None` when it dies.
    run: Option<JoinHandle<Option<RunReport>>>,
    gates: Vec<Gate>,
}

impl<'a> Connector<'a> {
    pub fn new(
        scene: &'a TestEnv,
        connectors: &'a mut Connectors,
        entity_id: &str,
        (table, batch_rows): (&'static str, usize),
        random: Rng,
    ) -> Self {
        let (entity_id, run, gates) = (entity_id.to_owned(), None, Vec::new());
        Self { entity_id, scene, connectors, table, batch_rows, random, run, gates }
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
            return self.begin_run(polls).await;
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
        self.begin_run(usize::MAX).await;
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
    async fn begin_run(&mut self, mut polls: usize) {
        let worker = self.connectors.worker(self.scene, self.table, self.batch_rows).await.worker;
        let entity_id = self.entity_id.clone();
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
            self.end_worker(session).await;
            // Simulates that the lease has expired, so that another worker may take over.
            let sql = "update elven_sync.sync_state set lease_owner = 'one that died',
                              lease_expires_at = clock_timestamp() - interval '1 hour'
                        where entity_id = $1 and lease_owner is not null";
            sqlx::query(sql).bind(&self.entity_id).execute(session).await.unwrap();
        }
        report
    }

    /// Ends the worker of a run that died, and waits until the server has ended the worker's transactions: a commit
    /// that was sent may still take effect, e.g. that of a lease.
    async fn end_worker(&mut self, session: &mut PgConnection) {
        let Some(open) = self.connectors.workers.remove(&(self.table, self.batch_rows)) else { return };
        let OpenWorker { worker, database, name } = open;
        drop(worker);
        database.close().await;
        let sql = "select count(*) from pg_stat_activity where application_name = $1";
        let mut connected =
            async || sqlx::query_scalar::<_, i64>(sql).bind(&name).fetch_one(&mut *session).await.unwrap();
        while connected().await > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}
