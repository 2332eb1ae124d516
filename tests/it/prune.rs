//! `prune`: old finished work is deleted, open work is kept, and the rest can still be verified.

use elven_sync::fault_point::Side;
use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, PgPool};

use crate::backfill::backfill_2024;
use crate::crashes::points::{OF_A_PRUNE, points};
use crate::support::{FAULT_POINT, TestEnv, eventually, output_of};
use crate::verify::{assert_verified, findings, proof};

async fn scene(pool: PgPool) -> TestEnv {
    let mut scene = TestEnv::new(pool).await;
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "10");
    scene.set("ELVEN_SYNC_RETRY__INITIAL", "1ms");
    scene.entity("acme", "UTC").await;
    scene
}

/// Adds rows `from..=until` and runs.
async fn run(scene: &TestEnv, from: i32, until: i32) {
    let insert = format!(
        "insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
         select 'acme', 'a' || n, 'BTC', '2024-01-01Z', n from generate_series({from}, {until}) n"
    );
    (&scene.pool).execute(AssertSqlSafe(insert)).await.unwrap();
    scene.run().await;
}

/// Makes all finished work a year old.
pub const AGE: &str = "
    update elven_sync.sync_runs set started_at = started_at - interval '1 year', finished_at = finished_at - interval '1 year';
    update elven_sync.sync_passes set started_at = started_at - interval '1 year', finished_at = finished_at - interval '1 year',
           written_by = pg_current_xact_id();
    update elven_sync.sync_batches set created_at = created_at - interval '1 year', finished_at = finished_at - interval '1 year';
    update elven_sync.sync_errors set first_seen_at = first_seen_at - interval '1 year', resolved_at = resolved_at - interval '1 year';";

const PRUNE: &[&str] = &["prune", "--older-than", "90d"];

/// The changes of the watermark, and the numbers of batches, errors and runs.
const JOURNAL: &str = "
    select concat_ws(' ', (select string_agg(kind, ',' order by pass_id) from elven_sync.sync_passes),
                     (select count(*) from elven_sync.sync_batches), (select count(*) from elven_sync.sync_errors),
                     (select count(*) from elven_sync.sync_runs))";

#[sqlx::test(migrations = false)]
async fn old_passes_merge_into_one_and_verify_holds(pool: PgPool) {
    let scene = scene(pool).await;
    for pass in 0..4 {
        run(&scene, pass * 100, pass * 100 + 24).await;
    }
    scene.sql(AGE).await;
    for pass in 4..6 {
        run(&scene, pass * 100, pass * 100 + 24).await;
    }
    let before = scene.text(JOURNAL).await;
    assert_eq!(before, "pass,pass,pass,pass,pass,pass 18 0 6");
    let rehearsed = output_of(&scene, 0, &["prune", "--older-than", "90d", "--dry-run"]).await;
    let words: Vec<&str> = rehearsed.split_whitespace().collect();
    assert!(words.windows(3).any(|words| words == ["acme", "4", "12"]), "{rehearsed}");
    assert!(rehearsed.contains("nothing was changed"), "{rehearsed}");
    assert_eq!(scene.text(JOURNAL).await, before);
    let json: Value =
        serde_json::from_str(&output_of(&scene, 0, &["prune", "--older-than", "90d", "--json"]).await)
            .unwrap();
    assert_eq!(
        (&json["entities"][0]["passes"], &json["entities"][0]["batches"], &json["runs"]),
        (&4.into(), &12.into(), &4.into())
    );
    assert_eq!(scene.text(JOURNAL).await, "pruned,pass,pass 6 0 2");
    assert_eq!(
        scene.text("select concat_ws(' ', passes, batches, rows_read, rows_uploaded, requests) from elven_sync.sync_pruned").await,
        "4 12 100 100 12"
    );
    assert_eq!(assert_verified(&scene).await, (50, 0));
    assert!(output_of(&scene, 0, &["verify"]).await.contains("the pruned part of the journal of 1 entity"));
    assert!(output_of(&scene, 0, &["status", "--row", "1"]).await.contains("were pruned from the journal"));
    // The rest is still verified.
    run(&scene, 600, 610).await;
    scene.sql("update elven_sync.sync_state set settled = pg_current_snapshot()").await;
    let (found, said_of) = findings(&proof(&scene, false).await);
    assert_eq!(found.into_iter().collect::<Vec<_>>(), ["watermark"], "{said_of}");
    scene.sql("update elven_sync.sync_state s set settled = p.target from elven_sync.sync_passes p where p.pass_id = (select max(pass_id) from elven_sync.sync_passes)").await;
    assert_verified(&scene).await;
    // A later prune merges both.
    scene.sql(AGE).await;
    output_of(&scene, 0, PRUNE).await;
    assert_eq!(scene.text(JOURNAL).await, "pruned,pass 2 0 1", "the newest stays");
    assert_eq!(assert_verified(&scene).await, (11, 0));
    assert_eq!(
        scene.text("select concat_ws(' ', passes, batches, rows_uploaded) from elven_sync.sync_pruned").await,
        "6 18 150"
    );
}

