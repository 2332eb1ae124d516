//! The checks of the journal: everything that was done is recorded, once, and in order.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use elven_sync::watermark::Snapshot;
use sqlx::{FromRow, PgConnection};

use super::checks::{Version, assert_none};

#[derive(Debug, FromRow)]
pub struct Batch {
    id: i64,
    parent_id: Option<i64>,
    pass_id: i64,
    pub status: String,
    pub row_count: i32,
    rows_read: i32,
    pub body_sha256: String,
    pub ambiguous: bool,
    before: Option<String>,
    last: String,
    row_ids: Vec<i64>,
}

impl Batch {
    /// Whether the batch was sent itself, and not in parts.
    fn is_leaf(&self) -> bool {
        self.status != "split"
    }

    fn is_done(&self) -> bool {
        matches!(self.status.as_str(), "accepted" | "split")
            || (self.status == "rejected" && self.row_count == 0)
    }
}

#[derive(Debug, FromRow)]
struct Pass {
    id: i64,
    entity_id: String,
    settled: Option<String>,
    target: String,
    is_finished: bool,
}

pub struct Journal {
    pub batches: BTreeMap<i64, Batch>,
    /// Passes by entity, in order.
    passes: HashMap<String, Vec<(Pass, Snapshot)>>,
    /// Kinds of errors by entity and row.
    open_errors: HashMap<(String, String), String>,
    /// Batches that list a row, by pass and row.
    lists: HashMap<(i64, i64), Vec<i64>>,
}

/// Violations that must not exist after the faults: a query that returns a description of each.
const WRONG: [(&str, &str); 6] = [
    (
        "a state is not at rest",
        "select s::text from elven_sync.sync_state s
          where pass_id is not null or pending_rows <> 0 or last_error is not null or consecutive_failures <> 0
             or lease_expires_at > clock_timestamp()",
    ),
    (
        "a watermark is not where the last pass ends",
        "select s::text from elven_sync.sync_state s
          where settled::text is distinct from (select target::text from elven_sync.sync_passes p
                                                 where p.entity_id = s.entity_id order by pass_id desc limit 1)",
    ),
    ("a run is not over", "select r::text from elven_sync.sync_runs r where status = 'running'"),
    (
        "a lane has an error",
        "select e::text from elven_sync.sync_errors e
          where resolved_at is null and ledger_id is null and ledger_ids is null",
    ),
    (
        "states and batches count differently",
        "select concat_ws(' ', entity_id, rows_uploaded, counted)
           from (select s.entity_id, s.rows_uploaded,
                        coalesce((select sum(row_count) from elven_sync.sync_batches b
                                   where b.entity_id = s.entity_id and status = 'accepted'), 0) as counted
                   from elven_sync.sync_state s) s
          where rows_uploaded <> counted",
    ),
    (
        "runs and batches count differently",
        "select concat_ws(' ', r, b)
           from (select row(sum(rows_read), sum(rows_uploaded), sum(rows_rejected), sum(rows_superseded))::text as r
                   from elven_sync.sync_runs) r,
                (select row(sum(rows_read), sum(row_count), sum(rows_rejected), sum(rows_superseded))::text as b
                   from elven_sync.sync_batches where status in ('accepted', 'rejected')) b
          where r <> b",
    ),
];

impl Journal {
    pub async fn read(database: &mut PgConnection) -> Self {
        let batches: Vec<Batch> = sqlx::query_as(
            "select batch_id as id, parent_id, pass_id, status, row_count, rows_read, body_sha256, ambiguous,
                    before_xid || ' ' || before_id as before, last_xid || ' ' || last_id as last,
                    array(select elven_sync.batch_row_ids(batch_id)::bigint) as row_ids
               from elven_sync.sync_batches order by batch_id",
        )
        .fetch_all(&mut *database)
        .await
        .unwrap();
        let passes: Vec<Pass> = sqlx::query_as(
            "select pass_id as id, entity_id, settled::text, target::text, finished_at is not null as is_finished
               from elven_sync.sync_passes order by pass_id",
        )
        .fetch_all(&mut *database)
        .await
        .unwrap();
        let errors: Vec<(String, String, String)> = sqlx::query_as(
            // A refused account is held once three of its records were refused: the API lists no accounts.
            "select e.entity_id, r.id, case e.kind when 'unknown_account' then 'rejected_row' else e.kind end
               from elven_sync.sync_errors e cross join elven_sync.error_row_ids(e.error_id) r (id)
              where e.resolved_at is null",
        )
        .fetch_all(&mut *database)
        .await
        .unwrap();
        let mut of_entity: HashMap<String, Vec<(Pass, Snapshot)>> = HashMap::new();
        for pass in passes {
            let target = pass.target.parse().unwrap();
            of_entity.entry(pass.entity_id.clone()).or_default().push((pass, target));
        }
        let mut lists: HashMap<(i64, i64), Vec<i64>> = HashMap::new();
        for batch in batches.iter().filter(|batch| batch.is_leaf()) {
            for id in &batch.row_ids {
                lists.entry((batch.pass_id, *id)).or_default().push(batch.id);
            }
        }
        Self {
            batches: batches.into_iter().map(|batch| (batch.id, batch)).collect(),
            passes: of_entity,
            open_errors: errors.into_iter().map(|(entity, id, kind)| ((entity, id), kind)).collect(),
            lists,
        }
    }

