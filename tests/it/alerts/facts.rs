//! Facts that only a run or a command can see, and the alerts that come from them.

use std::time::Duration;

use elven_sync::journal::{Fact, Subject, note_facts};
use serde_json::json;
use sqlx::types::chrono::Utc;
use sqlx::{Connection, Executor, PgConnection, PgPool};
use tokio::time::Instant;

use super::{NONE, add_row, alert, alerts, named};
use crate::support::{TestEnv, fault_rules, output_of};

/// The oldest writer, as if it had begun a quarter of an hour earlier.
const WRITER_IS_OLDER: &str =
    "update elven_sync.sync_facts set since = since - interval '16 minutes' where name = 'oldest_writer'";

const NINE_DAYS_PASS: &str =
    "update elven_sync.sync_facts set checked_at = checked_at - interval '9 days' where name = 'verify'";

#[sqlx::test(migrations = false)]
async fn old_writer_alerts_until_its_transaction_ends(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    scene.entity("acme", "UTC").await;
    let mut writer = PgConnection::connect(&scene.url).await.unwrap();
    let insert =
        "insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
                  values ('acme', 'w', 'BTC', now(), 1)";
    writer.execute("begin").await.unwrap();
    writer.execute(insert).await.unwrap();
    output_of(&scene, 0, &["run"]).await;
    assert_eq!(named(&scene).await, NONE, "it has just begun");
    let since = "select (f.since = a.xact_start)::text from elven_sync.sync_facts f, pg_stat_activity a
                  where f.name = 'oldest_writer' and a.pid = (f.value ->> 'pid')::integer";
    assert_eq!(scene.text(since).await, "true");
    // What was seen of it then says nothing about now.
    scene
        .sql(
            "update elven_sync.sync_facts
                set since = since - interval '1 day', checked_at = checked_at - interval '1 day'
              where name = 'oldest_writer'",
        )
        .await;
    assert_eq!(named(&scene).await, NONE);
    output_of(&scene, 0, &["run"]).await;
    assert_eq!(named(&scene).await, ["OldWriter warning"]);
    let old = alert(&scene, "OldWriter").await;
    assert!(old.message.contains("has written to the ledger and is open since"), "{old:?}");
    assert_eq!(old.hint, "elven-sync status");
    output_of(&scene, 0, &["run"]).await;
    assert_eq!(alert(&scene, "OldWriter").await.since, old.since);
    writer.execute("commit").await.unwrap();
    // Another transaction is another writer.
    writer.execute("begin").await.unwrap();
    writer.execute(insert).await.unwrap();
    output_of(&scene, 0, &["run"]).await;
    assert_eq!(named(&scene).await, NONE);
    scene.sql(WRITER_IS_OLDER).await;
    assert_eq!(named(&scene).await, ["OldWriter warning"]);
    writer.execute("commit").await.unwrap();
    output_of(&scene, 0, &["run"]).await;
    assert_eq!(named(&scene).await, NONE);
    writer.close().await.unwrap();
}

#[sqlx::test(migrations = false)]
async fn broken_guard_alerts_until_a_run_finds_it_intact(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    scene.entity("acme", "UTC").await;
    output_of(&scene, 0, &["run"]).await;
    scene.sql("alter table ledger.balance_snapshots disable trigger stamp_change_xid").await;
    output_of(&scene, 0, &["run"]).await;
    assert_eq!(named(&scene).await, ["GuardBroken critical"]);
    let broken = alert(&scene, "GuardBroken").await;
    assert!(broken.message.contains("ledger.balance_snapshots is disabled, as of "), "{broken:?}");
    output_of(&scene, 0, &["run"]).await;
    assert_eq!(alert(&scene, "GuardBroken").await.since, broken.since);
    scene.sql("alter table ledger.balance_snapshots enable always trigger stamp_change_xid").await;
    output_of(&scene, 0, &["run"]).await;
    assert_eq!(named(&scene).await, NONE);
}

#[sqlx::test(migrations = false)]
async fn clock_that_is_off_alerts_until_an_answer_shows_that_it_is_right(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    scene.entity("acme", "UTC").await;
    add_row(&scene, "acme").await;
    scene.sandbox.set_rules(fault_rules(&["clock=+90s"]));
    output_of(&scene, 0, &["run"]).await;
    assert_eq!(named(&scene).await, ["ClockSkew warning"]);
    let skew = alert(&scene, "ClockSkew").await;
    assert!(skew.message.contains(" s behind the API's, as of "), "{skew:?}");
    // A run without an answer of the API knows nothing about the clock.
    output_of(&scene, 0, &["run"]).await;
    assert_eq!(alert(&scene, "ClockSkew").await, skew);
    // The other direction is the same condition.
    scene.sandbox.set_rules(fault_rules(&["clock=-90s"]));
    add_row(&scene, "acme").await;
    output_of(&scene, 0, &["run"]).await;
    let now = alert(&scene, "ClockSkew").await;
    assert!(now.since == skew.since && now.message.contains(" s ahead of the API's"), "{now:?}");
    scene.sandbox.set_rules(Vec::new());
    add_row(&scene, "acme").await;
    output_of(&scene, 0, &["run"]).await;
    assert_eq!(named(&scene).await, NONE);
}

