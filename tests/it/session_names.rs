//! The names of database sessions: the version, and the command or the run.

use sqlx::{PgPool, Row};

use crate::support::{TestEnv, eventually, scene_with_three_batches};

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Records the name of the session with each batch that is written.
const RECORDED: &str = "
    create table public.names (name text, kind text);
    create function public.note_name() returns trigger language plpgsql security definer as $$ begin
        insert into public.names values (current_setting('application_name'), tg_table_name);
        return null;
    end $$;
    create trigger note_name after insert on elven_sync.sync_batches for each row execute function public.note_name();
    create trigger note_name after insert on elven_sync.sync_runs for each row execute function public.note_name()";

/// Returns the names under which rows of a table were written.
pub async fn names_of(scene: &TestEnv, table: &str) -> Vec<String> {
    let names = sqlx::query("select distinct name from public.names where kind = $1 order by 1").bind(table);
    names.fetch_all(&scene.pool).await.unwrap().iter().map(|row| row.get(0)).collect()
}

/// Lets each session record its name.
pub async fn record(scene: &TestEnv) {
    scene.sql(RECORDED).await;
}

/// Also a connection that waits for the API, and one that was opened before the run began.
#[sqlx::test(migrations = false)]
async fn sessions_have_version_and_run(pool: PgPool) {
    let scene = scene_with_three_batches(pool).await;
    record(&scene).await;
    let (child, gate) = scene.held_run().await;
    let sessions = "select coalesce(string_agg(distinct application_name, ', '), '') from pg_stat_activity
                     where datname = current_database() and application_name like 'elven-sync%'";
    let expected = format!("elven-sync/{VERSION} run 1");
    eventually("each session has the name of the run", async || scene.text(sessions).await == expected).await;
    gate.open();
    assert!(child.wait_with_output().await.unwrap().status.success());
    assert_eq!(names_of(&scene, "sync_batches").await, [expected]);
    assert_eq!(names_of(&scene, "sync_runs").await, [format!("elven-sync/{VERSION} run")]);
    scene.output(&["run"]).await;
    scene.sql("update ledger.balance_snapshots set balance = 9").await;
    scene.output(&["backfill", "--from", "2024-01-01", "--to", "2024-01-02"]).await;
    let runs = names_of(&scene, "sync_runs").await;
    assert_eq!(runs, ["backfill", "run"].map(|command| format!("elven-sync/{VERSION} {command}")));
    let batches = names_of(&scene, "sync_batches").await;
    assert!(batches.contains(&format!("elven-sync/{VERSION} run 3")), "{batches:?}");
}
