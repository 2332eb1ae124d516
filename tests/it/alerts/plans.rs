//! The cost of the view over many entities and errors: what it reads, whatever PostgreSQL expects.

use serde_json::Value;
use sqlx::PgPool;

use super::named;
use crate::support::TestEnv;

/// 5,000 entities, each with a state; 100,000 open errors of rows, most of them of one entity, and as many resolved
/// ones; and a history of runs and batches.
const MANY: &str = "
    insert into elven_sync.entities (entity_id, timezone) select 'e' || n, 'UTC' from generate_series(1, 5000) n;
    update elven_sync.sync_state set checked_at = now(), last_success_at = now();
    insert into elven_sync.sync_errors (entity_id, kind, ledger_id, message)
    select 'e' || case when n % 5 = 0 then 1 + n / 20 % 5000 else 1 end, 'invalid_row', n, 'm'
      from generate_series(1, 100000) n;
    insert into elven_sync.sync_errors (entity_id, kind, ledger_id, message, resolved_at, resolution)
    select 'e' || n % 5000, 'invalid_row', n, 'm', now(), 'r' from generate_series(1, 100000) n;
    insert into elven_sync.sync_runs (worker, version, tzdata, alive_until, status, finished_at, polled_at)
    select 'w', '0', '-', now(), 'succeeded', now(), now() from generate_series(1, 50000) n;
    insert into elven_sync.sync_facts (name, entity_id, value)
    select 'zone_rules', entity_id, '{}' from elven_sync.entities;
    insert into elven_sync.sync_batches (run_id, entity_id, last_xid, last_id, row_ids, rows_read, row_count,
                                         body_bytes, body_sha256, status, ambiguous)
    select 1, 'e' || n % 5000, '1', '1', '', 1, 1, 1, '',
           case when n <= 50 then 'unknown' else 'accepted' end, n % 2 = 0
      from generate_series(1, 50000) n;";

/// What a plan has read of tables.
#[derive(Debug, Default)]
struct Reads {
    errors: u64,
    states: u64,
    runs: u64,
    batches: u64,
}

impl Reads {
    fn add(&mut self, node: &Value) {
        // PostgreSQL 18 prints row counts with a fraction.
        let number = |name: &str| {
            node[name].to_string().split('.').next().and_then(|number| number.parse().ok()).unwrap_or(0)
        };
        let rows: u64 = (number("Actual Rows") + number("Rows Removed by Filter")) * number("Actual Loops");
        match node["Relation Name"].as_str() {
            Some("sync_errors") => self.errors += rows,
            Some("sync_state") => self.states += rows,
            Some("sync_runs") => self.runs += rows,
            Some("sync_batches") => self.batches += rows,
            _ => {}
        }
        node["Plans"].as_array().into_iter().flatten().for_each(|node| self.add(node));
    }
}

#[sqlx::test(migrations = false)]
async fn alerts_of_many_entities_read_each_table_once(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    scene.sql(MANY).await;
    // With statistics, and without.
    for statistics in ["select 1", "analyze"] {
        scene.sql(statistics).await;
        let explain = "explain (analyze, timing off, format json) select * from elven_sync.alerts";
        let plan: Value = sqlx::query_scalar(explain).fetch_one(&scene.pool).await.unwrap();
        let mut reads = Reads::default();
        reads.add(&plan[0]["Plan"]);
        assert!(reads.errors <= 200_000, "{statistics}: {reads:?} {plan:#}");
        // Once for the alerts of entities, and once to see that no entity fails.
        assert!(reads.states <= 10_000 && reads.runs <= 10, "{statistics}: {reads:?} {plan:#}");
        assert!(reads.batches <= 50, "{statistics}: {reads:?} {plan:#}");
        println!("{statistics}: {} ms", plan[0]["Execution Time"]);
    }
    let named = named(&scene).await;
    assert_eq!(named.iter().filter(|name| name.starts_with("OpenErrors")).count(), 5000);
    assert_eq!(named.iter().filter(|name| name.starts_with("UnknownOutcome")).count(), 50);
    assert_eq!(named.len(), 5050, "{:?}", &named[..10]);
}
