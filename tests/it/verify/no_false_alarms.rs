//! Cases without a finding: the normal work of people, writers and workers.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use elven_sync::sandbox::Fault;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, PgPool};

use super::{assert_verified, findings, proof};
use crate::support::{FAULT_POINT, PARTS, TestEnv, eventually, output_of};

/// One entity, small batches, and a connector with a minimal back-off.
async fn scene(pool: PgPool) -> TestEnv {
    let mut scene = TestEnv::new(pool).await;
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "10");
    scene.set("ELVEN_SYNC_RETRY__INITIAL", "1ms");
    scene.entity("acme", "America/New_York").await;
    scene
}

/// Inserts rows `from..=to` of acme.
fn rows(from: i32, to: i32) -> AssertSqlSafe<String> {
    AssertSqlSafe(format!(
        "insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
         select 'acme', 'a' || n, 'BTC', '2024-11-03Z'::timestamptz + n * interval '7 minutes', n
           from generate_series({from}, {to}) n"
    ))
}

async fn insert(scene: &TestEnv, from: i32, to: i32) {
    (&scene.pool).execute(rows(from, to)).await.unwrap();
}

#[sqlx::test(migrations = false)]
async fn empty_ledger_and_pending_rows_are_no_finding(pool: PgPool) {
    let scene = scene(pool).await;
    assert_eq!(assert_verified(&scene).await, (0, 0));
    insert(&scene, 1, 25).await;
    assert_eq!(assert_verified(&scene).await, (0, 25));
    scene.run().await;
    insert(&scene, 26, 30).await;
    assert_eq!(assert_verified(&scene).await, (25, 5));
}

#[sqlx::test(migrations = false)]
async fn updates_deletes_and_superseded_rows_are_no_finding(pool: PgPool) {
    let scene = scene(pool).await;
    insert(&scene, 1, 35).await;
    // Rows of the repeated hour, and one row that cannot be sent.
    scene
        .sql(
            "insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
             values ('acme', 'a', 'BTC', '2024-11-03 05:30Z', 1), ('acme', 'a', 'BTC', '2024-11-03 06:30Z', 2),
                    ('acme', 'a', 'BTC', '2024-11-03 06:30Z', 3), ('acme', 'nan', 'BTC', '2024-11-03Z', 'NaN')",
        )
        .await;
    scene.run().await;
    assert_eq!(assert_verified(&scene).await, (39, 0));
    scene.sql("update ledger.balance_snapshots set balance = balance + 1 where id % 3 = 0").await;
    scene.sql("delete from ledger.balance_snapshots where id % 7 = 0").await;
    let (proven, pending) = assert_verified(&scene).await;
    assert_eq!((proven + usize::try_from(pending).unwrap(), pending), (34, 12));
    scene.run().await;
    assert_eq!(assert_verified(&scene).await, (34, 0));
    // The newer version of a row that was set aside resolves its error. The error stays recorded.
    scene.sql("update ledger.balance_snapshots set balance = 5 where entity_account_id = 'nan'").await;
    scene.run().await;
    scene.sql("delete from ledger.balance_snapshots").await;
    assert_eq!(assert_verified(&scene).await, (0, 0));
}

/// Transactions that are open over several passes, and end in another order.
#[sqlx::test(migrations = false)]
async fn late_commits_are_no_finding(pool: PgPool) {
    let scene = scene(pool).await;
    let mut slow = PgConnection::connect(&scene.url).await.unwrap();
    let mut slower = PgConnection::connect(&scene.url).await.unwrap();
    for connection in [&mut slower, &mut slow] {
        connection.execute("begin").await.unwrap();
        connection.execute(rows(1, 12)).await.unwrap();
    }
    for pass in 1..4 {
        insert(&scene, 100 * pass, 100 * pass + 15).await;
        scene.run().await;
        assert_eq!(assert_verified(&scene).await.1, 0, "rows of open transactions are not there yet");
    }
    slow.execute("commit").await.unwrap();
    assert_eq!(assert_verified(&scene).await, (48, 12));
    scene.run().await;
    slower.execute("rollback").await.unwrap();
    insert(&scene, 1000, 1003).await;
    scene.run().await;
    assert_eq!(assert_verified(&scene).await, (64, 0));
}

