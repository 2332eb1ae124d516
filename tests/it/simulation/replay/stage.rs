//! Where a plan is played: on the models, or on PostgreSQL and the sandbox.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use sqlx::PgPool;

use elven_sync::database::Database;
use elven_sync::elven::Client;
use elven_sync::journal::{Journal, Kind, Lane, LaneStore};
use elven_sync::ledger::{LaneLedger, Ledger};
use elven_sync::sandbox::{Credential, Options, Sandbox};

use super::super::api::Key;
use super::super::journal::ModelJournal;
use super::super::ledger::{ModelLedger, entity_name};
use super::super::process::Process;
use super::super::world::{Faults, LEASE, Version, World};
use super::LONG;
use super::history::{Journaled, RecordedAs};
use super::network::Delivery;
use super::plan::{Write, known_accounts};

pub(super) struct Stage {
    pub(super) entity: usize,
    pub(super) entity_id: String,
    delivery: Delivery,
    reality: Option<Reality>,
}

/// The database of a plan.
#[derive(Clone)]
pub(super) struct Reality {
    pub(super) pool: PgPool,
    pub(super) database: Database,
    pub(super) ledger: Ledger,
}

/// A process that is to run the lane.
pub(super) struct Started {
    pub(super) journal: Arc<dyn LaneStore>,
    pub(super) ledger: Arc<dyn LaneLedger>,
    pub(super) run_id: i64,
    pub(super) seen: Lane,
    /// The process of the model.
    process: Option<Arc<Process>>,
}

impl Started {
    /// Nothing of the process acts any more.
    pub(super) fn end(&self) {
        if let Some(process) = &self.process {
            process.crashed.send_replace(true);
        }
    }
}

impl Stage {
    /// The models, in the runtime of the caller, whose time is paused.
    pub(super) fn of_models(entity: usize) -> Self {
        let mut world = World::new(0, Faults::default(), None, false);
        world.window = LONG;
        world.state().is_api_arbitrary = true;
        let delivery = Delivery::Model(Arc::new(world));
        Self { entity, entity_id: entity_name(entity), delivery, reality: None }
    }

    /// PostgreSQL, and a sandbox of its own.
    pub(super) async fn of_reality(entity: usize, reality: &Reality, key: Credential) -> Self {
        let options = Options {
            credentials: vec![key],
            accounts: Some(known_accounts().collect()),
            signature_window: LONG,
            ..Options::default()
        };
        let sandbox = Sandbox::start(options).await.unwrap();
        let client = Client::new(&sandbox.url().parse().unwrap(), Duration::from_mins(1)).unwrap();
        let entity_id = entity_name(entity);
        let add = "with entity as (
                       insert into elven_sync.entities (entity_id, timezone, credential) values ($1, 'UTC', 'default'))
                   insert into elven_sync.sync_state (entity_id) values ($1) on conflict do nothing";
        sqlx::query(add).bind(&entity_id).execute(&reality.pool).await.unwrap();
        let delivery = Delivery::Real(client, Arc::new(sandbox));
        Self { entity, entity_id, delivery, reality: Some(reality.clone()) }
    }

    pub(super) fn delivery(&self) -> &Delivery {
        &self.delivery
    }

    /// The client whose requests the network delivers.
    pub(super) fn client(&self) -> Client {
        match &self.delivery {
            Delivery::Model(_) => super::super::COMMON.client.clone(),
            Delivery::Real(client, _) => client.clone(),
        }
    }

    fn world(&self) -> Option<&Arc<World>> {
        if let Delivery::Model(world) = &self.delivery { Some(world) } else { None }
    }

    pub(super) async fn start(&self, name: String) -> Started {
        let name = format!("{name} of {}", self.entity_id);
        if let Some(world) = self.world() {
            let process = Process::start(world, name);
            let run_id = {
                let mut state = world.state();
                state.tables.runs += 1;
                state.tables.runs
            };
            return Started {
                journal: Arc::new(ModelJournal::start(&process)),
                ledger: Arc::new(ModelLedger::new(process.clone())),
                run_id,
                seen: world.state().lane(&self.entity_id),
                process: Some(process),
            };
        }
        let Reality { database, ledger, .. } = self.reality.as_ref().unwrap();
        let journal = Journal::open(database.clone(), name, LONG, LONG).await.unwrap();
        let run_id = journal.begin_run("incremental", "-").await.unwrap();
        let ids = [self.entity_id.clone()];
        let lanes = journal.lanes(&ids, ledger.mapping_json()).await.unwrap();
        Started {
            journal: Arc::new(journal),
            ledger: Arc::new(ledger.clone()),
            run_id,
            seen: lanes[&self.entity_id].clone(),
            process: None,
        }
    }

    /// Renews the leases of a process of the model, for as long as it runs. Those of the real journal last.
    pub(super) async fn renew(&self, started: &Started) {
        let (Some(world), Some(process)) = (self.world(), &started.process) else {
            return std::future::pending().await;
        };
        loop {
            tokio::time::sleep(LEASE / 3).await;
            world.state().renew(&process.name);
        }
    }

    /// A transaction of the ledger commits.
    pub(super) async fn write(&self, writes: &[Write]) {
        if let Some(world) = self.world() {
            let mut state = world.state();
            let xid = state.begin();
            for Write { id, account, captured_at_us, balance } in writes.iter().cloned() {
                let (account, is_committed) = (account.to_owned(), false);
                let entity = self.entity;
                let version = Version { xid, id, entity, account, captured_at_us, balance, is_committed };
                state.versions.push(version);
            }
            state.commit(xid);
            return;
        }
        let write = "insert into ledger.balance_snapshots
                            (id, entity_id, entity_account_id, currency, captured_at, balance)
                     overriding system value
                     select id, $1, account, 'BTC', timestamptz '2000-01-01Z' + us * interval '1 microsecond', balance
                       from unnest($2::bigint[], $3::text[], $4::bigint[], $5::bigint[]) w (id, account, us, balance)
                     on conflict (id) do update set balance = excluded.balance";
        sqlx::query(write)
            .bind(&self.entity_id)
            .bind(writes.iter().map(|write| write.id).collect::<Vec<_>>())
            .bind(writes.iter().map(|write| write.account).collect::<Vec<_>>())
            .bind(writes.iter().map(|write| write.captured_at_us).collect::<Vec<_>>())
            .bind(writes.iter().map(|write| write.balance).collect::<Vec<_>>())
            .execute(&self.reality.as_ref().unwrap().pool)
            .await
            .unwrap();
    }

    /// More time passes than any lease, signature or fence lasts. In the database its instants become older instead.
    pub(super) async fn pass_time(&self) {
        let Some(Reality { pool, .. }) = &self.reality else {
            return tokio::time::sleep(LEASE + 3 * LONG).await;
        };
        let shift = "update elven_sync.sync_state
                        set lease_expires_at = lease_expires_at - interval '4 hours',
                            fence_until = fence_until - interval '4 hours', not_before = not_before - interval '4 hours'
                      where entity_id = $1";
        sqlx::query(shift).bind(&self.entity_id).execute(pool).await.unwrap();
    }

    pub(super) async fn journaled(&self) -> Journaled {
        match (&self.delivery, &self.reality) {
            (Delivery::Real(..), Some(Reality { pool, .. })) => of_database(pool, &self.entity_id).await,
            (Delivery::Model(world), _) => of_model(world, &self.entity_id),
            (Delivery::Real(..), None) => unreachable!(),
        }
    }

    /// The balance of each key that the API has.
    pub(super) fn records(&self) -> BTreeMap<Key, i64> {
        match &self.delivery {
            Delivery::Model(world) => world.state().api.records.clone(),
            Delivery::Real(_, sandbox) => {
                let received = sandbox.received().into_iter();
                received.map(|r| ((r.entity_account_id, r.datetime), r.balance.parse().unwrap())).collect()
            }
        }
    }

    /// What the model saw that must not happen.
    pub(super) fn violation(&self) -> Option<String> {
        self.world().and_then(|world| world.state().violation.clone())
    }
}

