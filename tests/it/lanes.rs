//! A problem of one lane stays in that lane, and is visible.

use elven_sync::journal::{Journal, Kind, Lane, Poll, Problem, RunStatus, Take};
use elven_sync::sandbox::{Fault, Gate};
use serde_json::Value;
use sqlx::{Connection, Executor, PgConnection, PgPool};

use crate::proxy::Network;
use crate::support::{TestEnv, eventually, fault_rules, output_of, stdout};

/// A row for each of these entities.
async fn add_row(scene: &TestEnv, entities: &[&str]) {
    sqlx::query(
        "insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
         select e, 'a', 'BTC', clock_timestamp(), 1 from unnest($1::text[]) e",
    )
    .bind(entities)
    .execute(&scene.pool)
    .await
    .unwrap();
}

async fn scene_with(pool: PgPool, entities: &[&str]) -> TestEnv {
    let mut scene = TestEnv::new(pool).await;
    scene.set("ELVEN_SYNC_DATABASE__RECONNECT_TIMEOUT", "1s");
    for entity_id in entities {
        scene.entity(entity_id, "UTC").await;
    }
    add_row(&scene, entities).await;
    scene
}

/// A session that keeps a transaction open, as a forgotten psql does.
async fn session_with(scene: &TestEnv, statement: &'static str) -> PgConnection {
    let mut session = PgConnection::connect(&scene.url).await.unwrap();
    session.execute("set application_name = 'forgotten psql'; begin").await.unwrap();
    session.execute(statement).await.unwrap();
    session
}

const UNAVAILABLE: &str =
    "select string_agg(concat_ws(' ', entity_id, kind), ',') from elven_sync.sync_errors
                            where resolved_at is null";
const MESSAGE: &str = "select message from elven_sync.sync_errors where kind = 'unavailable'";

async fn assert_names_the_session(scene: &TestEnv, session: &mut PgConnection) {
    let pid: i32 = sqlx::query_scalar("select pg_backend_pid()").fetch_one(session).await.unwrap();
    let message = scene.text(MESSAGE).await;
    for words in [&format!("pid {pid}"), "user ", "application forgotten psql", "since 2"] {
        assert!(message.contains(words), "{words}: {message}");
    }
    assert!(message.contains(&format!("select pg_terminate_backend({pid})")), "{message}");
}

/// Runs that a scheduler starts every minute do not accumulate. The other lane is finished.
#[sqlx::test(migrations = false)]
async fn run_waits_for_a_locked_row_no_longer_than_the_reconnect_timeout(pool: PgPool) {
    let scene = scene_with(pool, &["acme", "beta"]).await;
    let mut session =
        session_with(&scene, "select from elven_sync.sync_state where entity_id = 'acme' for update").await;
    let text = output_of(&scene, 3, &["run"]).await;
    assert!(text.contains("locked by another session"), "{text}");
    assert_eq!(scene.text(UNAVAILABLE).await, "acme unavailable");
    assert_names_the_session(&scene, &mut session).await;
    let beta = "select status from elven_sync.sync_health where entity_id = 'beta'";
    assert_eq!(scene.text(beta).await, "ok");
    session.execute("rollback").await.unwrap();
    output_of(&scene, 0, &["run"]).await;
    assert_eq!(scene.text(UNAVAILABLE).await, "NULL", "the success resolves the error");
    assert_eq!(scene.received().len(), 2);
}

/// Also a lease that a dead worker has left, several sessions with a shared lock, a savepoint, and a prepared
/// transaction.
#[sqlx::test(migrations = false)]
async fn every_kind_of_row_lock_is_named(pool: PgPool) {
    let scene = scene_with(pool, &["acme"]).await;
    scene
        .sql("update elven_sync.sync_state set lease_owner = 'dead', lease_expires_at = now() - interval '1 hour'")
        .await;
    let lock = "select from elven_sync.sync_state where entity_id = 'acme' for update";
    let share = "select from elven_sync.sync_state where entity_id = 'acme' for share";
    let in_savepoint =
        "savepoint s; select from elven_sync.sync_state where entity_id = 'acme' for no key update";
    for (number, statements) in [&[lock][..], &[share, share], &[in_savepoint]].into_iter().enumerate() {
        let mut sessions = Vec::new();
        for statement in statements {
            sessions.push(session_with(&scene, statement).await);
        }
        output_of(&scene, 1, &["run"]).await;
        if sessions.len() == 1 {
            assert_names_the_session(&scene, &mut sessions[0]).await;
        } else {
            let message = scene.text(MESSAGE).await;
            assert!(message.contains("and 1 more"), "{message}");
        }
        let occurrences = "select occurrences::text from elven_sync.sync_errors where kind = 'unavailable'";
        assert_eq!(scene.text(occurrences).await, (number + 1).to_string());
        for mut session in sessions {
            session.execute("rollback").await.unwrap();
        }
    }
}