#[sqlx::test(migrations = false)]
async fn rewinds_rebinds_and_from_now_are_no_finding(pool: PgPool) {
    let scene = scene(pool).await;
    let instant = "select to_char(clock_timestamp() at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')";
    insert(&scene, 1, 25).await;
    scene.run().await;
    let first = scene.text(instant).await;
    insert(&scene, 26, 45).await;
    scene.run().await;
    let second = scene.text(instant).await;
    // The second time, the watermark was ahead of the pass in which it then lies.
    for (to, proven) in [(first.as_str(), 25), ("start", 0), (&second, 45), (&first, 25)] {
        output_of(&scene, 0, &["entity", "rewind", "acme", "--to", to, "--yes"]).await;
        assert_eq!(assert_verified(&scene).await, (proven, 45 - i64::try_from(proven).unwrap()), "{to}");
        if to == first {
            // The next rewind abandons this pass.
            scene.sandbox.set_rules(vec!["error-500".parse().unwrap()]);
            scene.run().await;
            scene.sandbox.set_rules(Vec::new());
            assert_eq!(assert_verified(&scene).await.1, 20);
            output_of(&scene, 0, &["entity", "rewind", "acme", "--to", to, "--yes"]).await;
        }
        scene.run().await;
        assert_eq!(assert_verified(&scene).await, (45, 0), "{to}");
    }
    // The effect of pg_upgrade: the same rows under another identifier, here during an open pass.
    insert(&scene, 46, 60).await;
    scene.sandbox.inject(Fault::Answer { status: 401, body: String::new(), headers: Vec::new() });
    scene.run().await;
    scene.sql("update elven_sync.sync_state set system_identifier = 1").await;
    let (found, _) = findings(&proof(&scene, true).await);
    assert!(found.contains("watermark"));
    output_of(&scene, 0, &["entity", "rebind", "acme"]).await;
    assert_eq!(assert_verified(&scene).await.1, 15);
    scene.run().await;
    assert_eq!(assert_verified(&scene).await, (60, 0));

    scene.sql("insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
               select 'beta', 'b' || n, 'BTC', '2024-01-01Z', n from generate_series(1, 9) n").await;
    output_of(&scene, 0, &["entity", "add", "beta", "--timezone", "UTC", "--from-now"]).await;
    scene.sql("insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
               select 'beta', 'c' || n, 'BTC', '2024-01-01Z', n from generate_series(1, 4) n").await;
    scene.run().await;
    assert_eq!(assert_verified(&scene).await, (64, 0));
    assert!(
        output_of(&scene, 0, &["verify"])
            .await
            .contains("rows skipped by 1 entity at registration with --from-now")
    );
}

#[sqlx::test(migrations = false)]
async fn split_batches_and_retried_rows_are_no_finding(pool: PgPool) {
    let scene = scene(pool).await;
    insert(&scene, 1, 45).await;
    let rules = ["reject:account=a7", "reject:account=a8", "reject:account=a31"];
    scene.sandbox.set_rules(rules.iter().map(|rule| rule.parse().unwrap()).collect());
    scene.run().await;
    assert_eq!(assert_verified(&scene).await, (45, 0));
    scene.sandbox.set_rules(vec!["reject:account=a31".parse().unwrap()]);
    output_of(&scene, 3, &["errors", "retry"]).await;
    assert_eq!(assert_verified(&scene).await, (45, 0));
    let open = "select error_id::text from elven_sync.sync_errors where resolved_at is null";
    let number = scene.text(open).await;
    output_of(&scene, 0, &["errors", "resolve", &number, "--reason", "closed"]).await;
    assert_eq!(assert_verified(&scene).await, (45, 0));
    let set_aside: i64 = proof(&scene, false).await.iter().map(|entity| entity.rows_set_aside).sum();
    assert_eq!(set_aside, 3, "they were set aside by their batches, whatever became of them");
}

/// A batch whose answer was lost is sent again, after some or all of its rows have changed.
#[sqlx::test(migrations = false)]
async fn state_after_a_crash_is_no_finding(pool: PgPool) {
    let scene = scene(pool).await;
    for (round, changed) in [(1, "false"), (2, "id % 2 = 0"), (3, "true")] {
        insert(&scene, round * 100, round * 100 + 34).await;
        let mut run = scene.command(&["run"]);
        let died = run.env(FAULT_POINT, "settle:before@2=kill").output().await.unwrap();
        assert!(!died.status.success());
        assert_verified(&scene).await;
        let change = format!(
            "update ledger.balance_snapshots set balance = -1 where {changed} and id in (
                 select id::bigint from elven_sync.sync_batches b, elven_sync.batch_row_ids(batch_id) id where status = 'sending')"
        );
        (&scene.pool).execute(AssertSqlSafe(change)).await.unwrap();
        assert_verified(&scene).await;
        eventually("the lease is past", async || {
            scene.run().await;
            scene.text("select count(*)::text from elven_sync.sync_state where pass_id is not null").await
                == "0"
        })
        .await;
        scene.run().await;
        assert_eq!(assert_verified(&scene).await, (usize::try_from(round).unwrap() * 35, 0), "{changed}");
    }
    assert_eq!(
        scene.text("select (count(*) > 0)::text from elven_sync.sync_batches where rows_read = 0").await,
        "true",
        "a batch lost all its rows"
    );
}

/// The bodies of its batches are those of its zone at that time.
#[sqlx::test(migrations = false)]
async fn zone_change_is_no_finding(pool: PgPool) {
    let scene = scene(pool).await;
    insert(&scene, 1, 25).await;
    scene.run().await;
    scene.sql("update elven_sync.entities set timezone = 'Asia/Kathmandu'").await;
    insert(&scene, 26, 30).await;
    scene.run().await;
    assert_eq!(assert_verified(&scene).await, (30, 0));
    assert_eq!(proof(&scene, true).await[0].bodies_proven, 4);
    // Bodies from before zones were recorded, or made with unknown rules, are not reported as tampering.
    scene.sql("update elven_sync.sync_batches set timezone = null where batch_id = 1").await;
    scene.sql("update elven_sync.sync_batches set zone_rules = '1999a bundled 0', body_sha256 = 'x' where batch_id = 2").await;
    scene.forget_digests().await;
    assert_verified(&scene).await;
    let entity = proof(&scene, true).await.remove(0);
    assert_eq!((entity.bodies_proven, entity.bodies_not_provable), (2, 2), "{entity:?}");
    assert!(output_of(&scene, 0, &["verify", "--deep"]).await.contains("2 bodies that cannot be rebuilt"));
}

/// A journal from before the ends of passes and the rows set aside by batches were recorded.
#[sqlx::test(migrations = false)]
async fn journal_of_an_older_version_is_no_finding(pool: PgPool) {
    let scene = scene(pool).await;
    insert(&scene, 1, 25).await;
    scene.sql("insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
               values ('acme', 'nan', 'BTC', '2024-11-03Z', 'NaN')").await;
    scene.run().await;
    scene
        .sql(
            "update elven_sync.sync_passes set last_xid = null, last_id = null, written_by = null;
               update elven_sync.sync_batches set rejected_ids = null, timezone = null",
        )
        .await;
    scene.forget_digests().await;
    assert_eq!(assert_verified(&scene).await, (26, 0));
}

/// Text ids, in a database with its own sort order, and rows that no cursor can tell apart.
#[sqlx::test(migrations = false)]
async fn text_ids_views_and_ties_are_no_finding(pool: PgPool) {
    let mut scene = scene(pool).await;
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "4");
    scene
        .sql(
            "create table ledger.raw (id text primary key, owner text, amount numeric, stamp xid8 not null default pg_current_xact_id());
             create index on ledger.raw (owner, stamp, id);
             create view ledger.seen as select id, owner as entity_id, 'a' || id as entity_account_id, 'BTC' as currency,
                    timestamptz '2024-01-01Z' as captured_at, amount as balance, stamp as change_xid from ledger.raw;
             insert into ledger.raw select (array['Ä', 'b', 'A', '-', 'z ', ''''])[1 + n % 6] || n, 'acme', n from generate_series(1, 30) n",
        )
        .await;
    scene.set("ELVEN_SYNC_LEDGER__TABLE", "ledger.seen");
    scene.run().await;
    assert_eq!(assert_verified(&scene).await, (30, 0));
    scene.sql("update ledger.raw set amount = 0, stamp = default where id like 'A%'").await;
    assert_eq!(assert_verified(&scene).await, (25, 5));
    scene.run().await;
    scene.sql("insert into ledger.raw (id, owner, amount, stamp) select 'smuggled', 'acme', 1, stamp from ledger.raw where id like 'b%' limit 1").await;
    let (found, said) = findings(&proof(&scene, true).await);
    assert!(found.contains("unlisted_row") || found.contains("row_behind"), "{said}");

    scene.sql(PARTS).await;
    scene.sql("update elven_sync.sync_state set settled = null, ledger_table = null; truncate elven_sync.sync_passes cascade").await;
    scene.set("ELVEN_SYNC_LEDGER__TABLE", "ledger.parts");
    scene.sandbox.set_rules(vec!["reject:account=4".parse().unwrap()]);
    scene.sql("insert into ledger.parts (entity_id, entity_account_id, currency, captured_at, balance)
               select 'acme', n::text, 'BTC', '2024-01-01Z', case when n in (15, 16) then 'NaN'::numeric else n end
                 from generate_series(0, 17) n").await;
    scene.run().await;
    assert_eq!(assert_verified(&scene).await, (18, 0));
    // A fourth row of an id of which the batch lists three.
    scene.sql("alter table ledger.parts disable trigger stamp_change_xid;
               insert into ledger.parts (entity_id, entity_account_id, currency, captured_at, balance, change_xid)
               select entity_id, '9', currency, captured_at, 1, change_xid from ledger.parts where id = 3 limit 1").await;
    let (found, said) = findings(&proof(&scene, true).await);
    assert_eq!(found.into_iter().collect::<Vec<_>>(), ["unlisted_row"], "{said}");
}

/// Repeated verification while rows are written and updated and runs happen.
#[sqlx::test(migrations = false)]
async fn concurrent_runs_and_writers_are_no_finding(pool: PgPool) {
    let scene = scene(pool).await;
    scene.sandbox.set_rules(vec!["reject:account=a5".parse().unwrap(), "error-500@10%".parse().unwrap()]);
    let done = AtomicBool::new(false);
    let writing = async {
        for round in 0..30 {
            insert(&scene, round * 20, round * 20 + 19).await;
            scene.sql("update ledger.balance_snapshots set balance = balance + 1 where random() < 0.1").await;
            scene.sql("delete from ledger.balance_snapshots where random() < 0.01").await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        done.store(true, Ordering::Relaxed);
    };
    let running = async {
        while !done.load(Ordering::Relaxed) {
            scene.run().await;
        }
    };
    let checking = async {
        let mut times = 0;
        while !done.load(Ordering::Relaxed) {
            assert_verified(&scene).await;
            times += 1;
        }
        times
    };
    let ((), (), times) = tokio::join!(writing, running, checking);
    assert!(times > 5, "{times} times");
}

/// The verification is held in the middle, and then continues with the rows that existed when it began.
#[sqlx::test(migrations = false)]
async fn verify_ignores_rows_written_while_it_reads(pool: PgPool) {
    let scene = scene(pool).await;
    insert(&scene, 1, 20).await;
    scene.run().await;
    insert(&scene, 21, 25).await;
    let mut lock = PgConnection::connect(&scene.url).await.unwrap();
    // Read after the watermark and before the batches. Runs do not lock it.
    lock.execute("begin; lock table elven_sync.sync_pruned in access exclusive mode").await.unwrap();
    let meanwhile = async {
        let waits = "select count(*)::text from pg_locks where not granted and relation = 'elven_sync.sync_pruned'::regclass";
        eventually("verify waits", async || scene.text(waits).await == "1").await;
        insert(&scene, 26, 32).await;
        scene.sql("update ledger.balance_snapshots set balance = 0 where id = 7").await;
        assert_eq!(scene.run().await.counters.rows_uploaded, 13);
        lock.execute("rollback").await.unwrap();
    };
    let (proven, ()) = tokio::join!(assert_verified(&scene), meanwhile);
    assert_eq!(proven, (20, 5));
    assert_eq!(assert_verified(&scene).await, (32, 0));
}

/// A role with only read privileges.
#[sqlx::test(migrations = false)]
async fn verify_needs_only_read_privileges(pool: PgPool) {
    let mut scene = scene(pool).await;
    insert(&scene, 1, 25).await;
    scene.run().await;
    scene.sql("do $$ begin create role elven_sync_verifier login; exception when duplicate_object or unique_violation then null; end $$;
               grant usage on schema ledger, elven_sync to elven_sync_verifier;
               alter table ledger.balance_snapshots add column internal_note text;
               grant select (id, entity_id, entity_account_id, currency, captured_at, balance, change_xid)
                  on ledger.balance_snapshots to elven_sync_verifier;
               grant select on all tables in schema elven_sync to elven_sync_verifier;").await;
    let mut url = url::Url::parse(&scene.url).unwrap();
    url.set_username("elven_sync_verifier").unwrap();
    scene.set("DATABASE_URL", url.as_str());
    assert!(output_of(&scene, 0, &["verify", "--deep"]).await.contains("(25 rows)"));
    let row = output_of(&scene, 0, &["status", "--row", "1"]).await;
    assert!(row.contains("uploaded"), "{row}");
}
