//! The journal writes of several lanes are committed together: many in one durable commit, in order. A write that
//! fails does not affect those of other lanes.

use elven_sync::journal::RunStatus;
use elven_sync::sandbox::{Fault, Gate};
use nix::sys::signal::Signal;
use sqlx::PgPool;

use crate::support::{TestEnv, assert_stays, eventually, signal, stderr};

/// Four entities, in batches of two rows.
async fn scene(pool: PgPool) -> TestEnv {
    let mut scene = TestEnv::new(pool).await;
    for entity_id in ["a", "b", "c", "d"] {
        scene.entity(entity_id, "UTC").await;
    }
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "2");
    scene
}

async fn add_rows(scene: &TestEnv) {
    scene
        .sql(
            "insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
             select e, e || n, 'BTC', '2024-01-01Z', n from generate_series(1, 60) n, unnest(array['a', 'b', 'c', 'd']) e
              order by n, e",
        )
        .await;
}

const DONE: &str = "select string_agg(concat_ws(' ', s.entity_id, s.rows_uploaded, s.pass_id is null), ',' order by s.entity_id)
                      from elven_sync.sync_state s";

/// The number of batches that do not begin where the previous batch ends.
const GAPS: &str = "select count(*) filter (where before is distinct from previous)::text from (
                        select (before_xid, before_id)::text as before,
                               lag((last_xid, last_id)::text, 1, '(,)') over (partition by pass_id order by batch_id) as previous
                          from elven_sync.sync_batches) b";

/// Each batch is announced and settled, which needs two commits without group commit.
#[sqlx::test(migrations = false)]
async fn batches_of_all_lanes_share_commits(pool: PgPool) {
    let scene = scene(pool).await;
    add_rows(&scene).await;
    scene
        .sql(
            "create table written (xid xid8, kind text);
             create function note() returns trigger language plpgsql as $$
             begin insert into written values (pg_current_xact_id(), tg_op); return null; end $$;
             create trigger note after insert or update on elven_sync.sync_batches for each row execute function note()",
        )
        .await;
    assert_eq!(scene.run().await.status, RunStatus::Succeeded);
    assert_eq!(scene.text(DONE).await, "a 60 t,b 60 t,c 60 t,d 60 t");
    let commits = "select concat_ws(' ', count(*), count(distinct xid)) from written";
    let commits = scene.text(commits).await;
    let (written, commits) = commits.split_once(' ').unwrap();
    assert_eq!(written, "240", "120 batches were announced and settled");
    assert!(commits.parse::<u32>().unwrap() < 120, "{commits} commits for that");
}

/// Batch ids ascend in the order of the pass, whatever else is written with them. Recovery depends on it.
#[sqlx::test(migrations = false)]
async fn batch_ids_ascend_in_pass_order(pool: PgPool) {
    let scene = scene(pool).await;
    add_rows(&scene).await;
    scene.run().await;
    assert_eq!(scene.text(GAPS).await, "0");
}

/// When a batch cannot be recorded, no later batch of the lane is: recovery would take the gap for finished. Writes
/// of other lanes that were submitted at the same moment are committed.
#[sqlx::test(migrations = false)]
async fn unrecordable_batch_stops_its_lane_and_leaves_no_gap(pool: PgPool) {
    let scene = scene(pool).await;
    add_rows(&scene).await;
    scene
        .sql(
            "create function refuse() returns trigger language plpgsql as
                 $$ begin raise 'no room for this one'; end $$;
             create trigger refuse before insert on elven_sync.sync_batches for each row
                 when (new.entity_id = 'b' and new.last_id = '30') execute function refuse()",
        )
        .await;
    let output = scene.output(&["run"]).await;
    assert!(!output.status.success());
    assert!(stderr(&output).contains("no room for this one"), "{}", stderr(&output));
    assert_eq!(scene.text(GAPS).await, "0");
    let of_b = "select count(*)::text from elven_sync.sync_batches where entity_id = 'b'";
    assert_eq!(scene.text(of_b).await, "3", "those before the one that could not be recorded");
    assert_eq!(
        scene
            .text(
                "select string_agg(concat_ws(' ', entity_id, rows_uploaded), ',' order by entity_id)
                             from elven_sync.sync_state where entity_id <> 'b'"
            )
            .await,
        "a 60,c 60,d 60"
    );
    scene.sql("drop trigger refuse on elven_sync.sync_batches").await;
    assert_eq!(scene.run().await.status, RunStatus::Succeeded);
    assert_eq!(scene.text(DONE).await, "a 60 t,b 60 t,c 60 t,d 60 t");
    assert_eq!(scene.balances().len(), 240);
}

