//! A watermark is bound to the mapping of the ledger: another mapping is refused until a person accepts it.

mod rebind;

use elven_sync::journal::RunStatus;
use elven_sync::sandbox::Fault;
use nix::sys::signal::Signal;
use sqlx::{AssertSqlSafe, Executor, PgPool};

use crate::support::{FAULT_POINT, TestEnv, output_of, signal, wait_for_log};
use crate::verify::{assert_verified, findings, proof};

const WRONG_ENTITY: (&str, &str) = ("ELVEN_SYNC_LEDGER__COLUMNS__ENTITY_ID", "entity_account_id");
const TABLE: &str = "ELVEN_SYNC_LEDGER__TABLE";
const REASON: [&str; 2] = ["--reason", "approved by the controller"];

/// Batches of ten rows, one request at a time.
async fn scene(pool: PgPool) -> TestEnv {
    let mut scene = TestEnv::new(pool).await;
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "10");
    scene.set("ELVEN_SYNC_SYNC__REQUESTS_IN_FLIGHT", "1");
    scene.set("ELVEN_SYNC_RETRY__ATTEMPTS", "1");
    scene.entity("acme", "UTC").await;
    scene
}

/// Inserts rows `from..=until` of acme.
async fn insert(scene: &TestEnv, from: i32, until: i32) {
    let insert = format!(
        "insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
         select 'acme', 'a' || n, 'BTC', '2024-01-01Z', n from generate_series({from}, {until}) n"
    );
    (&scene.pool).execute(AssertSqlSafe(insert)).await.unwrap();
}

/// Opens a pass of fifty rows that stops after the first batch.
async fn open_pass(scene: &TestEnv) {
    insert(scene, 1, 50).await;
    scene.sandbox.set_rules(vec!["revoked@once:2".parse().unwrap()]);
    assert_eq!(scene.run().await.counters.rows_uploaded, 10);
    scene.sandbox.set_rules(Vec::new());
}

/// Executes `entity rebind acme --mapping`, with this exit code.
async fn rebind(scene: &TestEnv, code: i32, more: &[&str]) -> String {
    let arguments = [&["entity", "rebind", "acme", "--mapping"][..], &REASON, more].concat();
    output_of(scene, code, &arguments).await
}

const OPEN: &str = "select coalesce(string_agg(concat_ws(' ', kind, ledger_id), ',' order by error_id), '')
                      from elven_sync.sync_errors where resolved_at is null";

/// Everything that records a watermark and the rows behind it, apart from leases and failures.
const STATE: &str = "select concat_ws(' ', settled, pass_id, target, cursor_xid, cursor_id, mapping, rows_uploaded,
                            (select count(*) from elven_sync.sync_batches), (select count(*) from elven_sync.sync_passes))
                       from elven_sync.sync_state";

#[sqlx::test(migrations = false)]
async fn changed_mapping_closes_no_pass_over_hidden_rows(pool: PgPool) {
    let mut scene = scene(pool).await;
    open_pass(&scene).await;
    let before = scene.text(STATE).await;
    scene.set(WRONG_ENTITY.0, WRONG_ENTITY.1);
    for arguments in [&["run"][..], &["run", "--entity", "acme"]] {
        let refused = output_of(&scene, 1, arguments).await;
        assert!(
            refused.contains("the ledger mapping of `acme` changed: entity_id was read from column entity_id, now from entity_account_id")
                && refused.contains("entity rebind --mapping --reason 'mapping changed' 'acme'"),
            "{refused}"
        );
        assert_eq!(scene.text(STATE).await, before);
    }
    assert_eq!(scene.text(OPEN).await.trim(), "auth,watermark", "nor are its accounts taken for entities");
    let health = "select status || ' ' || last_error from elven_sync.sync_health";
    assert!(scene.text(health).await.starts_with("failing the ledger mapping"));
    let pending = "select pending_rows::text from elven_sync.sync_state";
    assert_eq!(scene.text(pending).await, "40", "as it was counted last");
    scene.unset(WRONG_ENTITY.0);
    assert_eq!(scene.run().await.status, RunStatus::Succeeded);
    assert_eq!(scene.received().len(), 50);
    assert_eq!(scene.text(OPEN).await, "");
    assert_verified(&scene).await;
}

