//! The schema and its version.

use sqlx::migrate::{Migrate, Migrator};
use sqlx::{Connection, PgPool};

use super::JournalError;

/// Any number; every elven-sync uses the same, so that two migrations wait for each other.
const LOCK_ID: i64 = 0x656c_7665_6e5f_7379;

fn sync_migrations() -> Migrator {
    let mut migrator = sqlx::migrate!("migrations/sync");
    migrator.dangerous_set_table_name("elven_sync._migrations");
    migrator.create_schema("elven_sync");
    migrator
}

fn ledger_migrations() -> Migrator {
    let mut migrator = sqlx::migrate!("migrations/ledger");
    migrator.dangerous_set_table_name("elven_sync._ledger_migrations");
    migrator.create_schema("elven_sync");
    migrator
}

/// Creates or upgrades the sync schema.
pub async fn migrate(pool: &PgPool) -> Result<(), JournalError> {
    apply(pool, sync_migrations()).await
}

/// Creates or upgrades the default ledger.
pub async fn migrate_ledger(pool: &PgPool) -> Result<(), JournalError> {
    apply(pool, ledger_migrations()).await
}

/// One transaction for all: an upgrade that fails leaves the schema as it was. The lock belongs to the
/// transaction, since a lock of the session does not survive a transaction-pooling proxy.
async fn apply(pool: &PgPool, mut migrator: Migrator) -> Result<(), JournalError> {
    migrator.set_locking(false);
    let mut connection = pool.acquire().await?;
    let mut transaction = connection.begin().await?;
    sqlx::query("select pg_advisory_xact_lock($1)").bind(LOCK_ID).execute(&mut *transaction).await?;
    sqlx::query("set local client_min_messages = warning").execute(&mut *transaction).await?;
    migrator.run_direct(None, &mut *transaction, false).await?;
    transaction.commit().await?;
    Ok(())
}

/// Makes sure that the sync schema is there, in the version that this program was built with.
pub async fn check(pool: &PgPool) -> Result<(), JournalError> {
    let schema = |message: &str| JournalError::Schema(message.to_owned());
    let exists: bool = sqlx::query_scalar("select to_regclass('elven_sync._migrations') is not null")
        .fetch_one(pool)
        .await?;
    if !exists {
        return Err(schema(
            "the sync tables do not exist in this database yet; hint: run `elven-sync migrate`",
        ));
    }
    let migrator = sync_migrations();
    let mut connection = pool.acquire().await?;
    let applied = connection.list_applied_migrations(&migrator.table_name).await?;
    let known: Vec<i64> = migrator.iter().map(|migration| migration.version).collect();
    let done: Vec<i64> = applied.iter().map(|migration| migration.version).collect();
    if known.iter().any(|version| !done.contains(version)) {
        return Err(schema("the sync tables are of an older version; hint: run `elven-sync migrate`"));
    }
    if done.iter().any(|version| !known.contains(version)) {
        return Err(schema(
            "the sync tables are of a newer version than this program; hint: upgrade elven-sync",
        ));
    }
    Ok(())
}
