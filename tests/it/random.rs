//! The promise of the watermark, for any actions of the sessions, drawn from a seed. `ELVEN_SEEDS=2000` takes that
//! many seeds, `ELVEN_SEED=17` repeats one: the same actions in the same order, though server and connector keep
//! their own timing.

mod connector;
mod sessions;

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, resume_unwind};
use std::time::Duration;

use elven_sync::audit::{EntityProof, verify};
use elven_sync::config::Settings;
use elven_sync::database::Database;
use elven_sync::journal::RunStatus;
use elven_sync::sync::Ended;
use elven_sync::watermark::Snapshot;
use fastrand::Rng;
use futures_util::{FutureExt, StreamExt, stream};
use sqlx::{AssertSqlSafe, Connection, PgConnection, PgPool};
use tokio::sync::Mutex;

use self::connector::{Connector, Connectors};
use self::sessions::{Owner, Sessions};
use crate::support::{PARTS, TestEnv, variable};

const SEEDS: i64 = 200;
/// Number of seeds at once, each an entity of one database.
const AT_ONCE: usize = 8;
const STEPS: usize = 50;
/// Number of steps after which `verify` runs, while sessions and a run may be in the middle of something.
const PROVEN_EVERY: usize = 17;
/// Number of accounts and balances that a seed may use.
const NUMBERS: i64 = 10_000;

#[sqlx::test(migrations = false)]
async fn random_sessions_lose_no_row(pool: PgPool) {
    let mut scene = TestEnv::new(pool).await;
    scene.sql(PARTS).await;
    // The heartbeat of a run that dies inside this process continues, so it must never be due.
    scene.set("ELVEN_SYNC_SYNC__LEASE", "1h");
    let one = variable("ELVEN_SEED");
    let first = one.unwrap_or(0);
    let seeds = first..first + variable("ELVEN_SEEDS").unwrap_or(if one.is_some() { 1 } else { SEEDS });
    println!("seeds {seeds:?}");
    let next = Mutex::new(seeds);
    let work = async |_| {
        let mut observer = PgConnection::connect(&scene.url).await.unwrap();
        let mut sessions = Sessions::open(&scene.url).await;
        let mut connectors = Connectors::open(&scene).await;
        let prover = scene.database(2).await;
        while let Some(number) = { next.lock().await.next() } {
            let trial = async {
                let mut seed =
                    Seed::begin(&scene, (&mut observer, &prover), &mut sessions, &mut connectors, number)
                        .await;
                seed.steps().await;
                seed.end().await;
            };
            let trial = tokio::time::timeout(Duration::from_mins(1), trial)
                .map(|done| done.expect("a seed is done in time"));
            if let Err(panic) = AssertUnwindSafe(trial).catch_unwind().await {
                println!("that was seed {number}; to repeat it: ELVEN_SEED={number}");
                resume_unwind(panic);
            }
        }
        connectors.close().await;
        prover.close().await;
    };
    stream::iter(0..AT_ONCE).for_each_concurrent(None, work).await;
    let done = "select format('%s runs, %s passes, %s batches, %s of them repeated', count(*),
                              (select count(*) from elven_sync.sync_passes), (select count(*) from elven_sync.sync_batches),
                              (select count(*) from elven_sync.sync_batches where ambiguous)) from elven_sync.sync_runs";
    println!("{}", scene.text(done).await);
}

/// The watermark, account and balance of a row that it covers, and the place of both.
type CoveredRow = (Option<String>, Option<i64>, Option<i64>, String);

/// One seed: an entity, its owner and its connector.
struct Seed<'a> {
    entity_id: String,
    table: &'static str,
    step: usize,
    random: Rng,
    observer: &'a mut PgConnection,
    /// Verifies from the journal that no row was skipped.
    prover: &'a Database,
    settings: Settings,
    owner: Owner<'a>,
    connector: Connector<'a>,
    /// Accounts and balances in order of arrival.
    received: Vec<(i64, i64)>,
    /// The value of [`Connector::accepted`] when these were read.
    accepted: u64,
    settled: Option<Snapshot>,
}

impl<'a> Seed<'a> {
    async fn begin(
        scene: &'a TestEnv,
        (observer, prover): (&'a mut PgConnection, &'a Database),
        sessions: &'a mut Sessions,
        connectors: &'a mut Connectors,
        number: i64,
    ) -> Self {
        let mut random = Rng::with_seed(number.unsigned_abs());
        let entity_id = format!("seed-{number}");
        scene.entity(&entity_id, "UTC").await;
        // A batch has to hold a tie.
        let (table, batch_rows) = match number % 4 {
            0 => ("ledger.parts", random.usize(3..6)),
            _ => ("ledger.balance_snapshots", random.usize(1..6)),
        };
        let owner = Owner::new(&entity_id, table, number * NUMBERS, sessions, random.fork());
        let connector = Connector::new(scene, connectors, &entity_id, (table, batch_rows), random.fork());
        Self {
            entity_id,
            table,
            step: 0,
            random,
            observer,
            prover,
            settings: scene.settings(&[("ELVEN_SYNC_LEDGER__TABLE", table)]),
            owner,
            connector,
            received: Vec::new(),
            accepted: 0,
            settled: None,
        }
    }