/// A recorded batch that has not been sent at a shutdown is not sent, and is not counted as sent.
#[sqlx::test(migrations = false)]
async fn shutdown_withdraws_a_batch_that_was_not_sent(pool: PgPool) {
    let mut scene = scene(pool).await;
    scene.set("ELVEN_SYNC_SYNC__REQUESTS_IN_FLIGHT", "2");
    add_rows(&scene).await;
    let gates = [Gate::new(), Gate::new()];
    for gate in &gates {
        scene.sandbox.inject(Fault::HoldResponse(gate.clone()));
    }
    let child = scene.command(&["run", "--entity", "a"]).spawn().unwrap();
    for gate in &gates {
        gate.reached().await;
    }
    let recorded = "select string_agg(concat_ws(' ', status, attempts, ambiguous), ',' order by status) from elven_sync.sync_batches";
    eventually("a third is recorded", async || {
        scene.text(recorded).await == "sending 1 f,sending 1 f,sending 1 f"
    })
    .await;
    signal(&child, Signal::SIGTERM);
    eventually("the third is withdrawn", async || {
        scene.text(recorded).await == "rejected 0 f,sending 1 f,sending 1 f"
    })
    .await;
    gates.iter().for_each(Gate::open);
    assert_eq!(child.wait_with_output().await.unwrap().status.code(), Some(143));
    assert_eq!(scene.text(recorded).await, "accepted 1 f,accepted 1 f,rejected 0 f");
    let report = scene.run().await;
    assert_eq!((report.status, report.counters.retries), (RunStatus::Succeeded, 0));
    assert_eq!(scene.text(DONE).await, "a 60 t,b 60 t,c 60 t,d 60 t");
    assert_eq!(scene.received().len(), 240, "nothing is sent twice");
}

/// A locked row of one entity delays no other entity.
#[sqlx::test(migrations = false)]
async fn a_locked_lane_delays_no_other(pool: PgPool) {
    let scene = scene(pool).await;
    add_rows(&scene).await;
    let gate = Gate::new();
    scene.sandbox.inject(Fault::HoldResponse(gate.clone()));
    let child = scene.command(&["run"]).spawn().unwrap();
    gate.reached().await;
    let mut lock = scene.pool.begin().await.unwrap();
    let locked: String = sqlx::query_scalar(
        "select s.entity_id from elven_sync.sync_state s join elven_sync.sync_batches b using (pass_id)
          where b.status = 'sending' order by b.batch_id limit 1 for update of s",
    )
    .fetch_one(&mut *lock)
    .await
    .unwrap();
    gate.open();
    let others = "select count(*)::text from elven_sync.sync_state where rows_uploaded = 60";
    eventually("the others are done", async || scene.text(others).await == "3").await;
    lock.rollback().await.unwrap();
    let output = child.wait_with_output().await.unwrap();
    assert_eq!(output.status.code(), Some(0), "{locked}: {}", stderr(&output));
    assert_eq!(scene.text(DONE).await, "a 60 t,b 60 t,c 60 t,d 60 t");
}

/// A failover with data loss loses announced batches and keeps the lease. No batch is announced behind them, since
/// recovery would take the gap for finished.
#[sqlx::test(migrations = false)]
async fn batches_lost_in_a_failover_leave_no_gap(pool: PgPool) {
    let mut scene = scene(pool).await;
    scene.set("ELVEN_SYNC_SYNC__REQUESTS_IN_FLIGHT", "2");
    scene.set("ELVEN_SYNC_SYNC__LEASE", "2s");
    add_rows(&scene).await;
    let gates = [Gate::new(), Gate::new(), Gate::new()];
    for gate in &gates {
        scene.sandbox.inject(Fault::HoldResponse(gate.clone()));
    }
    let child = scene.command(&["run", "--entity", "a"]).spawn().unwrap();
    for gate in &gates[..2] {
        gate.reached().await;
    }
    let recorded = "select count(*)::text from elven_sync.sync_batches";
    eventually("three are recorded", async || scene.text(recorded).await == "3").await;
    scene.sql("delete from elven_sync.sync_batches where batch_id > (select min(batch_id) from elven_sync.sync_batches)").await;
    // The gate of the first batch, whichever of the two arrived first.
    let is_first = scene.balances()[0].0 == "a1";
    gates[usize::from(!is_first)].open();
    let accepted = "select count(*)::text from elven_sync.sync_batches where status = 'accepted'";
    eventually("the first is settled", async || scene.text(accepted).await == "1").await;
    let is_alone = async || scene.text(recorded).await == "1";
    assert_stays("no batch is announced behind the gap", std::time::Duration::from_millis(200), is_alone)
        .await;
    gates.iter().for_each(Gate::open);
    child.wait_with_output().await.unwrap();
    assert_eq!(scene.text(GAPS).await, "0");
    assert_eq!(scene.run().await.status, RunStatus::Succeeded);
    assert_eq!(scene.text(GAPS).await, "0");
    assert_eq!(scene.text("select rows_read::text from (select sum(rows_read) as rows_read from elven_sync.sync_batches where entity_id = 'a') b").await, "60");
}

