//! Each way to tamper with the journal, or with the ledger behind its back.

use sqlx::{AssertSqlSafe, PgPool};

use super::{assert_verified, findings, proof};
use crate::support::{TestEnv, output_of};

/// Three passes of acme. The first one has 44 rows in five batches: the second batch was split for a refused row, and
/// the third batch has a row that cannot be sent. The other passes have 5 and 3 rows. Ids have gaps, so that rows can
/// be inserted in between.
pub async fn scene_with_a_journal(pool: PgPool) -> TestEnv {
    let mut scene = TestEnv::new(pool).await;
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "10");
    scene.set("ELVEN_SYNC_SYNC__REQUESTS_IN_FLIGHT", "1");
    scene.sandbox.set_rules(vec!["reject:account=a13".parse().unwrap()]);
    scene.entity("acme", "Europe/Zurich").await;
    for (from, until) in [(1, 44), (45, 49), (50, 52)] {
        let insert = format!(
            "insert into ledger.balance_snapshots (id, entity_id, entity_account_id, currency, captured_at, balance)
             overriding system value
             select n * 10, 'acme', 'a' || n, 'BTC', '2024-07-01Z', case n when 25 then 'NaN'::numeric else n end
               from generate_series({from}, {until}) n"
        );
        sqlx::raw_sql(AssertSqlSafe(insert)).execute(&scene.pool).await.unwrap();
        scene.run().await;
    }
    let batches = "select string_agg(status, ' ' order by batch_id) from elven_sync.sync_batches where parent_id is null";
    assert_eq!(scene.text(batches).await, "accepted split accepted accepted accepted accepted accepted");
    scene.sql(SAVE).await;
    scene
}

const SAVE: &str = "
    create schema saved;
    create table saved.state as table elven_sync.sync_state;
    create table saved.passes as table elven_sync.sync_passes;
    create table saved.batches as table elven_sync.sync_batches;
    create table saved.errors as table elven_sync.sync_errors;
    create table saved.ledger as table ledger.balance_snapshots;";

pub const RESTORE: &str = "
    alter table ledger.balance_snapshots disable trigger stamp_change_xid;
    truncate elven_sync.sync_errors, elven_sync.sync_batches, elven_sync.sync_passes, elven_sync.sync_state,
             ledger.balance_snapshots;
    insert into elven_sync.sync_state table saved.state;
    insert into elven_sync.sync_passes overriding system value table saved.passes;
    update elven_sync.sync_passes set written_by = pg_current_xact_id();
    insert into elven_sync.sync_batches overriding system value table saved.batches;
    insert into elven_sync.sync_errors overriding system value table saved.errors;
    insert into ledger.balance_snapshots overriding system value table saved.ledger;
    alter table ledger.balance_snapshots enable always trigger stamp_change_xid;";

/// Batches and passes by their position, and a way to bypass the trigger.
pub const NAMES: &str = "
    create function nth_pass(n bigint) returns bigint language sql as
        'select pass_id from saved.passes order by pass_id offset n - 1 limit 1';
    create function nth_batch(n bigint) returns bigint language sql as
        'select batch_id from saved.batches where parent_id is null order by batch_id offset n - 1 limit 1';
    create function remove_batch(root bigint) returns void language sql as '
        with recursive gone (batch_id) as (select root union select b.batch_id from elven_sync.sync_batches b
                                              join gone on b.parent_id = gone.batch_id),
             errors as (update elven_sync.sync_errors set batch_id = null where batch_id in (select batch_id from gone))
        delete from elven_sync.sync_batches where batch_id in (select batch_id from gone)';
    create function smuggle(id bigint, xid xid8) returns void language plpgsql as $$ begin
        alter table ledger.balance_snapshots disable trigger stamp_change_xid;
        insert into ledger.balance_snapshots (id, entity_id, entity_account_id, currency, captured_at, balance, change_xid)
        overriding system value values (id, 'acme', 'smuggled', 'BTC', '2024-07-01Z', 666, xid);
        alter table ledger.balance_snapshots enable always trigger stamp_change_xid;
    end $$;
    create function xid_of(ledger_id bigint) returns xid8 language sql as
        'select change_xid from saved.ledger where id = ledger_id';";

