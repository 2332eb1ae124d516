//! Database faults: lost connections, commits without an answer, and a server that restarts, is read-only for a
//! while, or stays away.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use elven_sync::database::Database;
use elven_sync::journal::RunStatus;
use elven_sync::sandbox::{Fault, Gate};
use nix::sys::signal::Signal;
use secrecy::SecretString;
use sqlx::{AssertSqlSafe, Connection, PgConnection, PgPool};
use tokio::net::TcpListener;

use crate::cluster::Cluster;
use crate::proxy::{Failure, Network};
use crate::support::{TestEnv, assert_stays, eventually, scene_with_three_batches, signal, stderr};

/// What the journal records of a run over three batches of two rows.
const COUNTED: &str = "select concat_ws(' ', r.status, r.rows_read, r.rows_uploaded, r.requests, r.retries, s.rows_uploaded,
           (select string_agg(concat_ws(' ', status, attempts, ambiguous), ',' order by batch_id) from elven_sync.sync_batches),
           (select count(*) from elven_sync.sync_passes where finished_at is not null))
      from elven_sync.sync_runs r, elven_sync.sync_state s";
/// Resets the journal to the state before any run.
const AGAIN: &str =
    "truncate elven_sync.sync_runs, elven_sync.sync_passes, elven_sync.sync_batches restart identity cascade;
     update elven_sync.sync_state set settled = null, pass_id = null, target = null, cursor_xid = null, cursor_id = null,
            rows_uploaded = 0, lease_owner = null, system_identifier = null";
const ALL_ONCE: &str = "succeeded 6 6 3 0 6 accepted 1 f,accepted 1 f,accepted 1 f 1";

async fn add_six_rows(scene: &TestEnv) {
    scene.entity("acme", "UTC").await;
    scene.sql("insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
               select 'acme', 'a' || n, 'BTC', '2024-01-01Z', n from generate_series(1, 6) n").await;
}

/// An environment on its own cluster, with batches of two rows, one request at a time.
async fn scene_on(cluster: &Cluster) -> TestEnv {
    let mut scene = TestEnv::at(&cluster.url("ledger")).await;
    add_six_rows(&scene).await;
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "2");
    scene.set("ELVEN_SYNC_SYNC__REQUESTS_IN_FLIGHT", "1");
    scene
}

/// Each commit of a run is lost in turn: it is retried, and every row is counted and sent once.
#[sqlx::test(migrations = false)]
async fn lost_commit_is_retried(pool: PgPool) {
    fail_each_commit_of_a_run(pool, Failure::Lost).await;
}

/// Each commit of a run gets no answer in turn: its outcome is looked up, and it is not repeated.
#[sqlx::test(migrations = false)]
async fn unanswered_commit_is_looked_up_and_never_repeated(pool: PgPool) {
    fail_each_commit_of_a_run(pool, Failure::Unanswered).await;
}

async fn fail_each_commit_of_a_run(pool: PgPool, failure: Failure) {
    let mut scene = scene_with_three_batches(pool).await;
    let network = Network::to(&scene.url).await;
    scene.set("DATABASE_URL", network.url());
    for number in 1.. {
        scene.sql(AGAIN).await;
        let received = scene.received().len();
        network.fail(number, failure);
        let report = scene.run().await;
        assert_eq!(report.status, RunStatus::Succeeded, "commit {number}");
        assert_eq!(scene.text(COUNTED).await, ALL_ONCE, "commit {number}");
        assert_eq!(scene.received().len() - received, 6, "commit {number}: each row once");
        if !network.has_failed() {
            assert!(number > 20, "a run has more commits than {number}");
            break;
        }
    }
}

/// The network drops everything without an error. The wait is bounded, and the server releases the locks of the
/// abandoned transaction.
#[sqlx::test(migrations = false)]
async fn commit_without_network_response_times_out_and_is_retried(pool: PgPool) {
    let mut scene = scene_with_three_batches(pool).await;
    let network = Network::to(&scene.url).await;
    scene.set("DATABASE_URL", network.url());
    scene.set("ELVEN_SYNC_DATABASE__RECONNECT_TIMEOUT", "3s");
    let gate = Gate::new();
    scene.sandbox.inject(Fault::HoldResponse(gate.clone()));
    let child = scene.command(&["run"]).spawn().unwrap();
    gate.reached().await;
    // The next writing commit is that of a heartbeat, or settles the batch and holds the row of the lane.
    network.fail(1, Failure::Swallowed);
    gate.open();
    assert_eq!(child.wait_with_output().await.unwrap().status.code(), Some(0));
    assert!(network.has_failed());
    assert_eq!(scene.text(COUNTED).await, ALL_ONCE);
    assert_eq!(scene.received().len(), 6, "each row once");
}

