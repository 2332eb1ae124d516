//! An answer that could not be recorded: the cursor does not move over its batch, whatever other answers do.

use std::time::Duration;

use elven_sync::journal::RunStatus;
use elven_sync::sandbox::{Fault, Gate};
use sqlx::{AssertSqlSafe, PgPool};
use tokio::process::Child;

use crate::backfill::{add_minutes, backfill_2024};
use crate::support::{TestEnv, assert_stays, eventually, eventually_stays, fault_rules, output_of, stderr};

/// Batches of one row, two of them in flight at once.
async fn scene(pool: PgPool) -> TestEnv {
    let mut scene = TestEnv::new(pool).await;
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "1");
    scene.set("ELVEN_SYNC_SYNC__REQUESTS_IN_FLIGHT", "2");
    scene.set("ELVEN_SYNC_DATABASE__RECONNECT_TIMEOUT", "2s");
    scene
}

/// Starts a command that has two batches in flight. Returns it with the gates of their answers, the gate of the first
/// batch first.
pub async fn both_in_flight(scene: &TestEnv, arguments: &[&str], first: &str) -> (Child, [Gate; 2]) {
    let gates = [Gate::new(), Gate::new()];
    let before = scene.balances().len();
    for gate in &gates {
        scene.sandbox.inject(Fault::HoldResponse(gate.clone()));
    }
    let child = scene.command(arguments).spawn().unwrap();
    for gate in &gates {
        gate.reached().await;
    }
    let [one, other] = gates;
    let is_first = scene.balances()[before].0 == first;
    (child, if is_first { [one, other] } else { [other, one] })
}

/// Makes PostgreSQL refuse the answer to the second batch of an entity with this SQLSTATE. Each refusal advances a
/// sequence.
async fn refuse_the_second(scene: &TestEnv, entity_id: &str, sqlstate: &str) {
    let sql = format!(
        "create sequence if not exists refusals;
         create or replace function refuse() returns trigger language plpgsql as $$
             begin perform nextval('refusals'); raise 'not now' using errcode = '{sqlstate}'; end $$;
         drop trigger if exists refuse on elven_sync.sync_batches;
         create trigger refuse before update on elven_sync.sync_batches for each row
             when (new.status = 'accepted' and new.entity_id = '{entity_id}' and new.before_id is not null)
             execute function refuse()"
    );
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(&scene.pool).await.unwrap();
}

const REFUSED: &str = "select is_called::text from refusals";
pub const BATCHES: &str = "select string_agg(status, ' ' order by b.batch_id) from elven_sync.sync_batches b
                        where b.entity_id = (select max(entity_id) from elven_sync.sync_state)";
/// Batches without an answer that lie behind the cursor, of the entity that was added last.
pub const PASSED: &str =
    "select count(*)::text from elven_sync.sync_state s join elven_sync.sync_batches b using (pass_id)
                       where s.entity_id = (select max(entity_id) from elven_sync.sync_state)
                         and (b.last_xid, b.last_id::bigint) <= (s.cursor_xid, s.cursor_id::bigint)";

/// Locks the second batch of an entity.
const BATCH: &str =
    "select 1 from elven_sync.sync_batches where entity_id = $1 and before_id is not null for update";
/// The number of statements of the connector that wait for a lock.
const BLOCKED: &str = "select count(*)::text from pg_stat_activity
                        where application_name like 'elven-sync%' and wait_event_type = 'Lock' and datname = current_database()";
const CANCEL: &str = "select pg_cancel_backend(pid) from pg_stat_activity
                       where application_name like 'elven-sync%' and wait_event_type = 'Lock' and datname = current_database()";

/// Asserts that neither of the two answers is recorded for so many milliseconds.
async fn unrecorded_for(scene: &TestEnv, millis: u64) {
    let unrecorded = async || scene.text(BATCHES).await == "sending sending";
    assert_stays("no answer is recorded", Duration::from_millis(millis), unrecorded).await;
}

/// Asserts that the next run sends the batch again and completes, once the fault is removed.
async fn assert_next_run_completes(scene: &TestEnv, entity_id: &str) {
    let before = scene.balances().len();
    let report = scene.run().await;
    assert_eq!(report.status, RunStatus::Succeeded, "{entity_id}: {report:?}");
    let again: Vec<String> = scene.balances().into_iter().skip(before).map(|(account, _)| account).collect();
    assert_eq!(again, [format!("{entity_id}-1")], "what was recorded is not sent again");
    assert_eq!(scene.text(BATCHES).await, "accepted accepted");
    output_of(scene, 0, &["verify"]).await;
}

