//! A watermark is bound to how the ledger was read: another mapping is refused until a person accepts it.

use elven_sync::journal::RunStatus;
use elven_sync::sandbox::Fault;
use nix::sys::signal::Signal;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, PgPool};

use crate::crashes::FAULT_POINT;
use crate::support::{Scene, said, until_it_says};
use crate::verify::{findings, holds, proof};
use crate::workers::signal;

const WRONG_ENTITY: (&str, &str) = ("ELVEN_SYNC_LEDGER__COLUMNS__ENTITY_ID", "entity_account_id");
const TABLE: &str = "ELVEN_SYNC_LEDGER__TABLE";
const REASON: [&str; 2] = ["--reason", "approved by the controller"];

/// A scene whose batches have ten rows and are sent one after the other.
async fn scene(pool: PgPool) -> Scene {
    let mut scene = Scene::new(pool).await;
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "10");
    scene.set("ELVEN_SYNC_SYNC__REQUESTS_IN_FLIGHT", "1");
    scene.set("ELVEN_SYNC_RETRY__ATTEMPTS", "1");
    scene.entity("acme", "UTC").await;
    scene
}

/// Inserts rows `from..=until` of acme.
async fn insert(scene: &Scene, from: i32, until: i32) {
    let insert = format!(
        "insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
         select 'acme', 'a' || n, 'BTC', '2024-01-01Z', n from generate_series({from}, {until}) n"
    );
    (&scene.pool).execute(AssertSqlSafe(insert)).await.unwrap();
}

/// A pass of fifty rows that stops after the first batch.
async fn open_pass(scene: &Scene) {
    insert(scene, 1, 50).await;
    scene.sandbox.set_rules(vec!["revoked@once:2".parse().unwrap()]);
    assert_eq!(scene.run().await.counters.rows_uploaded, 10);
    scene.sandbox.set_rules(Vec::new());
}

/// `entity rebind acme --mapping`, which ends with this code.
async fn rebind(scene: &Scene, code: i32, more: &[&str]) -> String {
    let arguments = [&["entity", "rebind", "acme", "--mapping"][..], &REASON, more].concat();
    said(scene, code, &arguments).await
}

const OPEN: &str = "select coalesce(string_agg(concat_ws(' ', kind, ledger_id), ',' order by error_id), '')
                      from elven_sync.sync_errors where resolved_at is null";

/// Everything that a watermark and the rows behind it are recorded in, but for leases and failures.
const STATE: &str = "select concat_ws(' ', settled, pass_id, target, cursor_xid, cursor_id, mapping, rows_uploaded,
                            (select count(*) from elven_sync.sync_batches), (select count(*) from elven_sync.sync_passes))
                       from elven_sync.sync_state";

#[sqlx::test(migrations = false)]
async fn a_changed_mapping_closes_no_pass_over_rows_that_it_hides(pool: PgPool) {
    let mut scene = scene(pool).await;
    open_pass(&scene).await;
    let before = scene.text(STATE).await;
    scene.set(WRONG_ENTITY.0, WRONG_ENTITY.1);
    for arguments in [&["run"][..], &["run", "--entity", "acme"]] {
        let refused = said(&scene, 1, arguments).await;
        assert!(
            refused.contains("the ledger mapping of `acme` changed: entity_id was read from column entity_id, now from entity_account_id")
                && refused.contains("entity rebind 'acme' --mapping --reason"),
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
    holds(&scene).await;
}

/// Each command that reads the ledger behind a watermark, under each kind of change; and nothing of the journal moves.
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
    // A backfill that stopped, and one that is asked for.
    scene.sandbox.inject(Fault::Answer { status: 401, body: String::new(), headers: Vec::new() });
    said(&scene, 1, &["backfill", "--from", "2024-01-01", "--to", "2024-01-02"]).await;
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
            let refused = said(&scene, code, arguments).await;
            assert!(
                refused.contains("the ledger mapping of `acme` changed") && refused.contains(what),
                "{arguments:?}: {refused}"
            );
        }
        // After pg_upgrade, too.
        scene.sql("update elven_sync.sync_state set system_identifier = 1").await;
        let refused = said(&scene, 1, &["entity", "rebind", "acme"]).await;
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
    said(&scene, 0, &["backfill", "--resume", "1"]).await;
    said(&scene, 0, &["errors", "retry"]).await;
    assert_eq!(scene.run().await.status, RunStatus::Succeeded);
    holds(&scene).await;
}

