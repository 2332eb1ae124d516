//! Watermarks that a person moves, many entities, and the report of the oldest open transaction.

use elven_sync::journal::RunStatus;
use elven_sync::sandbox::{Fault, Gate};
use sqlx::{Connection, Executor, PgConnection, PgPool};
use std::process::Stdio;
use tokio::io::AsyncWriteExt;

use crate::support::{TestEnv, eventually, stderr, stdout};

const INSERT: &str =
    "insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)";

/// Inserts rows `from..=to` of entity acme, whose accounts and balances are the same.
async fn insert(connection: &mut PgConnection, from: i32, to: i32) {
    let sql =
        format!("{INSERT} select 'acme', n, 'BTC', '2024-01-01Z', n from generate_series({from}, {to}) n");
    connection.execute(sqlx::AssertSqlSafe(sql)).await.unwrap();
}

async fn session(scene: &TestEnv) -> PgConnection {
    PgConnection::connect(&scene.url).await.unwrap()
}

async fn stdout_of(scene: &TestEnv, arguments: &[&str]) -> String {
    let output = scene.output(arguments).await;
    assert!(output.status.success(), "{arguments:?}: {}{}", stdout(&output), stderr(&output));
    stdout(&output)
}

/// Why a command failed.
async fn stderr_of(scene: &TestEnv, arguments: &[&str]) -> String {
    let output = scene.output(arguments).await;
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {}{}", stdout(&output), stderr(&output));
    stderr(&output)
}

#[sqlx::test(migrations = false)]
async fn from_now_skips_existing_rows_and_no_later_row(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    let (mut slow, mut quick) = (session(&scene).await, session(&scene).await);
    insert(&mut quick, 1, 50).await;
    slow.execute("begin").await.unwrap();
    insert(&mut slow, 51, 51).await;
    // A second transaction that ends later, so that the open one lies within the range of the watermark.
    quick.execute("select pg_current_xact_id()").await.unwrap();
    stdout_of(&scene, &["entity", "add", "acme", "--timezone", "UTC", "--from-now"]).await;
    insert(&mut quick, 52, 52).await;
    assert_eq!(scene.run().await.counters.rows_uploaded, 1, "what came later");
    slow.execute("commit").await.unwrap();
    assert_eq!(scene.run().await.counters.rows_uploaded, 1, "what had not been there yet");
    scene.sql("update ledger.balance_snapshots set balance = -1 where entity_account_id = '7'").await;
    assert_eq!(scene.run().await.counters.rows_uploaded, 1, "a new version of what was skipped");
    assert_eq!(
        scene.text("select string_agg(kind, ',' order by pass_id) from elven_sync.sync_passes").await,
        "from_now,pass,pass,pass"
    );
    // `--from-now` is only for a new entity: a watermark never moves forward over pending rows.
    insert(&mut quick, 53, 53).await;
    let again = ["entity", "add", "acme", "--timezone", "UTC", "--from-now"];
    assert!(stderr_of(&scene, &again).await.contains("already registered"));
    scene.sql("delete from elven_sync.entities").await;
    assert!(stderr_of(&scene, &again).await.contains("has a watermark"));
    assert_eq!(scene.text("select count(*)::text from elven_sync.entities").await, "0");
    stdout_of(&scene, &["entity", "add", "acme", "--timezone", "UTC"]).await;
    assert_eq!(scene.run().await.counters.rows_uploaded, 1);
    // Skipped rows were never accepted: rows 51 to 53, and row 7 again.
    let plan = stderr_of(&scene, &["entity", "rewind", "acme"]).await;
    assert!(plan.contains("was not moved"), "{plan}");
    let output = scene.output(&["entity", "rewind", "acme"]).await;
    assert!(stdout(&output).contains("moves back over 53 rows, 4 of them accepted"), "{}", stdout(&output));
}