fn of_model(world: &World, entity_id: &str) -> Journaled {
    let state = world.state();
    let tables = &state.tables;
    let place = |id: i64| tables.batches.iter().position(|batch| batch.batch_id == id);
    let batches = tables.batches.iter().map(|batch| {
        let mut row_ids = batch.ids.clone();
        row_ids.sort_unstable();
        RecordedAs {
            parent: batch.parent_id.and_then(place),
            is_of_pass: batch.pass_id.is_some(),
            row_ids,
            row_count: batch.row_count,
            body_sha256: batch.sha256.clone(),
            status: batch.status.to_owned(),
            attempts: batch.attempts,
            is_ambiguous: batch.ambiguous,
            unknown_runs: batch.unknown_runs,
        }
    });
    let lane = tables.lanes.get(entity_id).cloned().unwrap_or_default();
    let kind = |kind: &Kind| kind.as_ref().to_owned();
    Journaled {
        batches: batches.collect(),
        errors: tables.errors.iter().map(|((_, id), (of, _))| (*id, kind(of))).collect(),
        is_pass_open: lane.open.is_some(),
        cursor: lane.cursor.map(|cursor| cursor.id),
    }
}

/// A row of `sync_batches`.
#[derive(sqlx::FromRow)]
struct BatchColumns {
    batch_id: i64,
    parent_id: Option<i64>,
    is_of_pass: bool,
    row_ids: Vec<i64>,
    row_count: i32,
    body_sha256: String,
    status: String,
    attempts: i32,
    ambiguous: bool,
    unknown_runs: i32,
}

async fn of_database(pool: &PgPool, entity_id: &str) -> Journaled {
    let batches = "select batch_id, parent_id, pass_id is not null as is_of_pass, row_count, body_sha256, status,
                          attempts, ambiguous, unknown_runs,
                          array(select id::bigint from elven_sync.batch_row_ids(batch_id) id order by 1) as row_ids
                     from elven_sync.sync_batches where entity_id = $1 order by batch_id";
    let batches: Vec<BatchColumns> = sqlx::query_as(batches).bind(entity_id).fetch_all(pool).await.unwrap();
    let errors = "select id::bigint, kind from elven_sync.sync_errors, elven_sync.error_row_ids(error_id) id
                   where entity_id = $1 and resolved_at is null";
    let errors: Vec<(i64, String)> = sqlx::query_as(errors).bind(entity_id).fetch_all(pool).await.unwrap();
    let lane = "select pass_id is not null, cursor_id from elven_sync.sync_state where entity_id = $1";
    let (is_pass_open, cursor) = sqlx::query_as(lane).bind(entity_id).fetch_one(pool).await.unwrap();
    let place = |id: i64| batches.iter().position(|batch| batch.batch_id == id);
    let recorded = batches.iter().map(|batch| RecordedAs {
        parent: batch.parent_id.and_then(place),
        is_of_pass: batch.is_of_pass,
        row_ids: batch.row_ids.clone(),
        row_count: batch.row_count,
        body_sha256: batch.body_sha256.clone(),
        status: batch.status.clone(),
        attempts: batch.attempts,
        is_ambiguous: batch.ambiguous,
        unknown_runs: batch.unknown_runs,
    });
    Journaled { batches: recorded.collect(), errors: errors.into_iter().collect(), is_pass_open, cursor }
}