/// All kinds of errors: a lock timeout, a cancelled statement, a full disk, a deadlock, no memory, no permission, a
/// damaged page.
#[sqlx::test(migrations = false)]
async fn unrecorded_answer_stops_every_later_cursor_move_of_its_pass(pool: PgPool) {
    let scene = scene(pool).await;
    for (number, sqlstate) in
        ["55P03", "57014", "53100", "40P01", "40001", "53200", "42501", "XX001", "P0001"]
            .into_iter()
            .enumerate()
    {
        let entity_id = format!("e{number}");
        scene.entity(&entity_id, "UTC").await;
        add_minutes(&scene, &entity_id, 2).await;
        refuse_the_second(&scene, &entity_id, sqlstate).await;
        let run = ["run", "--entity", &entity_id];
        let (child, [first, second]) = both_in_flight(&scene, &run, &format!("{entity_id}-0")).await;
        second.open();
        eventually("the answer is refused", async || scene.text(REFUSED).await == "true").await;
        // Transient errors are retried for `reconnect_timeout`. After that the lane no longer writes the answer.
        let given_up_after = if sqlstate.starts_with("40") { 2600 } else { 100 };
        unrecorded_for(&scene, given_up_after).await;
        first.open();
        let output = child.wait_with_output().await.unwrap();
        assert_eq!(output.status.code(), Some(1), "{sqlstate}: {}", stderr(&output));
        assert!(stderr(&output).contains("not now"), "{sqlstate}: {}", stderr(&output));
        assert_eq!(scene.text(BATCHES).await, "accepted sending", "{sqlstate}");
        assert_eq!(scene.text(PASSED).await, "0", "{sqlstate}");
        scene.sql("drop trigger refuse on elven_sync.sync_batches; drop sequence refusals").await;
        assert_next_run_completes(&scene, &entity_id).await;
    }
}

/// The causes in practice: a row that is locked, limits of the database, an operator.
#[sqlx::test(migrations = false)]
async fn locks_and_cancelled_statements_fail_only_the_current_run(pool: PgPool) {
    const BATCH: &str =
        "select 1 from elven_sync.sync_batches where entity_id = $1 and before_id is not null for update";
    const STATE: &str = "select 1 from elven_sync.sync_state where entity_id = $1 for update";
    let scene = scene(pool).await;
    for (number, (limit, locked, cancels)) in [
        ("lock_timeout = '300ms'", BATCH, false),
        ("statement_timeout = '1s'", BATCH, false),
        ("lock_timeout = 0", BATCH, true),
        ("lock_timeout = 0", STATE, false),
    ]
    .into_iter()
    .enumerate()
    {
        let entity_id = format!("e{number}");
        scene.entity(&entity_id, "UTC").await;
        add_minutes(&scene, &entity_id, 2).await;
        let set = format!(
            "do $$ begin execute format('alter database %I set {}', current_database()); end $$",
            limit.replace('\'', "''")
        );
        sqlx::raw_sql(AssertSqlSafe(set)).execute(&scene.pool).await.unwrap();
        let run = ["run", "--entity", &entity_id];
        let (mut child, [first, second]) = both_in_flight(&scene, &run, &format!("{entity_id}-0")).await;
        let mut lock = scene.pool.begin().await.unwrap();
        sqlx::query(locked).bind(&entity_id).execute(&mut *lock).await.unwrap();
        second.open();
        if locked == BATCH {
            eventually("the answer waits for the lock", async || scene.text(BLOCKED).await != "0").await;
            if cancels {
                scene.sql(CANCEL).await;
            }
            // Longer than the limits of the server: an attempt that begins again would be seen to wait.
            let gives_up = async || scene.text(BLOCKED).await == "0";
            eventually_stays("it does not any more", Duration::from_millis(1500), gives_up).await;
        }
        // The journal writer skips a lane whose row is locked for `reconnect_timeout`.
        let given_up_after = Duration::from_millis(if locked == BATCH { 200 } else { 3200 });
        let waits = async || child.try_wait().unwrap().is_none();
        assert_stays(&format!("{limit}: the run waits for the first answer"), given_up_after, waits).await;
        lock.rollback().await.unwrap();
        first.open();
        let output = child.wait_with_output().await.unwrap();
        assert_eq!(output.status.code(), Some(1), "{limit}, {cancels}: {}", stderr(&output));
        assert_eq!(scene.text(BATCHES).await, "accepted sending", "{limit}, {cancels}");
        assert_eq!(scene.text(PASSED).await, "0", "{limit}, {cancels}");
        assert_next_run_completes(&scene, &entity_id).await;
    }
}

