//! Pages from a standby: however far it lags, nothing is skipped.

use std::time::Duration;

use elven_sync::journal::RunStatus;
use nix::sys::signal::Signal;
use sqlx::{Connection, Executor, PgConnection, PgPool};
use tokio::io::{AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};

use crate::cluster::Cluster;
use crate::support::{TestEnv, assert_stays, eventually, signal, stderr};

const INSERT: &str =
    "insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)";

/// An environment on its own primary, whose pages are read from a standby.
async fn scene_on(primary: &Cluster, standby: &str) -> TestEnv {
    let mut scene = TestEnv::at(&primary.url("ledger")).await;
    scene.entity("acme", "UTC").await;
    scene.set("ELVEN_SYNC_LEDGER_URL", standby);
    // Pages of 4 rows, each of which has to be proven. One request at a time, so that rows arrive in the order of the
    // pass.
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "1");
    scene.set("ELVEN_SYNC_SYNC__REQUESTS_IN_FLIGHT", "1");
    scene
}

/// Adds rows of acme, whose accounts and balances are the same.
async fn enter(connection: &mut PgConnection, numbers: std::ops::RangeInclusive<i32>) {
    let (from, to) = numbers.into_inner();
    let sql =
        format!("{INSERT} select 'acme', n, 'BTC', '2024-01-01Z', n from generate_series({from}, {to}) n");
    connection.execute(sqlx::AssertSqlSafe(sql)).await.unwrap();
}

/// Returns the received accounts, in order.
fn accounts(scene: &TestEnv) -> Vec<i32> {
    scene.balances().into_iter().map(|(account, _)| account.parse().unwrap()).collect()
}

/// Starts a run that waits for the standby to replay its pass.
async fn waiting_run(scene: &TestEnv) -> tokio::process::Child {
    let open = "select count(*)::text from elven_sync.sync_passes where finished_at is null";
    let child = scene.command(&["run"]).spawn().unwrap();
    eventually("the pass is open", async || scene.text(open).await == "1").await;
    // A run that trusted the standby would end within this time.
    let waits = async || scene.text(open).await == "1";
    assert_stays("the run waits for the standby", Duration::from_millis(500), waits).await;
    child
}

/// With replay paused: the standby does not show some rows yet, among them one that committed late, and does not know
/// of an update.
#[sqlx::test(migrations = false)]
async fn run_waits_for_a_lagging_standby(pool: PgPool) {
    let primary = Cluster::new(&pool).await;
    let standby = primary.standby().await;
    let scene = scene_on(&primary, &standby.url("ledger")).await;
    standby.caught_up_with(&primary).await;
    let (mut slow, mut quick) =
        (PgConnection::connect(&scene.url).await.unwrap(), PgConnection::connect(&scene.url).await.unwrap());
    enter(&mut quick, 1..=10).await;
    assert_eq!(scene.run().await.counters.rows_uploaded, 10);
    slow.execute("begin").await.unwrap();
    enter(&mut slow, 11..=11).await;
    enter(&mut quick, 12..=30).await;
    assert_eq!(scene.run().await.counters.rows_uploaded, 19);

    standby.pause_replay().await;
    slow.execute("commit").await.unwrap();
    enter(&mut quick, 31..=40).await;
    quick
        .execute("update ledger.balance_snapshots set balance = -1 where entity_account_id = '1'")
        .await
        .unwrap();
    let child = waiting_run(&scene).await;
    assert_eq!(accounts(&scene).len(), 29, "nothing was sent of a page that is not proven");
    standby.resume_replay().await;
    assert!(child.wait_with_output().await.unwrap().status.success());
    let mut later = accounts(&scene).split_off(29);
    later.sort_unstable();
    assert_eq!(later, [&[1, 11][..], &(31..=40).collect::<Vec<_>>()].concat());
    assert!(scene.balances().contains(&("1".to_owned(), "-1".to_owned())));
    assert_eq!(scene.run().await.counters.rows_read, 0);
}