#[sqlx::test(migrations = false)]
async fn rewind_states_its_effect_and_asks_for_confirmation(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    scene.entity("acme", "Europe/Zurich").await;
    let mut writer = session(&scene).await;
    insert(&mut writer, 1, 1000).await;
    scene.run().await;
    scene.sql("select pg_sleep(0.01)").await;
    let between = scene
        .text("select to_char(clock_timestamp() at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')")
        .await;
    insert(&mut writer, 1001, 1500).await;
    // One row that cannot be sent, and two rows of one second, one of which is superseded.
    scene.sql("insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
               values ('acme', 'bad', 'BTC', '2024-01-01Z', 'NaN'), ('acme', 'twice', 'BTC', '2024-01-01Z', 1), ('acme', 'twice', 'BTC', '2024-01-01Z', 2)").await;
    scene.run().await;
    insert(&mut writer, 1501, 1600).await; // waits
    let state = "select concat_ws(' ', settled, target, cursor_xid, cursor_id) from elven_sync.sync_state";
    let before = scene.text(state).await;

    // No answer means no.
    let mut asked = scene.command(&["entity", "rewind", "acme"]).stdin(Stdio::null()).spawn().unwrap();
    assert_eq!(asked.wait().await.unwrap().code(), Some(1));
    let mut asked = scene.command(&["entity", "rewind", "acme"]).stdin(Stdio::piped()).spawn().unwrap();
    asked.stdin.take().unwrap().write_all(b"no\n").await.unwrap();
    let output = asked.wait_with_output().await.unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stdout(&output).contains("moves back over 1,503 rows, 1,501 of them accepted"),
        "{}",
        stdout(&output)
    );
    assert_eq!(scene.text(state).await, before);

    let to_then = stdout_of(&scene, &["entity", "rewind", "acme", "--to", &between, "--yes"]).await;
    assert!(to_then.contains("moves back over 503 rows, 501 of them accepted"), "{to_then}");
    assert_eq!(scene.run().await.counters.rows_read, 603);
    let mut asked =
        scene.command(&["entity", "rewind", "acme", "--to", "start"]).stdin(Stdio::piped()).spawn().unwrap();
    asked.stdin.take().unwrap().write_all(b"y\n").await.unwrap();
    assert!(asked.wait_with_output().await.unwrap().status.success());
    assert_eq!(scene.run().await.counters.rows_read, 1603);
    assert_eq!(
        scene.text("select string_agg(kind, ',' order by pass_id) from elven_sync.sync_passes").await,
        "pass,pass,rewind,pass,rewind,pass"
    );
    // Each pass begins where the previous one ended.
    let broken = "select count(*)::text from (select settled, lag(target) over (order by pass_id) as before from elven_sync.sync_passes) p
                   where settled::text is distinct from before::text";
    assert_eq!(scene.text(broken).await, "0");
}

/// A rewound watermark is older than it once was. A rewind to that earlier place would skip rows.
#[sqlx::test(migrations = false)]
async fn rewind_never_moves_a_watermark_forward(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    scene.entity("acme", "UTC").await;
    let mut writer = session(&scene).await;
    insert(&mut writer, 1, 10).await;
    scene.run().await;
    let ahead = scene
        .text("select to_char(clock_timestamp() at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')")
        .await;
    stdout_of(&scene, &["entity", "rewind", "acme", "--yes"]).await;
    assert!(
        stderr_of(&scene, &["entity", "rewind", "acme", "--to", &ahead, "--yes"])
            .await
            .contains("would skip rows")
    );
    assert_eq!(scene.run().await.counters.rows_read, 10);
    assert!(
        stderr_of(&scene, &["entity", "rewind", "acme", "--to", "yesterday"])
            .await
            .contains("neither a date")
    );
    assert!(stderr_of(&scene, &["entity", "rewind", "acne"]).await.contains("did you mean"));
    // The same holds for a watermark that was rewound by less.
    let now = "select to_char(clock_timestamp() at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')";
    let between = scene.text(now).await;
    insert(&mut writer, 11, 20).await;
    scene.run().await;
    let ahead = scene.text(now).await;
    stdout_of(&scene, &["entity", "rewind", "acme", "--to", &between, "--yes"]).await;
    assert!(
        stderr_of(&scene, &["entity", "rewind", "acme", "--to", &ahead, "--yes"])
            .await
            .contains("would skip rows")
    );
    assert!(
        stdout_of(&scene, &["entity", "rewind", "acme", "--to", &between, "--yes"]).await.contains("already")
    );
    // Nor can it be moved to a snapshot of another cluster.
    scene.sql("update elven_sync.sync_state set system_identifier = 1").await;
    let elsewhere = stderr_of(&scene, &["entity", "rewind", "acme", "--to", &between, "--yes"]).await;
    assert!(elsewhere.contains("only a rewind to the start"), "{elsewhere}");
    // Before the first pass the watermark is the start.
    stdout_of(&scene, &["entity", "rewind", "acme", "--to", "2020-01-01", "--yes"]).await;
    assert_eq!(scene.run().await.counters.rows_read, 20);
}