/// Setting a row aside does not move the cursor either: it waits for the answers that were submitted before it.
#[sqlx::test(migrations = false)]
async fn setting_rows_aside_never_moves_cursor_past_unrecorded_answer(pool: PgPool) {
    let mut scene = scene(pool).await;
    scene.set("ELVEN_SYNC_DATABASE__RECONNECT_TIMEOUT", "1m");
    scene.entity("e", "UTC").await;
    add_minutes(&scene, "e", 2).await;
    scene
        .sql("update ledger.balance_snapshots set currency = case when id = 1 then 'NONE' else 'BTC' end")
        .await;
    // Otherwise a batch of which the API knows no name stops the entity.
    scene
        .sql(
            "insert into elven_sync.sync_state (entity_id, rows_uploaded) values ('e', 1)
               on conflict (entity_id) do update set rows_uploaded = 1",
        )
        .await;
    // The first batch is refused. Then the API lists its names slowly.
    scene.sandbox.set_rules(fault_rules(&["slow=2s@once:2"]));
    let gate = Gate::new();
    scene.sandbox.inject(Fault::HoldResponse(gate.clone()));
    let child = scene.command(&["run"]).spawn().unwrap();
    gate.reached().await;
    let is_tried = async || scene.sandbox.requests().iter().any(|request| request.method == "GET");
    eventually("the lists are asked for", is_tried).await;
    // The refusal is recorded before the API is asked for its lists.
    let recorded = async || scene.text(BATCHES).await == "rejected sending";
    eventually("the refusal is recorded", recorded).await;
    let mut lock = scene.pool.begin().await.unwrap();
    sqlx::query(BATCH).bind("e").execute(&mut *lock).await.unwrap();
    gate.open();
    eventually("the answer waits for the lock", async || scene.text(BLOCKED).await != "0").await;
    // The list is answered after 2 s. Then the row is to be set aside.
    assert_stays("no more is recorded", Duration::from_millis(2500), recorded).await;
    scene.sql(CANCEL).await;
    let output = child.wait_with_output().await.unwrap();
    lock.rollback().await.unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert_eq!(scene.text(BATCHES).await, "rejected sending");
    assert_eq!(scene.text(PASSED).await, "0");
    assert_eq!(scene.run().await.status, RunStatus::Incomplete);
    assert_eq!(scene.text(BATCHES).await, "rejected accepted");
    output_of(&scene, 0, &["verify"]).await;
}

/// The same for a backfill.
#[sqlx::test(migrations = false)]
async fn unrecorded_answer_stops_the_cursor_of_a_backfill(pool: PgPool) {
    let scene = scene(pool).await;
    scene.entity("e", "UTC").await;
    add_minutes(&scene, "e", 2).await;
    scene.run().await;
    refuse_the_second(&scene, "e", "53100").await;
    let range = ["backfill", "--from", "2024-01-01", "--to", "2025-01-01"];
    let (child, [first, second]) = both_in_flight(&scene, &range, "e-0").await;
    second.open();
    eventually("the answer is refused", async || scene.text(REFUSED).await == "true").await;
    let cursor =
        "select concat_ws(' ', cursor_id is null, finished_at is null) from elven_sync.sync_backfill_lanes";
    let is_at_start = async || scene.text(cursor).await == "t t";
    assert_stays("the cursor does not move", Duration::from_millis(100), is_at_start).await;
    first.open();
    assert_eq!(child.wait_with_output().await.unwrap().status.code(), Some(1));
    assert_eq!(scene.text(cursor).await, "t t");
    scene.sql("drop trigger refuse on elven_sync.sync_batches").await;
    backfill_2024(&scene, 0, &[]).await;
    let batches = "select string_agg(concat_ws(' ', status, attempts), ',' order by batch_id)
                     from elven_sync.sync_batches where backfill_id is not null";
    assert_eq!(scene.text(batches).await, "accepted 1,accepted 2");
}

