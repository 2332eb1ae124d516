//! Migrations of the schema, and the check of its version.

use sqlx::migrate::Migrator;
use sqlx::{Connection, Executor};

use super::JournalError;
use crate::database::Database;

/// An arbitrary number. It is the same in every version of elven-sync, so that two migrations wait for each other.
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
pub async fn migrate(database: &Database) -> Result<(), JournalError> {
    apply(database, sync_migrations()).await
}

/// Creates or upgrades the default ledger.
pub async fn migrate_ledger(database: &Database) -> Result<(), JournalError> {
    apply(database, ledger_migrations()).await
}

/// Applies all missing migrations in one transaction: an upgrade that fails leaves the schema as it was. The lock
/// belongs to the transaction, because a lock of the session is not safe behind a transaction-pooling proxy. For the
/// same reason the named statements of an earlier migration are deallocated first, and its own at the end.
async fn apply(database: &Database, mut migrator: Migrator) -> Result<(), JournalError> {
    migrator.set_locking(false);
    let mut connection = database.session().await?;
    let mut transaction = connection.begin().await?;
    transaction.execute("deallocate all; set local client_min_messages = warning").await?;
    sqlx::query("select pg_advisory_xact_lock($1)").bind(LOCK_ID).execute(&mut *transaction).await?;
    migrator.run_direct(None, &mut *transaction, false).await?;
    transaction.execute("deallocate all").await?;
    transaction.commit().await?;
    // The connection still caches the deallocated statements.
    connection.close().await?;
    Ok(())
}

/// Checks that the sync schema exists and has the version of this program.
pub async fn check(database: &Database) -> Result<(), JournalError> {
    let schema = |message: &str| JournalError::Schema(message.to_owned());
    let applied = || {
        sqlx::query_scalar("select version from elven_sync._migrations")
            .fetch_all(database.single_round_trip())
    };
    let done: Vec<i64> = match database.retry(applied).await {
        // undefined_table, invalid_schema_name
        Err(sqlx::Error::Database(refused))
            if matches!(refused.code().as_deref(), Some("42P01" | "3F000")) =>
        {
            return Err(schema(
                "the sync tables do not exist in this database; hint: run `elven-sync migrate`",
            ));
        }
        applied => applied?,
    };
    let known: Vec<i64> = sync_migrations().iter().map(|migration| migration.version).collect();
    if known.iter().any(|version| !done.contains(version)) {
        return Err(schema(
            "the sync tables have an older version than this program; hint: run `elven-sync migrate`",
        ));
    }
    if done.iter().any(|version| !known.contains(version)) {
        return Err(schema(
            "the sync tables have a newer version than this program; hint: upgrade elven-sync",
        ));
    }
    Ok(())
}