/// Open work is kept, with everything that it refers to or that refers to it.
#[sqlx::test(migrations = false)]
async fn nothing_unresolved_is_pruned(pool: PgPool) {
    let mut scene = scene(pool).await;
    let rules = ["reject:account=a5", "reject:account=a105", "reject:account=a205"];
    scene.sandbox.set_rules(rules.iter().map(|rule| rule.parse().unwrap()).collect());
    for pass in 0..4 {
        run(&scene, pass * 100, pass * 100 + 24).await;
    }
    // A retry sends one row, a person dismisses one, and one stays open.
    scene.sandbox.set_rules(vec![rules[1].parse().unwrap(), rules[2].parse().unwrap()]);
    output_of(&scene, 3, &["errors", "retry"]).await;
    let dismissed = scene
        .text("select error_id::text from elven_sync.sync_errors where record->>'entityAccountId' = 'a105'")
        .await;
    output_of(&scene, 0, &["errors", "resolve", &dismissed, "--reason", "closed"]).await;
    // An open pass as well.
    scene.set("ELVEN_SYNC_RETRY__ATTEMPTS", "1");
    scene.sandbox.set_rules(vec!["error-500".parse().unwrap()]);
    run(&scene, 400, 424).await;
    scene.sandbox.set_rules(Vec::new());
    scene.sql(AGE).await;
    assert_verified(&scene).await;
    // The batch of the retry is kept, since an open error refers to it.
    let open = "select string_agg(e.error_id || ' ' || b.batch_id || ' ' || coalesce(b.pass_id, 0) || ' ' || r.run_id, ',' order by e.error_id)
                  from elven_sync.sync_errors e join elven_sync.sync_batches b using (batch_id) join elven_sync.sync_runs r on r.run_id = e.run_id
                 where e.resolved_at is null and ledger_id is not null or dismissed";
    let before = scene.text(open).await;
    output_of(&scene, 0, PRUNE).await;
    assert_eq!(scene.text(open).await, before);
    // The retry sent the refused row of the first pass. The other rows were retried outside their passes.
    assert_eq!(
        scene.text("select string_agg(kind, ',' order by pass_id) from elven_sync.sync_passes").await,
        "pruned,pass"
    );
    assert_eq!(
        scene.text("select count(*)::text from elven_sync.sync_errors where resolved_at is not null and not dismissed").await,
        "0"
    );
    assert_verified(&scene).await;
    eventually("the open pass is done", async || {
        scene.run().await;
        scene.text("select count(*)::text from elven_sync.sync_state where pass_id is not null").await == "0"
    })
    .await;
    assert_verified(&scene).await;
    output_of(&scene, 0, &["errors", "retry"]).await;
}

