//! The checks of the database server and of the rights of the role.

use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor, PgConnection, PgPool};

use super::{assert_each_appears_and_ends, assert_found, synced};
use crate::support::TestEnv;

async fn execute(scene: &TestEnv, sql: String) {
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(&scene.pool).await.unwrap();
}

/// The URL of the scene for another role and application.
fn url_as(scene: &TestEnv, options: &str) -> String {
    let separator = if scene.url.contains('?') { '&' } else { '?' };
    format!("{}{separator}{options}", scene.url)
}

#[sqlx::test(migrations = false)]
async fn an_address_that_leads_nowhere_is_found(pool: PgPool) {
    let mut scene = synced(pool).await;
    let right = scene.url.clone();
    scene.set("DATABASE_URL", "postgres://u@127.0.0.1:1/nowhere");
    assert_found(&scene, "database.connection", "failed", &["cannot be reached", "check DATABASE_URL"]).await;
    scene.unset("DATABASE_URL");
    assert_found(&scene, "database.connection", "failed", &["DATABASE_URL is not set", "export"]).await;
    scene.set("DATABASE_URL", &right);
    assert_found(&scene, "database.connection", "ok", &["connected to database"]).await;
    assert_found(&scene, "database.version", "ok", &["PostgreSQL"]).await;
    assert_found(&scene, "database.tls", "ok", &["does not leave"]).await;
    assert_found(&scene, "database.primary", "ok", &[]).await;
    assert_found(&scene, "database.pooler", "ok", &["3 transactions"]).await;
}

#[sqlx::test(migrations = false)]
async fn a_schema_of_another_version_is_found(pool: PgPool) {
    let scene = synced(pool).await;
    assert_each_appears_and_ends(
        &scene,
        &[
            (
                "database.schema",
                "insert into elven_sync._migrations (version, description, installed_on, success, checksum, execution_time)
                 values (9999, 'later', now(), true, '', 0)",
                "failed",
                &["newer version", "upgrade elven-sync"],
                "delete from elven_sync._migrations where version = 9999",
            ),
            (
                "database.schema",
                "alter schema elven_sync rename to elsewhere",
                "failed",
                &["do not exist", "elven-sync migrate"],
                "alter schema elsewhere rename to elven_sync",
            ),
        ],
    )
    .await;
    scene.sql("alter schema elven_sync rename to elsewhere").await;
    assert_found(&scene, "entities.registered", "skipped", &["needs database.schema"]).await;
    assert_found(&scene, "database.privileges", "skipped", &["needs database.schema"]).await;
}

/// The statements of the hint are enough.
#[sqlx::test(migrations = false)]
async fn missing_privileges_are_the_grants_to_execute(pool: PgPool) {
    let mut scene = synced(pool).await;
    let role = scene
        .text("select 'elven_sync_checked_' || oid from pg_database where datname = current_database()")
        .await;
    execute(&scene, format!("create role {role} login")).await;
    let owner = scene.url.clone();
    let restricted = url_as(&scene, &format!("options=-c%20role%3D{role}"));
    scene.set("DATABASE_URL", &restricted);
    for id in ["database.privileges", "ledger.privileges"] {
        let (status, message, hint) = super::found(&scene, id).await;
        assert_eq!(status, "failed", "{id}: {message}");
        assert!(hint.contains("grant usage on schema"), "{hint}");
        let grants = hint.strip_prefix("as the owner: ").unwrap().to_owned();
        execute(&scene, grants).await;
        assert_found(&scene, id, "ok", &[&role]).await;
    }
    execute(&scene, format!("revoke delete on elven_sync.account_map from {role}")).await;
    let words = [format!("grant delete on elven_sync.account_map to {role};")];
    assert_found(&scene, "database.privileges", "failed", &[&words[0]]).await;
    // A role that may run and not administer, as docs/ledgers.md has it, lacks nothing.
    execute(&scene, format!("revoke insert, update on elven_sync.entities from {role}")).await;
    // With the grants, a run works.
    execute(&scene, format!("grant delete on elven_sync.account_map to {role}")).await;
    scene.sql("update ledger.balance_snapshots set balance = 7").await;
    assert_eq!(scene.run().await.counters.rows_uploaded, 3);
    scene.set("DATABASE_URL", &owner);
    assert_found(&scene, "database.privileges", "ok", &["superuser"]).await;
    execute(&scene, format!("drop owned by {role}; drop role {role}")).await;
}

#[sqlx::test(migrations = false)]
async fn too_few_connections_are_found(pool: PgPool) {
    let mut scene = synced(pool).await;
    assert_found(&scene, "database.connections", "ok", &["a run opens at most 14"]).await;
    let database = scene.text("select current_database()::text").await;
    execute(&scene, format!("alter database \"{database}\" connection limit 12")).await;
    assert_found(&scene, "database.connections", "warning", &["of 12 connections", "a run opens up to 14"])
        .await;
    execute(&scene, format!("alter database \"{database}\" connection limit -1")).await;
    scene.set("ELVEN_SYNC_SYNC__ENTITIES_AT_ONCE", "1");
    assert_found(&scene, "database.connections", "ok", &["at most 5"]).await;
}