/// A rewind abandons a pass that a crash left open, with a batch of unknown outcome.
#[sqlx::test(migrations = false)]
async fn rewind_abandons_an_open_pass(pool: PgPool) {
    let mut scene = TestEnv::new(pool).await;
    scene.entity("acme", "UTC").await;
    let mut writer = session(&scene).await;
    insert(&mut writer, 1, 10).await;
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "4");
    scene.set("ELVEN_SYNC_SYNC__REQUESTS_IN_FLIGHT", "1");
    scene.set("ELVEN_SYNC_RETRY__ATTEMPTS", "1");
    scene.sandbox.inject(Fault::CutAfterWrite);
    assert_eq!(scene.run().await.status, RunStatus::Failed);
    let batches = "select string_agg(status, ',' order by batch_id) from elven_sync.sync_batches";
    assert_eq!(scene.text(batches).await, "unknown");
    let moved = stdout_of(&scene, &["entity", "rewind", "acme", "--yes"]).await;
    assert!(moved.contains("moves back over 0 rows"), "{moved}");
    assert_eq!(
        scene.text("select coalesce(target::text, 'closed') from elven_sync.sync_state").await,
        "closed"
    );
    let report = scene.run().await;
    assert_eq!((report.status, report.counters.rows_read), (RunStatus::Succeeded, 10));
    assert_eq!(scene.text(batches).await, "unknown,accepted,accepted,accepted");
    let given_up = "select (finished_at is not null and error like '%rewound%')::text from elven_sync.sync_batches order by batch_id limit 1";
    assert_eq!(scene.text(given_up).await, "true");
}

#[sqlx::test(migrations = false)]
async fn rewind_of_a_leased_entity_is_refused(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    scene.entity("acme", "UTC").await;
    let mut writer = session(&scene).await;
    insert(&mut writer, 1, 1).await;
    let gate = Gate::new();
    scene.sandbox.inject(Fault::HoldResponse(gate.clone()));
    let run = async { scene.run().await };
    let rewind = async {
        gate.reached().await;
        let why = stderr_of(&scene, &["entity", "rewind", "acme", "--yes"]).await;
        assert!(why.contains("a worker holds the lease of `acme`"), "{why}");
        gate.open();
    };
    let (report, ()) = tokio::join!(run, rewind);
    assert_eq!(report.status, RunStatus::Succeeded);
}

/// A restored dump looks like this to the seal: another transaction wrote the rows of the journal.
#[sqlx::test(migrations = false)]
async fn rebind_refuses_a_restored_dump(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    scene.entity("acme", "UTC").await;
    let mut writer = session(&scene).await;
    insert(&mut writer, 1, 3).await;
    assert!(stdout_of(&scene, &["entity", "rebind", "acme"]).await.contains("needs no rebind"));
    scene.run().await;
    assert!(stdout_of(&scene, &["entity", "rebind", "--all"]).await.contains("needs no rebind"));
    // As after pg_upgrade: another identifier, the rows untouched.
    scene.sql("update elven_sync.sync_state set system_identifier = 1").await;
    let why = scene.run().await.entities[0].failure().unwrap();
    assert!(why.contains("entity rebind 'acme'") && why.contains("entity rewind 'acme'"), "{why}");
    scene.sql("create table spare as select * from elven_sync.sync_state").await;
    scene.sql("update elven_sync.sync_state set settled = '9000000000:9000000000:'").await;
    assert!(stderr_of(&scene, &["entity", "rebind", "acme"]).await.contains("have not happened yet"));
    scene.sql("update elven_sync.sync_state s set settled = p.settled from spare p").await;
    scene.sql("update elven_sync.sync_state set ledger_table = 'other.table'").await;
    assert!(stderr_of(&scene, &["entity", "rebind", "acme"]).await.contains("belongs to the ledger table"));
    scene.sql("update elven_sync.sync_state s set ledger_table = p.ledger_table from spare p").await;
    assert!(stdout_of(&scene, &["entity", "rebind", "acme"]).await.contains("is bound"));
    assert_eq!(scene.run().await.status, RunStatus::Succeeded);
    // As after restoring a dump: the same values in rows written by another transaction.
    scene
        .sql(
            "update elven_sync.sync_state set system_identifier = 1;
               update elven_sync.sync_passes set written_by = written_by",
        )
        .await;
    assert!(stderr_of(&scene, &["entity", "rebind", "acme"]).await.contains("written again here"));
    scene.sql("update elven_sync.sync_passes set written_by = null").await;
    assert!(
        stderr_of(&scene, &["entity", "rebind", "--all"])
            .await
            .contains("it is not known whether this cluster wrote")
    );
    stdout_of(&scene, &["entity", "rewind", "acme", "--yes"]).await;
    assert_eq!(scene.run().await.counters.rows_uploaded, 3);
}