/// The rows of `entities` are only read by runs.
#[sqlx::test(migrations = false)]
async fn locked_row_of_a_registered_entity_delays_no_run(pool: PgPool) {
    let scene = scene_with(pool, &["acme"]).await;
    let mut session =
        session_with(&scene, "select from elven_sync.entities where entity_id = 'acme' for update").await;
    output_of(&scene, 0, &["run"]).await;
    session.execute("rollback").await.unwrap();
}

/// A row that is locked while its lane is at work stops that lane alone.
#[sqlx::test(migrations = false)]
async fn row_that_is_locked_during_a_run_fails_only_its_lane(pool: PgPool) {
    let scene = scene_with(pool, &["acme", "beta"]).await;
    let gates = [Gate::new(), Gate::new()];
    for gate in &gates {
        scene.sandbox.inject(Fault::HoldResponse(gate.clone()));
    }
    let child = scene.command(&["run"]).spawn().unwrap();
    for gate in &gates {
        gate.reached().await;
    }
    let mut session =
        session_with(&scene, "select from elven_sync.sync_state where entity_id = 'acme' for update").await;
    gates.iter().for_each(Gate::open);
    let output = child.wait_with_output().await.unwrap();
    assert_eq!(output.status.code(), Some(3), "{}", stdout(&output));
    assert_names_the_session(&scene, &mut session).await;
    session.execute("rollback").await.unwrap();
    let beta = "select concat_ws(' ', status, last_success_at is not null) from elven_sync.sync_health
                 where entity_id = 'beta'";
    assert_eq!(scene.text(beta).await, "ok t");
    eventually("the lease has expired", async || scene.output(&["run"]).await.status.code() == Some(0)).await;
}

#[sqlx::test(migrations = false)]
async fn backfill_and_rewind_name_the_session_that_locks_the_row(pool: PgPool) {
    let scene = scene_with(pool, &["acme"]).await;
    output_of(&scene, 0, &["run"]).await;
    let mut session =
        session_with(&scene, "select from elven_sync.sync_state where entity_id = 'acme' for update").await;
    for arguments in [
        &["backfill", "--from", "2020-01-01", "--to", "2100-01-01"][..],
        &["entity", "rewind", "acme", "--yes", "--reason", "a test"],
    ] {
        let text = output_of(&scene, 1, arguments).await;
        assert!(text.contains("application forgotten psql"), "{arguments:?}: {text}");
    }
    session.execute("rollback").await.unwrap();
}

/// Fifty thousand tenants, of which one is registered.
#[sqlx::test(migrations = false)]
async fn unregistered_entities_beyond_the_first_hundred_are_one_summed_error(pool: PgPool) {
    let mut scene = TestEnv::new(pool).await;
    let network = Network::to(&scene.url).await;
    scene.set("DATABASE_URL", network.url());
    scene.set("ELVEN_SYNC_SYNC__LEASE", "10m");
    scene.entity("acme", "UTC").await;
    scene
        .sql(
            "insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
             select 'tenant' || n, 'a', 'BTC', '2024-01-01Z', n from generate_series(1, 5000) n",
        )
        .await;
    network.count();
    let text = output_of(&scene, 3, &["run"]).await;
    let (_, statements) = network.count();
    // With the first print of the journal.
    assert!(statements <= 75, "{statements} statements");
    assert!(text.contains("0 pending and those of 5,000 unregistered entities"), "{text}");
    assert!(text.contains("rows of 4,980 more entities are pending"), "{text}");
    let open = "select concat_ws(' ', count(*), count(*) filter (where entity_id = '*'),
                                 max(message) filter (where entity_id = '*') like '%rows of 4900 more entities%')
                  from elven_sync.sync_errors where resolved_at is null";
    assert_eq!(scene.text(open).await, "101 1 t");
    // The registration of one and the end of another: both errors are closed, and others take their places.
    scene
        .sql(
            "insert into elven_sync.entities (entity_id, timezone) select max(entity_id), 'UTC'
               from elven_sync.sync_errors where entity_id <> '*';
             delete from ledger.balance_snapshots
              where entity_id = (select min(entity_id) from elven_sync.sync_errors where entity_id <> '*')",
        )
        .await;
    output_of(&scene, 3, &["run"]).await;
    let closed = "select string_agg(resolution, ', ' order by resolution) from elven_sync.sync_errors";
    assert_eq!(scene.text(closed).await, "the entity was registered, the ledger has no such rows any more");
    assert_eq!(
        scene.text(open).await.replace("4898", "4900"),
        "101 1 f",
        "a hundred are listed, and the sum is smaller"
    );
    // All rows of unregistered entities are gone.
    scene
        .sql(
            "delete from ledger.balance_snapshots
              where entity_id not in (select entity_id from elven_sync.entities)",
        )
        .await;
    output_of(&scene, 0, &["run"]).await;
    assert_eq!(scene.text(open).await, "0 0");
}

