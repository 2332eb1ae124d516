//! What keeps many checks from being made is found once, and the others say why they are skipped.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, PgPool};
use tokio::io::{AsyncBufReadExt, BufReader};

use super::{assert_found, checked, synced};
use crate::stub::{Stub, StubResponse, list};
use crate::support::{TestEnv, eventually};

/// The ids of the checks of a report with a status, each with its message.
fn with_status<'r>(report: &'r Value, status: &str) -> BTreeMap<&'r str, &'r str> {
    let checks = report["checks"].as_array().unwrap().iter().filter(|check| check["status"] == status);
    checks.map(|check| (check["id"].as_str().unwrap(), check["message"].as_str().unwrap())).collect()
}

/// The checks that read rows of the ledger.
const READ_ROWS: [&str; 8] = [
    "ledger.stamps",
    "entities.unregistered",
    "entities.rows",
    "data.accounts",
    "data.currencies",
    "data.amounts",
    "data.decimals",
    "data.times",
];

/// Makes all checks, and asserts that only these failed and that those that read rows are skipped for this reason.
async fn assert_fails_once(scene: &TestEnv, failed: &[&str], reason: &str) {
    let (code, report) = checked(scene, &[]).await;
    assert_eq!(with_status(&report, "failed").into_keys().collect::<Vec<_>>(), failed, "{report}");
    let skipped = with_status(&report, "skipped");
    for id in READ_ROWS {
        assert!(skipped.get(id).is_some_and(|why| why.starts_with(reason)), "{id}: {:?}", skipped.get(id));
    }
    assert_eq!(code, 3);
}

/// Waits until another session waits for a lock in this database.
async fn is_queued(scene: &TestEnv) {
    let waiting = "select (count(*) > 0)::text from pg_stat_activity
                    where datname = current_database() and wait_event_type = 'Lock'";
    eventually("a session waits", async || scene.text(waiting).await == "true").await;
}

#[sqlx::test(migrations = false)]
async fn a_locked_ledger_is_found_once_with_the_session_that_locks_it(pool: PgPool) {
    let scene = synced(pool).await;
    assert_found(&scene, "ledger.readable", "ok", &["can be read"]).await;
    let mut session = PgConnection::connect(&scene.url).await.unwrap();
    session.execute("set application_name = 'forgotten psql'; begin").await.unwrap();
    session.execute("lock table ledger.balance_snapshots in access exclusive mode").await.unwrap();
    let pid = sqlx::query_scalar::<_, i32>("select pg_backend_pid()").fetch_one(&mut session).await.unwrap();
    let (of, end) = (format!("pid {pid} (user "), format!("select pg_terminate_backend({pid});"));
    let words = [
        "ledger.balance_snapshots could not be read within 1 s",
        &of,
        "application forgotten psql",
        "idle in transaction",
        &end,
    ];
    assert_found(&scene, "ledger.readable", "failed", &words).await;
    assert_fails_once(&scene, &["ledger.readable"], "needs ledger.readable, which failed").await;
    session.execute("rollback").await.unwrap();
    assert_found(&scene, "ledger.readable", "ok", &[]).await;
    assert_found(&scene, "ledger.stamps", "ok", &[]).await;
}

/// A statement that waits for a lock blocks those behind it: both are named, and the first is to be ended.
#[sqlx::test(migrations = false)]
async fn a_queue_for_a_lock_is_followed_to_its_end(pool: PgPool) {
    let scene = synced(pool).await;
    let mut reader = PgConnection::connect(&scene.url).await.unwrap();
    reader.execute("begin; select count(*) from ledger.balance_snapshots").await.unwrap();
    let pid = sqlx::query_scalar::<_, i32>("select pg_backend_pid()").fetch_one(&mut reader).await.unwrap();
    let mut changing = PgConnection::connect(&scene.url).await.unwrap();
    let change = tokio::spawn(async move {
        changing.execute("alter table ledger.balance_snapshots add note text").await.map(|_| ())
    });
    is_queued(&scene).await;
    let (last, end) = (format!("which waits itself for pid {pid} "), format!("pg_terminate_backend({pid})"));
    let words = ["statement: alter table ledger.balance_snapshots add note text", &last, &end];
    assert_found(&scene, "ledger.readable", "failed", &words).await;
    reader.execute("rollback").await.unwrap();
    change.await.unwrap().unwrap();
    assert_found(&scene, "ledger.readable", "ok", &[]).await;
}