    async fn steps(&mut self) {
        while self.step < STEPS {
            self.step += 1;
            match self.random.u8(..10) {
                0..6 => self.owner.act().await,
                6 => self.owner.end_prepared(self.observer).await,
                _ => self.connector.act(self.observer).await,
            }
            self.check().await;
        }
    }

    /// Checks the invariants that hold at any moment.
    async fn check(&mut self) {
        let step = self.step;
        // In one statement, and before the sandbox is read, whose records only grow.
        let sql = format!(
            "select s.settled::text, t.entity_account_id::bigint, t.balance::bigint,
                    concat_ws(' ', t.change_xid, t.id, 'settled', s.settled, 'target', s.target,
                              'cursor', s.cursor_xid, s.cursor_id)
               from elven_sync.sync_state s
               left join {} t on t.entity_id = s.entity_id
                    and (pg_visible_in_snapshot(t.change_xid, s.settled)
                         or (pg_visible_in_snapshot(t.change_xid, s.target)
                             and (t.change_xid, t.id) <= (s.cursor_xid, s.cursor_id::bigint)))
              where s.entity_id = $1",
            self.table
        );
        let covered: Vec<CoveredRow> = sqlx::query_as(AssertSqlSafe(sql))
            .bind(&self.entity_id)
            .fetch_all(&mut *self.observer)
            .await
            .unwrap();
        self.receive();
        let received: BTreeSet<&(i64, i64)> = self.received.iter().collect();
        for (account, balance) in &received {
            assert!(
                self.owner.committed.get(balance) == Some(account),
                "step {step}: balance {balance} of account {account} was sent, and never committed"
            );
        }
        for (settled, account, balance, place) in covered {
            if let Some(version) = account.zip(balance) {
                assert!(
                    received.contains(&version),
                    "step {step}: (account, balance) {version:?} is behind the watermark, and was not sent: {place}"
                );
            }
            let settled: Option<Snapshot> = settled.map(|text| text.parse().unwrap());
            if let Some(before) = &self.settled {
                let contains_all = settled.as_ref().is_some_and(|now| {
                    now.xmax() >= before.xmax() && now.running().iter().all(|xid| !before.contains(*xid))
                });
                assert!(contains_all, "step {step}: the watermark went back from {before}: {place}");
            }
            self.settled = settled;
        }
        if step.is_multiple_of(PROVEN_EVERY) || step > STEPS {
            let proof = verify(&self.settings, self.prover, std::slice::from_ref(&self.entity_id), true, &[]);
            let proof = proof.await.unwrap();
            assert!(proof.entities.iter().all(EntityProof::holds), "step {step}: {proof:?}");
        }
    }

    fn receive(&mut self) {
        let accepted = self.connector.accepted();
        if self.accepted < accepted {
            self.accepted = accepted;
            self.received =
                self.connector.received().filter(|(account, _)| self.owner.owns(*account)).collect();
        }
    }

    /// Checks the invariants that hold after all transactions have ended and all faults are over.
    async fn end(mut self) {
        self.owner.end_all(self.observer).await;
        self.connector.finish_run(self.observer).await;
        loop {
            self.step += 1;
            let report = self.connector.run_to_end(self.observer).await;
            self.check().await;
            if report.status == RunStatus::Succeeded {
                // A run leaves rows that its own attempt fenced to the next run.
                let is_fenced = matches!(report.entities[0].ended, Ended::Fenced(_));
                assert_eq!(report.entities[0].rows_pending != Some(0), is_fenced);
                if !is_fenced {
                    break;
                }
            }
        }
        let sql = format!(
            "select entity_account_id::bigint, balance::bigint from {} where entity_id = $1",
            self.table
        );
        let ledger: Vec<(i64, i64)> = sqlx::query_as(AssertSqlSafe(sql))
            .bind(&self.entity_id)
            .fetch_all(&mut *self.observer)
            .await
            .unwrap();
        let ledger: BTreeMap<i64, i64> = ledger.into_iter().collect();
        assert_eq!(ledger, self.owner.current, "the test knows its ledger");
        let last: BTreeMap<i64, i64> = self.received.iter().copied().collect();
        assert_eq!(last, ledger, "what each account received last, and what the ledger holds");
        let state = "select concat_ws(' ', pass_id, target, cursor_xid, nullif(pending_rows, 0),
                            (select string_agg(status, ' ') from elven_sync.sync_batches b
                              where b.entity_id = s.entity_id and status in ('sending', 'unknown'))),
                            rows_uploaded
                       from elven_sync.sync_state s where s.entity_id = $1";
        let (open, uploaded): (String, i64) =
            sqlx::query_as(state).bind(&self.entity_id).fetch_one(&mut *self.observer).await.unwrap();
        assert_eq!(open, "", "a pass is open, rows are pending or the outcome of a batch is");
        let versions = self.received.iter().collect::<BTreeSet<_>>().len();
        assert!(
            uploaded <= versions.try_into().unwrap(),
            "{uploaded} uploads of {versions} versions: without the repeats, one belongs to two passes or batches"
        );
    }
}
