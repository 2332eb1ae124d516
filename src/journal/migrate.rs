//! Migrations of the schema, and the check of its version.

use std::time::Duration;

use sqlx::error::DatabaseError;
use sqlx::migrate::{MigrateError, Migrator};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, SqlSafeStr};

use super::JournalError;
use crate::database::Database;

/// An arbitrary number. It is the same in every version of elven-sync, so that two migrations wait for each other.
const LOCK_ID: i64 = 0x656c_7665_6e5f_7379;

/// The longest wait for a lock on a table, when nothing else is asked for.
const LOCK_TIMEOUT: Duration = Duration::from_secs(2);

/// The default ledger's first statement. PostgreSQL refuses it to a role that may not create schemas, even where the
/// schema exists.
const CREATE_LEDGER: &str = "create schema if not exists ledger;";

/// A set of migrations that is applied as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The sync tables.
    Sync,
    /// The default ledger table.
    Ledger,
}

impl Part {
    /// Returns the schema of the tables.
    pub fn schema(self) -> &'static str {
        match self {
            Part::Sync => "elven_sync",
            Part::Ledger => "ledger",
        }
    }

    /// Returns the quoted name of the table of the applied migrations.
    fn table(self) -> &'static str {
        match self {
            Part::Sync => "elven_sync._migrations",
            Part::Ledger => "elven_sync._ledger_migrations",
        }
    }

    fn migrations(self) -> Migrator {
        let mut migrator = match self {
            Part::Sync => sqlx::migrate!("migrations/sync"),
            Part::Ledger => sqlx::migrate!("migrations/ledger"),
        };
        migrator.dangerous_set_table_name(self.table());
        // The lock belongs to the transaction, see `apply`.
        migrator.set_locking(false);
        migrator
    }
}

/// Creates or upgrades the sync schema.
pub async fn migrate(database: &Database) -> Result<(), JournalError> {
    apply(database, Part::Sync, LOCK_TIMEOUT).await
}

/// Creates or upgrades the default ledger.
pub async fn migrate_ledger(database: &Database) -> Result<(), JournalError> {
    apply(database, Part::Ledger, LOCK_TIMEOUT).await
}

/// Applies all missing migrations in one transaction: an upgrade that fails leaves the schema as it was. The lock
/// belongs to the transaction, because a lock of the session is not safe behind a transaction-pooling proxy. For the
/// same reason the named statements of an earlier migration are deallocated first, and its own at the end.
///
/// `lock_timeout`: the longest wait for a lock on a table, because all later statements on it queue behind this wait.
pub async fn apply(database: &Database, part: Part, lock_timeout: Duration) -> Result<(), JournalError> {
    let mut connection = database.session().await?;
    let done = apply_in(&mut connection, database, part, lock_timeout).await;
    // The connection still caches the deallocated statements.
    connection.close().await?;
    let Err(problem) = done else { return Ok(()) };
    let Some(refused) = refusal(&problem) else { return Err(problem) };
    match refused.code().as_deref() {
        // lock_not_available
        Some("55P03") => Err(locked(database, part, lock_timeout).await),
        // insufficient_privilege
        Some("42501") => Err(not_allowed(part, refused.message())),
        _ => Err(problem),
    }
}

/// Returns the error for a role that may not change the schema.
fn not_allowed(part: Part, problem: &str) -> JournalError {
    let schema = part.schema();
    JournalError::Schema(format!(
        "this role may not create or upgrade the tables of the schema {schema}: {problem}; hint: run `elven-sync \
         migrate` as the owner of the schema and its tables (`\\dn+ {schema}` in psql names the owner)"
    ))
}

async fn apply_in(
    connection: &mut PgConnection,
    database: &Database,
    part: Part,
    lock_timeout: Duration,
) -> Result<(), JournalError> {
    let begin = format!(
        "{}; deallocate all; set local client_min_messages = warning; set local search_path = pg_catalog, pg_temp",
        database.writing()
    );
    let mut transaction = connection.begin_with(AssertSqlSafe(begin)).await?;
    sqlx::query("select pg_advisory_xact_lock($1)").bind(LOCK_ID).execute(&mut *transaction).await?;
    let limited = format!("set local lock_timeout = '{}ms'", lock_timeout.as_millis());
    transaction.execute(AssertSqlSafe(limited)).await?;
    create_schema(&mut transaction, Part::Sync.schema()).await?;
    let mut migrator = part.migrations();
    if part == Part::Ledger {
        create_schema(&mut transaction, part.schema()).await?;
        for migration in migrator.migrations.to_mut() {
            // Its checksum stays that of the released file.
            let sql = migration.sql.as_str().replacen(CREATE_LEDGER, "", 1);
            migration.sql = AssertSqlSafe(sql).into_sql_str();
        }
    }
    migrator.run_direct(None, &mut *transaction, false).await?;
    transaction.execute("deallocate all").await?;
    transaction.commit().await?;
    Ok(())
}

