//! Settings that a role or a database has for its sessions do not matter: not for what is read, sent or recorded.

use elven_sync::sandbox::Options;
use sqlx::{AssertSqlSafe, PgConnection, PgPool};

use crate::cluster::Cluster;
use crate::support::{TestEnv, output_of, scene_with_three_batches, stderr, variable};

/// How many draws are tried, without `ELVEN_SEEDS`.
const SEEDS: u64 = 3;

/// Settings that are not drawn, each with the reason.
const EXCEPTIONS: [(&str, &str); 9] = [
    ("lock_timeout", "a limit of the role is kept, so that an administrator can bound each wait"),
    (
        "statement_timeout",
        "a shorter limit of the role is kept, so that an administrator can bound each statement",
    ),
    ("local_preload_libraries", "it names files of the server; a wrong one prevents any connection"),
    ("default_tablespace", "it says where the administrator wants new tables"),
    ("temp_tablespaces", "it says where the administrator wants temporary files"),
    ("default_table_access_method", "it says how the administrator wants new tables to be stored"),
    ("transaction_read_only", "it belongs to a transaction; default_transaction_read_only is drawn"),
    ("transaction_isolation", "it belongs to a transaction; default_transaction_isolation is drawn"),
    ("transaction_deferrable", "it belongs to a transaction; default_transaction_deferrable is drawn"),
];

/// A setting as `pg_settings` describes it.
#[derive(Debug, sqlx::FromRow)]
struct Setting {
    name: String,
    kind: String,
    min: Option<String>,
    max: Option<String>,
    values: Option<Vec<String>>,
    boot: Option<String>,
    unit: Option<String>,
}

impl Setting {
    /// Draws a value, often one that few would set.
    fn draw(&self, random: &mut fastrand::Rng) -> Option<String> {
        let of = |values: &[&str], random: &mut fastrand::Rng| {
            random.choice(values).map(|value| (*value).to_owned())
        };
        match (self.kind.as_str(), self.unit.as_deref()) {
            ("bool", _) => of(&["on", "off"], random),
            ("enum", _) => random.choice(self.values.as_ref()?).cloned(),
            // Limits in time: short, and still longer than a round trip.
            (_, Some("ms")) => of(&["700", "0"], random),
            (_, Some("s" | "min")) => of(&["1", "0"], random),
            ("integer" | "real", unit) => {
                let large = if unit.is_some_and(|unit| unit.ends_with('B')) { &self.boot } else { &self.max };
                [&self.min, large, &self.boot][random.usize(..3)].clone()
            }
            _ => {
                let values: &[&str] = match self.name.as_str() {
                    "DateStyle" => &["German", "SQL, DMY", "Postgres, YMD"],
                    "TimeZone" => &["Asia/Kathmandu", "America/St_Johns"],
                    "client_encoding" => &["LATIN1", "SQL_ASCII"],
                    "search_path" => &["nowhere", "decoy", "decoy, pg_catalog", "\"$user\""],
                    "default_text_search_config" => &["pg_catalog.german"],
                    "application_name" => &["somebody else"],
                    "timezone_abbreviations" => &["India", "Australia"],
                    "restrict_nonsystem_relation_kind" => &["view", "view, foreign-table"],
                    _ => return None,
                };
                of(values, random)
            }
        }
    }
}

/// Gives the database, or a role in it, drawn values for about half of all settings. Returns what was set.
pub async fn scatter(session: &mut PgConnection, role: Option<&str>, seed: u64) -> Vec<String> {
    let settings: Vec<Setting> = sqlx::query_as(
        "select name, vartype as kind, min_val as min, max_val as max, enumvals as values, boot_val as boot, unit
           from pg_settings where context = 'user' order by name",
    )
    .fetch_all(&mut *session)
    .await
    .unwrap();
    let mut random = fastrand::Rng::with_seed(seed);
    let mut set = Vec::new();
    for setting in settings.iter().filter(|s| EXCEPTIONS.iter().all(|(name, _)| *name != s.name)) {
        if random.bool() {
            continue;
        }
        let Some(value) = setting.draw(&mut random) else { continue };
        let list =
            ["DateStyle", "search_path", "restrict_nonsystem_relation_kind"].contains(&setting.name.as_str());
        let value = if list { value } else { format!("'{value}'") };
        let of_role = role.filter(|_| random.bool()).map(|role| format!("role {role}"));
        let target = of_role.unwrap_or_else(|| "database %I".to_owned());
        let sql = format!("alter {target} set {} = {value}", setting.name);
        // A value that this server does not accept was not set.
        let run = format!("do $$ begin execute format($f${sql}$f$, current_database()); end $$");
        let run = run.replace("database %I", "database %1$I");
        if sqlx::raw_sql(AssertSqlSafe(run)).execute(&mut *session).await.is_ok() {
            set.push(sql);
        }
    }
    assert!(set.len() > 20, "{set:?}");
    set
}

/// Everything that an operator does, from the first migration on. Returns what Elven has.
pub async fn everything(scene: &TestEnv) -> Vec<String> {
    for arguments in [
        &["migrate", "--with-ledger", "--yes"][..],
        &["entity", "add", "acme", "--timezone", "Europe/Zurich"],
    ] {
        output_of(scene, 0, arguments).await;
    }
    let rows = "
        insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
        select 'acme', 'Zürich-' || n, 'BTC', timestamptz '2024-03-31 00:30:00.25Z' + n * interval '7 hours', n * 1.000000001
          from generate_series(1, 50) n;
        insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
        values ('acme', 'nan', 'BTC', '2024-01-01Z', 'NaN')";
    insert(scene, rows).await;
    output_of(scene, 3, &["run"]).await;
    insert(scene, "update ledger.balance_snapshots set balance = 7 where entity_account_id = 'nan'").await;
    output_of(scene, 0, &["run"]).await;
    output_of(scene, 0, &["backfill", "--from", "2024-04-01", "--to", "2024-04-03"]).await;
    for arguments in [
        &["verify", "--deep"][..],
        &["status", "--json"],
        &["errors", "list"],
        &["status", "--row", "1"],
        &["run", "--dry-run"],
    ] {
        output_of(scene, 0, arguments).await;
    }
    output_of(scene, 0, &["entity", "rewind", "acme", "--yes"]).await;
    output_of(scene, 0, &["run"]).await;
    output_of(scene, 0, &["prune", "--older-than", "1h"]).await;
    scene.received()
}