#[sqlx::test(migrations = false)]
async fn a_locked_sync_table_is_found_once(pool: PgPool) {
    let scene = synced(pool).await;
    let mut session = PgConnection::connect(&scene.url).await.unwrap();
    session.execute("begin; lock table elven_sync.sync_state in access exclusive mode").await.unwrap();
    let (code, report) = checked(&scene, &[]).await;
    let failed = with_status(&report, "failed");
    assert_eq!(failed.keys().collect::<Vec<_>>(), [&"database.timeline"], "{report}");
    assert!(failed["database.timeline"].contains("elven_sync.sync_state could not be read"), "{failed:?}");
    let skipped = with_status(&report, "skipped");
    for id in ["entities.registered", "ledger.stamps", "journal.passes", "journal.size", "data.amounts"] {
        assert_eq!(skipped.get(id), Some(&"needs database.timeline, which failed"), "{id}");
    }
    assert_eq!(code, 3);
    session.execute("rollback").await.unwrap();
    assert_eq!(checked(&scene, &[]).await.0, 0);
}

async fn execute(scene: &TestEnv, sql: String) {
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(&scene.pool).await.unwrap();
}

/// Creates a role for this database, and lets the connector use it.
async fn role_of(scene: &mut TestEnv) -> String {
    let role = scene
        .text("select 'elven_sync_blocked_' || oid from pg_database where datname = current_database()")
        .await;
    execute(scene, format!("create role {role} login")).await;
    let separator = if scene.url.contains('?') { '&' } else { '?' };
    let url = format!("{}{separator}options=-c%20role%3D{role}", scene.url);
    scene.set("DATABASE_URL", &url);
    role
}

#[sqlx::test(migrations = false)]
async fn missing_privileges_are_one_failure_for_each_schema(pool: PgPool) {
    let mut scene = synced(pool).await;
    let role = role_of(&mut scene).await;
    assert_fails_once(&scene, &["database.privileges", "ledger.privileges"], "needs ").await;
    execute(&scene, format!("grant usage on schema elven_sync to {role}; grant all on all tables in schema elven_sync to {role}")).await;
    let words = ["may not read", "as the owner: grant usage on schema ledger to "];
    assert_found(&scene, "ledger.privileges", "failed", &words).await;
    assert_fails_once(&scene, &["ledger.privileges"], "needs ledger.privileges, which failed").await;
    execute(
        &scene,
        format!("grant usage on schema ledger to {role}; grant select on ledger.balance_snapshots to {role}"),
    )
    .await;
    assert_found(&scene, "ledger.privileges", "ok", &[&role]).await;
    // Without the right to write, which monitoring does not need, nothing is skipped.
    execute(&scene, format!("revoke insert on elven_sync.sync_errors from {role}")).await;
    let (_, report) = checked(&scene, &[]).await;
    assert_eq!(
        with_status(&report, "failed").into_keys().collect::<Vec<_>>(),
        ["database.privileges"],
        "{report}"
    );
    assert!(!with_status(&report, "skipped").into_values().any(|why| why.starts_with("needs")), "{report}");
    // A role of the monitoring reads and writes nothing.
    execute(&scene, format!("revoke insert, update, delete on all tables in schema elven_sync from {role}"))
        .await;
    let words = ["may read the sync tables and not write to them", "docs/ledgers.md#grant-the-rights"];
    assert_found(&scene, "database.privileges", "warning", &words).await;
    assert_eq!(checked(&scene, &[]).await.0, 0);
    // Many grants are one a line.
    execute(&scene, format!("grant insert on elven_sync.sync_runs to {role}")).await;
    let output = scene.output(&["check", "--only", "database"]).await;
    let text = crate::support::stdout(&output);
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let place =
        lines.iter().position(|line| *line == "hint: as the owner:").unwrap_or_else(|| panic!("{text}"));
    assert!(lines[place + 1].starts_with("grant ") && lines[place + 1].ends_with(';'), "{text}");
    assert!(lines[place + 4].starts_with("grant "), "{text}");
    execute(&scene, format!("drop owned by {role}; drop role {role}")).await;
}

#[sqlx::test(migrations = false)]
async fn row_level_security_is_one_failure_unless_it_does_not_apply(pool: PgPool) {
    let mut scene = synced(pool).await;
    let role = role_of(&mut scene).await;
    let grants = ["elven_sync", "ledger"].map(|schema| {
        format!(
            "grant usage on schema {schema} to {role}; grant all on all tables in schema {schema} to {role}; "
        )
    });
    execute(&scene, grants.concat()).await;
    scene.sql("alter table ledger.balance_snapshots enable row level security").await;
    assert_fails_once(&scene, &["ledger.row_security"], "needs ledger.row_security, which failed").await;
    // A view reads with the rights of its owner.
    scene.sql("create view ledger.shown as select * from ledger.balance_snapshots").await;
    execute(&scene, format!("grant select on ledger.shown to {role}")).await;
    scene.set("ELVEN_SYNC_LEDGER__TABLE", "ledger.shown");
    assert_found(&scene, "ledger.row_security", "ok", &["do not apply to what runs read"]).await;
    execute(&scene, format!("drop owned by {role}; drop role {role}")).await;
}

