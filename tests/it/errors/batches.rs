//! `errors retry` sends rows in batches.

use sqlx::PgPool;

use crate::stub::{Stub, respond};
use crate::support::{TestEnv, is_import, output_of};

/// Sets the rows 1 to `rows` of acme aside, which then are valid again without a new version. The account of row n is an.
pub async fn scene_with_repaired_rows(pool: PgPool, rows: i32) -> TestEnv {
    let mut scene = TestEnv::new(pool).await;
    scene.entity("acme", "UTC").await;
    scene.set("ELVEN_SYNC_SYNC__ON_INVALID_START", "set_aside");
    sqlx::query(
        "insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
         select 'acme', 'a' || n, 'BTC', '2024-01-01Z', 'NaN' from generate_series(1, $1) n",
    )
    .bind(rows)
    .execute(&scene.pool)
    .await
    .unwrap();
    output_of(&scene, 3, &["run"]).await;
    scene.sql("alter table ledger.balance_snapshots disable trigger stamp_change_xid").await;
    scene.sql("update ledger.balance_snapshots set balance = id").await;
    scene.sql("alter table ledger.balance_snapshots enable always trigger stamp_change_xid").await;
    scene
}

const OUTCOMES: &str = "select string_agg(concat_ws(' ', rows, kind, resolution), ', ' order by rows desc)
    from (select count(*) as rows, kind, resolution from elven_sync.sync_errors group by kind, resolution) e";

#[sqlx::test(migrations = false)]
async fn retried_rows_are_sent_together_and_a_refused_one_is_found(pool: PgPool) {
    let scene = scene_with_repaired_rows(pool, 64).await;
    scene.sandbox.set_rules(vec!["reject:account=a7".parse().unwrap()]);
    let retried = output_of(&scene, 3, &["errors", "retry"]).await;
    assert_eq!(retried.matches("resolved: uploaded by `errors retry`").count(), 63, "{retried}");
    assert_eq!(retried.matches("still open: the API refused it").count(), 1, "{retried}");
    assert_eq!(scene.balances().len(), 63);
    let requests = scene.sandbox.requests().iter().filter(|request| is_import(&request.path)).count();
    assert!(requests <= 1 + 2 * 6, "{requests} requests");
    let expected = "63 invalid_row uploaded by `errors retry`, 1 invalid_row another problem of the row took its place, \
                    1 rejected_row";
    let outcomes = scene.text(OUTCOMES).await;
    assert_eq!(outcomes.split(", ").count(), 3, "{outcomes}");
    assert!(
        expected.split(", ").all(|part| outcomes.split(", ").any(|outcome| outcome == part)),
        "{outcomes}"
    );
    output_of(&scene, 0, &["verify", "--deep"]).await;
}

/// Of two rows of one key, the newer is uploaded. Its acceptance resolves both errors.
#[sqlx::test(migrations = false)]
async fn newer_of_two_retried_rows_of_one_key_supersedes_the_older(pool: PgPool) {
    let scene = scene_with_repaired_rows(pool, 3).await;
    scene.sql("alter table ledger.balance_snapshots disable trigger stamp_change_xid").await;
    scene.sql("update ledger.balance_snapshots set entity_account_id = 'a2' where id = 1").await;
    let retried = output_of(&scene, 0, &["errors", "retry"]).await;
    assert!(retried.contains("resolved: superseded by row 2 of the same account"), "{retried}");
    assert_eq!(scene.balances(), [("a2".to_owned(), "2".to_owned()), ("a3".to_owned(), "3".to_owned())]);
}

/// A row that the API cannot answer makes the outcome of its whole batch unknown. After that, each of these rows is sent
/// alone, so the others are uploaded.
#[sqlx::test(migrations = false)]
async fn rows_with_an_unknown_outcome_are_retried_alone(pool: PgPool) {
    let mut scene = scene_with_repaired_rows(pool, 9).await;
    scene.set("ELVEN_SYNC_RETRY__ATTEMPTS", "1");
    let stub = Stub::of(&mut scene, |asked| respond(if asked.has("a5") { 500 } else { 200 })).await;
    let unknown = output_of(&scene, 3, &["errors", "retry"]).await;
    assert_eq!(
        unknown.matches("still open: the outcome of a batch of 9 records is unknown").count(),
        9,
        "{unknown}"
    );
    let retried = output_of(&scene, 3, &["errors", "retry"]).await;
    assert_eq!(retried.matches("resolved: uploaded").count(), 8, "{retried}");
    assert_eq!(stub.accepted().len(), 8);
    let sent_alone = stub.imports().iter().filter(|asked| asked.records().len() == 1).count();
    assert_eq!(sent_alone, 9);
    let ambiguous = "select concat_ws(' ', count(*), bool_and(ambiguous)) from elven_sync.sync_batches
                      where pass_id is null and row_count = 1";
    assert_eq!(scene.text(ambiguous).await, "9 t", "the first request may have imported them");
    let open = "select string_agg(ledger_id, ',') from elven_sync.sync_errors where resolved_at is null";
    assert_eq!(scene.text(open).await, "5");
}

/// The parts of a batch that was split are pruned with it.
#[sqlx::test(migrations = false)]
async fn batches_of_a_retry_are_pruned_with_their_parts(pool: PgPool) {
    let scene = scene_with_repaired_rows(pool, 8).await;
    scene.sandbox.set_rules(vec!["reject:account=a7".parse().unwrap()]);
    output_of(&scene, 3, &["errors", "retry"]).await;
    let of_retries = "select count(*)::text from elven_sync.sync_batches where pass_id is null";
    let aged = "update elven_sync.sync_batches set created_at = created_at - interval '1 year',
                       finished_at = finished_at - interval '1 year'";
    scene.sql(aged).await;
    output_of(&scene, 0, &["prune", "--older-than", "90d"]).await;
    // The open error keeps the batch that set its row aside, and the whole batches of that part.
    assert_eq!(scene.text(of_retries).await, "4");
    scene.sandbox.set_rules(Vec::new());
    output_of(&scene, 0, &["errors", "retry"]).await;
    scene.sql(aged).await;
    scene.sql("update elven_sync.sync_errors set resolved_at = resolved_at - interval '1 year'").await;
    output_of(&scene, 0, &["prune", "--older-than", "90d"]).await;
    assert_eq!(scene.text(of_retries).await, "0");
}
