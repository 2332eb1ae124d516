//! `sync_actions`: who did what, when and why.

use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, PgPool};

use crate::support::{TestEnv, output_of, stderr};

/// The actions in order, without those of `scene.entity`.
async fn actions(scene: &TestEnv) -> Vec<String> {
    let sql = "select coalesce(string_agg(concat_ws(' ', action, entity_id, reason, details::text), E'\\n' order by action_id), '')
                 from elven_sync.sync_actions where action_id > 1";
    scene.text(sql).await.lines().map(str::to_owned).collect()
}

/// A ledger with three rows of acme, whose entity is the first action.
async fn scene(pool: PgPool) -> TestEnv {
    let scene = TestEnv::new(pool).await;
    scene.entity("acme", "UTC").await;
    scene
        .sql(
            "insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
             select 'acme', 'a' || n, 'BTC', '2024-01-01Z', case n when 3 then 'NaN'::numeric else n end
               from generate_series(1, 3) n",
        )
        .await;
    scene
}

#[sqlx::test(migrations = false)]
async fn entity_changes_are_recorded_by_command_and_by_sql(pool: PgPool) {
    let scene = scene(pool).await;
    for arguments in [
        &["entity", "add", "beta", "--timezone", "Asia/Kolkata"][..],
        &["entity", "add", "beta", "--timezone", "Asia/Kolkata"],
        &["entity", "pause", "beta", "--reason", "Übernahme"],
        &["entity", "pause", "beta", "--reason", "again"],
        &["entity", "resume", "beta", "--reason", "done"],
    ] {
        output_of(&scene, 0, arguments).await;
    }
    let recorded = actions(&scene).await;
    assert_eq!(recorded.len(), 3, "a command that changes nothing is no action: {recorded:?}");
    assert!(
        recorded[0].starts_with("entity_add beta {") && recorded[0].contains("Asia/Kolkata"),
        "{recorded:?}"
    );
    assert_eq!(recorded[1], r#"entity_pause beta Übernahme {"paused": {"now": true, "before": false}}"#);
    assert_eq!(recorded[2], r#"entity_resume beta done {"paused": {"now": false, "before": true}}"#);

    let reasons = "select string_agg(reason, ', ' order by action_id) from elven_sync.sync_actions";
    assert_eq!(scene.text(reasons).await, "Übernahme, done");
    output_of(&scene, 1, &["entity", "pause", "beta", "--reason", " "]).await;
    output_of(&scene, 1, &["entity", "pause", "ghost", "--reason", "x"]).await;

    // One row per statement and entity.
    scene
        .sql(
            "insert into elven_sync.entities (entity_id, timezone) values ('x', 'UTC'), ('y', 'UTC');
             update elven_sync.entities set timezone = 'Europe/Zurich', paused = true where entity_id in ('x', 'y');
             update elven_sync.entities set timezone = timezone;
             update elven_sync.entities set paused = true;
             set session_replication_role = replica;
             delete from elven_sync.entities where entity_id = 'y';
             reset session_replication_role",
        )
        .await;
    let recorded = actions(&scene).await;
    let words: Vec<String> =
        recorded[3..].iter().map(|line| line.split(' ').take(2).collect::<Vec<_>>().join(" ")).collect();
    assert_eq!(
        words,
        [
            "entity_add x",
            "entity_add y",
            "entity_set x",
            "entity_set y",
            "entity_pause acme",
            "entity_pause beta",
            "entity_remove y"
        ]
    );
    assert!(recorded[5].contains(r#""timezone": {"now": "Europe/Zurich", "before": "UTC"}"#), "{recorded:?}");
    let who = "select string_agg(distinct (actor = session_user)::text || ' ' || (client is not null), ',')
                 from elven_sync.sync_actions";
    assert_eq!(scene.text(who).await, "true true");
}

/// A role that may only write to `entities` leaves its trace, and cannot write the trace itself.
#[sqlx::test(migrations = false)]
async fn role_that_may_only_write_entities_is_recorded(pool: PgPool) {
    let scene = scene(pool).await;
    let role = format!("clerk_{}", std::process::id());
    let work = format!(
        "create role {role} login; grant usage on schema elven_sync to {role};
         grant select, insert, update on elven_sync.entities to {role};
         revoke execute on all functions in schema elven_sync from public;
         set session authorization {role};
         update elven_sync.entities set timezone = 'Europe/Zurich' where entity_id = 'acme';"
    );
    let mut clerk = PgConnection::connect(&scene.url).await.unwrap();
    let mut execute = async |sql: String| clerk.execute(sqlx::raw_sql(AssertSqlSafe(sql))).await;
    execute(work).await.unwrap();
    let forged = execute("insert into elven_sync.sync_actions (action) values ('rewind')".to_owned()).await;
    assert!(forged.unwrap_err().to_string().contains("permission denied"));
    let actor =
        "select actor from elven_sync.sync_actions where action = 'entity_set' and entity_id = 'acme'";
    assert_eq!(scene.text(actor).await, role);
    execute(format!("reset session authorization; drop owned by {role}; drop role {role}")).await.unwrap();
}

#[sqlx::test(migrations = false)]
async fn what_is_given_up_is_recorded_with_its_reason(pool: PgPool) {
    let scene = scene(pool).await;
    let reason = ["--reason", "Übernahme"];
    output_of(&scene, 3, &["run"]).await;
    output_of(
        &scene,
        0,
        &[&["entity", "add", "new", "--timezone", "UTC", "--from-now"][..], &reason].concat(),
    )
    .await;
    output_of(&scene, 3, &["backfill", "--from", "2024-01-01", "--to", "2024-01-02", "--entity", "acme"])
        .await;
    output_of(&scene, 0, &[&["entity", "rewind", "acme", "--yes"][..], &reason].concat()).await;
    scene.sql("update elven_sync.sync_backfills set status = 'interrupted'").await;
    scene.sql("update elven_sync.sync_backfill_lanes set finished_at = null").await;
    output_of(&scene, 0, &[&["backfill", "cancel", "1"][..], &reason].concat()).await;
    let recorded = actions(&scene).await;
    assert_eq!(recorded.len(), 5, "{recorded:?}");
    assert!(recorded[0].starts_with("entity_add new {"), "{recorded:?}");
    assert!(recorded[1].starts_with("from_now new Übernahme {\"to\""), "{recorded:?}");
    assert!(
        recorded[2].starts_with("backfill acme {") && recorded[2].contains(r#""from": "2024-01-01""#),
        "{recorded:?}"
    );
    assert!(recorded[3].starts_with("rewind acme Übernahme {"), "{recorded:?}");
    assert_eq!(recorded[4], r#"backfill_cancel Übernahme {"backfill_id": 1}"#);
    for arguments in [
        &["entity", "add", "z", "--timezone", "UTC", "--from-now", "--reason", " "][..],
        &["backfill", "cancel", "1", "--reason", ""],
    ] {
        let output = scene.output(arguments).await;
        assert!(stderr(&output).contains("--reason is blank"), "{}", stderr(&output));
    }
}

#[sqlx::test(migrations = false)]
async fn errors_closed_by_hand_are_recorded_by_entity(pool: PgPool) {
    let scene = scene(pool).await;
    scene.entity("beta", "UTC").await;
    scene
        .sql(
            "insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
             values ('beta', 'a', 'BTC', '2024-01-01Z', 'NaN'), ('beta', 'b', 'BTC', '2024-01-01Z', 'NaN')",
        )
        .await;
    output_of(&scene, 3, &["run"]).await;
    output_of(&scene, 0, &["errors", "resolve", "--all", "--reason", "typing errors"]).await;
    let recorded = actions(&scene).await;
    assert_eq!(
        recorded[1..],
        [
            r#"resolve acme typing errors {"errors": {"invalid_row": 1}}"#,
            r#"resolve beta typing errors {"errors": {"invalid_row": 2}}"#
        ]
    );
}

#[sqlx::test(migrations = false)]
async fn prune_is_recorded_if_it_deletes(pool: PgPool) {
    let scene = scene(pool).await;
    scene.sql("update ledger.balance_snapshots set balance = 3 where id = 3").await;
    for _ in 0..2 {
        output_of(&scene, 0, &["run"]).await;
        scene.sql("update ledger.balance_snapshots set balance = balance + 1").await;
    }
    output_of(&scene, 0, &["prune", "--older-than", "1d"]).await;
    assert_eq!(actions(&scene).await, Vec::<String>::new(), "nothing was old enough");
    scene.sql("update elven_sync.sync_passes set finished_at = finished_at - interval '2 days' where pass_id = 1").await;
    output_of(&scene, 0, &["prune", "--older-than", "1d", "--dry-run"]).await;
    assert_eq!(actions(&scene).await, Vec::<String>::new(), "a dry run is no action");
    output_of(&scene, 0, &["prune", "--older-than", "1d"]).await;
    let recorded = actions(&scene).await;
    assert!(recorded.len() == 1 && recorded[0].starts_with("prune {\"before\": "), "{recorded:?}");
}
