//! What is asked for, exit codes, and what an audit needs and leaves.

use sqlx::PgPool;

use super::{audited, counted, outcomes, text_of};
use crate::support::{TestEnv, output_of};

async fn scene(pool: PgPool) -> TestEnv {
    let scene = TestEnv::new(pool).await;
    scene.entity("acme", "Europe/Berlin").await;
    scene.entity("beta", "Asia/Kathmandu").await;
    scene.sql("insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
               select e, 'a' || n, 'BTC', '2024-01-05Z', n from generate_series(1, 3) n, unnest(array['acme', 'beta', 'ghost']) e").await;
    scene
}

#[sqlx::test(migrations = false)]
async fn exit_code_and_first_line_answer_whether_a_period_is_complete(pool: PgPool) {
    let scene = scene(pool).await;
    let january = ["audit", "--from", "2024-01-01", "--to", "2024-02-01"];
    let text = text_of(&scene, 3, "2024-01-01", "2024-02-01").await;
    assert!(
        text.starts_with(
            "2024-01-01 to 2024-02-01 is NOT complete: 6 rows pending, of 6 rows hint: elven-sync run"
        ),
        "{text}"
    );
    scene.run().await;
    let text = text_of(&scene, 0, "2024-01-01", "2024-02-01").await;
    assert!(text.starts_with("2024-01-01 to 2024-02-01 is complete: 6 rows, 6 uploaded As of"), "{text}");
    assert!(text.contains("In the sums, a sum of snapshots is a control total, not a balance."), "{text}");
    assert!(text.contains("Its latest print: 1 "), "{text}");
    // A period without rows is complete; one that has not ended says so.
    let text = text_of(&scene, 0, "2023-01-01", "2023-02-01").await;
    assert!(text.starts_with("2023-01-01 to 2023-02-01 is complete: 0 rows As of"), "{text}");
    let text = text_of(&scene, 0, "2023-01-01", "2999-01-01").await;
    assert!(text.contains("The period has not ended yet, so rows may still come."), "{text}");
    // One entity alone, and a paused one.
    output_of(&scene, 0, &["entity", "pause", "beta"]).await;
    scene.sql("update ledger.balance_snapshots set balance = 7 where entity_id = 'beta'").await;
    assert_eq!(
        outcomes(&audited(&scene, 3, "2024-01-01", "2024-02-01").await),
        counted(&[("all", 6), ("uploaded", 3), ("pending", 3)])
    );
    let of_acme: Vec<&str> = january.iter().copied().chain(["--entity", "acme"]).collect();
    assert!(output_of(&scene, 0, &of_acme).await.contains("is complete: 3 rows"));
}

#[sqlx::test(migrations = false)]
async fn wrong_dates_and_unknown_entities_are_wrong_usage(pool: PgPool) {
    let scene = scene(pool).await;
    for (from, to, says) in [
        ("2024-02-01", "2024-02-01", "is not before --to"),
        ("2024-02-01", "2024-01-01", "is not before --to 2024-01-01 for entity `acme` in Europe/Berlin"),
        ("2024-2-1", "2024-03-01", "is neither a date like"),
        ("2024-02-30", "2024-03-01", "is neither a date like"),
        ("2024-02-01 10:00", "2024-03-01", "has no offset from UTC"),
        ("March", "2024-03-01", "is neither a date like"),
    ] {
        let refused = output_of(&scene, 2, &["audit", "--from", from, "--to", to]).await;
        assert!(refused.contains(says), "{refused}");
    }
    let refused =
        output_of(&scene, 2, &["audit", "--from", "2024-01-01", "--to", "2024-02-01", "--entity", "acne"])
            .await;
    assert!(refused.contains("did you mean `acme`"), "{refused}");
    output_of(&scene, 2, &["audit", "--from", "2024-01-01"]).await;
    output_of(&scene, 2, &["audit", "--from", "2024-01-01", "--to", "2024-02-01", "--json", "--csv", "x"])
        .await;
    scene.sql("delete from elven_sync.entities").await;
    let refused = output_of(&scene, 1, &["audit", "--from", "2024-01-01", "--to", "2024-02-01"]).await;
    assert!(refused.contains("no entity is registered"), "{refused}");
}

/// A role with only read privileges is enough, and nothing is written.
#[sqlx::test(migrations = false)]
async fn audit_needs_only_read_privileges_and_writes_nothing(pool: PgPool) {
    let mut scene = scene(pool).await;
    scene.run().await;
    scene.sql("do $$ begin create role elven_sync_auditor login; exception when duplicate_object or unique_violation then null; end $$;
               grant usage on schema ledger, elven_sync to elven_sync_auditor;
               grant select (id, entity_id, entity_account_id, currency, captured_at, balance, change_xid)
                  on ledger.balance_snapshots to elven_sync_auditor;
               grant select on all tables in schema elven_sync to elven_sync_auditor;").await;
    let mut url = url::Url::parse(&scene.url).unwrap();
    url.set_username("elven_sync_auditor").unwrap();
    scene.set("DATABASE_URL", url.as_str());
    let text = text_of(&scene, 0, "2024-01-01", "2024-02-01").await;
    assert!(text.contains("is complete: 6 rows"), "{text}");
}
