//! A journal that this cluster did not write, or that was altered, moves nothing: its transaction ids may belong to
//! another cluster.

use elven_sync::journal::RunStatus;
use sqlx::{AssertSqlSafe, Executor, PgPool};

use crate::support::{TestEnv, eventually, output_of, stderr, stdout};
use crate::verify::assert_verified;

async fn scene(pool: PgPool) -> TestEnv {
    let mut scene = TestEnv::new(pool).await;
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "10");
    scene.set("ELVEN_SYNC_SYNC__REQUESTS_IN_FLIGHT", "1");
    scene.set("ELVEN_SYNC_RETRY__ATTEMPTS", "1");
    scene.entity("acme", "UTC").await;
    scene
}

async fn insert(scene: &TestEnv, from: i32, until: i32) {
    let insert = format!(
        "insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
         select 'acme', 'a' || n, 'BTC', '2024-01-01Z', n from generate_series({from}, {until}) n"
    );
    (&scene.pool).execute(AssertSqlSafe(insert)).await.unwrap();
}

/// The effect of copying the journal: the same values in rows that another transaction wrote.
const COPY: &str = "update elven_sync.sync_passes set kind = kind";

const JOURNAL: &str = "select concat_ws(' ', settled, pass_id, target, cursor_xid, cursor_id, rows_uploaded,
                              (select string_agg(kind, ',' order by pass_id) from elven_sync.sync_passes),
                              (select count(*) from elven_sync.sync_batches))
                         from elven_sync.sync_state";
const NOW: &str = "select to_char(clock_timestamp() at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')";

/// Asserts that each command that trusts or moves a watermark is refused, and that the journal is unchanged.
pub async fn assert_each_command_refuses(scene: &TestEnv, between: &str, why: &str) {
    let before = scene.text(JOURNAL).await;
    let sent = scene.sandbox.requests().len();
    for (code, arguments) in [
        (1, &["run"][..]),
        (1, &["run", "--dry-run"]),
        (1, &["backfill", "--from", "2024-01-01", "--to", "2024-01-03"]),
        (1, &["backfill", "--from", "2024-01-01", "--to", "2024-01-03", "--dry-run"]),
        (3, &["errors", "retry"]),
        (1, &["entity", "rewind", "acme", "--to", between, "--yes"]),
        (1, &["entity", "rebind", "acme"]),
        (1, &["entity", "rebind", "acme", "--mapping", "--reason", "none", "--yes"]),
        (3, &["verify"]),
    ] {
        let refused = output_of(scene, code, arguments).await;
        // The proof itself reports the difference.
        let by_proof = arguments == ["verify"] && refused.contains("the watermark in sync_state is");
        assert!(refused.contains(why) || by_proof, "{arguments:?}: {refused}");
    }
    let open =
        "select string_agg(kind, ',' order by kind) from elven_sync.sync_errors where resolved_at is null";
    assert_eq!(scene.text(open).await, "rejected_row,watermark");
    assert_eq!(scene.text(JOURNAL).await, before);
    assert_eq!(scene.sandbox.requests().len(), sent);
}

/// Nothing shows that a journal without batches belongs to the ledger.
#[sqlx::test(migrations = false)]
async fn copied_journal_without_batches_is_refused_with_its_remedies(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    output_of(&scene, 0, &["entity", "add", "acme", "--timezone", "UTC", "--from-now"]).await;
    scene.sql(COPY).await;
    let journal = ["entity", "rebind", "acme", "--journal", "--reason", "moved"];
    let refused = output_of(&scene, 1, &journal).await;
    assert!(
        refused.contains("no batch of `acme` lists a row") && refused.contains("--from-now"),
        "{refused}"
    );
}

/// A rebind that needs the proof. Transactions of other tests on this server may be older than the watermark at
/// first.
pub async fn assert_accepted(scene: &TestEnv, arguments: &[&str]) {
    eventually("the proof is made", async || {
        let output = scene.output(arguments).await;
        let said = format!("{}{}", stdout(&output), stderr(&output));
        assert!(output.status.success() || said.contains("are still open"), "{arguments:?}: {said}");
        output.status.success()
    })
    .await;
}

