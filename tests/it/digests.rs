//! The digests of the journal: leaves, chains, prints, and what they prove.

mod chain;
mod prints;
mod tampering;

use std::path::{Path, PathBuf};

use sqlx::{AssertSqlSafe, PgPool};

use crate::backfill::{add_minutes, backfill_2024};
use crate::support::{TestEnv, output_of};

/// Batches whose recorded leaf is not the one that SQL makes.
const OTHER_LEAVES: &str = "select coalesce(string_agg(batch_id::text, ' ' order by batch_id), 'none') from elven_sync.sync_batches b
                             where leaf is not null and leaf <> elven_sync.leaf(b)";
/// Batches that are done, behind a cursor or in ended work, and have no leaf.
const WITHOUT_LEAF: &str = "select coalesce(string_agg(batch_id::text, ' ' order by batch_id), 'none') from elven_sync.sync_batches b
                             where leaf is null and not elven_sync.is_open(status, row_count) and status <> 'split'";
/// Links whose digest is not the one that SQL makes.
const OTHER_LINKS: &str = "select coalesce(string_agg(concat_ws(' ', entity_id, v.link, v.kind), ', ' order by entity_id, v.link), 'none')
                             from (select distinct entity_id from elven_sync.sync_links) e
                            cross join lateral elven_sync.verify_links(entity_id) v where v.digest is distinct from v.expected";
/// The kinds of the links of each chain, in order.
pub const KINDS: &str = "select string_agg(entity_id || ': ' || kinds, '; ' order by entity_id) from (
                       select entity_id, string_agg(kind, ' ' order by link) as kinds from elven_sync.sync_links group by entity_id) k";

/// Asserts that SQL and elven-sync make the digests that are recorded.
pub async fn assert_chained(scene: &TestEnv) {
    assert_eq!(scene.text(OTHER_LEAVES).await, "none", "leaves");
    assert_eq!(scene.text(WITHOUT_LEAF).await, "none", "batches without a leaf");
    assert_eq!(scene.text(OTHER_LINKS).await, "none", "links");
    output_of(scene, 0, &["verify", "--deep"]).await;
}

/// A journal of two entities with all kinds of batches and links: rows that are invalid, refused, superseded, unknown to
/// the API; batches that were split; a retry, two backfills (one is cancelled), a rewind that gives up a pass, `--from-now`,
/// a map, and an open pass whose cursor stands after its second batch.
pub async fn whole_journal(pool: PgPool) -> TestEnv {
    let mut scene = TestEnv::new(pool).await;
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "10");
    scene.set("ELVEN_SYNC_SYNC__REQUESTS_IN_FLIGHT", "3");
    scene.set("ELVEN_SYNC_RETRY__ATTEMPTS", "1");
    scene.sandbox.set_rules(vec!["reject:account=acme-13".parse().unwrap()]);
    scene.entity("acme", "Europe/Zurich").await;
    output_of(&scene, 0, &["entity", "add", "beta", "--timezone", "UTC", "--from-now"]).await;
    add_minutes(&scene, "acme", 44).await;
    add_minutes(&scene, "beta", 25).await;
    let changed = "update ledger.balance_snapshots
                      set balance = case entity_account_id when 'acme-21' then 'NaN'::numeric else balance end,
                          entity_account_id = case entity_account_id when 'acme-31' then 'acme-30' else entity_account_id end,
                          captured_at = case when entity_account_id in ('acme-30', 'acme-31') then '2024-02-01Z' else captured_at end";
    scene.sql(changed).await;
    output_of(&scene, 3, &["run"]).await;
    // The refused row is accepted in a retry.
    scene.sandbox.set_rules(Vec::new());
    output_of(&scene, 3, &["errors", "retry"]).await;
    backfill_2024(&scene, 0, &["--entity", "beta"]).await;
    // A pass is left open, and given up by a rewind.
    add_minutes(&scene, "acme", 40).await;
    scene.sandbox.set_rules(vec!["error-500@every:3".parse().unwrap()]);
    scene.run().await;
    scene.sandbox.set_rules(Vec::new());
    output_of(&scene, 0, &["entity", "rewind", "acme", "--to", "start", "--reason", "test", "--yes"]).await;
    scene.run().await;
    scene
}

/// The file that keeps the print of an environment.
pub fn print_file(scene: &TestEnv) -> PathBuf {
    let database = scene.url.rsplit('/').next().unwrap().split('?').next().unwrap();
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{database}-print.txt"))
}

/// Returns the print that `digest` makes now.
pub async fn print(scene: &TestEnv) -> String {
    output_of(scene, 0, &["digest"]).await.trim().to_owned()
}

/// Runs `verify --against` a print, with this exit code. Returns what it prints.
pub async fn verify_against(scene: &TestEnv, print: &str, code: i32) -> String {
    let file = print_file(scene);
    std::fs::write(&file, print).unwrap();
    output_of(scene, code, &["verify", "--against", file.to_str().unwrap()]).await
}

/// Executes SQL that is made by the test.
pub async fn execute(scene: &TestEnv, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&scene.pool).await.unwrap();
}