/// A batch of an open pass is missing: its rows are not skipped, and nothing else is sent.
#[sqlx::test(migrations = false)]
async fn gap_in_the_batches_of_an_open_pass_is_refused(pool: PgPool) {
    let mut scene = scene(pool).await;
    scene.set("ELVEN_SYNC_SYNC__REQUESTS_IN_FLIGHT", "2");
    add_rows(&scene).await;
    let gates = [Gate::new(), Gate::new()];
    for gate in &gates {
        scene.sandbox.inject(Fault::HoldResponse(gate.clone()));
    }
    let mut child = scene.command(&["run", "--entity", "a"]).spawn().unwrap();
    for gate in &gates {
        gate.reached().await;
    }
    let recorded = "select count(*)::text from elven_sync.sync_batches";
    eventually("three are recorded", async || scene.text(recorded).await == "3").await;
    child.kill().await.unwrap();
    gates.iter().for_each(Gate::open);
    scene.sql("delete from elven_sync.sync_batches where batch_id = (select min(batch_id) + 1 from elven_sync.sync_batches)").await;
    let sent = scene.received().len();
    let output = scene.output(&["run", "--entity", "a"]).await;
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert_eq!(scene.received().len(), sent);
    let problem = "select kind || ': ' || message from elven_sync.sync_errors where resolved_at is null";
    let problem = scene.text(problem).await;
    assert!(
        problem.starts_with("watermark: pass 1 has no batch for the rows right before batch 3"),
        "{problem}"
    );
    let rewound = scene.output(&["entity", "rewind", "a", "--yes"]).await;
    assert_eq!(rewound.status.code(), Some(0), "{}", stderr(&rewound));
    assert_eq!(scene.run().await.status, RunStatus::Succeeded);
    assert_eq!(scene.text(DONE).await, "a 60 t,b 60 t,c 60 t,d 60 t");
    assert_eq!(scene.balances().len(), 240 + sent);
}

/// A write names the state of the lane besides its batch. If any part of that state has changed, the answer is not
/// recorded, and nothing more is sent.
#[sqlx::test(migrations = false)]
async fn write_of_a_lane_that_changed_is_refused(pool: PgPool) {
    const MOVED: [(&str, &str); 4] = [
        ("a", "lease_owner = 'somebody else'"),
        ("b", "lease_epoch = lease_epoch + 1"),
        ("c", "pass_id = pass_id + 1000"),
        ("d", "cursor_xid = '1', cursor_id = '1'"),
    ];
    let mut scene = scene(pool).await;
    scene.set("ELVEN_SYNC_SYNC__REQUESTS_IN_FLIGHT", "1");
    add_rows(&scene).await;
    for (number, (entity_id, moved)) in MOVED.into_iter().enumerate() {
        let gate = Gate::new();
        scene.sandbox.inject(Fault::HoldResponse(gate.clone()));
        let child = scene.command(&["run", "--entity", entity_id]).spawn().unwrap();
        gate.reached().await;
        let sql = format!("update elven_sync.sync_state set {moved} where entity_id = $1");
        sqlx::query(sqlx::AssertSqlSafe(sql)).bind(entity_id).execute(&scene.pool).await.unwrap();
        let state = "select string_agg(concat_ws(' ', entity_id, pass_id, cursor_xid, cursor_id, rows_uploaded), ',' order by entity_id)
                       from elven_sync.sync_state";
        let before = scene.text(state).await;
        gate.open();
        child.wait_with_output().await.unwrap();
        assert_eq!(scene.text(state).await, before, "{moved}");
        let accepted = "select count(*)::text from elven_sync.sync_batches where status <> 'sending'";
        assert_eq!(scene.text(accepted).await, "0", "{moved}");
        assert_eq!(scene.received().len(), 2 * (number + 1), "{moved}: a second batch went out");
    }
}