/// Each way to tamper, and the kinds of findings that it has to cause.
pub const TAMPERING: &[(&str, &str, &[&str])] = &[
    ("the first batch of a pass is gone", "select remove_batch(nth_batch(1))", &["gap", "unlisted_row"]),
    ("one in its middle is gone", "select remove_batch(nth_batch(3))", &["gap", "unlisted_row"]),
    ("one that was split is gone", "select remove_batch(nth_batch(2))", &["gap", "unlisted_row"]),
    ("the last batch is gone", "select remove_batch(nth_batch(5))", &["gap", "row_behind"]),
    (
        "the last batch is gone, and its rows have changed since",
        "select remove_batch(nth_batch(5)); update ledger.balance_snapshots set balance = 0 where id > 400",
        &["gap"],
    ),
    ("all that a pass had is gone", "select remove_batch(nth_batch(6))", &["gap", "row_behind"]),
    (
        "all that a pass had is gone, and was deleted from the ledger",
        "select remove_batch(nth_batch(6)); delete from ledger.balance_snapshots where id between 450 and 490",
        &["gap"],
    ),
    (
        "a pass is gone",
        "select remove_batch(nth_batch(6)); delete from elven_sync.sync_passes where pass_id = nth_pass(2)",
        &["chain"],
    ),
    (
        "the last pass is gone",
        "select remove_batch(nth_batch(7)); delete from elven_sync.sync_passes where pass_id = nth_pass(3)",
        &["watermark"],
    ),
    (
        "the first pass is gone",
        "select remove_batch(nth_batch(n)) from generate_series(1, 5) n;
         delete from elven_sync.sync_passes where pass_id = nth_pass(1)",
        &["chain"],
    ),
    ("the watermark was moved forward", "update elven_sync.sync_state set settled = pg_current_snapshot()", &["watermark"]),
    (
        "the watermark was moved back",
        "update elven_sync.sync_state set settled = (select target from saved.passes where pass_id = nth_pass(1))",
        &["watermark"],
    ),
    ("the watermark is gone", "update elven_sync.sync_state set settled = null", &["watermark"]),
    (
        "a pass is said to have begun elsewhere",
        "update elven_sync.sync_passes set settled = null where pass_id = nth_pass(2)",
        &["chain", "unlisted_row"],
    ),
    ("a row was smuggled into an interval", "select smuggle(55, xid_of(50))", &["unlisted_row"]),
    (
        "a row was smuggled into an interval, of which another was updated",
        "select smuggle(55, xid_of(50)); update ledger.balance_snapshots set balance = 0 where id = 60",
        &["unlisted_row"],
    ),
    (
        "a row was smuggled into an interval, of which another was deleted",
        "select smuggle(55, xid_of(50)); delete from ledger.balance_snapshots where id = 60",
        &["unlisted_row"],
    ),
    ("a row was smuggled into a batch that was split", "select smuggle(155, xid_of(50))", &["unlisted_row"]),
    ("a row was smuggled in with an old stamp", "select smuggle(55, '3')", &["unlisted_row"]),
    ("a row was smuggled in behind the last one of a pass", "select smuggle(9999, xid_of(50))", &["row_behind"]),
    ("a row was smuggled in behind the last pass", "select smuggle(9999, xid_of(520))", &["row_behind"]),
    (
        "a hash was changed",
        "update elven_sync.sync_batches set body_sha256 = repeat('0', 64) where batch_id = nth_batch(1)",
        &["body"],
    ),
    (
        "the hash of a part was changed",
        "update elven_sync.sync_batches set body_sha256 = repeat('0', 64)
          where batch_id = (select min(batch_id) from saved.batches where parent_id is not null and status = 'accepted')",
        &["body"],
    ),
    (
        "a balance was changed without its stamp",
        "alter table ledger.balance_snapshots disable trigger stamp_change_xid;
         update ledger.balance_snapshots set balance = balance + 1 where id = 10;
         alter table ledger.balance_snapshots enable always trigger stamp_change_xid",
        &["body"],
    ),
    (
        "a balance was changed without its stamp beside a row that was set aside",
        "alter table ledger.balance_snapshots disable trigger stamp_change_xid;
         update ledger.balance_snapshots set balance = balance + 1 where id = 210;
         alter table ledger.balance_snapshots enable always trigger stamp_change_xid",
        &["body"],
    ),
    (
        "a row of another batch is said to be set aside",
        "update elven_sync.sync_batches set rejected_ids = (select rejected_ids from saved.batches where status = 'rejected')
          where batch_id = nth_batch(3)",
        &["counts"],
    ),
    (
        "row 210, which was sent, is said to be set aside",
        "update elven_sync.sync_batches set rejected_ids = '\\x01a403' where batch_id = nth_batch(3)",
        &["body", "no_error"],
    ),
    (
        "a list of rows was exchanged",
        "update elven_sync.sync_batches set row_ids = (select row_ids from saved.batches where batch_id = nth_batch(4))
          where batch_id = nth_batch(1)",
        &["unlisted_row"],
    ),
    (
        "a list of rows was emptied",
        "update elven_sync.sync_batches set row_ids = '\\x01' where batch_id = nth_batch(1)",
        &["counts", "unlisted_row"],
    ),
    (
        "a list of rows cannot be read",
        "update elven_sync.sync_batches set row_ids = '\\x07' where batch_id = nth_batch(6)",
        &["counts", "unlisted_row"],
    ),
    (
        "counts were changed",
        "update elven_sync.sync_batches set rows_read = 9, row_count = 9 where batch_id = nth_batch(1)",
        &["counts"],
    ),
    (
        "rows are said to be superseded that were set aside",
        "update elven_sync.sync_batches set rows_superseded = 1, rows_rejected = 0 where batch_id = nth_batch(3)",
        &["counts"],
    ),
    ("a row of sync_errors is gone", "delete from elven_sync.sync_errors where kind = 'invalid_row'", &["no_error"]),
    (
        "the row of sync_errors of a refused row is gone",
        "delete from elven_sync.sync_errors where kind = 'rejected_row'",
        &["no_error"],
    ),
    (
        "a row of sync_errors is gone, and the batch is from before it noted which",
        "update elven_sync.sync_batches set rejected_ids = null; delete from elven_sync.sync_errors where kind = 'invalid_row'",
        &["no_error"],
    ),
    (
        "a part is gone",
        "select remove_batch((select min(batch_id) from saved.batches where parent_id is not null and status = 'accepted'))",
        &["parts", "unlisted_row"],
    ),
    (
        "a part is gone, and its rows have changed since",
        "select remove_batch((select min(batch_id) from saved.batches where parent_id is not null and status = 'accepted'));
         update ledger.balance_snapshots set balance = 0",
        &["parts"],
    ),
    (
        "a batch is said not to have been split",
        "update elven_sync.sync_batches set status = 'accepted' where batch_id = nth_batch(2)",
        &["parts"],
    ),
    (
        "a batch has no answer any more",
        "update elven_sync.sync_batches set status = 'sending' where batch_id = nth_batch(3)",
        &["unfinished"],
    ),
    (
        "a batch ends elsewhere",
        "update elven_sync.sync_batches set last_id = '95' where batch_id = nth_batch(1)",
        &["gap", "unlisted_row"],
    ),
    (
        "the last batch of a pass ends earlier",
        "update elven_sync.sync_batches set last_id = '430' where batch_id = nth_batch(5)",
        &["gap", "row_behind"],
    ),
    (
        "a batch is another entity's",
        "update elven_sync.sync_batches set entity_id = 'beta' where batch_id = nth_batch(4)",
        &["counts"],
    ),
    (
        "the ledger has a row from the future",
        "select smuggle(9999, '999999999999')",
        &["watermark"],
    ),
    (
        "the state is another cluster's",
        "update elven_sync.sync_state set system_identifier = 1",
        &["watermark"],
    ),
];