/// Creates a schema that does not exist. `create schema if not exists` needs the privilege in any case.
async fn create_schema(transaction: &mut PgConnection, name: &'static str) -> Result<(), JournalError> {
    let exists = "select exists (select from pg_catalog.pg_namespace where nspname = $1)";
    if sqlx::query_scalar(exists).bind(name).fetch_one(&mut *transaction).await? {
        return Ok(());
    }
    let created = transaction.execute(AssertSqlSafe(format!("create schema {name}"))).await;
    match created {
        // insufficient_privilege
        Err(sqlx::Error::Database(refused)) if refused.code().as_deref() == Some("42501") => {
            Err(JournalError::Schema(format!(
                "schema {name} does not exist, and this role may not create it: {}; hint: a role that may runs \
                 `create schema {name} authorization ROLE`, with the role of DATABASE_URL as ROLE",
                refused.message()
            )))
        }
        created => Ok(created.map(drop)?),
    }
}

/// Returns the error of PostgreSQL, if it is one.
fn refusal(problem: &JournalError) -> Option<&dyn DatabaseError> {
    let (JournalError::Database(problem)
    | JournalError::Migrate(MigrateError::Execute(problem) | MigrateError::ExecuteMigration(problem, _))) =
        problem
    else {
        return None;
    };
    problem.as_database_error()
}

/// Returns the error for a table that could not be locked, with the sessions that hold locks in its schema.
async fn locked(database: &Database, part: Part, lock_timeout: Duration) -> JournalError {
    let holders = "
        select coalesce('pid ' || l.pid, 'a prepared transaction')
               || coalesce(', user ' || a.usename, '') || coalesce(', ' || nullif(a.application_name, ''), '')
               || coalesce(', ' || a.state, '')
               || coalesce(', since ' || date_trunc('second', a.xact_start), '')
               || ' (' || string_agg(distinct c.relname, ', ' order by c.relname) || ')'
          from pg_catalog.pg_locks l join pg_catalog.pg_class c on c.oid = l.relation and c.relkind in ('r', 'p', 'v')
          join pg_catalog.pg_namespace n on n.oid = c.relnamespace and n.nspname = $1
          left join pg_catalog.pg_stat_activity a on a.pid = l.pid
         where l.granted and l.pid is distinct from pg_backend_pid()
           and l.database = (select oid from pg_catalog.pg_database where datname = current_database())
         group by l.pid, a.usename, a.application_name, a.state, a.xact_start order by a.xact_start limit 5";
    let holders: Vec<String> =
        sqlx::query_scalar(holders).bind(part.schema()).fetch_all(database).await.unwrap_or_default();
    let who = if holders.is_empty() {
        "no session holds a lock on them any more".to_owned()
    } else {
        format!("locks are held by {}", holders.join("; "))
    };
    JournalError::Schema(format!(
        "the tables of schema {} could not be locked within {lock_timeout:?}, and nothing was changed; {who}; hint: \
         run the same command again at a quieter time, or with a longer --lock-timeout",
        part.schema()
    ))
}

/// Returns the publications that carry changes of all tables, or of all tables of the schema, when there is a migration
/// to apply. Their subscribers stop at the first change of a table that they do not have.
pub async fn publications(database: &Database, part: Part) -> Result<Vec<String>, JournalError> {
    let known: Vec<i64> = part.migrations().iter().map(|migration| migration.version).collect();
    let exists = "select to_regclass($1) is not null";
    if sqlx::query_scalar(exists).bind(part.table()).fetch_one(database).await? {
        let applied = format!("select version from {}", part.table());
        let applied: Vec<i64> = sqlx::query_scalar(AssertSqlSafe(applied)).fetch_all(database).await?;
        if known.iter().all(|version| applied.contains(version)) {
            return Ok(Vec::new());
        }
    }
    let all = "select pubname::text from pg_catalog.pg_publication where puballtables order by 1";
    let mut found: Vec<String> = sqlx::query_scalar(all).fetch_all(database).await?;
    // Since PostgreSQL 15.
    let by_schema = "select to_regclass('pg_catalog.pg_publication_namespace') is not null";
    if sqlx::query_scalar(by_schema).fetch_one(database).await? {
        let of_schema = "
            select p.pubname::text from pg_catalog.pg_publication p
              join pg_catalog.pg_publication_namespace s on s.pnpubid = p.oid
              join pg_catalog.pg_namespace n on n.oid = s.pnnspid where n.nspname = $1 order by 1";
        let of_schema = sqlx::query_scalar(of_schema).bind(part.schema()).fetch_all(database).await?;
        found.extend::<Vec<String>>(of_schema);
    }
    Ok(found)
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
    let known: Vec<i64> = Part::Sync.migrations().iter().map(|migration| migration.version).collect();
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
