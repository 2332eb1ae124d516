//! The page over many entities, many batches and many readers.

use serde_json::Value;
use sqlx::PgPool;

use super::{Page, body, started};
use crate::proxy::Network;
use crate::serve::get;
use crate::support::TestEnv;

/// 5,000 entities: 100 that fail, 2,000 with open errors and the rest ok, with batches of the last day.
const MANY: &str = "
    insert into elven_sync.entities (entity_id, timezone)
    select 'entity-with-a-long-name-' || lpad(n::text, 5, '0'), 'Europe/Berlin' from generate_series(1, 5000) n;
    update elven_sync.sync_state set checked_at = now(), last_success_at = now(), rows_uploaded = 10;
    update elven_sync.sync_state
       set consecutive_failures = 1, last_error = 'the API could not be reached', pending_rows = 5,
           oldest_pending_at = now() - interval '1 hour', pending_since = now() - interval '10 min'
     where right(entity_id, 5)::integer <= 100;
    insert into elven_sync.sync_errors (entity_id, kind, ledger_id, message)
    select 'entity-with-a-long-name-' || lpad(n::text, 5, '0'), 'invalid_row', n::text, 'currency is blank'
      from generate_series(101, 2100) n;
    insert into elven_sync.sync_batches (run_id, entity_id, last_xid, last_id, row_ids, rows_read, row_count, body_bytes,
                                         body_sha256, status, attempts, http_status, duration_ms, finished_at)
    select 1, 'entity-with-a-long-name-' || lpad((1 + n % 5000)::text, 5, '0'), '5', n::text, '', 10, 10, 100, '',
           'accepted', 1, 200, n % 300, now() - make_interval(secs => n * 4)
      from generate_series(1, 20000) n;";

#[sqlx::test(migrations = false)]
async fn page_over_5000_entities_is_small_and_says_what_it_leaves_out(pool: PgPool) {
    let page = Page::with(pool, MANY).await;
    for path in ["/", "/status.json"] {
        let begun = std::time::Instant::now();
        let answer = page.service.get(path).await;
        println!("{path}: {} bytes in {:?}", answer.body.len(), begun.elapsed());
        assert!(answer.status == 200 && body(&answer).len() < 1_000_000, "{path}: {}", answer.body.len());
    }
    let html = page.html("/").await;
    let rows = html.rows("The worst 300 of 5,000 entities");
    assert_eq!(rows.len(), 300);
    assert!(rows[..100].iter().all(|row| row[1].ends_with("failing")), "{:?}", &rows[..100]);
    assert!(rows[100..].iter().all(|row| row[1].ends_with("incomplete")), "{:?}", &rows[100..]);
    assert!(html.text().contains("4,700 more entities, as elven-sync status lists them"), "{}", html.text());
    assert!(html.text().contains("incomplete 2,000"), "{}", html.text());
    assert!(
        html.text().contains("1,995 more, as select * from elven_sync.alerts lists them."),
        "{}",
        html.text()
    );
    let ok = page.html("/entities/entity-with-a-long-name-05000").await;
    assert!(ok.text().starts_with("✓ entity-with-a-long-name-05000 : ok"), "{}", ok.text());
    page.service.stop().await;
}

/// Many readers at the same time cost the database what one costs.
#[sqlx::test(migrations = false)]
async fn readers_at_the_same_time_share_one_reading(pool: PgPool) {
    let mut scene = TestEnv::new(pool).await;
    let network = Network::to(&scene.url).await;
    scene.set("DATABASE_URL", network.url());
    scene.set("ELVEN_SYNC_SYNC__LEASE", "10m");
    scene.entity("acme", "UTC").await;
    let service = started(&scene).await;
    network.count();
    let many = |path: &'static str| {
        futures_util::future::join_all((0..30).map(|_| get(&service.address, path, &[])))
    };
    for path in ["/", "/entities/acme"] {
        for answer in many(path).await {
            assert_eq!(answer.status, 200, "{path}: {answer:?}");
        }
        let (connections, statements) = network.count();
        assert!(
            connections <= 1 && statements <= 40,
            "{path}: {connections} connections, {statements} statements"
        );
    }
    service.stop().await;
}

/// With more batches in a day than the page reads, it shows a shorter time wholly.
#[sqlx::test(migrations = false)]
async fn a_day_with_too_many_batches_is_cut_at_a_quarter_hour(pool: PgPool) {
    let page = Page::with(
        pool,
        "insert into elven_sync.entities (entity_id, timezone) values ('acme', 'UTC');
         insert into elven_sync.sync_batches (run_id, entity_id, last_xid, last_id, row_ids, rows_read, row_count,
                                              body_bytes, body_sha256, status, attempts, http_status, finished_at)
         select 1, 'acme', '5', n::text, '', 1, 1, 1, '', 'accepted', 1, 200, now() - make_interval(secs => n * 0.2)
           from generate_series(1, 60000) n",
    )
    .await;
    let json = page.json().await;
    assert_eq!(json["day"]["is_cut"], true);
    let from = json["day"]["from"].as_str().unwrap();
    assert!([":00:00Z", ":15:00Z", ":30:00Z", ":45:00Z"].iter().any(|end| from.ends_with(end)), "{from}");
    let quarters = json["day"]["quarters"].as_array().unwrap();
    assert!((10..=12).contains(&quarters.len()), "{quarters:#?}");
    let whole: Vec<&Value> =
        quarters[..quarters.len() - 1].iter().map(|quarter| &quarter["rows_uploaded"]).collect();
    assert!(whole.iter().all(|rows| **rows == 4500), "{whole:?}");
    let html = page.html("/").await;
    assert!(html.text().contains("The day has more batches than this page reads"), "{}", html.text());
    page.service.stop().await;
}

/// One run per second for a day is more than the page reads.
#[sqlx::test(migrations = false)]
async fn a_day_with_too_many_runs_says_that_some_are_missing(pool: PgPool) {
    let page = Page::with(
        pool,
        "insert into elven_sync.sync_runs (worker, version, tzdata, status, started_at, finished_at, alive_until)
         select 'w', '0', '-', 'succeeded', now() - make_interval(secs => 21000 - n), now() - make_interval(secs => 21000 - n),
                now()
           from generate_series(1, 20990) n",
    )
    .await;
    assert_eq!(page.json().await["day"]["lacks_runs"], true);
    assert!(page.html("/").await.text().contains("The day has more runs than this page reads"));
    page.service.stop().await;
}