#[sqlx::test(migrations = false)]
async fn each_tampering_is_found(pool: PgPool) {
    let scene = scene_with_a_journal(pool).await;
    scene.sql(NAMES).await;
    assert_eq!(assert_verified(&scene).await, (52, 0));
    let mut wrong = Vec::new();
    for (what, sql, expected) in TAMPERING {
        scene.sql(sql).await;
        let proof = proof(&scene, true).await;
        let (mut found, said) = findings(&proof);
        // What is behind the cursor is found by its digests, too.
        let has_digest = ["remove_batch", "update elven_sync.sync_batches", "elven_sync.sync_passes"];
        let by_digest = has_digest.iter().any(|words| sql.contains(words));
        if found.remove("digest") != by_digest || !found.iter().eq(*expected) {
            wrong.push(format!("{what}: {said}"));
        }
        scene.sql(RESTORE).await;
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    assert_eq!(assert_verified(&scene).await, (52, 0), "and all is as it was");
}

/// With an open pass: its cursor, and the rows after it.
#[sqlx::test(migrations = false)]
async fn each_tampering_with_an_open_pass_is_found(pool: PgPool) {
    let mut scene = TestEnv::new(pool).await;
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "10");
    scene.set("ELVEN_SYNC_SYNC__REQUESTS_IN_FLIGHT", "1");
    scene.set("ELVEN_SYNC_RETRY__ATTEMPTS", "1");
    scene.sandbox.set_rules(vec!["error-500@every:4".parse().unwrap()]);
    scene.entity("acme", "UTC").await;
    scene
        .sql(
            "insert into ledger.balance_snapshots (id, entity_id, entity_account_id, currency, captured_at, balance)
             overriding system value
             select n * 10, 'acme', 'a' || n, 'BTC', '2024-07-01Z', n from generate_series(1, 60) n",
        )
        .await;
    scene.run().await;
    scene.sql(SAVE).await;
    scene.sql(NAMES).await;
    assert_eq!(scene.text("select cursor_id from elven_sync.sync_state").await, "300");
    assert_eq!(assert_verified(&scene).await, (30, 30));
    for (what, sql, expected) in [
        ("the cursor was moved forward", "update elven_sync.sync_state set cursor_id = '600'", &["digest", "gap", "unfinished"][..]),
        ("the cursor was moved to another batch", "update elven_sync.sync_state set cursor_id = '400'", &["digest", "unfinished"]),
        ("the target was moved", "update elven_sync.sync_state set target = pg_current_snapshot()", &["open_pass"]),
        (
            "the open pass is closed over what waits",
            "update elven_sync.sync_state set settled = target, pass_id = null, target = null, cursor_xid = null, cursor_id = null;
             update elven_sync.sync_passes set finished_at = now(), written_by = pg_current_xact_id()",
            &["row_behind", "unfinished"],
        ),
        ("a batch that was accepted is gone", "select remove_batch(nth_batch(2))", &["digest", "gap", "unlisted_row"]),
        ("a row was smuggled in", "select smuggle(55, xid_of(50))", &["unlisted_row"]),
        ("a row was smuggled in where a batch is in flight", "select smuggle(355, xid_of(50))", &["unlisted_row"]),
        // The row is read with the pending ones.
        ("a row comes behind the last batch", "select smuggle(555, xid_of(50))", &[]),
    ] {
        scene.sql(sql).await;
        let proof = proof(&scene, true).await;
        let (found, said) = findings(&proof);
        assert_eq!(found.into_iter().collect::<Vec<_>>(), *expected, "{what}: {said}");
        scene.sql(RESTORE).await;
    }
}