#[sqlx::test(migrations = false)]
async fn killed_connections_are_replaced(pool: PgPool) {
    let scene = scene_with_three_batches(pool).await;
    let (child, gate) = scene.held_run().await;
    scene
        .sql(
            "select pg_terminate_backend(pid) from pg_stat_activity
                where datname = current_database() and application_name like 'elven-sync%'",
        )
        .await;
    gate.open();
    assert_eq!(child.wait_with_output().await.unwrap().status.code(), Some(0));
    assert_eq!(scene.text(COUNTED).await, ALL_ONCE);
    assert_eq!(scene.received().len(), 6, "each row once");
}

/// The outage is longer than the lease. Nobody takes the lease in the meantime, so this worker renews it.
#[sqlx::test(migrations = false)]
async fn run_survives_a_database_restart(pool: PgPool) {
    let mut cluster = Cluster::new(&pool).await;
    let scene = scene_on(&cluster).await;
    let (mut child, gate) = scene.held_run().await;
    cluster.crash();
    gate.open();
    let waits = async || child.try_wait().unwrap().is_none();
    assert_stays("the run waits for the server", Duration::from_millis(1500), waits).await;
    cluster.start().await;
    let output = child.wait_with_output().await.unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(scene.text(COUNTED).await, ALL_ONCE);
    assert_eq!(scene.received().len(), 6, "the answer that came meanwhile counts");
}

/// A crash loses a transaction that had not reached the disk, and its id is reused. That another transaction of that
/// id was committed says nothing about the lost one.
#[sqlx::test(migrations = false)]
async fn commit_with_a_reused_transaction_id_is_not_considered_done(pool: PgPool) {
    let mut cluster = Cluster::new(&pool).await;
    let mut scene = scene_on(&cluster).await;
    // No heartbeat happens in between.
    scene.set("ELVEN_SYNC_SYNC__LEASE", "1m");
    let network = Network::to(&scene.url).await;
    scene.set("DATABASE_URL", network.url());
    // Settling and announcing, in turn, and closing the pass.
    for number in 1..=6 {
        let mut session = PgConnection::connect(&scene.url).await.unwrap();
        sqlx::raw_sql(AGAIN).execute(&mut session).await.unwrap();
        let received = scene.received().len();
        let (child, gate) = scene.held_run().await;
        network.break_down(number, Failure::Lost);
        gate.open();
        eventually("the commit is lost", async || network.has_failed()).await;
        cluster.crash();
        cluster.start().await;
        cluster.burn_transaction_ids(100).await;
        network.mend();
        let output = child.wait_with_output().await.unwrap();
        assert_eq!(output.status.code(), Some(0), "commit {number}: {}", stderr(&output));
        let mut session = PgConnection::connect(&scene.url).await.unwrap();
        let counted: String = sqlx::query_scalar(COUNTED).fetch_one(&mut session).await.unwrap();
        assert_eq!(counted, ALL_ONCE, "commit {number}");
        assert_eq!(scene.received().len() - received, 6, "commit {number}: each row once");
    }
}

/// As after a failover to a server that is not promoted yet.
#[sqlx::test(migrations = false)]
async fn run_waits_for_a_temporarily_read_only_server(pool: PgPool) {
    let cluster = Cluster::new(&pool).await;
    let scene = scene_on(&cluster).await;
    let (child, gate) = scene.held_run().await;
    let ours =
        "select pg_terminate_backend(pid) from pg_stat_activity where application_name like 'elven-sync%'";
    let switch = async |to: &str| {
        cluster.sql(&format!("alter system set default_transaction_read_only = {to}")).await;
        cluster.sql("select pg_reload_conf()").await;
        // Existing connections keep the setting with which they began.
        let setting = async || cluster.text("show default_transaction_read_only").await == to;
        eventually("the setting is in force", setting).await;
        cluster.sql(ours).await;
    };
    switch("on").await;
    gate.open();
    let status = "select string_agg(status, ',') from elven_sync.sync_batches";
    let is_unrecorded = async || scene.text(status).await == "sending";
    assert_stays("the answer is not recorded", Duration::from_millis(700), is_unrecorded).await;
    switch("off").await;
    let output = child.wait_with_output().await.unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(scene.text(COUNTED).await, ALL_ONCE);
    assert_eq!(scene.received().len(), 6, "each row once");
}