#[sqlx::test(migrations = false)]
async fn old_zone_rules_alert_until_a_run_has_newer_ones(pool: PgPool) {
    let mut scene = TestEnv::new(pool).await;
    scene.entity("acme", "Europe/Zurich").await;
    // Of 2019, see tests/data/zoneinfo.
    let older = format!("{}/tests/data/zoneinfo/older", env!("CARGO_MANIFEST_DIR"));
    scene.set("ELVEN_SYNC_TIME__ZONEINFO", &older);
    output_of(&scene, 0, &["run"]).await;
    assert_eq!(named(&scene).await, ["ZoneRulesOld warning"]);
    let old = alert(&scene, "ZoneRulesOld").await;
    assert_eq!(old.since.to_rfc3339(), "2021-01-01T00:00:00+00:00");
    assert!(old.message.contains("2019c"), "{old:?}");
    scene.set("ELVEN_SYNC_TIME__ZONEINFO", &older.replace("older", "newer"));
    output_of(&scene, 0, &["run"]).await;
    assert_eq!(named(&scene).await, NONE);
}

/// `verify` records its result. Where it never ran, nobody waits for it.
#[sqlx::test(migrations = false)]
async fn verify_alerts_when_it_finds_something_and_when_it_is_old(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    for entity_id in ["acme", "beta"] {
        scene.entity(entity_id, "UTC").await;
        add_row(&scene, entity_id).await;
    }
    scene.run().await;
    output_of(&scene, 0, &["verify"]).await;
    assert_eq!(named(&scene).await, NONE);
    scene.sql(NINE_DAYS_PASS).await;
    assert_eq!(named(&scene).await, ["VerifyOld warning"], "one alert for all entities");
    assert_eq!(alert(&scene, "VerifyOld").await.hint, "elven-sync verify");

    // A row that no batch lists, behind the watermark.
    scene
        .sql(
            "alter table ledger.balance_snapshots disable trigger stamp_change_xid;
             insert into ledger.balance_snapshots
                    (entity_id, entity_account_id, currency, captured_at, balance, change_xid)
             select 'acme', 'behind', 'BTC', now(), 1, change_xid
               from ledger.balance_snapshots where entity_id = 'acme';
             alter table ledger.balance_snapshots enable always trigger stamp_change_xid",
        )
        .await;
    output_of(&scene, 3, &["verify"]).await;
    assert_eq!(named(&scene).await, ["VerifyFailed critical acme"]);
    let failed = alert(&scene, "VerifyFailed").await;
    assert!(failed.message.starts_with("verify found 1 problem on "), "{failed:?}");
    assert_eq!(failed.hint, "elven-sync verify --entity 'acme'");
    output_of(&scene, 3, &["verify", "--deep", "--entity", "acme"]).await;
    assert_eq!(alert(&scene, "VerifyFailed").await.since, failed.since);
    scene.sql("delete from ledger.balance_snapshots where entity_account_id = 'behind'").await;
    output_of(&scene, 0, &["verify"]).await;
    assert_eq!(named(&scene).await, NONE);
    scene.sql(NINE_DAYS_PASS).await;
    assert_eq!(named(&scene).await, ["VerifyOld warning"], "also where an entity has a result of its own");

    // Entities that are verified one by one.
    scene.sql("delete from elven_sync.sync_facts where name = 'verify'").await;
    output_of(&scene, 0, &["verify", "--entity", "beta"]).await;
    scene.sql(NINE_DAYS_PASS).await;
    assert_eq!(named(&scene).await, ["VerifyOld warning beta"]);
    output_of(&scene, 0, &["verify", "--entity", "beta"]).await;
    assert_eq!(named(&scene).await, NONE);
}

/// A role that may only read can verify, but its result is not recorded.
#[sqlx::test(migrations = false)]
async fn verify_works_where_its_result_cannot_be_recorded(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    scene.entity("acme", "UTC").await;
    scene
        .sql(
            "create function refuse() returns trigger language plpgsql as $$ begin raise 'refused'; end $$;
             create trigger refuse before insert on elven_sync.sync_facts execute function refuse()",
        )
        .await;
    output_of(&scene, 0, &["verify"]).await;
    assert_eq!(scene.text("select count(*)::text from elven_sync.sync_facts").await, "0");
}