/// Whatever is under way: what is read is what was read before.
#[sqlx::test(migrations = false)]
async fn a_rename_in_place_is_accepted_without_question_or_proof(pool: PgPool) {
    let mut scene = scene(pool).await;
    open_pass(&scene).await;
    scene.sandbox.inject(Fault::Answer { status: 401, body: String::new(), headers: Vec::new() });
    said(&scene, 1, &["backfill", "--from", "2024-01-01", "--to", "2024-01-02"]).await;
    scene
        .sql(
            "alter table ledger.balance_snapshots rename column entity_id to company;
               alter table ledger.balance_snapshots rename to positions; alter schema ledger rename to books",
        )
        .await;
    scene.set(TABLE, "books.positions");
    scene.set("ELVEN_SYNC_LEDGER__COLUMNS__ENTITY_ID", "company");
    let refused = said(&scene, 1, &["run"]).await;
    let what = "the ledger \"ledger\".\"balance_snapshots\" is called \"books\".\"positions\" now, and column entity_id (entity_id) is called company now";
    assert!(refused.contains(what), "{refused}");
    assert!(said(&scene, 2, &["entity", "rebind", "acme", "--mapping"]).await.contains("--reason"));
    assert!(
        said(&scene, 1, &["entity", "rebind", "acme", "--mapping", "--reason", " "]).await.contains("blank")
    );
    assert!(rebind(&scene, 0, &[]).await.contains("is rebound"));
    assert!(rebind(&scene, 0, &[]).await.contains("needs no rebinding"));
    let action = "select concat_ws(' ', action, actor = session_user, client is not null, entity_id, reason,
                         split_part(details #>> '{mapping,before,relation}', ':', 2),
                         split_part(details #>> '{mapping,now,relation}', ':', 2))
                    from elven_sync.sync_actions";
    assert_eq!(
        scene.text(action).await,
        "rebind_mapping t t acme approved by the controller \"ledger\".\"balance_snapshots\" \"books\".\"positions\""
    );
    assert_eq!(scene.run().await.status, RunStatus::Succeeded);
    assert_eq!(scene.received().len(), 50);
    said(&scene, 0, &["backfill", "--resume", "1"]).await;
    holds(&scene).await;
}

/// The zone that an instant is read in, the scale, and columns of values: no row is hidden, but others are sent.
#[sqlx::test(migrations = false)]
async fn changed_values_are_accepted_by_a_person_who_is_told_what_stays(pool: PgPool) {
    let mut scene = scene(pool).await;
    scene.sql("alter table ledger.balance_snapshots alter captured_at type timestamp using captured_at at time zone 'UTC',
                                                     alter balance type bigint").await;
    scene.set("ELVEN_SYNC_LEDGER__CAPTURED_AT_ZONE", "UTC");
    scene.set("ELVEN_SYNC_LEDGER__BALANCE_SCALE", "0");
    open_pass(&scene).await;
    scene.set("ELVEN_SYNC_LEDGER__CAPTURED_AT_ZONE", "America/New_York");
    scene.set("ELVEN_SYNC_LEDGER__BALANCE_SCALE", "2");
    let refused = rebind(&scene, 1, &["--yes"]).await;
    assert!(refused.contains("while pass 1 is open"), "{refused}");
    scene.set("ELVEN_SYNC_LEDGER__CAPTURED_AT_ZONE", "UTC");
    scene.set("ELVEN_SYNC_LEDGER__BALANCE_SCALE", "0");
    assert_eq!(scene.run().await.status, RunStatus::Succeeded);
    scene.sandbox.inject(Fault::Answer { status: 401, body: String::new(), headers: Vec::new() });
    said(&scene, 1, &["backfill", "--from", "2024-01-01", "--to", "2024-01-02"]).await;

    scene.set("ELVEN_SYNC_LEDGER__CAPTURED_AT_ZONE", "America/New_York");
    scene.set("ELVEN_SYNC_LEDGER__BALANCE_SCALE", "2");
    let refused = rebind(&scene, 1, &["--yes"]).await;
    assert!(
        refused.contains("while backfill 1 is open") && refused.contains("backfill cancel 1"),
        "{refused}"
    );
    said(&scene, 0, &["backfill", "cancel", "1"]).await;
    let state = scene.text(STATE).await;
    let asked = rebind(&scene, 1, &[]).await;
    let what = "captured_at_zone was \"UTC\", now \"America/New_York\", and balance_scale was 0, now 2";
    assert!(
        asked.contains(what) && asked.contains("records already sent stay at Elven unchanged"),
        "{asked}"
    );
    assert!(asked.contains("nothing was accepted"), "{asked}");
    assert_eq!(scene.text(STATE).await, state);
    rebind(&scene, 0, &["--yes"]).await;
    let sent = scene.received().len();
    assert_eq!(scene.run().await.counters.rows_read, 0, "nothing is sent again by itself");
    scene.sql("update ledger.balance_snapshots set balance = 700 where entity_account_id = 'a7'").await;
    scene.run().await;
    assert_eq!(scene.received().len(), sent + 1);
    assert!(scene.received().contains(&"a7 BTC 2024-01-01 05:00:00 7".to_owned()), "{:?}", scene.received());
    // The bodies of before are those of other values, as was accepted; those of now are proven.
    assert_eq!(holds(&scene).await, (50, 0));
    scene.sql("update elven_sync.sync_batches set body_sha256 = repeat('0', 64) where batch_id = (select max(batch_id) from elven_sync.sync_batches)").await;
    let (found, said) = findings(&proof(&scene, true).await);
    assert!(found.contains("body"), "{said}");
}

/// A row of `errors retry` whose answer was lost would be sent with other values.
#[sqlx::test(migrations = false)]
async fn a_batch_whose_outcome_is_unknown_keeps_its_mapping(pool: PgPool) {
    let mut scene = scene(pool).await;
    scene.sql("alter table ledger.balance_snapshots alter balance type bigint").await;
    scene.set("ELVEN_SYNC_LEDGER__BALANCE_SCALE", "0");
    insert(&scene, 1, 5).await;
    scene.sandbox.set_rules(vec!["reject:account=a3".parse().unwrap()]);
    scene.run().await;
    scene.sandbox.set_rules(vec!["answer-lost@once:1".parse().unwrap()]);
    said(&scene, 3, &["errors", "retry"]).await;
    scene.set("ELVEN_SYNC_LEDGER__BALANCE_SCALE", "2");
    let refused = rebind(&scene, 1, &["--yes"]).await;
    assert!(refused.contains("is unknown") && refused.contains("errors retry"), "{refused}");
    scene.set("ELVEN_SYNC_LEDGER__BALANCE_SCALE", "0");
    said(&scene, 0, &["errors", "retry"]).await;
    scene.set("ELVEN_SYNC_LEDGER__BALANCE_SCALE", "2");
    rebind(&scene, 0, &["--yes"]).await;
}

#[sqlx::test(migrations = false)]
async fn another_id_entity_or_stamp_is_accepted_by_the_proof_alone(pool: PgPool) {
    let mut scene = scene(pool).await;
    insert(&scene, 1, 40).await;
    scene.run().await;
    let state = scene.text(STATE).await;
    // Of each of these other rows would be hidden.
    scene.sql("alter table ledger.balance_snapshots add column other_xid xid8 not null default pg_current_xact_id(),
                   add column other_id text not null default 'x' || random();
               create table ledger.restamped (like ledger.balance_snapshots including all);
               insert into ledger.restamped (id, entity_id, entity_account_id, currency, captured_at, balance)
               overriding system value
               select id, entity_id, entity_account_id, currency, captured_at, balance from ledger.balance_snapshots;").await;
    for (name, value) in [
        WRONG_ENTITY,
        ("ELVEN_SYNC_LEDGER__COLUMNS__CHANGE_XID", "other_xid"),
        ("ELVEN_SYNC_LEDGER__COLUMNS__ID", "other_id"),
        (TABLE, "ledger.restamped"),
    ] {
        scene.set(name, value);
        let refused = rebind(&scene, 1, &["--yes"]).await;
        assert!(
            refused.contains("is not proven") && refused.contains("entity rewind 'acme'"),
            "{name}: {refused}"
        );
        assert_eq!(scene.text(STATE).await, state, "{name}");
        scene.unset(name);
    }
    // The same rows behind another name and another oid.
    scene
        .sql(
            "alter table ledger.balance_snapshots rename to raw;
               create view ledger.balance_snapshots as select * from ledger.raw",
        )
        .await;
    let refused = said(&scene, 1, &["run"]).await;
    assert!(refused.contains("is another table or view than before"), "{refused}");
    let mut old = PgConnection::connect(&scene.url).await.unwrap();
    old.execute("begin; select pg_current_xact_id()").await.unwrap();
    insert(&scene, 41, 41).await;
    rebind(&scene, 0, &["--yes"]).await;
    old.execute("rollback").await.unwrap();
    assert_eq!(scene.run().await.counters.rows_read, 1, "nothing again, and nothing skipped");
    assert_eq!(holds(&scene).await, (41, 0));

    // A transaction that the watermark may speak of has not ended.
    old.execute("begin; select pg_current_xact_id()").await.unwrap();
    insert(&scene, 42, 42).await;
    scene.run().await;
    scene.set(TABLE, "ledger.raw");
    let refused = rebind(&scene, 1, &["--yes"]).await;
    assert!(refused.contains("are still open"), "{refused}");
    old.execute("commit").await.unwrap();
    // Of eleven rows in ten the ledger has to have the ids.
    scene.sql("delete from ledger.raw where id <= 8").await;
    let refused = rebind(&scene, 1, &["--yes"]).await;
    assert!(refused.contains("of the 42 ids in its newest batches 34 are found"), "{refused}");
    scene.sql("insert into elven_sync.sync_pruned (entity_id, until) values ('acme', now())").await;
    assert!(rebind(&scene, 1, &["--yes"]).await.contains("was pruned"));
    // The way out of all of these.
    said(&scene, 0, &["entity", "rewind", "acme", "--yes", "--reason", "the table was replaced"]).await;
    assert_eq!(scene.run().await.counters.rows_uploaded, 34);
    let reason =
        "select concat_ws(' ', action, reason) from elven_sync.sync_actions order by action_id desc limit 1";
    assert_eq!(scene.text(reason).await, "rewind the table was replaced");
}

/// A view keeps its oid and the numbers of its columns when it is replaced: an ordinary repair.
#[sqlx::test(migrations = false)]
async fn a_view_that_is_corrected_is_no_other_mapping(pool: PgPool) {
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

/// Journals of 0.1.0 have no mapping: whichever run comes next records it, if it has nothing to upload, too.
#[sqlx::test(migrations = false)]
async fn a_mapping_that_was_never_recorded_is_recorded_by_the_next_run(pool: PgPool) {
    let mut scene = scene(pool).await;
    const MAPPING: &str = "select concat_ws(' ', mapping #>> '{columns,id}', mapping ->> 'api_version',
                                            split_part(mapping ->> 'relation', ':', 1)::oid = 'ledger.balance_snapshots'::regclass)
                             from elven_sync.sync_state";
    const FORGET: &str = "update elven_sync.sync_state set mapping = null";
    // Nothing was read yet, so there is nothing to be bound to.
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
    said(&scene, 0, &["backfill", "--from", "2024-01-01", "--to", "2024-01-02"]).await;
    assert_eq!(scene.text(MAPPING).await, "1:bigint:id 3 t", "by a backfill");
    said(&scene, 0, &["entity", "add", "beta", "--timezone", "UTC", "--from-now"]).await;
    assert_eq!(scene.text("select count(mapping)::text from elven_sync.sync_state").await, "2");
    // The name of the table is known of these, and another one is refused as before.
    scene.sql(FORGET).await;
    scene.sql("create view ledger.shown as select * from ledger.balance_snapshots").await;
    scene.set(TABLE, "ledger.shown");
    assert!(said(&scene, 1, &["run"]).await.contains("belongs to the ledger table"));
    assert_eq!(scene.text("select count(mapping)::text from elven_sync.sync_state").await, "0");
}

#[sqlx::test(migrations = false)]
async fn a_rewind_to_the_start_is_bound_to_the_present_mapping(pool: PgPool) {
    let mut scene = scene(pool).await;
    open_pass(&scene).await;
    scene.set(WRONG_ENTITY.0, WRONG_ENTITY.1);
    said(&scene, 0, &["entity", "rewind", "acme", "--yes"]).await;
    let mapped = "select split_part(mapping #>> '{columns,entity_id}', ':', 3) from elven_sync.sync_state";
    assert_eq!(scene.text(mapped).await, "entity_account_id");
    assert_eq!(scene.run().await.entities[0].failure(), None);
    assert!(!scene.text(OPEN).await.contains("watermark"));
    // Nothing was read since, so the next pass is bound to whatever there is; rows set aside are not.
    scene.unset(WRONG_ENTITY.0);
    assert!(
        said(&scene, 1, &["backfill", "--from", "2024-01-01", "--to", "2024-01-02"])
            .await
            .contains("mapping")
    );
    assert_eq!(scene.run().await.counters.rows_uploaded, 50);
    assert_eq!(scene.text(mapped).await, "entity_id");
    holds(&scene).await;
}

/// A worker that looked before the mapping was accepted opens no pass under its own.
#[sqlx::test(migrations = false)]
async fn no_pass_is_opened_under_another_mapping_than_was_seen(pool: PgPool) {
    let mut scene = scene(pool).await;
    scene.sql("alter table ledger.balance_snapshots alter balance type bigint").await;
    scene.set("ELVEN_SYNC_LEDGER__BALANCE_SCALE", "0");
    insert(&scene, 1, 5).await;
    scene.run().await;
    insert(&scene, 6, 9).await;
    let mut late = scene.command(&["run"]);
    let mut late = late.env(FAULT_POINT, "take_lease:before=stop").spawn().unwrap();
    until_it_says(&mut late, "stopped at a fault point").await;
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
    holds(&scene).await;
}

/// Entities that cannot be rebound are no reason not to rebind the others.
#[sqlx::test(migrations = false)]
async fn all_entities_are_rebound_at_once(pool: PgPool) {
    let mut scene = scene(pool).await;
    scene.sql("alter table ledger.balance_snapshots alter balance type bigint").await;
    scene.set("ELVEN_SYNC_LEDGER__BALANCE_SCALE", "0");
    scene.entity("beta", "UTC").await;
    scene.sql("insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
               values ('beta', 'b', 'BTC', '2024-01-01Z', 1)").await;
    said(&scene, 0, &["run", "--entity", "beta"]).await;
    open_pass(&scene).await;
    scene.set("ELVEN_SYNC_LEDGER__BALANCE_SCALE", "2");
    let all = ["entity", "rebind", "--all", "--mapping", "--reason", "cents", "--yes"];
    let half = said(&scene, 1, &all).await;
    assert!(half.contains("while pass 2 is open") && half.contains("`beta` is rebound"), "{half}");
    assert!(half.contains("1 of 2 entities were not rebound: acme"), "{half}");
    scene.set("ELVEN_SYNC_LEDGER__BALANCE_SCALE", "0");
    said(&scene, 0, &["run", "--entity", "acme"]).await;
    scene.set("ELVEN_SYNC_LEDGER__BALANCE_SCALE", "2");
    let rest = said(&scene, 0, &all).await;
    assert!(rest.contains("`acme` is rebound") && rest.contains("`beta` needs no rebinding"), "{rest}");
}
