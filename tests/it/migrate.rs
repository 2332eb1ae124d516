//! `migrate` in databases as they are set up in practice: few rights, publications, tables in use.

use elven_sync::sandbox::Options;
use sqlx::{AssertSqlSafe, Connection, PgConnection, PgPool};

use crate::support::{TestEnv, output_of};

/// An environment in which nothing was migrated, with a role that may not create schemas.
async fn bare(pool: PgPool) -> (TestEnv, String) {
    let mut scene = TestEnv::connect_like(pool, Options::default()).await;
    let role = scene.text("select 'migrates_' || left(md5(current_database()), 16)").await;
    sql(&scene, &format!("create role {role} login")).await;
    let url = scene.url.replacen("postgres@", &format!("{role}@"), 1);
    assert!(url.contains(&role), "the test server is used as postgres");
    scene.set("DATABASE_URL", &url);
    (scene, role)
}

async fn sql(scene: &TestEnv, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&scene.pool).await.unwrap();
}

#[sqlx::test(migrations = false)]
async fn owner_of_the_schemas_migrates_without_the_right_to_create_schemas(pool: PgPool) {
    let (scene, role) = bare(pool).await;
    let said = output_of(&scene, 1, &["migrate"]).await;
    assert!(said.contains("create schema elven_sync authorization"), "{said}");
    // A schema of another role, in which this role may create tables.
    sql(&scene, &format!("create schema elven_sync; grant usage, create on schema elven_sync to {role}"))
        .await;
    let said = output_of(&scene, 1, &["migrate"]).await;
    assert!(
        said.contains("must be owner of schema") && said.contains("as the owner of the schema"),
        "{said}"
    );
    assert!(!said.contains("at line"), "{said}");
    sql(&scene, &format!("drop schema elven_sync; create schema elven_sync authorization {role}")).await;
    output_of(&scene, 0, &["migrate"]).await;
    let said = output_of(&scene, 1, &["migrate", "--with-ledger"]).await;
    assert!(said.contains("create schema ledger authorization"), "{said}");
    sql(&scene, &format!("create schema ledger authorization {role}")).await;
    output_of(&scene, 0, &["migrate", "--with-ledger"]).await;
    // As an upgrade of a version without the last migration of each.
    sql(&scene, "delete from elven_sync._migrations where version = 14; delete from elven_sync._ledger_migrations where version = 2").await;
    output_of(&scene, 0, &["migrate", "--with-ledger"]).await;
    assert_eq!(scene.text("select count(*)::text from elven_sync._ledger_migrations").await, "2");
    output_of(&scene, 0, &["entity", "add", "acme", "--timezone", "UTC"]).await;
    output_of(&scene, 0, &["run"]).await;
    sql(&scene, &format!("drop owned by {role} cascade; drop role {role}")).await;
}

#[sqlx::test(migrations = false)]
async fn tables_that_a_publication_would_carry_are_created_only_with_yes(pool: PgPool) {
    let scene = TestEnv::connect_like(pool, Options::default()).await;
    scene.sql("create publication \"every thing\" for all tables").await;
    let said = output_of(&scene, 1, &["migrate", "--with-ledger"]).await;
    assert!(
        said.contains("would break: publication `every thing`") && said.contains("migrate --yes"),
        "{said}"
    );
    assert_eq!(scene.text("select to_regnamespace('elven_sync')::text").await, "NULL");
    output_of(&scene, 0, &["migrate", "--with-ledger", "--yes"]).await;
    // There is nothing to create.
    output_of(&scene, 0, &["migrate", "--with-ledger"]).await;
    scene
        .sql("drop publication \"every thing\"; delete from elven_sync._migrations where version = 14")
        .await;
    if scene.text("select (current_setting('server_version_num')::int >= 150000)::text").await == "true" {
        scene.sql("create publication part for tables in schema elven_sync").await;
        let said = output_of(&scene, 1, &["migrate"]).await;
        assert!(said.contains("publication `part`"), "{said}");
    }
    output_of(&scene, 0, &["migrate", "--yes"]).await;
}

#[sqlx::test(migrations = false)]
async fn migration_gives_up_a_locked_table_and_names_who_locks_it(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    scene.sql("delete from elven_sync._migrations where version = 14").await;
    let mut holder = PgConnection::connect(&scene.url).await.unwrap();
    let lock =
        "set application_name = 'nightly report'; begin; lock table elven_sync.sync_state in exclusive mode";
    sqlx::raw_sql(lock).execute(&mut holder).await.unwrap();
    let said = output_of(&scene, 1, &["migrate", "--lock-timeout", "100ms"]).await;
    assert!(said.contains("nightly report") && said.contains("(sync_state)"), "{said}");
    assert!(said.contains("could not be locked within 100ms") && said.contains("--lock-timeout"), "{said}");
    assert_eq!(scene.text("select count(*)::text from elven_sync._migrations where version = 14").await, "0");
    sqlx::raw_sql("rollback").execute(&mut holder).await.unwrap();
    output_of(&scene, 0, &["migrate"]).await;
}