/// The output for a person, and the exit codes.
#[sqlx::test(migrations = false)]
async fn verify_names_findings_and_exits_with_3(pool: PgPool) {
    let scene = scene_with_a_journal(pool).await;
    scene.entity("beta", "UTC").await;
    let well = output_of(&scene, 0, &["verify"]).await;
    assert!(well.contains("proven: for 2 of 2 entities") && well.contains("(52 rows)"), "{well}");
    assert!(well.contains("not proven: that Elven still holds the records that it accepted"), "{well}");
    scene.sql(NAMES).await;
    scene.sql("select smuggle(55, xid_of(50))").await;
    let broken = output_of(&scene, 3, &["verify"]).await;
    assert!(broken.contains("acme, pass 1, batch 1: rows 55 of the ledger"), "{broken}");
    assert!(broken.contains("hint: update them"), "{broken}");
    assert!(broken.contains("proven: for 1 of 2 entities (nothing about the 1 with findings)"), "{broken}");
    let json: serde_json::Value =
        serde_json::from_str(&output_of(&scene, 3, &["verify", "--json", "--entity", "acme"]).await).unwrap();
    assert_eq!(json["holds"], false);
    assert_eq!(json["entities"][0]["findings"][0]["ledger_ids"][0], "55");
    output_of(&scene, 0, &["verify", "--entity", "beta"]).await;
    let unknown = output_of(&scene, 1, &["verify", "--entity", "acne"]).await;
    assert!(unknown.contains("did you mean `acme`"), "{unknown}");
}

/// A sample of the bodies is rebuilt, and all of them with `--deep`.
#[sqlx::test(migrations = false)]
async fn deep_verify_finds_a_changed_hash_anywhere(pool: PgPool) {
    let mut scene = TestEnv::new(pool).await;
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "1");
    scene.entity("acme", "UTC").await;
    scene
        .sql(
            "insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
             select 'acme', 'a' || n, 'BTC', '2024-07-01Z', n from generate_series(1, 500) n",
        )
        .await;
    scene.run().await;
    let sampled = proof(&scene, false).await.remove(0);
    assert!((20..=25).contains(&sampled.bodies_proven), "{sampled:?}");
    assert_eq!(proof(&scene, true).await.remove(0).bodies_proven, 500);
    scene.sql("update elven_sync.sync_batches set body_sha256 = repeat('f', 64) where batch_id = 333").await;
    let deep = proof(&scene, true).await;
    assert_eq!(deep[0].findings[0].batch_id, Some(333), "{deep:?}");
}