/// What `serve` and the delivery of alerts will record.
#[sqlx::test(migrations = false)]
async fn facts_of_configuration_and_webhook_alert_until_they_are_in_order(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    let database = scene.database(2).await;
    for (subject, name) in [(Subject::Config, "ConfigBroken"), (Subject::Webhook, "WebhookFailing")] {
        let note = async |problem: Option<&str>| {
            note_facts(&database, &[Fact::of_state(subject, problem)]).await.unwrap();
        };
        note(None).await;
        assert_eq!(named(&scene).await, NONE);
        note(Some("line 3: unknown key")).await;
        let first = alert(&scene, name).await;
        assert!(first.message.ends_with(": line 3: unknown key") && first.severity == "warning", "{first:?}");
        note(Some("line 4: unknown key")).await;
        let second = alert(&scene, name).await;
        assert!(second.since == first.since && second.message.ends_with("line 4: unknown key"), "{second:?}");
        note(None).await;
        assert_eq!(alerts(&scene).await, []);
    }
    database.close().await;
}

/// An idle run writes no fact again within a minute, and an older observation never replaces a newer one.
#[sqlx::test(migrations = false)]
async fn facts_are_written_when_they_change(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    scene.entity("acme", "UTC").await;
    output_of(&scene, 0, &["run"]).await;
    let versions =
        "select string_agg(concat_ws(' ', name, xmin), ', ' order by name) from elven_sync.sync_facts
                     where name in ('guard', 'ledger_files', 'limits', 'oldest_writer', 'tzdata')";
    let first = scene.text(versions).await;
    assert_eq!(first.split(", ").count(), 5, "{first}");
    output_of(&scene, 0, &["run"]).await;
    assert_eq!(scene.text(versions).await, first);
    scene.sql("update elven_sync.sync_facts set checked_at = checked_at - interval '2 minutes'").await;
    let since =
        scene.text("select string_agg(since::text, ',' order by name) from elven_sync.sync_facts").await;
    output_of(&scene, 0, &["run"]).await;
    assert_eq!(
        scene.text("select count(*)::text from elven_sync.sync_facts where checked_at < now() - interval '1 minute'
                       and name not like '%zone_rules%'").await,
        "0"
    );
    assert_eq!(
        scene.text("select string_agg(since::text, ',' order by name) from elven_sync.sync_facts").await,
        since
    );

    let database = scene.database(2).await;
    let a_while_ago = Instant::now().checked_sub(Duration::from_secs(5)).unwrap();
    let older = Fact { observed: a_while_ago, ..Fact::of_state(Subject::Guard, Some("broken")) };
    note_facts(&database, &[Fact::of_state(Subject::Guard, None)]).await.unwrap();
    note_facts(&database, &[older]).await.unwrap();
    assert_eq!(named(&scene).await, NONE);
    // Text that no table can hold.
    note_facts(&database, &[Fact::new(Subject::Config, json!({ "ok": false, "message": "a\0b" }))])
        .await
        .unwrap();
    assert!(alert(&scene, "ConfigBroken").await.message.ends_with("a?b"));
    database.close().await;
}

/// The files of the ledger, for `check`: a table that was rewritten, or a partition that was attached, is remembered
/// with what was there before.
#[sqlx::test(migrations = false)]
async fn files_of_the_ledger_are_remembered(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    scene.entity("acme", "UTC").await;
    output_of(&scene, 0, &["run"]).await;
    let files = "select (value = jsonb_build_object('tables', jsonb_build_array(jsonb_build_object(
                            'table', 'ledger.balance_snapshots',
                            'oid', 'ledger.balance_snapshots'::regclass::oid::bigint,
                            'file', pg_relation_filenode('ledger.balance_snapshots')::bigint))))::text
                   from elven_sync.sync_facts where name = 'ledger_files'";
    assert_eq!(scene.text(files).await, "true");
    scene.sql("create table saved as select value, since from elven_sync.sync_facts where name = 'ledger_files'").await;
    scene
        .sql("alter table ledger.balance_snapshots alter balance type numeric(40, 3) using balance * 1")
        .await;
    output_of(&scene, 0, &["run"]).await;
    let changed =
        "select concat_ws(' ', f.value -> 'before' = s.value, f.value -> 'tables' <> s.value -> 'tables',
                                    f.since > s.since)
                     from elven_sync.sync_facts f, saved s where f.name = 'ledger_files'";
    assert_eq!(scene.text(changed).await, "t t t");
    output_of(&scene, 0, &["run"]).await;
    assert_eq!(scene.text(changed).await, "t t t", "until the next change");
}