/// A worker that waits for a standby stops at a signal, and the next one continues.
#[sqlx::test(migrations = false)]
async fn signal_ends_the_wait_for_a_standby(pool: PgPool) {
    let primary = Cluster::new(&pool).await;
    let standby = primary.standby().await;
    let mut scene = scene_on(&primary, &standby.url("ledger")).await;
    standby.caught_up_with(&primary).await;
    standby.pause_replay().await;
    enter(&mut PgConnection::connect(&scene.url).await.unwrap(), 1..=10).await;
    let child = waiting_run(&scene).await;
    signal(&child, Signal::SIGTERM);
    let output = child.wait_with_output().await.unwrap();
    assert_eq!(output.status.code(), Some(143), "{}", stderr(&output));
    // From the primary it continues without waiting.
    scene.unset("ELVEN_SYNC_LEDGER_URL");
    assert_eq!(scene.run().await.counters.rows_uploaded, 10);
}

/// One name, two standbys, one of which lags: connections alternate, as behind a proxy or in DNS.
#[sqlx::test(migrations = false)]
async fn lagging_standby_behind_a_shared_name_skips_nothing(pool: PgPool) {
    let primary = Cluster::new(&pool).await;
    let (first, second) = (primary.standby().await, primary.standby().await);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let name = format!("postgres://postgres@127.0.0.1:{}/ledger", listener.local_addr().unwrap().port());
    let servers =
        [first.url(""), second.url("")].map(|url| url.replace("postgres://postgres@", "").replace('/', ""));
    let proxy = tokio::spawn(async move {
        for server in servers.iter().cycle() {
            let (mut client, _) = listener.accept().await.unwrap();
            let mut server = TcpStream::connect(server).await.unwrap();
            tokio::spawn(async move {
                copy_bidirectional(&mut client, &mut server).await.ok();
                client.shutdown().await.ok();
            });
        }
    });
    let scene = scene_on(&primary, &name).await;
    let mut writer = PgConnection::connect(&scene.url).await.unwrap();
    first.caught_up_with(&primary).await;
    second.caught_up_with(&primary).await;
    enter(&mut writer, 1..=10).await;
    scene.run().await;
    second.pause_replay().await;
    for number in 11..=60 {
        enter(&mut writer, number..=number).await;
        if number % 10 == 0 {
            // The standby lags, and catches up a bit now and then.
            let run = scene.run();
            let replay = async {
                tokio::time::sleep(Duration::from_millis(200)).await;
                second.resume_replay().await;
                tokio::time::sleep(Duration::from_millis(50)).await;
                second.pause_replay().await;
            };
            let (report, ()) = tokio::join!(run, replay);
            assert_eq!(report.status, RunStatus::Succeeded);
        }
    }
    second.resume_replay().await;
    assert_eq!(scene.run().await.status, RunStatus::Succeeded);
    assert_eq!(accounts(&scene), (1..=60).collect::<Vec<_>>());
    proxy.abort();
}

/// A server that is no standby of the primary is refused before anything is read.
#[sqlx::test(migrations = false)]
async fn server_that_is_not_a_standby_is_refused(pool: PgPool) {
    let (primary, other) = (Cluster::new(&pool).await, Cluster::new(&pool).await);
    other.sql("create database ledger").await;
    let mut scene = scene_on(&primary, &other.url("ledger")).await;
    enter(&mut PgConnection::connect(&scene.url).await.unwrap(), 1..=3).await;
    for (url, expected) in [
        (other.url("ledger"), "another PostgreSQL cluster"),
        (primary.url("postgres"), "another database"),
        (primary.url("nothing"), "cannot be reached"),
    ] {
        scene.set("ELVEN_SYNC_LEDGER_URL", &url);
        let output = scene.output(&["run"]).await;
        assert_eq!(output.status.code(), Some(1), "{url}");
        let said = stderr(&output);
        assert!(said.contains("ELVEN_SYNC_LEDGER_URL") && said.contains(expected), "{said}");
    }
    assert_eq!(scene.text("select count(*)::text from elven_sync.sync_runs").await, "0");
    // The primary itself is accepted too: a standby may have been promoted under its name.
    scene.set("ELVEN_SYNC_LEDGER_URL", &primary.url("ledger"));
    assert_eq!(scene.run().await.counters.rows_uploaded, 3);
}