/// A pass with an open error is kept. The passes before it and after it are merged into one each.
#[sqlx::test(migrations = false)]
async fn pass_with_an_open_error_is_kept_and_verifiable(pool: PgPool) {
    let scene = scene(pool).await;
    scene.sandbox.set_rules(vec!["reject:account=a205".parse().unwrap()]);
    for pass in 0..5 {
        run(&scene, pass * 100, pass * 100 + 14).await;
    }
    scene.sql(AGE).await;
    run(&scene, 500, 514).await;
    output_of(&scene, 0, PRUNE).await;
    assert_eq!(
        scene.text("select string_agg(kind, ',' order by pass_id) from elven_sync.sync_passes").await,
        "pruned,pass,pruned,pass"
    );
    assert_eq!(assert_verified(&scene).await, (30, 0));
    // The error of a row that a kept batch set aside belongs to the proof of that batch, resolved or not.
    scene.sql("update ledger.balance_snapshots set balance = 0 where entity_account_id = 'a205'").await;
    scene.sandbox.set_rules(Vec::new());
    scene.run().await;
    scene.sql("update elven_sync.sync_errors set resolved_at = resolved_at - interval '1 year', batch_id = null").await;
    scene.sql("update elven_sync.sync_passes set finished_at = now(), written_by = pg_current_xact_id() where kind = 'pass'").await;
    output_of(&scene, 0, PRUNE).await;
    assert_eq!(scene.text("select count(*)::text from elven_sync.sync_errors").await, "1");
    assert_verified(&scene).await;
    scene.sql(AGE).await;
    output_of(&scene, 0, PRUNE).await;
    assert_eq!(scene.text("select count(*)::text from elven_sync.sync_errors").await, "0");
    assert_verified(&scene).await;
}

