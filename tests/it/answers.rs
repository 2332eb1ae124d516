//! The effect of an answer on a lane: its batch is accepted, or the lane stops with its watermark unmoved. Other
//! lanes are not affected.

use elven_sync::journal::RunStatus;
use elven_sync::sandbox::{Fault, Gate};
use sqlx::PgPool;

use crate::support::{TestEnv, eventually};

const ROWS: &str =
    "insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
                    values ('acme', 'a', 'BTC', '2024-01-01Z', 1), ('beta', 'b', 'BTC', '2024-01-01Z', 2)";

const ACME: &str = "select concat_ws(' ', settled is null, cursor_xid, consecutive_failures, lease_owner)
                      from elven_sync.sync_state where entity_id = 'acme'";

/// The statuses of the batches of acme, and whether they are ambiguous.
const BATCHES: &str = "select string_agg(concat_ws(' ', status, attempts, ambiguous), ',' order by batch_id)
                         from elven_sync.sync_batches where entity_id = 'acme'";

fn answer(status: u16, body: &str) -> Fault {
    Fault::Answer { status, body: body.to_owned(), headers: Vec::new() }
}

#[sqlx::test(migrations = false)]
async fn failure_of_one_lane_stops_no_other_lane(pool: PgPool) {
    let mut scene = TestEnv::new(pool).await;
    // One entity at a time, in the order of their ids, so that the fault meets acme. No request is retried.
    scene.set("ELVEN_SYNC_SYNC__ENTITIES_AT_ONCE", "1");
    scene.set("ELVEN_SYNC_RETRY__ATTEMPTS", "1");
    scene.entity("acme", "UTC").await;
    scene.entity("beta", "UTC").await;
    scene.sql(ROWS).await;
    let failure = r#"{"status":"failed","data":{"code":19734,"message":"no"}}"#;
    for (round, (fault, kind, batch)) in [
        (answer(401, failure), "auth", "rejected 1 f"),
        (answer(403, ""), "auth", "rejected 2 f"),
        (answer(404, "<html>"), "config", "rejected 3 f"),
        (answer(302, ""), "config", "rejected 4 f"),
        (answer(429, ""), "throttled", "rejected 5 f"),
    ]
    .into_iter()
    .enumerate()
    {
        scene.sandbox.inject(fault);
        let report = scene.run().await;
        assert_eq!(report.status, RunStatus::Incomplete, "{kind}");
        assert!(report.entities[0].failure().is_some() && report.entities[1].failure().is_none());
        assert_eq!(scene.text(ACME).await, format!("t {}", round + 1), "{kind}: no watermark, no lease");
        assert_eq!(scene.text(BATCHES).await.split(',').next_back().unwrap(), batch, "{kind}");
        let open = "select concat_ws(' ', kind, occurrences) from elven_sync.sync_errors
                     where resolved_at is null order by last_seen_at desc limit 1";
        assert!(scene.text(open).await.starts_with(kind), "{kind}");
        scene
            .sql("update ledger.balance_snapshots set balance = balance + 10 where entity_id = 'beta'")
            .await;
    }
    let repeated =
        "select concat_ws(' ', occurrences, http_status) from elven_sync.sync_errors where kind = 'auth'";
    assert_eq!(scene.text(repeated).await, "2 403", "one problem is one row");
    let health = "select status || ' ' || pending_rows from elven_sync.sync_health where entity_id = 'acme'";
    assert_eq!(scene.text(health).await, "failing 1");
    // The API works again: the lane resumes at its cursor, and its errors are resolved.
    assert_eq!(scene.run().await.status, RunStatus::Succeeded);
    assert_eq!(
        scene.text("select count(*)::text from elven_sync.sync_errors where resolved_at is null").await,
        "0"
    );
    assert_eq!(
        scene.text("select last_error from elven_sync.sync_state where entity_id = 'acme'").await,
        "NULL"
    );
    assert_eq!(scene.balances().iter().filter(|(account, _)| account == "a").count(), 1);
}