/// A promoted standby that has everything of the primary, at the same address a little later.
#[sqlx::test(migrations = false)]
async fn run_survives_a_failover(pool: PgPool) {
    let primary = Cluster::new(&pool).await;
    let scene = scene_on(&primary).await;
    let mut standby = primary.standby().await;
    let (child, gate) = scene.held_run().await;
    standby.caught_up_with(&primary).await;
    // It starts at the address of the primary as a standby without a primary, and is in recovery for a while.
    standby.replace(primary).await;
    gate.open();
    // A run that begins there now is told that the server is a standby.
    let output = scene.output(&["run"]).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("DATABASE_URL leads to a standby"), "{}", stderr(&output));
    standby.promote().await;
    let output = child.wait_with_output().await.unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(scene.text(COUNTED).await, ALL_ONCE);
    assert_eq!(scene.received().len(), 6, "each row once");
}

#[sqlx::test(migrations = false)]
async fn unreachable_database_fails_run_in_bounded_time_and_next_resumes(pool: PgPool) {
    let mut cluster = Cluster::new(&pool).await;
    let mut scene = scene_on(&cluster).await;
    scene.set("ELVEN_SYNC_DATABASE__RECONNECT_TIMEOUT", "1s");
    let (child, gate) = scene.held_run().await;
    cluster.crash();
    gate.open();
    let ended = tokio::time::timeout(Duration::from_secs(15), child.wait_with_output()).await;
    let output = ended.expect("it ends").unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("a statement about the sync tables failed"), "{}", stderr(&output));
    cluster.start().await;
    scene.set("ELVEN_SYNC_DATABASE__RECONNECT_TIMEOUT", "30s");
    // The outcome could not be recorded anywhere.
    assert_eq!(scene.text("select status from elven_sync.sync_runs").await, "running");
    let report = scene.run().await;
    assert_eq!((report.counters.rows_uploaded, report.counters.retries), (6, 1));
    let runs = "select string_agg(concat_ws(' ', status, rows_uploaded), ',' order by run_id) from elven_sync.sync_runs";
    assert_eq!(scene.text(runs).await, "interrupted 0,succeeded 6");
    assert_eq!(scene.text("select rows_uploaded::text from elven_sync.sync_state").await, "6");
    assert_eq!(scene.received().len(), 8, "the batch whose answer could not be recorded is sent twice");
    let first = "select concat_ws(' ', status, attempts, ambiguous) from elven_sync.sync_batches order by batch_id limit 1";
    assert_eq!(scene.text(first).await, "accepted 2 t");
}