#[sqlx::test(migrations = false)]
async fn rewinds_survive_prune_and_stop_at_pruned_history(pool: PgPool) {
    let mut scene = scene(pool).await;
    let instant = "select to_char(clock_timestamp() at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')";
    run(&scene, 0, 14).await;
    let first = scene.text(instant).await;
    run(&scene, 100, 114).await;
    output_of(&scene, 0, &["entity", "rewind", "acme", "--to", &first, "--yes"]).await;
    scene.run().await;
    // A pass that is abandoned.
    scene.set("ELVEN_SYNC_RETRY__ATTEMPTS", "1");
    scene.sandbox.set_rules(vec!["error-500".parse().unwrap()]);
    run(&scene, 200, 214).await;
    scene.sandbox.set_rules(Vec::new());
    output_of(&scene, 0, &["entity", "rewind", "acme", "--to", &first, "--yes"]).await;
    scene.run().await;
    run(&scene, 300, 314).await;
    assert_eq!(
        scene.text("select string_agg(kind, ',' order by pass_id) from elven_sync.sync_passes").await,
        "pass,pass,rewind,pass,pass,rewind,pass,pass"
    );
    assert_verified(&scene).await;
    scene.sql(AGE).await;
    let old = scene.text("select to_char(max(finished_at) - interval '1 ms', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"') from elven_sync.sync_passes where kind = 'pass' and pass_id < (select max(pass_id) from elven_sync.sync_passes)").await;
    run(&scene, 400, 404).await;
    output_of(&scene, 0, PRUNE).await;
    assert_eq!(
        scene.text("select string_agg(kind, ',' order by pass_id) from elven_sync.sync_passes").await,
        "pruned,rewind,pruned,rewind,pruned,pass"
    );
    assert_eq!(scene.text("select count(*)::text from elven_sync.sync_batches").await, "1");
    assert_eq!(assert_verified(&scene).await, (5, 0));
    let refused = output_of(&scene, 1, &["entity", "rewind", "acme", "--to", &old, "--yes"]).await;
    assert!(
        refused.contains("was pruned from the journal; hint: elven-sync entity rewind --to"),
        "{refused}"
    );
    output_of(&scene, 0, &["entity", "rewind", "acme", "--yes"]).await;
    scene.run().await;
    assert_eq!(assert_verified(&scene).await, (65, 0));
}

/// Killed before and after each of its transactions.
#[sqlx::test(migrations = false)]
async fn prune_killed_at_any_step_leaves_a_verifiable_journal(pool: PgPool) {
    let scene = scene(pool).await;
    let mut killed = 0;
    for (n, point) in points(&OF_A_PRUNE).into_iter().enumerate() {
        // Some of everything: rows set aside and sent again, a rewind, failed lanes.
        let from = i32::try_from(n).unwrap() * 100;
        scene.sandbox.set_rules(vec![format!("reject:account=a{from}").parse().unwrap()]);
        run(&scene, from, from + 14).await;
        scene.sandbox.set_rules(Vec::new());
        scene.output(&["errors", "retry"]).await;
        run(&scene, from + 20, from + 34).await;
        scene.sql(AGE).await;
        run(&scene, from + 40, from + 42).await;
        let mut prune = scene.command(PRUNE);
        let died = prune.env(FAULT_POINT, format!("{point}=kill")).output().await.unwrap();
        killed += usize::from(!died.status.success());
        let (found, said) = findings(&proof(&scene, true).await);
        assert!(found.is_empty(), "killed at {point}: {said}");
    }
    assert!(killed >= 2 * 8, "{killed} were killed");
    output_of(&scene, 0, PRUNE).await;
    assert_eq!(
        scene.text("select string_agg(kind, ',' order by pass_id) from elven_sync.sync_passes").await,
        "pruned,pass"
    );
    assert_verified(&scene).await;
    let sides = [Side::Before, Side::After];
    assert_eq!(points(&OF_A_PRUNE).len(), sides.len() * OF_A_PRUNE[0].1.len());
}

/// A prune next to an active run, with one entity locked.
#[sqlx::test(migrations = false)]
async fn prune_neither_blocks_nor_awaits_workers(pool: PgPool) {
    let scene = scene(pool).await;
    scene.entity("beta", "UTC").await;
    for pass in 0..3 {
        run(&scene, pass * 100, pass * 100 + 14).await;
    }
    scene.sql("insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
               select 'beta', 'b' || n, 'BTC', '2024-01-01Z', n from generate_series(1, 3) n").await;
    scene.run().await;
    scene.sql("update ledger.balance_snapshots set balance = 0 where entity_id = 'beta'").await;
    scene.run().await;
    scene.sql(AGE).await;
    let mut other = PgConnection::connect(&scene.url).await.unwrap();
    other
        .execute("begin; select from elven_sync.sync_state where entity_id = 'acme' for update")
        .await
        .unwrap();
    let text = output_of(&scene, 3, PRUNE).await;
    assert!(text.contains("locked by another session"), "{text}");
    other.execute("rollback").await.unwrap();
    assert_eq!(
        scene
            .text("select string_agg(entity_id || kind, ',' order by pass_id) from elven_sync.sync_passes")
            .await,
        "acmepass,acmepass,acmepass,betapruned,betapass"
    );
    let (mut run, gate) = {
        scene.sql("insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
                   values ('acme', 'late', 'BTC', '2024-01-01Z', 1)").await;
        scene.held_run().await
    };
    output_of(&scene, 0, PRUNE).await;
    gate.open();
    assert!(run.wait().await.unwrap().success());
    // The pass that the run has opened is the newest one.
    assert_eq!(
        scene.text("select string_agg(kind, ',' order by pass_id) from elven_sync.sync_passes where entity_id = 'acme'").await,
        "pruned,pass"
    );
    assert_verified(&scene).await;
    output_of(&scene, 2, &["prune"]).await;
    output_of(&scene, 2, &["prune", "--older-than", "soon"]).await;
}

/// A backfill that can be resumed keeps its batches, however old it is: they record its progress.
#[sqlx::test(migrations = false)]
async fn batches_of_finished_backfills_are_pruned(pool: PgPool) {
    let scene = scene(pool).await;
    run(&scene, 0, 24).await;
    backfill_2024(&scene, 0, &[]).await;
    assert_eq!(assert_verified(&scene).await, (25, 0));
    let left = "
        update elven_sync.sync_backfills set finished_at = finished_at - interval '1 year';
        update elven_sync.sync_backfill_lanes set finished_at = null";
    scene.sql(AGE).await;
    scene.sql(left).await;
    scene.sql("update elven_sync.sync_backfills set status = 'incomplete'").await;
    run(&scene, 100, 101).await;
    output_of(&scene, 0, PRUNE).await;
    let batches = "select count(*)::text from elven_sync.sync_batches where backfill_id is not null";
    assert_eq!(scene.text(batches).await, "3", "the backfill can be resumed");
    scene
        .sql("update elven_sync.sync_backfill_lanes set finished_at = clock_timestamp() - interval '1 year'")
        .await;
    output_of(&scene, 0, PRUNE).await;
    assert_eq!(scene.text(batches).await, "0");
    let runs = "select string_agg(kind, ',' order by run_id) from elven_sync.sync_runs";
    assert_eq!(scene.text(runs).await, "backfill,incremental", "what is left of the backfill names its run");
    assert_eq!(assert_verified(&scene).await, (2, 0));
    backfill_2024(&scene, 0, &[]).await;
    assert_eq!(assert_verified(&scene).await, (2, 0));
}