/// Sessions in another database of the server are the sign of a second installation.
#[sqlx::test(migrations = false)]
async fn another_installation_on_the_server_is_found(pool: PgPool) {
    let server = crate::cluster::Cluster::new(&pool).await;
    let scene = TestEnv::at(&server.url("ledger")).await;
    assert_found(&scene, "database.installations", "ok", &["no session of another installation"]).await;
    execute(&scene, "create database other".to_owned()).await;
    execute(&scene, "create role tenant superuser login".to_owned()).await;
    let (ours, theirs) = (server.url("other"), server.url("other").replace("postgres@", "tenant@"));
    let mut session = PgConnection::connect(&ours).await.unwrap();
    session.execute("set application_name = 'elven-sync/0.1.1 serve'").await.unwrap();
    let words = ["database other (role postgres, elven-sync/0.1.1 serve)", "compare its entities and keys"];
    assert_found(&scene, "database.installations", "warning", &words).await;
    session.close().await.unwrap();
    for (url, name, status, words) in [
        (&ours, "elven-sync/0.1.1 run 42", "warning", "whether it feeds the same entities cannot be seen"),
        (&ours, "elven-sync", "warning", "compare its entities and keys"),
        (&theirs, "elven-sync/0.1.1 run 42", "ok", "under other roles: database other (role tenant"),
        // What only looks feeds nothing.
        (&ours, "elven-sync/0.1.1 check 0a1b2c3d", "ok", "no session of another installation"),
        (&ours, "elven-sync-report", "ok", "no session of another installation"),
    ] {
        let mut session = PgConnection::connect(url).await.unwrap();
        session
            .execute(sqlx::raw_sql(AssertSqlSafe(format!("set application_name = '{name}'"))))
            .await
            .unwrap();
        assert_found(&scene, "database.installations", status, &[words]).await;
        session.close().await.unwrap();
        let left = "select count(*)::text from pg_stat_activity where datname = 'other'";
        crate::support::eventually("the session ends", async || scene.text(left).await == "0").await;
    }
    assert_found(&scene, "database.installations", "ok", &[]).await;
}

/// A server whose configuration is read-only, and a standby of another cluster or of none.
#[sqlx::test(migrations = false)]
async fn servers_of_the_wrong_kind_are_found(pool: PgPool) {
    let primary = crate::cluster::Cluster::new(&pool).await;
    let standby = primary.standby().await;
    let mut scene = TestEnv::at(&primary.url("ledger")).await;
    standby.caught_up_with(&primary).await;
    assert_found(&scene, "database.primary", "ok", &["is a primary"]).await;
    assert_found(&scene, "database.standby", "skipped", &["from the primary"]).await;
    scene.set("ELVEN_SYNC_LEDGER_URL", &standby.url("ledger"));
    assert_found(&scene, "database.standby", "ok", &["a standby of the primary"]).await;
    standby.pause_replay().await;
    let words = ["the replay of the standby is paused", "pg_wal_replay_resume()"];
    assert_found(&scene, "database.standby", "warning", &words).await;
    standby.resume_replay().await;
    assert_found(&scene, "database.standby", "ok", &["has replayed everything"]).await;
    scene.set("ELVEN_SYNC_LEDGER_URL", &primary.url("ledger"));
    assert_found(&scene, "database.standby", "warning", &["leads to the primary itself"]).await;
    let elsewhere = pool.connect_options().to_url_lossy().to_string();
    scene.set("ELVEN_SYNC_LEDGER_URL", &elsewhere);
    assert_found(&scene, "database.standby", "failed", &["another PostgreSQL cluster"]).await;
    scene.set("ELVEN_SYNC_LEDGER_URL", &standby.url("ledger"));
    standby.stop_receiving().await;
    scene.sql("create table ledger.later ()").await;
    let words = ["behind and not connected to the primary", "pg_stat_wal_receiver"];
    assert_found(&scene, "database.standby", "warning", &words).await;
    scene.set("ELVEN_SYNC_LEDGER_URL", "postgres://u@127.0.0.1:1/d");
    assert_found(&scene, "database.standby", "failed", &["cannot be reached", "unset it"]).await;
    scene.unset("ELVEN_SYNC_LEDGER_URL");
    scene.set("DATABASE_URL", &standby.url("ledger"));
    assert_found(&scene, "database.primary", "failed", &["leads to a standby"]).await;
    scene.set("DATABASE_URL", &primary.url("ledger"));
    for (value, status) in [("on", "failed"), ("off", "ok")] {
        execute(&scene, format!("alter system set default_transaction_read_only = {value}")).await;
        scene.sql("select pg_reload_conf()").await;
        let applied = format!("select (current_setting('default_transaction_read_only') = '{value}')::text");
        crate::support::eventually("the setting is applied", async || {
            let mut session = PgConnection::connect(&scene.url).await.unwrap();
            let row = session.fetch_one(sqlx::raw_sql(AssertSqlSafe(applied.clone()))).await.unwrap();
            sqlx::Row::get::<String, _>(&row, 0) == "true"
        })
        .await;
        assert_found(&scene, "database.primary", status, &[]).await;
        if value == "on" {
            // Or the next statement would be refused.
            scene.pool.close().await;
            let off = url_as(&scene, "options=-c%20default_transaction_read_only%3Doff");
            scene.pool = PgPool::connect(&off).await.unwrap();
        }
    }
}