/// Executes statements as the owner of the rows, in a session with the settings of PostgreSQL.
async fn insert(scene: &TestEnv, sql: &'static str) {
    let mut connection = scene.pool.acquire().await.unwrap();
    sqlx::raw_sql("set default_transaction_read_only = off").execute(&mut *connection).await.unwrap();
    let original = "select set_config(name, boot_val, false) from pg_catalog.pg_settings
                     where context = 'user' and source in ('database', 'user') and name <> 'client_encoding'
                       and name not like 'transaction\\_%'";
    sqlx::raw_sql(original).fetch_all(&mut *connection).await.unwrap();
    sqlx::raw_sql(sql).execute(&mut *connection).await.unwrap();
}

/// A role that owns the database and is no superuser.
async fn owner(scene: &mut TestEnv) -> String {
    let role = scene.text("select 'owner_' || left(md5(current_database()), 16)").await;
    let create = format!(
        "create role {role} login; do $$ begin
             execute format('alter database %I owner to {role}', current_database()); end $$;
         create schema decoy;
         create table decoy.sync_state (entity_id int); create table decoy.pg_settings (name text);
         create function decoy.pg_current_snapshot() returns int language sql as 'select 1';
         create function decoy.now() returns int language sql as 'select 1';
         grant usage on schema decoy to {role}"
    );
    sqlx::raw_sql(AssertSqlSafe(create)).execute(&scene.pool).await.unwrap();
    let url = scene.url.replacen("postgres@", &format!("{role}@"), 1);
    assert!(url.contains(&role), "the test server is used as postgres");
    scene.set("DATABASE_URL", &url);
    role
}

#[sqlx::test(migrations = false)]
async fn drawn_settings_of_role_and_database_do_not_matter(pool: PgPool) {
    let mut scene = TestEnv::connect_like(pool.clone(), Options::default()).await;
    let role = owner(&mut scene).await;
    // Begun before any setting was drawn.
    let mut session = pool.acquire().await.unwrap();
    let expected = everything(&scene).await;
    assert_eq!(expected.len(), 108, "{expected:?}");
    let first = variable("ELVEN_SEED").map_or_else(|| fastrand::u64(..1_000_000), i64::unsigned_abs);
    let count = variable("ELVEN_SEEDS").map_or(SEEDS, i64::unsigned_abs);
    for seed in first..first + count {
        let reset = format!(
            "alter role {role} reset all; drop schema elven_sync, ledger cascade;
            do $$ begin execute format('alter database %I reset all', current_database()); end $$"
        );
        sqlx::raw_sql(AssertSqlSafe(reset)).execute(&mut *session).await.unwrap();
        let set = scatter(&mut session, Some(&role), seed).await;
        let mut fresh = TestEnv::connect_like(pool.clone(), Options::default()).await;
        fresh.set("DATABASE_URL", &scene.url.replacen("postgres@", &format!("{role}@"), 1));
        println!("ELVEN_SEED={seed} {}", set.join("; "));
        assert_eq!(everything(&fresh).await, expected, "ELVEN_SEED={seed}");
    }
    let drop = format!("reassign owned by {role} to current_user; drop owned by {role}; drop role {role}");
    sqlx::raw_sql(AssertSqlSafe(drop)).execute(&mut *session).await.unwrap();
}

#[sqlx::test(migrations = false)]
async fn read_only_default_of_the_database_does_not_matter(pool: PgPool) {
    let scene = scene_with_three_batches(pool).await;
    scene
        .sql("do $$ begin execute format('alter database %I set default_transaction_read_only = on', current_database());
                           execute format('alter database %I set default_transaction_isolation = serializable', current_database());
              end $$")
        .await;
    for arguments in
        [&["migrate"][..], &["run"], &["entity", "pause", "acme"], &["attach", "--backfill-index"]]
    {
        output_of(&scene, 0, arguments).await;
    }
    assert_eq!(scene.received().len(), 6);
}

/// A server whose own configuration makes transactions read-only is waited for; then the message names the setting.
#[sqlx::test(migrations = false)]
async fn read_only_server_is_named_with_its_setting(pool: PgPool) {
    let cluster = Cluster::new(&pool).await;
    let mut scene = TestEnv::at(&cluster.url("ledger")).await;
    scene.entity("acme", "UTC").await;
    scene.set("ELVEN_SYNC_DATABASE__RECONNECT_TIMEOUT", "1s");
    cluster.sql("alter system set default_transaction_read_only = on").await;
    cluster.sql("select pg_reload_conf()").await;
    let output = scene.output(&["run"]).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("default_transaction_read_only = on"), "{}", stderr(&output));
}

/// `alter role all` sets a default for every role of the server.
#[sqlx::test(migrations = false)]
async fn read_only_default_of_all_roles_does_not_matter(pool: PgPool) {
    let cluster = Cluster::new(&pool).await;
    let scene = TestEnv::at(&cluster.url("ledger")).await;
    scene.entity("acme", "UTC").await;
    cluster.sql("alter role all set default_transaction_read_only = on").await;
    output_of(&scene, 0, &["run"]).await;
}