#[sqlx::test(migrations = false)]
async fn unanswered_batch_is_resent_byte_identical_and_marked_ambiguous(pool: PgPool) {
    for (round, fault) in [Fault::FailAfterWrite { status: 500 }, Fault::CutAfterWrite, answer(200, "<html>")]
        .into_iter()
        .enumerate()
    {
        // The same database, with another entity each time.
        if round == 0 {
            elven_sync::journal::migrate(&pool.clone().into()).await.unwrap();
        }
        let mut scene = TestEnv::new(pool.clone()).await;
        scene.set("ELVEN_SYNC_RETRY__ATTEMPTS", "1");
        sqlx::raw_sql(
            "delete from elven_sync.entities; delete from elven_sync.sync_state;
                       delete from ledger.balance_snapshots; delete from elven_sync.sync_errors;
                       delete from elven_sync.sync_batches; delete from elven_sync.sync_passes;
                       delete from elven_sync.sync_runs",
        )
        .execute(&pool)
        .await
        .unwrap();
        scene.entity("acme", "UTC").await;
        scene.sql(ROWS).await;
        let kept = !matches!(fault, Fault::Answer { .. });
        scene.sandbox.inject(fault);
        scene.run().await;
        assert_eq!(scene.text(BATCHES).await, "unknown 1 f");
        assert_eq!(
            scene.text("select kind from elven_sync.sync_errors where entity_id = 'acme'").await,
            "unavailable"
        );
        scene.run().await;
        assert_eq!(scene.text(BATCHES).await, "accepted 2 t");
        let requests = scene.sandbox.requests();
        assert_eq!(requests[0].body_sha256, requests[1].body_sha256);
        assert_eq!(scene.balances().len(), if kept { 2 } else { 1 });
    }
}

#[sqlx::test(migrations = false)]
async fn unreachable_api_fails_the_run_and_loses_no_row(pool: PgPool) {
    let mut scene = TestEnv::new(pool).await;
    scene.entity("acme", "UTC").await;
    scene.sql(ROWS).await;
    let url = scene.sandbox.url();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let nobody = format!("http://{}", free.local_addr().unwrap());
    drop(free);
    scene.set("ELVEN_API_URL", &nobody);
    scene.set("ELVEN_SYNC_RETRY__INITIAL", "1ms");
    let report = scene.run().await;
    assert_eq!((report.status, report.counters.requests), (RunStatus::Failed, 0));
    assert_eq!(
        scene.text("select kind from elven_sync.sync_errors where entity_id = 'acme'").await,
        "unavailable"
    );
    scene.set("ELVEN_API_URL", &url);
    scene.run().await;
    assert_eq!(scene.balances(), [("a".to_owned(), "1".to_owned())]);
}

#[sqlx::test(migrations = false)]
async fn unknown_zone_or_credential_fails_only_its_entity(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    scene.entity("acme", "Europe/Zürich").await;
    scene.entity("beta", "UTC").await;
    scene.sql("insert into elven_sync.entities (entity_id, timezone, credential) values ('gamma', 'UTC', 'nobody')").await;
    scene.sql(ROWS).await;
    let report = scene.run().await;
    assert_eq!(report.status, RunStatus::Incomplete);
    let kinds =
        "select string_agg(entity_id || ' ' || kind, ',' order by entity_id) from elven_sync.sync_errors";
    assert_eq!(scene.text(kinds).await, "acme timezone,gamma config");
    assert!(
        scene
            .text("select message from elven_sync.sync_errors where kind = 'timezone'")
            .await
            .contains("Europe/Zurich")
    );
    assert_eq!(scene.balances(), [("b".to_owned(), "2".to_owned())]);
    scene.sql("update elven_sync.entities set timezone = 'Europe/Zurich', credential = 'default'").await;
    assert_eq!(scene.run().await.status, RunStatus::Succeeded);
}

/// While the API delays its answer, no session of the connector has an open transaction.
#[sqlx::test(migrations = false)]
async fn no_transaction_is_open_during_a_request(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    scene.entity("acme", "UTC").await;
    scene.sql(ROWS).await;
    let gate = Gate::new();
    scene.sandbox.inject(Fault::HoldResponse(gate.clone()));
    let looking = async {
        gate.reached().await;
        let open = "select count(*)::text from pg_stat_activity where application_name like 'elven-sync%'
                       and datname = current_database() and (xact_start is not null or backend_xmin is not null)";
        eventually("no transaction is open", async || scene.text(open).await == "0").await;
        assert_eq!(scene.text(BATCHES).await, "sending 1 f", "the batch was recorded before it was sent");
        gate.open();
    };
    let (report, ()) = tokio::join!(scene.run(), looking);
    assert_eq!(report.counters.rows_uploaded, 1);
}