#[sqlx::test(migrations = false)]
async fn broken_seal_allows_only_a_rewind_to_the_start(pool: PgPool) {
    let scene = scene(pool).await;
    insert(&scene, 101, 103).await;
    scene.run().await;
    insert(&scene, 1, 15).await;
    scene.sandbox.set_rules(vec!["reject:account=a3".parse().unwrap()]);
    scene.run().await;
    let between = scene.text(NOW).await;
    insert(&scene, 16, 20).await;
    scene.run().await;
    scene.sandbox.set_rules(Vec::new());
    for (spoil, why) in [
        (COPY, "this cluster did not write the journal of `acme`"),
        (
            "update elven_sync.sync_state set settled = (select settled from elven_sync.sync_passes order by pass_id desc limit 1)",
            "is not where its newest change",
        ),
        (
            "delete from elven_sync.sync_passes where pass_id = (select max(pass_id) from elven_sync.sync_passes)",
            "is not where its newest change",
        ),
    ] {
        scene.sql("create table saved_passes as table elven_sync.sync_passes; create table saved_state as table elven_sync.sync_state;
                   alter table elven_sync.sync_batches drop constraint if exists sync_batches_pass_id_fkey").await;
        (&scene.pool).execute(AssertSqlSafe(spoil)).await.unwrap();
        assert_each_command_refuses(&scene, &between, why).await;
        let before = scene.text(JOURNAL).await;
        // The evidence is not pruned either.
        let pruned = output_of(&scene, 3, &["prune", "--older-than", "0s"]).await;
        assert!(pruned.contains("did not write its journal"), "{pruned}");
        assert_eq!(scene.text(JOURNAL).await, before);
        scene.sql("delete from elven_sync.sync_passes; insert into elven_sync.sync_passes overriding system value table saved_passes;
                   update elven_sync.sync_passes set written_by = pg_current_xact_id();
                   update elven_sync.sync_state s set settled = b.settled from saved_state b;
                   drop table saved_passes, saved_state").await;
        assert_eq!(scene.run().await.status, RunStatus::Succeeded, "{why}");
    }
    scene.sql(COPY).await;
    output_of(&scene, 0, &["entity", "rewind", "acme", "--yes"]).await;
    assert_eq!(scene.run().await.counters.rows_uploaded, 23);
    assert_verified(&scene).await;
}

/// An open pass is not resumed either.
#[sqlx::test(migrations = false)]
async fn open_pass_of_a_copied_journal_is_not_resumed(pool: PgPool) {
    let scene = scene(pool).await;
    insert(&scene, 1, 50).await;
    scene.sandbox.set_rules(vec!["revoked@once:2".parse().unwrap()]);
    scene.run().await;
    scene.sandbox.set_rules(Vec::new());
    for spoil in [COPY, "update elven_sync.sync_state set target = pg_current_snapshot()"] {
        (&scene.pool).execute(AssertSqlSafe(spoil)).await.unwrap();
        let before = scene.text(JOURNAL).await;
        output_of(&scene, 1, &["run"]).await;
        assert_eq!(scene.text(JOURNAL).await, before);
        scene
            .sql(
                "update elven_sync.sync_passes set written_by = pg_current_xact_id();
                   update elven_sync.sync_state set target = (select target from elven_sync.sync_passes)",
            )
            .await;
    }
    assert_eq!(scene.run().await.status, RunStatus::Succeeded);
    assert_eq!(scene.received().len(), 50);
}

/// Maintenance that keeps rows in their transaction keeps the seal intact, and so does the connector itself.
#[sqlx::test(migrations = false)]
async fn maintenance_and_connector_writes_keep_the_seal_intact(pool: PgPool) {
    let scene = scene(pool).await;
    let seal = "select seal from elven_sync.seals('{acme}')";
    assert_eq!(scene.text(seal).await, "none");
    insert(&scene, 1, 15).await;
    scene.run().await;
    for kept in [
        "vacuum (freeze) elven_sync.sync_passes",
        "vacuum (full, freeze) elven_sync.sync_passes",
        "cluster elven_sync.sync_passes using sync_passes_pkey",
        "update elven_sync.sync_passes set written_by = null",
    ] {
        scene.sql(kept).await;
        assert_eq!(scene.text(seal).await, "whole", "{kept}");
        assert_eq!(scene.run().await.status, RunStatus::Succeeded, "{kept}");
    }
    insert(&scene, 16, 20).await;
    scene.run().await;
    scene.sql("update elven_sync.sync_state set system_identifier = 1").await;
    output_of(&scene, 0, &["entity", "rebind", "acme"]).await;
    assert_eq!(scene.text(seal).await, "whole", "behind a rebind");
    insert(&scene, 21, 25).await;
    scene.run().await;
    output_of(&scene, 0, &["prune", "--older-than", "0s"]).await;
    assert_eq!(scene.text(seal).await, "whole", "behind a prune");
    output_of(&scene, 0, &["entity", "rewind", "acme", "--yes"]).await;
    assert_eq!(scene.text(seal).await, "whole", "behind a rewind");
    scene.run().await;
    assert_eq!(scene.text(seal).await, "whole");
    scene.sql("create table t as table elven_sync.sync_passes; delete from elven_sync.sync_batches; delete from elven_sync.sync_passes").await;
    assert_eq!(scene.text(seal).await, "missing");
    scene.sql("insert into elven_sync.sync_passes overriding system value select * from t").await;
    assert_eq!(scene.text(seal).await, "broken");
}

/// After a rebind during an open pass, the pass is the newest change of the entity until it is closed.
#[sqlx::test(migrations = false)]
async fn rebind_during_an_open_pass_keeps_the_seal_intact(pool: PgPool) {
    let scene = scene(pool).await;
    insert(&scene, 1, 50).await;
    scene.sandbox.set_rules(vec!["revoked@once:2".parse().unwrap()]);
    scene.run().await;
    scene.sandbox.set_rules(Vec::new());
    scene.sql("update elven_sync.sync_state set system_identifier = 1").await;
    output_of(&scene, 0, &["entity", "rebind", "acme"]).await;
    let seal = "select seal from elven_sync.seals('{acme}')";
    assert_eq!(scene.text(seal).await, "whole");
    assert_eq!(scene.run().await.status, RunStatus::Succeeded);
    assert_eq!(scene.text(seal).await, "whole", "the pass is older than the rebind");
    insert(&scene, 51, 52).await;
    assert_eq!(scene.run().await.counters.rows_uploaded, 2);
    assert_eq!(scene.text(seal).await, "whole");
    assert_verified(&scene).await;
}

#[sqlx::test(migrations = false)]
async fn copied_journal_is_accepted_after_proof(pool: PgPool) {
    let scene = scene(pool).await;
    insert(&scene, 1, 30).await;
    let journal = ["entity", "rebind", "acme", "--journal", "--reason", "moved by logical replication"];
    scene.run().await;
    assert!(output_of(&scene, 0, &journal).await.contains("needs no rebind"));
    scene.sql(COPY).await;
    insert(&scene, 31, 32).await;
    assert_accepted(&scene, &journal).await;
    let action =
        "select concat_ws(' ', action, reason) from elven_sync.sync_actions where action like 'rebind%'";
    assert_eq!(scene.text(action).await, "rebind_journal moved by logical replication");
    assert_eq!(scene.run().await.counters.rows_read, 2, "nothing again, and nothing skipped");
    assert_eq!(assert_verified(&scene).await, (32, 0));

    // Corrected rows have left the batches that sent them first.
    scene.sql("update ledger.balance_snapshots set balance = balance + 1 where id <= 20").await;
    assert_eq!(scene.run().await.counters.rows_uploaded, 20);
    scene.sql(COPY).await;
    assert_accepted(&scene, &journal).await;

    // A row that the copied watermark would skip.
    scene.sql(COPY).await;
    scene.sql("alter table ledger.balance_snapshots disable trigger stamp_change_xid;
               insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance, change_xid)
               select entity_id, 'hidden', currency, captured_at, 1, change_xid from ledger.balance_snapshots where id = 5;
               alter table ledger.balance_snapshots enable always trigger stamp_change_xid").await;
    let refused = output_of(&scene, 1, &journal).await;
    assert!(
        refused.contains("`verify` does not hold") && refused.contains("entity rewind 'acme'"),
        "{refused}"
    );
    assert_eq!(scene.text("select seal from elven_sync.seals('{acme}')").await, "broken");
}