    /// Returns the kind of the open error of a row.
    pub fn open_error(&self, version: &Version) -> Option<&str> {
        self.open_errors.get(&(version.entity_id.clone(), version.id.to_string())).map(String::as_str)
    }

    /// Returns the undivided batch that a batch is a part of.
    pub fn root(&self, mut batch_id: i64) -> i64 {
        while let Some(parent_id) = self.batches[&batch_id].parent_id {
            batch_id = parent_id;
        }
        batch_id
    }

    /// Returns the pass that a version belongs to, by the transaction that wrote it.
    fn pass(&self, version: &Version) -> Option<i64> {
        let passes = self.passes.get(&version.entity_id)?;
        let xid = version.xid.cast_unsigned();
        let first = passes.partition_point(|(_, target)| !target.contains(xid));
        passes.get(first).map(|(pass, _)| pass.id)
    }

    /// Returns the pass and the undivided batch that processed a version.
    pub fn place(&self, version: &Version) -> Option<(i64, i64)> {
        let pass_id = self.pass(version)?;
        let batch_id = self.lists.get(&(pass_id, version.id))?.first()?;
        Some((pass_id, self.root(*batch_id)))
    }

    pub async fn check(&self, database: &mut PgConnection, versions: &[Version]) {
        for (what, sql) in WRONG {
            assert_none(what, sqlx::query_scalar(sql).fetch_all(&mut *database).await.unwrap());
        }
        let unfinished = self.batches.values().filter(|batch| !batch.is_done());
        assert_none("a batch is not done", unfinished.map(|batch| format!("{batch:?}")).collect());
        self.check_passes();
        self.check_lists(versions);
    }

    /// The passes of an entity form a chain, and so do the batches of a pass.
    fn check_passes(&self) {
        let mut wrong = Vec::new();
        for passes in self.passes.values() {
            let mut before: Option<&(Pass, Snapshot)> = None;
            for pass in passes {
                let chains = pass.0.settled.as_ref() == before.map(|(before, _)| &before.target)
                    && before.is_none_or(|(_, target)| target.is_within(&pass.1));
                if !chains || !pass.0.is_finished {
                    wrong.push(format!("{:?} behind {before:?}", pass.0));
                }
                before = Some(pass);
            }
        }
        let mut ends: HashMap<i64, &str> = HashMap::new();
        for batch in self.batches.values() {
            if batch.parent_id.is_none() {
                let before = ends.insert(batch.pass_id, &batch.last);
                if batch.before.as_deref() != before {
                    wrong.push(format!("{batch:?} begins not where the one before it ends: {before:?}"));
                }
            } else if self.batches[&self.root(batch.id)].last != batch.last {
                wrong.push(format!("{batch:?} ends not where the whole does"));
            }
        }
        assert_none("passes or batches do not chain", wrong);
    }

    /// Each row is in the list of one batch of its pass, and no list has a row of another pass.
    fn check_lists(&self, versions: &[Version]) {
        let mut wrong = Vec::new();
        let mut of_passes: BTreeSet<(i64, i64)> = BTreeSet::new();
        for version in versions {
            let pass = self.pass(version);
            of_passes.extend(pass.map(|pass_id| (pass_id, version.id)));
            let lists = pass.and_then(|pass_id| self.lists.get(&(pass_id, version.id)));
            let count = lists.map_or(0, Vec::len);
            if version.is_current && count != 1 {
                wrong.push(format!("{version:?} is in the lists of {lists:?} in its pass {pass:?}"));
            }
        }
        for ((pass_id, id), batches) in &self.lists {
            if batches.len() != 1 || !of_passes.contains(&(*pass_id, *id)) {
                wrong.push(format!("row {id} is in the lists of {batches:?} in pass {pass_id}"));
            }
        }
        let miscounted = |batch: &&Batch| batch.row_ids.len() != usize::try_from(batch.rows_read).unwrap();
        wrong.extend(self.batches.values().filter(miscounted).map(|batch| format!("{batch:?} counts wrong")));
        assert_none("rows and lists do not agree", wrong);
    }
}
