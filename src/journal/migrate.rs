//! The schema and its version.

use sqlx::migrate::Migrator;
use sqlx::{Connection, Executor};

use super::JournalError;
use crate::database::Database;

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
pub async fn migrate(database: &Database) -> Result<(), JournalError> {
    apply(database, sync_migrations()).await
}

/// Creates or upgrades the default ledger.
pub async fn migrate_ledger(database: &Database) -> Result<(), JournalError> {
    apply(database, ledger_migrations()).await
}

/// One transaction for all: an upgrade that fails leaves the schema as it was. The lock belongs to the
/// transaction, since a lock of the session does not survive a transaction-pooling proxy. For the same reason the
/// migrator finds no named statement of an earlier one, and leaves none behind.
async fn apply(database: &Database, mut migrator: Migrator) -> Result<(), JournalError> {
    migrator.set_locking(false);
    let mut connection = database.session().await?;
    let mut transaction = connection.begin().await?;
    transaction.execute("deallocate all; set local client_min_messages = warning").await?;
    sqlx::query("select pg_advisory_xact_lock($1)").bind(LOCK_ID).execute(&mut *transaction).await?;
    migrator.run_direct(None, &mut *transaction, false).await?;
    transaction.execute("deallocate all").await?;
    transaction.commit().await?;
    // It still believes in its statements.
    connection.close().await?;
    Ok(())
}

/// Makes sure that the sync schema is there, in the version that this program was built with.
pub async fn check(database: &Database) -> Result<(), JournalError> {
    let schema = |message: &str| JournalError::Schema(message.to_owned());
    let applied = || {
        sqlx::query_scalar("select version from elven_sync._migrations")
            .fetch_all(database.single_round_trip())
    };
    let done: Vec<i64> = match database.retry(applied).await {
        // No such table, or no such schema.
        Err(sqlx::Error::Database(refused))
            if matches!(refused.code().as_deref(), Some("42P01" | "3F000")) =>
        {
            return Err(schema(
                "the sync tables do not exist in this database yet; hint: run `elven-sync migrate`",
            ));
        }
        applied => applied?,
    };
    let known: Vec<i64> = sync_migrations().iter().map(|migration| migration.version).collect();
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