/// 5,000 entities, 3 of them with pending rows: one probe finds those three.
#[sqlx::test(migrations = false)]
async fn run_finds_few_pending_entities_among_many_in_few_queries(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    scene.sql("insert into elven_sync.entities (entity_id, timezone) select 'e' || n, 'UTC' from generate_series(1, 5000) n;
               insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
               select 'e' || n, 'a', 'BTC', '2024-01-01Z', 1 from generate_series(1, 5000) n;
               analyze ledger.balance_snapshots").await;
    // In a transaction of its own: a snapshot leaves out its own transaction.
    scene
        .sql(
            "update elven_sync.sync_state set settled = pg_current_snapshot();
             insert into elven_sync.sync_passes (entity_id, target, finished_at)
             select entity_id, settled, now() from elven_sync.sync_state",
        )
        .await;
    scene.sql("insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
               select 'e' || n, 'b', 'BTC', '2024-01-01Z', 1 from unnest('{7,77,4777}'::int[]) n").await;
    let quiet = "select count(*)::text from pg_stat_activity where application_name like 'elven-sync%' and datname = current_database()";
    let count = "select xact_commit from pg_stat_database where datname = current_database()";
    let mut before: i64 = sqlx::query_scalar(count).fetch_one(&scene.pool).await.unwrap();
    let mut queries = Vec::new();
    for expected in [3, 0] {
        assert_eq!(scene.run().await.counters.rows_uploaded, expected);
        eventually("the sessions end", async || scene.text(quiet).await == "0").await;
        // A session reports its statistics when it ends. Before PostgreSQL 15 the report may arrive a moment later.
        scene.sql("select pg_sleep(0.1)").await;
        let after: i64 = sqlx::query_scalar(count).fetch_one(&scene.pool).await.unwrap();
        queries.push(after - before);
        before = after;
    }
    assert!(queries[0] > 10, "the statistics did not arrive: {queries:?}");
    // Counts each transaction of the connector, of its connections, and of the polling here.
    assert!(queries.iter().all(|queries| *queries < 300), "{queries:?} transactions");
}

#[sqlx::test(migrations = false)]
async fn status_names_the_oldest_open_writer(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    scene.entity("acme", "UTC").await;
    assert!(!stdout_of(&scene, &["status"]).await.contains("is open"));
    let mut reader = session(&scene).await;
    reader
        .execute("begin; select pg_current_xact_id(); select count(*) from ledger.balance_snapshots")
        .await
        .unwrap();
    let mut slow = session(&scene).await;
    slow.execute("set application_name = 'month end'; begin").await.unwrap();
    insert(&mut slow, 1, 1).await;
    let mut quick = session(&scene).await;
    quick.execute("begin").await.unwrap();
    insert(&mut quick, 2, 2).await;
    // An older transaction that has not written delays nothing.
    let text = stdout_of(&scene, &["status"]).await;
    assert!(text.contains("month end"), "{text}");
    insert(&mut reader, 3, 3).await;
    insert(&mut session(&scene).await, 4, 4).await;
    assert_eq!(scene.run().await.counters.rows_uploaded, 1, "it delays nobody else's rows");
    // The transaction that began first has the oldest id, though it wrote last.
    let xid = |connection| async move {
        sqlx::query_scalar::<_, String>("select pg_current_xact_id()::text")
            .fetch_one(connection)
            .await
            .unwrap()
    };
    let text = stdout_of(&scene, &["status"]).await;
    let oldest = xid(&mut reader).await;
    assert!(text.contains(&format!("transaction {oldest} has written to the ledger and is open")), "{text}");
    reader.execute("rollback").await.unwrap();
    let text = stdout_of(&scene, &["status"]).await;
    assert!(text.contains("month end") && text.contains("idle in transaction"), "{text}");
    slow.execute("prepare transaction 'close of May'").await.unwrap();
    let json: serde_json::Value =
        serde_json::from_str(&stdout_of(&scene, &["status", "--json"]).await).unwrap();
    assert_eq!(json["oldest_writer"]["prepared_as"], "close of May");
    slow.execute("commit prepared 'close of May'").await.unwrap();
    quick.execute("commit").await.unwrap();
    assert!(!stdout_of(&scene, &["status"]).await.contains("is open"));
    assert_eq!(scene.run().await.counters.rows_uploaded, 2);
}