/// An error per entity, as earlier versions recorded them, becomes a sum.
#[sqlx::test(migrations = false)]
async fn errors_of_earlier_versions_are_summed_up(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    scene.entity("acme", "UTC").await;
    scene
        .sql(
            "insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
             select 'tenant' || n, 'a', 'BTC', '2024-01-01Z', n from generate_series(1, 300) n;
             insert into elven_sync.sync_errors (entity_id, kind, message)
             select 'tenant' || n, 'unregistered_entity', 'm' from generate_series(1, 300) n",
        )
        .await;
    output_of(&scene, 3, &["run"]).await;
    let counts = "select string_agg(concat_ws(' ', resolution, number), ', ' order by number)
                    from (select resolution, count(*) as number from elven_sync.sync_errors group by 1) r";
    assert_eq!(scene.text(counts).await, "101, counted in the error of entity * 200");
}

/// `[ledger] ignore_unregistered`: no error and exit code 0, and journal, summary and status say what was left out.
#[sqlx::test(migrations = false)]
async fn rows_that_are_left_out_on_request_are_not_hidden(pool: PgPool) {
    let mut scene = scene_with(pool, &["acme"]).await;
    add_row(&scene, &["ghost", "spirit"]).await;
    let text = output_of(&scene, 3, &["run"]).await;
    assert!(text.contains("0 pending and those of 2 unregistered entities"), "{text}");
    let status = output_of(&scene, 0, &["status"]).await;
    assert!(status.contains("rows of `ghost` are pending"), "{status}");
    scene.set("ELVEN_SYNC_LEDGER__IGNORE_UNREGISTERED", "true");
    let left_out = "left out: the rows of 2 entities that are not registered";
    for arguments in [&["run"][..], &["status"], &["run", "--dry-run"]] {
        let text = output_of(&scene, 0, arguments).await;
        assert!(text.contains(left_out) && !text.contains("ghost"), "{arguments:?}: {text}");
    }
    let run = "select concat_ws(' ', status, entities_left_out) from elven_sync.sync_runs order by run_id desc limit 1";
    assert_eq!(scene.text(run).await, "succeeded 2");
    let errors =
        "select string_agg(entity_id || ': ' || coalesce(resolution, 'open'), ', ' order by entity_id)
                    from elven_sync.sync_errors";
    let why = "[ledger] ignore_unregistered leaves the rows out";
    assert_eq!(scene.text(errors).await, format!("ghost: {why}, spirit: {why}"));
    let status = scene.output(&["status", "--json"]).await;
    let status: Value = serde_json::from_str(&stdout(&status)).unwrap();
    assert_eq!(
        (&status["entities_left_out"], &status["unregistered_entities"]),
        (&2.into(), &Value::Array(vec![]))
    );
    // Without the setting they are errors again.
    scene.unset("ELVEN_SYNC_LEDGER__IGNORE_UNREGISTERED");
    output_of(&scene, 3, &["run"]).await;
}

/// Entities without a usable credential are failed together, and beside the lanes.
#[sqlx::test(migrations = false)]
async fn entities_without_a_usable_credential_cost_no_statement_each(pool: PgPool) {
    let mut scene = scene_with(pool, &["acme"]).await;
    let network = Network::to(&scene.url).await;
    scene.set("DATABASE_URL", network.url());
    scene.set("ELVEN_SYNC_SYNC__LEASE", "10m");
    let mut costs = Vec::new();
    for entities in [1, 201] {
        sqlx::query(
            "insert into elven_sync.entities (entity_id, timezone, credential)
             select 'e' || n, 'UTC', 'missing' from generate_series(1, $1) n on conflict do nothing",
        )
        .bind(entities)
        .execute(&scene.pool)
        .await
        .unwrap();
        add_row(&scene, &["acme"]).await;
        network.count();
        output_of(&scene, 3, &["run"]).await;
        costs.push(network.count().1);
        let failing = "select count(*)::text from elven_sync.sync_health
                        where status = 'failing' and last_error like '%missing%' and open_errors = 1";
        assert_eq!(scene.text(failing).await, entities.to_string());
    }
    assert!(costs[1] <= costs[0] + 5, "{costs:?} statements");
}

