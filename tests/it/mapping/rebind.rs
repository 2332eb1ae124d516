//! The conditions under which a person can have another mapping accepted.

use elven_sync::journal::RunStatus;
use elven_sync::sandbox::Fault;
use sqlx::{Connection, Executor, PgConnection, PgPool};

use super::{REASON, STATE, TABLE, WRONG_ENTITY, insert, open_pass, rebind, scene};
use crate::seal::assert_accepted;
use crate::verify::{assert_verified, findings, proof};

use crate::support::output_of;

/// Also with work in progress: the columns that are read stay the same.
#[sqlx::test(migrations = false)]
async fn rename_in_place_is_accepted_without_confirmation_or_proof(pool: PgPool) {
    let mut scene = scene(pool).await;
    open_pass(&scene).await;
    scene.sandbox.inject(Fault::Answer { status: 401, body: String::new(), headers: Vec::new() });
    output_of(&scene, 1, &["backfill", "--from", "2024-01-01", "--to", "2024-01-02"]).await;
    scene
        .sql(
            "alter table ledger.balance_snapshots rename column entity_id to company;
               alter table ledger.balance_snapshots rename to positions; alter schema ledger rename to books",
        )
        .await;
    scene.set(TABLE, "books.positions");
    scene.set("ELVEN_SYNC_LEDGER__COLUMNS__ENTITY_ID", "company");
    let refused = output_of(&scene, 1, &["run"]).await;
    let what = "the ledger \"ledger\".\"balance_snapshots\" was renamed to \"books\".\"positions\", and column entity_id (entity_id) was renamed to company";
    assert!(refused.contains(what), "{refused}");
    assert!(output_of(&scene, 2, &["entity", "rebind", "acme", "--mapping"]).await.contains("--reason"));
    assert!(
        output_of(&scene, 1, &["entity", "rebind", "acme", "--mapping", "--reason", " "])
            .await
            .contains("blank")
    );
    assert!(rebind(&scene, 0, &[]).await.contains("is rebound"));
    assert!(rebind(&scene, 0, &[]).await.contains("needs no rebind"));
    let action = "select concat_ws(' ', action, actor = session_user, client is not null, entity_id, reason,
                         split_part(details #>> '{mapping,before,relation}', ':', 2),
                         split_part(details #>> '{mapping,now,relation}', ':', 2))
                    from elven_sync.sync_actions where action like 'rebind%'";
    assert_eq!(
        scene.text(action).await,
        "rebind_mapping t t acme approved by the controller \"ledger\".\"balance_snapshots\" \"books\".\"positions\""
    );
    assert_eq!(scene.run().await.status, RunStatus::Succeeded);
    assert_eq!(scene.received().len(), 50);
    output_of(&scene, 0, &["backfill", "--resume", "1"]).await;
    assert_verified(&scene).await;
}

/// The zone of instants, the scale, and value columns: no row is hidden, but other values are sent.
#[sqlx::test(migrations = false)]
async fn changed_values_need_confirmation_that_names_the_consequence(pool: PgPool) {
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
    output_of(&scene, 1, &["backfill", "--from", "2024-01-01", "--to", "2024-01-02"]).await;

    scene.set("ELVEN_SYNC_LEDGER__CAPTURED_AT_ZONE", "America/New_York");
    scene.set("ELVEN_SYNC_LEDGER__BALANCE_SCALE", "2");
    let refused = rebind(&scene, 1, &["--yes"]).await;
    assert!(
        refused.contains("while backfill 1 is open") && refused.contains("backfill cancel 1"),
        "{refused}"
    );
    output_of(&scene, 0, &["backfill", "cancel", "1"]).await;
    let state = scene.text(STATE).await;
    let asked = rebind(&scene, 1, &[]).await;
    let what = "captured_at_zone was \"UTC\", now \"America/New_York\", and balance_scale was 0, now 2";
    assert!(
        asked.contains(what) && asked.contains("records that were sent stay at Elven unchanged"),
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
    // Older bodies have the old values, as was accepted. New bodies are verified.
    assert_eq!(assert_verified(&scene).await, (50, 0));
    scene.sql("update elven_sync.sync_batches set body_sha256 = repeat('0', 64) where batch_id = (select max(batch_id) from elven_sync.sync_batches)").await;
    let (found, said) = findings(&proof(&scene, true).await);
    assert!(found.contains("body"), "{said}");
}

/// A row of `errors retry` whose answer was lost would be sent with another value.
#[sqlx::test(migrations = false)]
async fn batch_with_unknown_outcome_prevents_a_new_mapping(pool: PgPool) {
    let mut scene = scene(pool).await;
    scene.sql("alter table ledger.balance_snapshots alter balance type bigint").await;
    scene.set("ELVEN_SYNC_LEDGER__BALANCE_SCALE", "0");
    insert(&scene, 1, 5).await;
    scene.sandbox.set_rules(vec!["reject:account=a3".parse().unwrap()]);
    scene.run().await;
    scene.sandbox.set_rules(vec!["answer-lost@once:1".parse().unwrap()]);
    output_of(&scene, 3, &["errors", "retry"]).await;
    scene.set("ELVEN_SYNC_LEDGER__BALANCE_SCALE", "2");
    let refused = rebind(&scene, 1, &["--yes"]).await;
    assert!(refused.contains("is unknown") && refused.contains("errors retry"), "{refused}");
    scene.set("ELVEN_SYNC_LEDGER__BALANCE_SCALE", "0");
    output_of(&scene, 0, &["errors", "retry"]).await;
    scene.set("ELVEN_SYNC_LEDGER__BALANCE_SCALE", "2");
    rebind(&scene, 0, &["--yes"]).await;
}

#[sqlx::test(migrations = false)]
async fn changed_key_columns_are_accepted_only_by_proof(pool: PgPool) {
    let mut scene = scene(pool).await;
    insert(&scene, 1, 40).await;
    scene.run().await;
    let state = scene.text(STATE).await;
    // With each of these changes other rows would be hidden.
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
    // The same rows under another name and another oid.
    scene
        .sql(
            "alter table ledger.balance_snapshots rename to raw;
               create view ledger.balance_snapshots as select * from ledger.raw",
        )
        .await;
    let refused = output_of(&scene, 1, &["run"]).await;
    assert!(refused.contains("is a different table or view than before"), "{refused}");
    let mut old = PgConnection::connect(&scene.url).await.unwrap();
    old.execute("begin; select pg_current_xact_id()").await.unwrap();
    insert(&scene, 41, 41).await;
    assert_accepted(&scene, &[&["entity", "rebind", "acme", "--mapping", "--yes"][..], &REASON].concat())
        .await;
    old.execute("rollback").await.unwrap();
    assert_eq!(scene.run().await.counters.rows_read, 1, "nothing again, and nothing skipped");
    assert_eq!(assert_verified(&scene).await, (41, 0));

    // A transaction that the watermark may cover is still open.
    old.execute("begin; select pg_current_xact_id()").await.unwrap();
    insert(&scene, 42, 42).await;
    scene.run().await;
    scene.set(TABLE, "ledger.raw");
    let refused = rebind(&scene, 1, &["--yes"]).await;
    assert!(refused.contains("are still open"), "{refused}");
    old.execute("commit").await.unwrap();
    // The ledger has to have the ids of ten in eleven rows.
    scene.sql("delete from ledger.raw where id <= 8").await;
    let refused = rebind(&scene, 1, &["--yes"]).await;
    assert!(refused.contains("the ledger has only 34 of the 42 ids in its newest batches"), "{refused}");
    scene.sql("insert into elven_sync.sync_pruned (entity_id, until) values ('acme', now())").await;
    assert!(rebind(&scene, 1, &["--yes"]).await.contains("was pruned"));
    // The remedy for all of these.
    output_of(&scene, 0, &["entity", "rewind", "acme", "--yes", "--reason", "the table was replaced"]).await;
    assert_eq!(scene.run().await.counters.rows_uploaded, 34);
    let reason =
        "select concat_ws(' ', action, reason) from elven_sync.sync_actions order by action_id desc limit 1";
    assert_eq!(scene.text(reason).await, "rewind the table was replaced");
}

/// Entities that cannot be rebound do not prevent the others from being rebound.
#[sqlx::test(migrations = false)]
async fn all_entities_are_rebound_at_once(pool: PgPool) {
    let mut scene = scene(pool).await;
    scene.sql("alter table ledger.balance_snapshots alter balance type bigint").await;
    scene.set("ELVEN_SYNC_LEDGER__BALANCE_SCALE", "0");
    scene.entity("beta", "UTC").await;
    scene.sql("insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
               values ('beta', 'b', 'BTC', '2024-01-01Z', 1)").await;
    output_of(&scene, 0, &["run", "--entity", "beta"]).await;
    open_pass(&scene).await;
    scene.set("ELVEN_SYNC_LEDGER__BALANCE_SCALE", "2");
    let all = ["entity", "rebind", "--all", "--mapping", "--reason", "cents", "--yes"];
    let half = output_of(&scene, 1, &all).await;
    assert!(half.contains("while pass 2 is open") && half.contains("`beta` is rebound"), "{half}");
    assert!(half.contains("1 of 2 entities were not rebound: acme"), "{half}");
    scene.set("ELVEN_SYNC_LEDGER__BALANCE_SCALE", "0");
    output_of(&scene, 0, &["run", "--entity", "acme"]).await;
    scene.set("ELVEN_SYNC_LEDGER__BALANCE_SCALE", "2");
    let rest = output_of(&scene, 0, &all).await;
    assert!(rest.contains("`acme` is rebound") && rest.contains("`beta` needs no rebind"), "{rest}");
}
