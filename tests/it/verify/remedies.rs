//! What a finding asks for ends the finding.

use sqlx::PgPool;

use super::tampering::{NAMES, RESTORE, TAMPERING, scene_with_a_journal};
use super::{assert_verified, findings, proof};
use crate::support::output_of;

const REWIND: &str = "`elven-sync entity rewind 'acme'` uploads everything again";

/// The rewind is told as the last resort of many findings. After it and a run, nothing is left of them, in particular
/// not in the part of the journal that was altered and stays as it is.
#[sqlx::test(migrations = false)]
async fn findings_end_after_the_rewind_that_they_ask_for(pool: PgPool) {
    let scene = scene_with_a_journal(pool).await;
    scene.sql(NAMES).await;
    let mut rewound = Vec::new();
    for (what, sql, _) in TAMPERING {
        scene.sql(sql).await;
        let (_, said) = findings(&proof(&scene, true).await);
        if said.contains(REWIND) {
            let moved = output_of(&scene, 0, &["entity", "rewind", "acme", "--yes"]).await;
            let rows = if moved.contains("it does not show which rows Elven has") {
                "the next run uploads all 52 rows"
            } else {
                "moves back over 52 rows"
            };
            scene.run().await;
            let (found, said) = findings(&proof(&scene, true).await);
            assert!(found.is_empty(), "{what}: {said}");
            // Rows that were changed are pending, rows that were deleted are gone, and inserted ones are more.
            let has_other_rows = sql.contains("smuggle(") || sql.contains("ledger.balance_snapshots");
            assert!(moved.contains(rows) || has_other_rows, "{what}: {moved}");
            rewound.push(*what);
        }
        scene.sql(RESTORE).await;
    }
    for what in [
        "a pass is gone",
        "the watermark was moved forward",
        "the watermark was moved back",
        "a part is gone",
    ] {
        assert!(rewound.contains(&what), "{rewound:?}");
    }
}

/// The target of the newest pass, which only a rewind to the start gets past.
#[sqlx::test(migrations = false)]
async fn altered_change_before_a_rewind_is_a_note_and_the_proof_says_where_it_begins(pool: PgPool) {
    let scene = scene_with_a_journal(pool).await;
    scene
        .sql(
            "update elven_sync.sync_passes set target = pg_current_snapshot() where finished_at is not null
                  and pass_id = (select max(pass_id) from elven_sync.sync_passes)",
        )
        .await;
    let moved = output_of(&scene, 0, &["entity", "rewind", "acme", "--yes"]).await;
    output_of(&scene, 3, &["run"]).await;
    let proven = output_of(&scene, 0, &["verify"]).await;
    let words = proven.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(
        words.contains("acme, pass 4: note: the change of the watermark in sync_passes begins at"),
        "{proven}"
    );
    assert!(words.contains("pending again, so nothing is to be done"), "{proven}");
    assert!(words.contains("the passes before a rewind to the start: acme (rewind 4 of "), "{proven}");
    let json = output_of(&scene, 0, &["verify", "--json"]).await;
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&json["holds"], &json["entities"][0]["rewound"]["pass_id"]), (&true.into(), &4.into()));
    assert_eq!(json["entities"][0]["notes"].as_array().unwrap().len(), 1, "{json}");
    assert_eq!(assert_verified(&scene).await, (52, 0));
    assert!(moved.contains("the next run uploads all 52 rows"), "{moved}");
}

/// A rewind that was written into the journal by hand hides no row: each has to be in a batch after it.
#[sqlx::test(migrations = false)]
async fn rewind_that_was_made_up_hides_no_row(pool: PgPool) {
    let scene = scene_with_a_journal(pool).await;
    scene.sql(NAMES).await;
    scene.sql(
        "delete from elven_sync.sync_batches where pass_id = nth_pass(2);
         insert into elven_sync.sync_passes (pass_id, entity_id, kind, settled, target, started_at, finished_at)
         overriding system value
         select pass_id, entity_id, 'rewind', target, null, now(), now() from saved.passes where pass_id = nth_pass(2)
         on conflict (pass_id) do update set kind = 'rewind', settled = excluded.settled, target = null;
         update elven_sync.sync_passes set settled = null where pass_id = nth_pass(3)",
    )
    .await;
    let (found, said) = findings(&proof(&scene, true).await);
    assert!(found.contains("unlisted_row"), "{said}");
}

/// A batch that is missing has two traces, which ask for the same, and all of its rows are counted.
#[sqlx::test(migrations = false)]
async fn rows_of_a_missing_batch_are_counted_and_have_the_remedy_of_the_gap(pool: PgPool) {
    let scene = scene_with_a_journal(pool).await;
    scene.sql(NAMES).await;
    scene.sql("select remove_batch(nth_batch(n)) from generate_series(1, 5) n").await;
    let broken = output_of(&scene, 3, &["verify"]).await;
    let words = broken.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(words.contains("190, 200 and 24 more of the ledger come after the last batch"), "{broken}");
    assert!(!words.contains("update them"), "{broken}");
    assert_eq!(words.matches(REWIND).count(), 2, "{broken}");
    // Without a gap, an update is enough.
    scene.sql(RESTORE).await;
    scene.sql("select smuggle(n, xid_of(50)) from generate_series(51, 59) n").await;
    let broken = output_of(&scene, 3, &["verify"]).await;
    assert!(broken.contains("hint: update them"), "{broken}");
}
