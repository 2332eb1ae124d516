//! Leaves and links: SQL and elven-sync make the same, whatever happened.

use elven_sync::journal::RunStatus;
use sqlx::PgPool;

use super::{KINDS, assert_chained, whole_journal};
use crate::backfill::{add_minutes, backfill_2024};
use crate::proxy::{Failure, Network};
use crate::support::{TestEnv, fault_rules, output_of};

#[sqlx::test(migrations = false)]
async fn each_kind_of_work_is_chained(pool: PgPool) {
    let scene = whole_journal(pool).await;
    output_of(&scene, 0, &["digest"]).await;
    assert_eq!(
        scene.text(KINDS).await,
        "*: actions actions; acme: pass retry rewind pass; beta: from_now pass backfill",
        "each event adds a link"
    );
    assert_chained(&scene).await;
    let kinds = "select string_agg(distinct rejected_kinds, ', ') from elven_sync.sync_batches";
    assert!(scene.text(kinds).await.contains("rejected_row"), "{}", scene.text(kinds).await);
    assert_ne!(
        scene.text("select count(*)::text from elven_sync.sync_batches where status = 'split'").await,
        "0"
    );
}

/// Batches of one row, several in flight; the worker is killed again and again in the middle; the chain of the pass is the
/// one of an undisturbed run.
#[sqlx::test(migrations = false)]
async fn lost_commits_and_answers_give_the_same_chain(pool: PgPool) {
    let mut scene = TestEnv::new(pool).await;
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "3");
    scene.set("ELVEN_SYNC_SYNC__REQUESTS_IN_FLIGHT", "4");
    scene.entity("acme", "UTC").await;
    let direct = scene.url.clone();
    for (number, failure) in
        [(4, Failure::Lost), (6, Failure::Unanswered), (9, Failure::Unanswered), (7, Failure::Lost)]
    {
        add_minutes(&scene, "acme", 20).await;
        let network = Network::to(&direct).await;
        scene.set("DATABASE_URL", network.url());
        network.fail(number, failure);
        let report = scene.run().await;
        assert_eq!(report.status, RunStatus::Succeeded, "{failure:?}");
        assert!(network.has_failed(), "{failure:?} at commit {number}");
        scene.set("DATABASE_URL", &direct);
        assert_chained(&scene).await;
    }
    // The running digest of each pass has its roots in order, each once.
    let passes = "select count(*)::text from elven_sync.sync_links where kind = 'pass'";
    assert_eq!(scene.text(passes).await, "4");
}

/// A run that stops in the middle leaves a running digest, with which the next one continues.
#[sqlx::test(migrations = false)]
async fn running_digest_of_an_open_pass_is_that_of_the_passed_batches(pool: PgPool) {
    let mut scene = TestEnv::new(pool).await;
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "5");
    scene.set("ELVEN_SYNC_SYNC__REQUESTS_IN_FLIGHT", "2");
    scene.set("ELVEN_SYNC_RETRY__ATTEMPTS", "1");
    scene.entity("acme", "UTC").await;
    add_minutes(&scene, "acme", 60).await;
    scene.sandbox.set_rules(fault_rules(&["error-500@every:5"]));
    let running = "select encode(running, 'hex') || ' ' || (running = (
                          select elven_sync.chain(b.leaf order by b.batch_id) from elven_sync.sync_batches b
                           where b.pass_id = s.pass_id and b.parent_id is null
                             and (b.last_xid, b.last_id::bigint) <= (s.cursor_xid, s.cursor_id::bigint)))::text
                     from elven_sync.sync_state s";
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..30 {
        if scene.run().await.status == RunStatus::Succeeded {
            break;
        }
        let running = scene.text(running).await;
        assert!(running == "NULL" || running.ends_with(" true"), "{running}");
        seen.insert(running);
        output_of(&scene, 0, &["verify"]).await;
    }
    assert!(seen.len() > 1, "the pass was open for several runs: {seen:?}");
    assert_eq!(scene.text("select coalesce(running::text, 'none') from elven_sync.sync_state").await, "none");
    assert_chained(&scene).await;
}

#[sqlx::test(migrations = false)]
async fn cancelled_backfill_is_closed_with_a_link(pool: PgPool) {
    let mut scene = TestEnv::new(pool).await;
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "5");
    scene.set("ELVEN_SYNC_RETRY__ATTEMPTS", "1");
    scene.entity("acme", "UTC").await;
    add_minutes(&scene, "acme", 40).await;
    scene.run().await;
    scene.sandbox.set_rules(fault_rules(&["error-500@every:4"]));
    backfill_2024(&scene, 1, &[]).await;
    output_of(&scene, 0, &["verify"]).await;
    output_of(&scene, 0, &["backfill", "cancel", "1"]).await;
    assert_chained(&scene).await;
    assert_eq!(scene.text(KINDS).await, "*: actions; acme: pass backfill_cancel");
    scene.sandbox.set_rules(Vec::new());
    backfill_2024(&scene, 0, &[]).await;
    assert_chained(&scene).await;
    assert_eq!(scene.text(KINDS).await, "*: actions; acme: pass backfill_cancel backfill");
}

/// What an earlier version wrote has no digests. The next run adds the first link, and goes on from there.
#[sqlx::test(migrations = false)]
async fn journal_of_an_earlier_version_is_adopted_and_continues(pool: PgPool) {
    let mut scene = TestEnv::new(pool).await;
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "5");
    scene.set("ELVEN_SYNC_SYNC__REQUESTS_IN_FLIGHT", "1");
    scene.set("ELVEN_SYNC_RETRY__ATTEMPTS", "1");
    for entity_id in ["acme", "beta"] {
        scene.entity(entity_id, "UTC").await;
        add_minutes(&scene, entity_id, 12).await;
    }
    scene.run().await;
    // acme has an open pass, too.
    add_minutes(&scene, "acme", 30).await;
    scene.sandbox.set_rules(fault_rules(&["error-500@every:4"]));
    scene.run().await;
    scene.sandbox.set_rules(Vec::new());
    scene.forget_digests().await;
    output_of(&scene, 0, &["verify"]).await;
    assert_eq!(scene.run().await.status, RunStatus::Succeeded);
    add_minutes(&scene, "beta", 3).await;
    scene.run().await;
    assert_eq!(scene.text(KINDS).await, "*: actions; acme: adopted pass; beta: adopted pass");
    assert_eq!(scene.text(super::OTHER_LINKS).await, "none");
    assert_eq!(scene.text(super::OTHER_LEAVES).await, "none");
    output_of(&scene, 0, &["verify", "--deep"]).await;
}