/// The standby does not have a new partition yet. Without it the planner finds that no row can match, and must not
/// remove the proof from the query as well.
#[sqlx::test(migrations = false)]
async fn run_waits_for_a_partition_missing_on_the_standby(pool: PgPool) {
    let primary = Cluster::new(&pool).await;
    let standby = primary.standby().await;
    let mut scene = scene_on(&primary, &standby.url("ledger")).await;
    scene
        .sql(
            "create table ledger.parts (like ledger.balance_snapshots including defaults) partition by list (entity_id);
             create table ledger.parts_bob partition of ledger.parts for values in ('bob');
             create trigger stamp before insert or update on ledger.parts
                 for each row execute function ledger.stamp_change_xid()",
        )
        .await;
    scene.set("ELVEN_SYNC_LEDGER__TABLE", "ledger.parts");
    standby.caught_up_with(&primary).await;
    standby.pause_replay().await;
    scene
        .sql(
            "create table ledger.parts_acme partition of ledger.parts for values in ('acme');
             insert into ledger.parts select n, 'acme', n, 'BTC', '2024-01-01Z', n from generate_series(1, 10) n",
        )
        .await;
    let child = waiting_run(&scene).await;
    standby.resume_replay().await;
    assert!(child.wait_with_output().await.unwrap().status.success());
    assert_eq!(accounts(&scene), (1..=10).collect::<Vec<_>>());
}

/// A run also waits for a standby that does not have the migration yet.
#[sqlx::test(migrations = false)]
async fn run_waits_for_a_standby_without_the_migration(pool: PgPool) {
    let primary = Cluster::new(&pool).await;
    primary.sql("create database ledger").await;
    let standby = primary.standby().await;
    standby.caught_up_with(&primary).await;
    standby.pause_replay().await;
    let mut scene = TestEnv::new(PgPool::connect(&primary.url("ledger")).await.unwrap()).await;
    scene.entity("acme", "UTC").await;
    scene.set("ELVEN_SYNC_LEDGER_URL", &standby.url("ledger"));
    enter(&mut PgConnection::connect(&scene.url).await.unwrap(), 1..=3).await;
    let child = waiting_run(&scene).await;
    standby.resume_replay().await;
    assert!(child.wait_with_output().await.unwrap().status.success());
    assert_eq!(accounts(&scene), [1, 2, 3]);
}

/// A writing command reports at once that it is connected to a standby, as a run does.
#[sqlx::test(migrations = false)]
async fn writing_commands_refuse_a_standby(pool: PgPool) {
    let primary = Cluster::new(&pool).await;
    let mut scene = TestEnv::at(&primary.url("ledger")).await;
    scene.entity("acme", "UTC").await;
    let standby = primary.standby().await;
    standby.caught_up_with(&primary).await;
    scene.set("DATABASE_URL", &standby.url("ledger"));
    for arguments in [
        &["entity", "pause", "acme"][..],
        &["entity", "add", "beta", "--timezone", "UTC"],
        &["entity", "rewind", "acme", "--yes"],
        &["entity", "rebind", "acme"],
        &["errors", "resolve", "1", "--reason", "seen"],
        &["run"],
    ] {
        let output = scene.output(arguments).await;
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        assert!(stderr(&output).contains("DATABASE_URL leads to a standby"), "{}", stderr(&output));
    }
    assert_eq!(scene.output(&["status"]).await.status.code(), Some(0));
}