/// The catalogue allows the role to read the view; what the view calls does not.
#[sqlx::test(migrations = false)]
async fn a_view_that_cannot_be_read_is_one_failure(pool: PgPool) {
    let mut scene = synced(pool).await;
    scene.sql("create table ledger.rates (rate numeric); create role elven_sync_no_one").await;
    scene
        .sql(
            "create view ledger.valued as select b.id, entity_id, entity_account_id, currency, captured_at,
                    balance * coalesce((select max(rate) from ledger.rates), 1) as balance, change_xid
               from ledger.balance_snapshots b;
             grant usage on schema ledger to elven_sync_no_one;
             grant select on ledger.balance_snapshots to elven_sync_no_one;
             alter view ledger.valued owner to elven_sync_no_one",
        )
        .await;
    scene.set("ELVEN_SYNC_LEDGER__TABLE", "ledger.valued");
    assert_found(&scene, "ledger.readable", "failed", &["permission denied for table rates"]).await;
    assert_found(&scene, "data.amounts", "skipped", &["needs ledger.readable"]).await;
    scene.sql("grant select on ledger.rates to elven_sync_no_one").await;
    assert_found(&scene, "ledger.readable", "ok", &[]).await;
    scene.sql("drop owned by elven_sync_no_one cascade; drop role elven_sync_no_one").await;
}

/// A large ledger is not read whole, a small one is.
#[sqlx::test(migrations = false)]
async fn without_the_index_a_large_ledger_is_not_read(pool: PgPool) {
    let scene = synced(pool).await;
    scene.sql("drop index ledger.balance_snapshots_change").await;
    assert_found(&scene, "ledger.index", "failed", &["missing or invalid"]).await;
    assert_found(&scene, "entities.rows", "ok", &[]).await;
    scene
        .sql(
            "alter table ledger.balance_snapshots add note text;
             alter table ledger.balance_snapshots alter note set storage plain;
             insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance, note)
             select 'acme', 'b' || n, 'BTC', '2024-01-01Z', 1, repeat('x', 7900) from generate_series(1, 9000) n",
        )
        .await;
    let reason = "needs ledger.index, which failed: without it, this check would read the whole ledger (";
    assert_fails_once(&scene, &["ledger.index"], reason).await;
    scene
        .sql("create index balance_snapshots_change on ledger.balance_snapshots (entity_id, change_xid, id)")
        .await;
    assert_found(&scene, "ledger.index", "ok", &[]).await;
    assert_found(&scene, "entities.rows", "ok", &[]).await;
}

/// A role whose statements are ended at once is told so, and not that the address is wrong.
#[sqlx::test(migrations = false)]
async fn a_time_limit_of_the_role_is_named(pool: PgPool) {
    let mut scene = synced(pool).await;
    let right = scene.url.clone();
    let separator = if scene.url.contains('?') { '&' } else { '?' };
    let url = format!("{}{separator}options=-c%20statement_timeout%3D1", scene.url);
    scene.set("DATABASE_URL", &url);
    eventually("a statement takes longer than 1 ms", async || {
        let (status, message, hint) = super::found(&scene, "database.connection").await;
        let said = format!("{message}; {hint}");
        status == "failed"
            && said.contains("statement_timeout")
            && said.contains("alter role NAME set statement_timeout")
    })
    .await;
    scene.set("DATABASE_URL", &right);
    assert_found(&scene, "database.connection", "ok", &[]).await;
}

/// Each line is there as soon as it is known, although a later check waits. Without that, all lines would come when the
/// check of the API is given up, after 30 s.
#[sqlx::test(migrations = false)]
async fn each_line_is_printed_as_soon_as_it_is_known(pool: PgPool) {
    let mut scene = synced(pool).await;
    scene.set("ELVEN_SYNC_API__TIMEOUT", "1h");
    let never = Duration::from_hours(1);
    let api = Stub::of(&mut scene, move |_| StubResponse { after: never, ..list() }).await;
    let mut child = scene.command(&["check"]).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    eventually("the API is asked", async || !api.requests().is_empty()).await;
    let mut seen = Vec::new();
    let reading = async {
        while !seen.last().is_some_and(|line: &String| line.contains("entities.shared_keys: ")) {
            seen.push(lines.next_line().await.unwrap().unwrap());
        }
    };
    tokio::time::timeout(Duration::from_secs(20), reading).await.unwrap();
    child.kill().await.unwrap();
}