/// A state that an earlier version may have left: the pass is open, and its cursor has passed a batch without an
/// answer.
const REOPEN: &str = "
    update elven_sync.sync_state s
       set settled = null, pass_id = p.pass_id, target = s.settled, cursor_xid = p.last_xid, cursor_id = p.last_id
      from elven_sync.sync_passes p where p.entity_id = s.entity_id;
    update elven_sync.sync_passes set finished_at = null, last_xid = null, last_id = null, written_by = null;
    update elven_sync.sync_batches set status = 'sending' where batch_id = (select min(batch_id) from elven_sync.sync_batches)";

#[sqlx::test(migrations = false)]
async fn unanswered_batch_before_the_cursor_is_sent_again(pool: PgPool) {
    let scene = scene(pool).await;
    scene.entity("e", "UTC").await;
    add_minutes(&scene, "e", 3).await;
    scene.run().await;
    scene.sql(REOPEN).await;
    scene.forget_digests().await;
    add_minutes(&scene, "e", 1).await;
    let report = scene.run().await;
    assert_eq!((report.status, report.counters.rows_read), (RunStatus::Succeeded, 2), "{report:?}");
    let accounts: Vec<String> = scene.balances().into_iter().skip(3).map(|(account, _)| account).collect();
    assert_eq!(accounts, ["e-0", "e-0"], "the batch, and the row that is new");
    let batches = "select string_agg(concat_ws(' ', status, attempts, ambiguous), ',' order by batch_id)
                     from elven_sync.sync_batches";
    assert_eq!(scene.text(batches).await, "accepted 2 t,accepted 1 f,accepted 1 f,accepted 1 f");
    output_of(&scene, 0, &["verify"]).await;
}

/// Another row of the same key was read later and was accepted. The older row is not sent after it.
#[sqlx::test(migrations = false)]
async fn unanswered_batch_before_the_cursor_never_overwrites_newer_row(pool: PgPool) {
    let scene = scene(pool).await;
    scene.entity("e", "UTC").await;
    add_minutes(&scene, "e", 1).await;
    scene.sql("insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
               values ('e', 'e-0', 'BTC', '2024-01-01 00:00:00.5Z', 7)").await;
    scene.run().await;
    assert_eq!(scene.balances().len(), 2);
    scene.sql(REOPEN).await;
    scene.forget_digests().await;
    let refused = output_of(&scene, 1, &["run"]).await;
    assert!(refused.contains("no answer to batch 1 is recorded"), "{refused}");
    assert_eq!(scene.balances().len(), 2, "nothing is sent");
    output_of(&scene, 0, &["entity", "rewind", "e", "--yes"]).await;
    assert_eq!(scene.run().await.status, RunStatus::Succeeded);
    let balances: Vec<String> = scene.balances().into_iter().skip(2).map(|(_, balance)| balance).collect();
    assert_eq!(balances, ["0", "7"]);
}

/// The same for the parts of a bisected batch.
#[sqlx::test(migrations = false)]
async fn unanswered_parts_before_the_cursor_are_sent_again(pool: PgPool) {
    let mut scene = scene(pool).await;
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "2");
    scene.entity("e", "UTC").await;
    add_minutes(&scene, "e", 4).await;
    scene.sandbox.set_rules(fault_rules(&["reject:account=e-1"]));
    assert_eq!(scene.run().await.status, RunStatus::Incomplete);
    scene.sql(REOPEN).await;
    scene.forget_digests().await;
    scene.sql("update elven_sync.sync_batches set status = 'split' where batch_id = (select min(batch_id) from elven_sync.sync_batches);
               update elven_sync.sync_batches set status = 'sending' where parent_id is not null and status = 'accepted'").await;
    let before = scene.balances().len();
    assert_eq!(scene.run().await.status, RunStatus::Succeeded);
    let accounts: Vec<String> =
        scene.balances().into_iter().skip(before).map(|(account, _)| account).collect();
    assert_eq!(accounts, ["e-0"]);
    output_of(&scene, 0, &["verify"]).await;
}