/// A worker read the state of an entity and found no new rows. Before it records that, another worker fails on the
/// entity.
#[sqlx::test(migrations = false)]
async fn entity_that_failed_after_a_look_is_not_noted_as_up_to_date(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    scene.entity("acme", "UTC").await;
    let database = scene.database(4).await;
    let window = std::time::Duration::from_millis(300);
    let lease = std::time::Duration::from_secs(30);
    let journal = Journal::open(database.clone(), "other".to_owned(), lease, window).await.unwrap();
    let mapping = std::sync::Arc::from("{}");
    let seen = journal.lanes(&["acme".to_owned()], &mapping).await.unwrap();
    let Take::Taken(lease, _) = journal.take("acme").await.unwrap() else { panic!("the lease is free") };
    let run_id = journal.begin_run("incremental", "t").await.unwrap();
    let problem = Problem::of_lane(Kind::Auth, "refused");
    journal.lane_failed(&lease, run_id, &problem, None).await.unwrap();
    let health = "select concat_ws(' ', status, last_error, open_errors) from elven_sync.sync_health";
    let note = async |seen: &std::collections::BTreeMap<String, Lane>| {
        let idle = vec![("acme", &seen["acme"])];
        let poll = Poll { polled_at: seen["acme"].read_at, idle, pending: Vec::new(), mapping: &mapping };
        journal.note_poll(run_id, &poll).await.unwrap();
        scene.text(health).await
    };
    assert_eq!(note(&seen).await, "failing refused 1");
    // A failure without a lease counts as well.
    let seen = journal.lanes(&["acme".to_owned()], &mapping).await.unwrap();
    journal.lanes_failed(run_id, &[("acme".to_owned(), problem)]).await.unwrap();
    assert_eq!(note(&seen).await, "failing refused 1");
    // A look after the failures.
    let seen = journal.lanes(&["acme".to_owned()], &mapping).await.unwrap();
    assert_eq!(note(&seen).await, "ok 0");
    database.close().await;
}

/// Batches that were accepted behind one that was not are not pending.
#[sqlx::test(migrations = false)]
async fn rows_accepted_behind_a_refused_batch_are_not_pending(pool: PgPool) {
    let mut scene = TestEnv::new(pool).await;
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "2");
    scene.set("ELVEN_SYNC_SYNC__REQUESTS_IN_FLIGHT", "4");
    scene.entity("acme", "UTC").await;
    scene
        .sql(
            "insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
             select 'acme', 'a' || n, 'BTC', '2024-01-01Z', n from generate_series(1, 8) n",
        )
        .await;
    let gates = [Gate::new(), Gate::new(), Gate::new(), Gate::new()];
    for gate in &gates {
        scene.sandbox.inject(Fault::HoldResponse(gate.clone()));
    }
    let child = scene.command(&["run"]).spawn().unwrap();
    for gate in &gates {
        gate.reached().await;
    }
    // The first batch, whichever of the four arrived first, stays without an answer.
    let first = scene.balances().iter().position(|(account, _)| account == "a1").unwrap() / 2;
    for (number, gate) in gates.iter().enumerate() {
        if number != first {
            gate.open();
        }
    }
    let accepted = "select count(*)::text from elven_sync.sync_batches where status = 'accepted'";
    eventually("the other three are accepted", async || scene.text(accepted).await == "3").await;
    drop(child);
    scene.sql("update elven_sync.sync_state set lease_expires_at = now() - interval '1 hour'").await;
    scene.sandbox.set_rules(fault_rules(&["revoked"]));
    let text = output_of(&scene, 1, &["run"]).await;
    assert!(text.contains("2 pending"), "{text}");
    let pending = "select pending_rows::text from elven_sync.sync_state";
    assert_eq!(scene.text(pending).await, "2");
    // A new version of an accepted row is pending.
    scene.sql("update ledger.balance_snapshots set balance = 100 where id = 8").await;
    let status = stdout(&scene.output(&["status", "--json"]).await);
    let status: Value = serde_json::from_str(&status).unwrap();
    assert_eq!(status["entities"][0]["pending_rows"], 3);
    gates[first].open();
    scene.sandbox.set_rules(Vec::new());
    assert_eq!(scene.run().await.status, RunStatus::Succeeded);
    assert_eq!(scene.text(pending).await, "0");
}

/// `status` and `sync_health` agree on an entity that no run has looked at.
#[sqlx::test(migrations = false)]
async fn newly_registered_entity_is_behind_until_a_run_has_looked(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    scene.entity("acme", "UTC").await;
    let statuses = async || {
        let status: Value =
            serde_json::from_str(&stdout(&scene.output(&["status", "--json"]).await)).unwrap();
        let live = status["entities"][0]["status"].as_str().unwrap().to_owned();
        (live, scene.text("select status from elven_sync.sync_health").await)
    };
    assert_eq!(statuses().await, ("behind".to_owned(), "behind".to_owned()));
    output_of(&scene, 0, &["run"]).await;
    assert_eq!(statuses().await, ("ok".to_owned(), "ok".to_owned()));
}