/// A batch is identified by its content as well, since its id may have been reused.
#[sqlx::test(migrations = false)]
async fn answer_is_not_recorded_for_a_reused_batch_id(pool: PgPool) {
    const OTHER: [(&str, &str); 3] =
        [("a", "body_sha256 = '0'"), ("b", "entity_id = 'c'"), ("d", "last_id = '1000'")];
    let mut scene = scene(pool).await;
    scene.set("ELVEN_SYNC_SYNC__REQUESTS_IN_FLIGHT", "1");
    add_rows(&scene).await;
    for (entity_id, other) in OTHER {
        let gate = Gate::new();
        scene.sandbox.inject(Fault::HoldResponse(gate.clone()));
        let child = scene.command(&["run", "--entity", entity_id]).spawn().unwrap();
        gate.reached().await;
        let sql = format!("update elven_sync.sync_batches set {other} where entity_id = $1");
        sqlx::query(sqlx::AssertSqlSafe(sql)).bind(entity_id).execute(&scene.pool).await.unwrap();
        gate.open();
        child.wait_with_output().await.unwrap();
        let answered =
            "select concat_ws(' ', (select count(*) from elven_sync.sync_batches where status <> 'sending'),
                                         (select sum(rows_uploaded) from elven_sync.sync_state))";
        assert_eq!(scene.text(answered).await, "0 0", "{other}");
    }
}

/// After a change of the zone, a row of a batch of unknown outcome lies in the year 10000. Nothing of the batch is
/// left to send, and the batch no longer says that it has a record.
#[sqlx::test(migrations = false)]
async fn batch_without_remaining_records_is_recorded_as_empty(pool: PgPool) {
    let scene = scene(pool).await;
    scene
        .sql(
            "insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
             values ('a', 'a1', 'BTC', '9999-12-31 23:30Z', 1)",
        )
        .await;
    let (mut child, gate) = scene.held_run().await;
    child.kill().await.unwrap();
    gate.open();
    scene.sql("update elven_sync.entities set timezone = 'Europe/Zurich' where entity_id = 'a'").await;
    assert_eq!(scene.run().await.status, RunStatus::Incomplete);
    let batch = "select concat_ws(' ', status, ambiguous, rows_read, row_count, rows_rejected) from elven_sync.sync_batches";
    assert_eq!(scene.text(batch).await, "accepted t 1 0 1");
    assert_eq!(scene.received().len(), 1);
}

/// Lease renewal skips locked lanes, and a busy lane may be locked each time. So writes to a lane renew its lease.
#[sqlx::test(migrations = false)]
async fn journal_writes_renew_the_lease_of_a_busy_lane(pool: PgPool) {
    let mut scene = scene(pool).await;
    scene.set("ELVEN_SYNC_SYNC__REQUESTS_IN_FLIGHT", "1");
    add_rows(&scene).await;
    scene
        .sql(
            "create function ignore() returns trigger language plpgsql as $$ begin return null; end $$;
             create trigger ignore before update on elven_sync.sync_state for each row
                 when (new.lease_expires_at <> old.lease_expires_at and new.lease_epoch = old.lease_epoch
                       and new.cursor_id is not distinct from old.cursor_id) execute function ignore()",
        )
        .await;
    scene.sandbox.set_rules(vec!["slow=100ms".parse().unwrap()]);
    let child = scene.command(&["run", "--entity", "a"]).spawn().unwrap();
    let accepted = "select count(*)::text from elven_sync.sync_batches where status = 'accepted'";
    eventually("twice the time of the lease is over", async || {
        scene.text(accepted).await.parse::<u32>().unwrap() >= 20
    })
    .await;
    let is_alive = "select (lease_expires_at > clock_timestamp())::text from elven_sync.sync_state where entity_id = 'a'";
    assert_eq!(scene.text(is_alive).await, "true");
    assert_eq!(child.wait_with_output().await.unwrap().status.code(), Some(0));
}

/// A record of a batch is undone at the same moment: the pass is not closed over it.
#[sqlx::test(migrations = false)]
async fn pass_with_an_unanswered_batch_is_not_closed(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    scene.entity("acme", "UTC").await;
    scene
        .sql(
            "insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
             values ('acme', 'a', 'BTC', '2024-01-01Z', 1);
             create function undo() returns trigger language plpgsql as $$ begin new.status := 'sending'; return new; end $$;
             create trigger undo before update on elven_sync.sync_batches for each row execute function undo();",
        )
        .await;
    let output = scene.output(&["run"]).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("pass 1 has a batch without a recorded answer"), "{}", stderr(&output));
    let state = "select concat_ws(' ', settled is null, pass_id, cursor_id, lease_owner is null) from elven_sync.sync_state";
    assert_eq!(scene.text(state).await, "t 1 1 t");
    scene.sql("drop trigger undo on elven_sync.sync_batches; update elven_sync.sync_batches set status = 'accepted'").await;
    assert_eq!(scene.run().await.status, RunStatus::Succeeded);
}
