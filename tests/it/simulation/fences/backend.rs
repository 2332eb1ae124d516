//! The two journals of the cases: the real one over a database, and the model.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use elven_sync::journal::{Journal, Lane, LaneStore, NewPass};
use elven_sync::ledger::Ledger;

use super::super::journal::ModelJournal;
use super::super::process::Process;
use super::super::world::{Faults, LEASE, Sabotage, WINDOW, World};
use super::Worker;
use crate::support::TestEnv;

/// Leases and signatures of the real journal do not expire in real time: a case says when they do.
const LONG: Duration = Duration::from_hours(1);

pub(super) enum Backend {
    Real(Box<RealBackend>),
    Model(ModelBackend),
}

pub(super) struct RealBackend {
    scene: TestEnv,
    journals: [Journal; 2],
    ledger: Ledger,
    run_id: i64,
}

pub(super) struct ModelBackend {
    world: Arc<World>,
    journals: [ModelJournal; 2],
}

/// The caller replaces it by the state of the entity.
static NOTHING_SEEN: LazyLock<Lane> = LazyLock::new(Lane::default);

impl RealBackend {
    pub(super) async fn open(scene: TestEnv) -> Self {
        let database = scene.database(8).await;
        let open = async |worker: &str| {
            Journal::open(database.clone(), worker.to_owned(), LONG, LONG).await.unwrap()
        };
        let journals = [open("a").await, open("b").await];
        let ledger = Ledger::open(database.clone(), None, &scene.settings(&[])).await.unwrap();
        let run_id = journals[0].begin_run("incremental", "-").await.unwrap();
        Self { scene, journals, ledger, run_id }
    }
}

impl ModelBackend {
    pub(super) fn start(sabotage: Option<Sabotage>) -> Self {
        let world = Arc::new(World::new(0, Faults::default(), sabotage, false));
        let journals = ["a", "b"].map(|name| ModelJournal::start(&Process::start(&world, name.to_owned())));
        Self { world, journals }
    }
}

impl Backend {
    pub(super) fn journal(&self, worker: Worker) -> &dyn LaneStore {
        match self {
            Self::Real(real) => &real.journals[worker as usize],
            Self::Model(model) => &model.journals[worker as usize],
        }
    }

    pub(super) fn run_id(&self) -> i64 {
        if let Self::Real(real) = self { real.run_id } else { 1 }
    }

    pub(super) fn opening(&self) -> NewPass<'_> {
        let (run_id, seen) = (self.run_id(), &*NOTHING_SEEN);
        match self {
            Self::Real(real) => NewPass {
                run_id,
                seen,
                ledger_table: real.ledger.name(),
                relation: real.ledger.mapping().relation.oid,
                mapping: real.ledger.mapping_json(),
            },
            Self::Model(_) => {
                NewPass { run_id, seen, ledger_table: "ledger.balance_snapshots", relation: 1, mapping: "{}" }
            }
        }
    }

    /// Registers an entity.
    pub(super) async fn add(&self, entity_id: &str) {
        if let Self::Real(real) = self {
            real.scene.entity(entity_id, "UTC").await;
            // The first attempt to take a lease would do the same.
            let add = "insert into elven_sync.sync_state (entity_id) values ($1) on conflict do nothing";
            sqlx::query(add).bind(entity_id).execute(&real.scene.pool).await.unwrap();
        }
    }

    pub(super) async fn let_lease_expire(&self, entity_id: &str) {
        match self {
            Self::Real(real) => {
                let expire = "update elven_sync.sync_state
                                 set lease_expires_at = clock_timestamp() - interval '1 second'
                               where entity_id = $1 and lease_owner is not null";
                sqlx::query(expire).bind(entity_id).execute(&real.scene.pool).await.unwrap();
            }
            Self::Model(_) => tokio::time::sleep(LEASE + Duration::from_millis(200)).await,
        }
    }

    pub(super) async fn let_signatures_expire(&self, entity_id: &str) {
        match self {
            Self::Real(real) => {
                let expire = "update elven_sync.sync_state
                                 set lease_expires_at = lease_expires_at - interval '3 hours',
                                     fence_until = fence_until - interval '3 hours'
                               where entity_id = $1";
                sqlx::query(expire).bind(entity_id).execute(&real.scene.pool).await.unwrap();
            }
            Self::Model(_) => tokio::time::sleep(LEASE + 3 * WINDOW).await,
        }
    }

    /// Makes a batch look as before its answer.
    pub(super) async fn lose_answer(&self, batch_id: i64) {
        match self {
            Self::Real(real) => {
                let lose = "update elven_sync.sync_batches set status = 'sending', finished_at = null
                             where batch_id = $1";
                sqlx::query(lose).bind(batch_id).execute(&real.scene.pool).await.unwrap();
            }
            Self::Model(ModelBackend { world, .. }) => {
                let mut state = world.state();
                let batch = state.tables.batches.iter_mut().find(|batch| batch.batch_id == batch_id);
                batch.unwrap().status = "sending";
            }
        }
    }
}