/// A sample that happens to leave out the altered body must not end the alert about it.
#[sqlx::test(migrations = false)]
async fn finding_of_all_bodies_is_not_ended_by_a_verify_of_a_sample(pool: PgPool) {
    let mut scene = TestEnv::new(pool).await;
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "1");
    scene.entity("acme", "UTC").await;
    scene.entity("beta", "UTC").await;
    scene
        .sql(
            "insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
             select 'acme', 'a' || n, 'BTC', '2024-01-01Z', n from generate_series(1, 45) n",
        )
        .await;
    scene.run().await;
    scene
        .sql(
            "alter table ledger.balance_snapshots disable trigger stamp_change_xid;
             update ledger.balance_snapshots set balance = 7 where entity_account_id = 'a20';
             alter table ledger.balance_snapshots enable always trigger stamp_change_xid",
        )
        .await;
    output_of(&scene, 3, &["verify", "--deep"]).await;
    let failed = alert(&scene, "VerifyFailed").await;
    assert_eq!(failed.hint, "elven-sync verify --deep --entity 'acme'");
    // Every second body is in the sample.
    for arguments in [&["verify"][..], &["verify", "--entity", "acme"], &["verify", "--entity", "beta"]] {
        for _ in 0..3 {
            scene.output(arguments).await;
            assert_eq!(alert(&scene, "VerifyFailed").await.since, failed.since, "{arguments:?}");
        }
    }
    scene.sql("delete from ledger.balance_snapshots where entity_account_id = 'a20'").await;
    output_of(&scene, 0, &["verify", "--deep"]).await;
    assert_eq!(named(&scene).await, NONE);
}

/// The clock of the database was ahead, and was put back.
#[sqlx::test(migrations = false)]
async fn times_in_the_future_silence_no_alert(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    scene.entity("acme", "UTC").await;
    add_row(&scene, "acme").await;
    output_of(&scene, 0, &["run"]).await;
    let ahead = "update elven_sync.sync_facts set checked_at = now() + interval '1 year';
                 update elven_sync.sync_state set checked_at = now() + interval '1 year';
                 update elven_sync.sync_runs set polled_at = now() + interval '1 year'";
    scene.sql(ahead).await;
    scene.sql("update elven_sync.entities set created_at = now() - interval '2 hours'").await;
    assert_eq!(
        named(&scene).await,
        ["NoPoll critical", "Stale critical acme"],
        "nothing shows that a run polls"
    );
    scene.sql("alter table ledger.balance_snapshots disable trigger stamp_change_xid").await;
    output_of(&scene, 0, &["run"]).await;
    assert_eq!(named(&scene).await, ["GuardBroken critical"]);
    let past = "select (max(checked_at) <= now())::text from elven_sync.sync_state";
    assert_eq!(scene.text(past).await, "true");
    assert!(!output_of(&scene, 0, &["status", "--prometheus"]).await.contains("poll_timestamp_seconds 1.8"));
}

/// A role that lacks the rights, as after an upgrade without the new grants, records nothing about the trigger.
#[sqlx::test(migrations = false)]
async fn guard_that_no_run_records_alerts(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    scene.entity("acme", "UTC").await;
    output_of(&scene, 0, &["run"]).await;
    scene.sql("delete from elven_sync.sync_facts").await;
    assert_eq!(named(&scene).await, NONE, "the first run may not be over");
    scene
        .sql(
            "insert into elven_sync.sync_runs (worker, version, tzdata, status, polled_at, finished_at, alive_until)
             values ('old', '0', '-', 'succeeded', now() - interval '2 hours', now(), now())",
        )
        .await;
    assert_eq!(named(&scene).await, ["GuardBroken critical"]);
    assert_eq!(alert(&scene, "GuardBroken").await.hint, "elven-sync check --only database");
    output_of(&scene, 0, &["run"]).await;
    assert_eq!(named(&scene).await, NONE);
    scene
        .sql("update elven_sync.sync_facts set checked_at = now() - interval '3 hours' where name = 'guard'")
        .await;
    assert_eq!(named(&scene).await, ["GuardBroken critical"]);
}

/// The transaction is the same before and after it is prepared.
#[sqlx::test(migrations = false)]
async fn old_writer_that_is_prepared_stays_as_old(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    let database = scene.database(1).await;
    let of_writer = |transaction: i64, pid: Option<i32>, minutes: u64| Fact {
        since: Some(Utc::now() - Duration::from_mins(minutes)),
        ..Fact::new(Subject::OldestWriter, json!({ "transaction": transaction, "pid": pid }))
    };
    note_facts(&database, &[of_writer(700, Some(1), 16)]).await.unwrap();
    let old = alert(&scene, "OldWriter").await;
    note_facts(&database, &[of_writer(700, None, 0)]).await.unwrap();
    assert_eq!(alert(&scene, "OldWriter").await.since, old.since);
    note_facts(&database, &[of_writer(701, None, 0)]).await.unwrap();
    assert_eq!(named(&scene).await, NONE);
}