/// A worker that freezes inside a transaction locks rows of its run and its lane. No other lane is delayed, and the
/// server ends the transaction, so that the entity can be taken over.
#[sqlx::test(migrations = false)]
async fn worker_frozen_inside_a_transaction_blocks_no_other_lane(pool: PgPool) {
    let mut scene = scene_with_three_batches(pool).await;
    scene.entity("other", "UTC").await;
    scene.sql("insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
               values ('other', 'b', 'BTC', '2024-01-01Z', 7)").await;
    // A transaction may lie idle for a third of this.
    scene.set("ELVEN_SYNC_DATABASE__RECONNECT_TIMEOUT", "30s");
    scene.sql("create function gate() returns trigger language plpgsql as $$ begin perform pg_advisory_xact_lock_shared(1); return null; end $$;
               create trigger gate after update of requests on elven_sync.sync_runs for each row execute function gate()").await;
    let mut gate = PgConnection::connect(&scene.url).await.unwrap();
    sqlx::query("select pg_advisory_lock(1)").execute(&mut gate).await.unwrap();
    let child = scene.command(&["run", "--entity", "acme"]).spawn().unwrap();
    let waiting = "select count(*)::text from pg_locks where locktype = 'advisory' and not granted
                      and database = (select oid from pg_database where datname = current_database())";
    eventually("the worker is in a transaction", async || scene.text(waiting).await == "1").await;
    signal(&child, Signal::SIGSTOP);
    sqlx::query("select pg_advisory_unlock(1)").execute(&mut gate).await.unwrap();
    let idle = "select count(*)::text from pg_stat_activity
                 where datname = current_database() and state = 'idle in transaction'";
    let silent = "select (alive_until < clock_timestamp())::text from elven_sync.sync_runs";
    eventually("the run is silent", async || scene.text(silent).await == "true").await;
    let output = scene.output(&["run", "--entity", "other"]).await;
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_ne!(scene.text(idle).await, "0", "the other one still holds what it has locked");
    let report = scene.run().await;
    assert_eq!((report.status, report.counters.rows_uploaded), (RunStatus::Succeeded, 6));
    let state =
        "select string_agg(concat_ws(' ', entity_id, rows_uploaded, pass_id is null), ',' order by entity_id)
                   from elven_sync.sync_state";
    assert_eq!(scene.text(state).await, "acme 6 t,other 1 t");
    signal(&child, Signal::SIGCONT);
    assert_eq!(child.wait_with_output().await.unwrap().status.code(), Some(0));
    assert_eq!(scene.text(state).await, "acme 6 t,other 1 t");
    assert_eq!(scene.received().len(), 9, "the batch that was not settled is sent twice");
}

/// A page read that stalls would hold the entity indefinitely, since its lease is renewed in the meantime.
#[sqlx::test(migrations = false)]
async fn stalled_page_read_is_aborted_and_frees_its_entity(pool: PgPool) {
    let mut scene = scene_with_three_batches(pool).await;
    scene.sql("insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
               select 'acme', 'b' || n, 'BTC', '2024-01-01Z', n from generate_series(1, 60) n").await;
    let network = Network::to(&scene.url).await;
    scene.set("DATABASE_URL", network.url());
    // A page may take ten times this.
    scene.set("ELVEN_SYNC_DATABASE__RECONNECT_TIMEOUT", "2s");
    let (child, gate) = scene.held_run().await;
    let mut lock = PgConnection::connect(&scene.url).await.unwrap();
    sqlx::raw_sql("begin; lock table ledger.balance_snapshots in access exclusive mode")
        .execute(&mut lock)
        .await
        .unwrap();
    gate.open();
    let waiting = "select count(*)::text from pg_locks where not granted and relation = 'ledger.balance_snapshots'::regclass";
    eventually("a page is being read", async || scene.text(waiting).await != "0").await;
    network.forget();
    sqlx::raw_sql("rollback").execute(&mut lock).await.unwrap();
    let ended = tokio::time::timeout(Duration::from_mins(1), child.wait_with_output()).await;
    // The run continues, or fails if the database needs more than two seconds to answer.
    ended.expect("the run ends").unwrap();
    scene.set("ELVEN_SYNC_DATABASE__RECONNECT_TIMEOUT", "30s");
    let report = scene.run().await;
    assert_eq!(report.status, RunStatus::Succeeded, "{:?}", report.entities);
    let accounts: BTreeSet<String> = scene.balances().into_iter().map(|(account, _)| account).collect();
    assert_eq!(accounts.len(), 66, "each row");
}

/// The server has executed a statement, waits for the end of the message, and holds the lock of the entity: none of its
/// time limits applies then.
#[sqlx::test(migrations = false)]
async fn session_that_waits_for_a_lost_worker_is_named_with_its_remedy(pool: PgPool) {
    let mut scene = scene_with_three_batches(pool).await;
    scene.set("ELVEN_SYNC_DATABASE__RECONNECT_TIMEOUT", "2s");
    let url = scene.url.clone();
    let network = Network::to(&url).await;
    scene.set("DATABASE_URL", network.url());
    let (child, gate) = scene.held_run().await;
    network.tear("for update of s skip locked");
    gate.open();
    eventually("a statement is torn", async || network.has_torn()).await;
    assert_ne!(child.wait_with_output().await.unwrap().status.code(), Some(0));
    scene.set("DATABASE_URL", &url);
    let output = scene.output(&["run"]).await;
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), stderr(&output));
    let session = "select min(pid)::text from pg_stat_activity
                    where datname = current_database() and state = 'active' and wait_event = 'ClientRead'";
    let pid = scene.text(session).await;
    assert!(text.contains(&format!("locked by another session (pid {pid}, ")), "{text}");
    let remedy = format!("select pg_terminate_backend({pid})");
    assert!(text.contains(&remedy), "{text}");
    sqlx::raw_sql(AssertSqlSafe(remedy)).execute(&scene.pool).await.unwrap();
    // Its locks are released before it disappears. Locks of other databases are those of other tests.
    eventually("the session has ended", async || scene.text(session).await == "NULL").await;
    let report = scene.run().await;
    assert_eq!(report.status, RunStatus::Succeeded, "{:?}", report.entities);
}

/// With a single connection: the connection of the unanswered commit is closed before another one is opened for the
/// lookup.
#[sqlx::test(migrations = false)]
async fn commit_lookup_needs_no_second_connection(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    let network = Network::to(&scene.url).await;
    let url = SecretString::from(network.url().to_owned());
    let database = Database::connect(&url, 1, Duration::from_secs(8)).await.unwrap();
    network.fail(1, Failure::Unanswered);
    let insert = "insert into elven_sync.entities (entity_id, timezone) values ('acme', 'UTC')";
    database.execute(|| sqlx::query(insert)).await.unwrap();
    assert!(network.has_failed());
    assert_eq!(scene.text("select count(*)::text from elven_sync.entities").await, "1");
}

/// Idle connections that the network has dropped are not checked one after another.
#[sqlx::test(migrations = false)]
async fn dead_idle_connections_cost_one_health_check(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    let network = Network::to(&scene.url).await;
    let url = SecretString::from(network.url().to_owned());
    let database = Database::connect(&url, 6, Duration::from_mins(1)).await.unwrap();
    let at_once = futures_util::future::try_join_all((0..6).map(|_| database.begin_reading())).await.unwrap();
    for transaction in at_once {
        transaction.rollback().await.unwrap();
    }
    assert_eq!(network.count().0, 6);
    // After a second of idleness a connection is checked before it is used again.
    let are_idle = async || network.count().0 == 0;
    assert_stays("no connection is opened", Duration::from_millis(1100), are_idle).await;
    network.forget();
    let since = Instant::now();
    database.begin_reading().await.unwrap().rollback().await.unwrap();
    assert!(since.elapsed() < Duration::from_secs(4), "{:?}", since.elapsed());
    assert_eq!(network.count().0, 1, "a new one");
}

/// The time limit for reconnecting starts at the loss, however long the statement had run.
#[sqlx::test(migrations = false)]
async fn long_statement_is_retried_after_connection_loss(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    let url = SecretString::from(scene.url.clone());
    let database = Database::connect(&url, 2, Duration::from_secs(1)).await.unwrap();
    let long = tokio::spawn(async move {
        let sleep = || sqlx::query_scalar::<_, i32>("select 1 from pg_sleep(2)").fetch_one(&database);
        database.retry(sleep).await
    });
    let sleeps = "select count(*)::text from pg_stat_activity
                   where datname = current_database() and wait_event = 'PgSleep'
                     and clock_timestamp() - query_start > interval '1500 ms'";
    eventually("the statement ran for longer than the time limit", async || scene.text(sleeps).await == "1")
        .await;
    scene
        .sql(
            "select pg_terminate_backend(pid) from pg_stat_activity
                where datname = current_database() and application_name like 'elven-sync%'",
        )
        .await;
    assert_eq!(long.await.unwrap().unwrap(), 1);
}

/// A server that accepts the connection and never answers.
#[sqlx::test(migrations = false)]
async fn silent_server_is_abandoned_after_its_timeout(pool: PgPool) {
    let mut scene = scene_with_three_batches(pool).await;
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    scene.set("DATABASE_URL", &format!("postgres://postgres@{}/postgres", silent.local_addr().unwrap()));
    let ended = tokio::time::timeout(Duration::from_secs(40), scene.output(&["run"])).await;
    let output = ended.expect("it ends");
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("no answer for 10s"), "{}", stderr(&output));
}
