//! Locks of other sessions: the service says who holds them, and a restart of it would not help.

use std::time::Duration;

use sqlx::{Connection, Executor, PgConnection, PgPool};

use super::{Service, add_row, arrives};
use crate::alerts::{NONE, alert, named};
use crate::support::{TestEnv, assert_stays, eventually};

/// Longer than a statement may take, and than its retry, with a `reconnect_timeout` of a second.
#[sqlx::test(migrations = false)]
async fn session_that_locks_the_ledger_is_named_and_alerts_until_it_ends(pool: PgPool) {
    let mut scene = TestEnv::new(pool).await;
    scene.set("ELVEN_SYNC_DATABASE__RECONNECT_TIMEOUT", "1s");
    scene.entity("acme", "UTC").await;
    let service = Service::start(&scene, &["--every", "1s"]).await;
    service.answers("/readyz", 200).await;
    let mut session = PgConnection::connect(&scene.url).await.unwrap();
    session.execute("set application_name = 'forgotten psql'; begin").await.unwrap();
    session.execute("lock table ledger.balance_snapshots in access exclusive mode").await.unwrap();
    let pid = sqlx::query_scalar::<_, i32>("select pg_backend_pid()").fetch_one(&mut session).await.unwrap();
    service.logs("a statement has waited").await;
    let log = service.log();
    let line = log.lines().find(|line| line.contains("a statement has waited")).unwrap();
    for words in [
        "s for ledger.balance_snapshots, which is locked by pid",
        &format!("pid {pid} (user "),
        "application forgotten psql, idle in transaction, its transaction is open for ",
        &format!(
            "hint: wait for the end of that transaction, or end it: select pg_terminate_backend({pid});"
        ),
    ] {
        assert!(line.contains(words), "{words}: {line}");
    }
    eventually("the alert", async || named(&scene).await == ["LockWait warning"]).await;
    let begun = alert(&scene, "LockWait").await;
    let words =
        format!("a statement of elven-sync waits: ledger.balance_snapshots is locked by pid {pid} (user ");
    assert!(begun.message.starts_with(&words) && !begun.message.contains("statement:"), "{begun:?}");
    assert_eq!(begun.hint, "elven-sync check");
    // Meanwhile runs give up and fail, which is an alert of its own.
    let holds = async || {
        let is_alive = service.get("/healthz").await.status == 200;
        is_alive && named(&scene).await.contains(&"LockWait warning".to_owned())
    };
    assert_stays("it is alive, and the alert holds", Duration::from_secs(25), holds).await;
    assert_eq!(alert(&scene, "LockWait").await.since, begun.since);
    session.execute("rollback").await.unwrap();
    add_row(&scene, "a").await;
    arrives(&scene, &service, "a").await;
    eventually("the alert ends", async || named(&scene).await == NONE).await;
    service.stop().await;
}

/// A process that has ended cannot record that it does not wait any more.
#[sqlx::test(migrations = false)]
async fn wait_of_a_process_that_has_ended_is_no_alert(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    scene.entity("acme", "UTC").await;
    scene
        .sql(
            "insert into elven_sync.sync_facts (name, since, checked_at, value)
             values ('lock_wait', now(), now(), '{\"ok\": false, \"message\": \"t is locked by pid 1\"}')",
        )
        .await;
    assert_eq!(named(&scene).await, ["LockWait warning"]);
    scene.sql("update elven_sync.sync_facts set checked_at = now() - interval '4 minutes'").await;
    assert_eq!(named(&scene).await, NONE);
}