/// Each command that reads the ledger behind a watermark refuses each kind of change, and nothing in the journal
/// moves.
#[sqlx::test(migrations = false)]
async fn each_command_refuses_another_mapping(pool: PgPool) {
    let mut scene = scene(pool).await;
    scene.sql("alter table ledger.balance_snapshots add column cents bigint, add column local timestamp,
                   add column other_xid xid8 not null default pg_current_xact_id(), add column other_id bigint;
               create view ledger.shown as select * from ledger.balance_snapshots;").await;
    insert(&scene, 1, 15).await;
    scene.sandbox.set_rules(vec!["reject:account=a3".parse().unwrap()]);
    scene.run().await;
    let between = scene
        .text("select to_char(clock_timestamp() at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')")
        .await;
    insert(&scene, 16, 20).await;
    scene.run().await;
    scene.sandbox.set_rules(Vec::new());
    // A stopped backfill, and a new one.
    scene.sandbox.inject(Fault::Answer { status: 401, body: String::new(), headers: Vec::new() });
    output_of(&scene, 1, &["backfill", "--from", "2024-01-01", "--to", "2024-01-02"]).await;
    let (state, sent) = (scene.text(STATE).await, scene.sandbox.requests().len());
    for (changed, what) in [
        (&[WRONG_ENTITY][..], "entity_id was read from column entity_id, now from entity_account_id"),
        (&[("ELVEN_SYNC_LEDGER__ENTITY", "acme")], "[ledger] entity was unset, now \"acme\""),
        (
            &[("ELVEN_SYNC_LEDGER__COLUMNS__CHANGE_XID", "other_xid")],
            "change_xid was read from column change_xid, now from other_xid",
        ),
        (&[("ELVEN_SYNC_LEDGER__COLUMNS__ID", "other_id")], "id was read from column id, now from other_id"),
        (&[(TABLE, "ledger.shown")], "belongs to the ledger table"),
        (
            &[("ELVEN_SYNC_LEDGER__COLUMNS__BALANCE", "cents"), ("ELVEN_SYNC_LEDGER__BALANCE_SCALE", "2")],
            "balance was read from column balance, now from cents, and balance_scale was unset, now 2",
        ),
        (
            &[
                ("ELVEN_SYNC_LEDGER__COLUMNS__CAPTURED_AT", "local"),
                ("ELVEN_SYNC_LEDGER__CAPTURED_AT_ZONE", "UTC"),
            ],
            "captured_at_zone was unset, now \"UTC\"",
        ),
        (
            &[("ELVEN_SYNC_LEDGER__COLUMNS__CURRENCY", "entity_account_id")],
            "currency was read from column currency",
        ),
    ] {
        for (name, value) in changed {
            scene.set(name, value);
        }
        for (code, arguments) in [
            (1, &["run"][..]),
            (1, &["run", "--dry-run"]),
            (3, &["errors", "retry"]),
            (1, &["backfill", "--from", "2024-01-01", "--to", "2024-01-03"]),
            (1, &["backfill", "--from", "2024-01-01", "--to", "2024-01-03", "--dry-run"]),
            (1, &["backfill", "--resume", "1"]),
            (1, &["entity", "rewind", "acme", "--to", &between, "--yes"]),
            (3, &["verify"]),
        ] {
            let refused = output_of(&scene, code, arguments).await;
            assert!(
                refused.contains("the ledger mapping of `acme` changed") && refused.contains(what),
                "{arguments:?}: {refused}"
            );
        }
        // After pg_upgrade, too.
        scene.sql("update elven_sync.sync_state set system_identifier = 1").await;
        let refused = output_of(&scene, 1, &["entity", "rebind", "acme"]).await;
        assert!(refused.contains(what), "{refused}");
        scene.sql("update elven_sync.sync_state set system_identifier = (select system_identifier from pg_control_system())").await;
        let (found, said) = findings(&proof(&scene, false).await);
        assert_eq!(found.into_iter().collect::<Vec<_>>(), ["watermark"], "{said}");
        assert_eq!(scene.text(STATE).await, state, "{what}");
        assert_eq!(scene.text(OPEN).await.matches("rejected_row 3").count(), 1, "its row is set aside still");
        assert!(scene.text(OPEN).await.contains("watermark"));
        assert_eq!(scene.text("select count(*)::text from elven_sync.sync_backfills").await, "1");
        for (name, _) in changed {
            scene.unset(name);
        }
    }
    assert_eq!(scene.sandbox.requests().len(), sent);
    output_of(&scene, 0, &["backfill", "--resume", "1"]).await;
    output_of(&scene, 0, &["errors", "retry"]).await;
    assert_eq!(scene.run().await.status, RunStatus::Succeeded);
    assert_verified(&scene).await;
}

/// A replaced view keeps its oid and the numbers of its columns: an ordinary repair.
#[sqlx::test(migrations = false)]
async fn corrected_view_keeps_its_mapping(pool: PgPool) {
    let mut scene = scene(pool).await;
    scene.sql("create view ledger.shown as select * from ledger.balance_snapshots").await;
    scene.set(TABLE, "ledger.shown");
    insert(&scene, 1, 5).await;
    scene.run().await;
    scene.sql("create or replace view ledger.shown as
               select id, entity_id, upper(entity_account_id) as entity_account_id, currency, captured_at, balance, change_xid,
                      'seen'::text as note from ledger.balance_snapshots").await;
    insert(&scene, 6, 7).await;
    assert_eq!(scene.run().await.counters.rows_uploaded, 2);
}

/// Journals of 0.1.0 have no mapping: the next run records it, even if it has nothing to upload.
#[sqlx::test(migrations = false)]
async fn missing_mapping_is_recorded_by_the_next_run(pool: PgPool) {
    const MAPPING: &str = "select concat_ws(' ', mapping #>> '{columns,id}', mapping ->> 'api_version',
                                            split_part(mapping ->> 'relation', ':', 1)::oid = 'ledger.balance_snapshots'::regclass)
                             from elven_sync.sync_state";
    const FORGET: &str = "update elven_sync.sync_state set mapping = null";
    let mut scene = scene(pool).await;
    // Nothing was read yet, so there is no mapping to bind.
    scene.run().await;
    assert_eq!(scene.text(MAPPING).await, "");
    open_pass(&scene).await;
    assert_eq!(scene.text(MAPPING).await, "1:bigint:id 3 t");
    scene.sql(FORGET).await;
    scene.sandbox.inject(Fault::Answer { status: 401, body: String::new(), headers: Vec::new() });
    assert_eq!(scene.run().await.status, RunStatus::Failed);
    assert_eq!(scene.text(MAPPING).await, "1:bigint:id 3 t", "the pass is open still");
    scene.sql(FORGET).await;
    scene.run().await;
    assert_eq!(scene.text(MAPPING).await, "1:bigint:id 3 t");
    scene.sql(FORGET).await;
    assert_eq!(scene.run().await.counters.rows_read, 0);
    assert_eq!(scene.text(MAPPING).await, "1:bigint:id 3 t", "idle");
    scene.sql(FORGET).await;
    insert(&scene, 51, 52).await;
    scene.run().await;
    assert_eq!(scene.text(MAPPING).await, "1:bigint:id 3 t", "with news");
    scene.sql(FORGET).await;
    output_of(&scene, 0, &["backfill", "--from", "2024-01-01", "--to", "2024-01-02"]).await;
    assert_eq!(scene.text(MAPPING).await, "1:bigint:id 3 t", "by a backfill");
    output_of(&scene, 0, &["entity", "add", "beta", "--timezone", "UTC", "--from-now"]).await;
    assert_eq!(scene.text("select count(mapping)::text from elven_sync.sync_state").await, "2");
    // The table name of these journals is known, and another one is refused as before.
    scene.sql(FORGET).await;
    scene.sql("create view ledger.shown as select * from ledger.balance_snapshots").await;
    scene.set(TABLE, "ledger.shown");
    assert!(output_of(&scene, 1, &["run"]).await.contains("belongs to the ledger table"));
    assert_eq!(scene.text("select count(mapping)::text from elven_sync.sync_state").await, "0");
}

#[sqlx::test(migrations = false)]
async fn rewind_to_the_start_binds_the_current_mapping(pool: PgPool) {
    let mut scene = scene(pool).await;
    open_pass(&scene).await;
    scene.set(WRONG_ENTITY.0, WRONG_ENTITY.1);
    output_of(&scene, 0, &["entity", "rewind", "acme", "--yes"]).await;
    let mapped = "select split_part(mapping #>> '{columns,entity_id}', ':', 3) from elven_sync.sync_state";
    assert_eq!(scene.text(mapped).await, "entity_account_id");
    assert_eq!(scene.run().await.entities[0].failure(), None);
    assert!(!scene.text(OPEN).await.contains("watermark"));
    // Nothing was read since, so the next pass binds the current mapping. Rows that were set aside are not affected.
    scene.unset(WRONG_ENTITY.0);
    assert!(
        output_of(&scene, 1, &["backfill", "--from", "2024-01-01", "--to", "2024-01-02"])
            .await
            .contains("mapping")
    );
    assert_eq!(scene.run().await.counters.rows_uploaded, 50);
    assert_eq!(scene.text(mapped).await, "entity_id");
    assert_verified(&scene).await;
}

/// A worker that probed before the mapping was accepted opens no pass under its old mapping.
#[sqlx::test(migrations = false)]
async fn outdated_worker_opens_no_pass_under_its_old_mapping(pool: PgPool) {
    let mut scene = scene(pool).await;
    scene.sql("alter table ledger.balance_snapshots alter balance type bigint").await;
    scene.set("ELVEN_SYNC_LEDGER__BALANCE_SCALE", "0");
    insert(&scene, 1, 5).await;
    scene.run().await;
    insert(&scene, 6, 9).await;
    let mut late = scene.command(&["run"]);
    let mut late = late.env(FAULT_POINT, "take_lease:before=stop").spawn().unwrap();
    wait_for_log(&mut late, "stopped at a fault point").await;
    scene.set("ELVEN_SYNC_LEDGER__BALANCE_SCALE", "2");
    rebind(&scene, 0, &["--yes"]).await;
    let passes = "select count(*)::text from elven_sync.sync_passes";
    assert_eq!(scene.text(passes).await, "2");
    signal(&late, Signal::SIGCONT);
    assert_eq!(late.wait().await.unwrap().code(), Some(1));
    assert_eq!(scene.text(passes).await, "2", "it opened a pass under the mapping that it knew");
    assert_eq!(scene.received().len(), 5);
    assert_eq!(scene.run().await.counters.rows_uploaded, 4);
    assert!(scene.received().contains(&"a6 BTC 2024-01-01 00:00:00 0.06".to_owned()));
    assert_verified(&scene).await;
}
