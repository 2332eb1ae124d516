//! `status --row`: the state of a row, in each case.

use serde_json::Value;
use sqlx::{Connection, Executor, PgConnection, PgPool};

use crate::support::{SECRET, TestEnv, output_of};

/// Returns the report on a row of one entity, from a command with this exit code.
async fn report_of(scene: &TestEnv, code: i32, row: &str) -> Value {
    let json: Value =
        serde_json::from_str(&output_of(scene, code, &["status", "--row", row, "--json"]).await).unwrap();
    assert_eq!(json["entities"].as_array().unwrap().len(), 1, "{json}");
    json["entities"][0].clone()
}

/// Returns verdict and sentence.
fn verdict(report: &Value) -> (String, String) {
    (report["verdict"].as_str().unwrap().to_owned(), report["says"].as_str().unwrap().to_owned())
}

#[sqlx::test(migrations = false)]
async fn status_row_reports_each_state_of_a_row(pool: PgPool) {
    let mut scene = TestEnv::new(pool).await;
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "4");
    scene.entity("acme", "UTC").await;
    scene.sandbox.set_rules(vec!["reject:account=x".parse().unwrap()]);
    let mut slow = PgConnection::connect(&scene.url).await.unwrap();
    scene
        .sql(
            "insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance) values
                 ('acme', 'a', 'BTC', '2024-01-01Z', 1), ('acme', 'x', 'BTC', '2024-01-01Z', 2),
                 ('acme', 'b', 'BTC', '2024-01-01 00:00:00.1Z', 3), ('acme', 'b', 'BTC', '2024-01-01 00:00:00.2Z', 4),
                 ('acme', 'c', 'BTC', '2024-01-01Z', 'NaN'), ('acme', 'd', 'BTC', '2024-01-01Z', 6),
                 ('acme', 'e', 'BTC', '2024-01-01Z', 7)",
        )
        .await;
    slow.execute("begin").await.unwrap();
    slow.execute(
        "insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
                  values ('acme', 'slow', 'BTC', '2024-01-01Z', 8), ('ghost', 'g', 'BTC', '2024-01-01Z', 9)",
    )
    .await
    .unwrap();
    scene.sql("select pg_current_xact_id()").await;
    scene.run().await;
    slow.execute("commit").await.unwrap();

    let uploaded = report_of(&scene, 0, "1").await;
    assert_eq!(uploaded["verdict"], "uploaded");
    let batches = uploaded["carried"].as_array().unwrap();
    assert_eq!(
        (batches.len(), &batches[0]["status"], &batches[1]["status"]),
        (2, &"split".into(), &"accepted".into())
    );
    assert_eq!((&batches[1]["http_status"], &batches[1]["attempts"]), (&200.into(), &1.into()));
    let (superseded, says) = verdict(&report_of(&scene, 0, "3").await);
    assert!(superseded == "superseded" && says.contains("by row 4"), "{says}");
    assert_eq!(verdict(&report_of(&scene, 0, "4").await).0, "uploaded");
    let refused = report_of(&scene, 3, "2").await;
    assert_eq!(
        (&refused["verdict"], &refused["errors"][0]["kind"]),
        (&"set_aside".into(), &"rejected_row".into())
    );
    let (invalid, says) = verdict(&report_of(&scene, 3, "5").await);
    assert!(invalid == "set_aside" && says.contains("balance is NaN"), "{says}");
    let (waits, says) = verdict(&report_of(&scene, 0, "8").await);
    assert!(waits == "pending" && says.contains("was open when the last pass began"), "{says}");
    let (waits, says) = verdict(&report_of(&scene, 0, "9").await);
    assert!(waits == "pending" && says.contains("not registered"), "{says}");

    // A new version is pending. The previous version is still reported.
    scene.sql("update ledger.balance_snapshots set balance = 60 where id = 6").await;
    let updated = report_of(&scene, 0, "6").await;
    assert_eq!((&updated["verdict"], updated["carried"].as_array().unwrap().len()), (&"pending".into(), 1));
    scene.run().await;
    assert_eq!(report_of(&scene, 0, "6").await["carried"].as_array().unwrap().len(), 2);
    scene.sql("update ledger.balance_snapshots set balance = 61 where id = 6; update elven_sync.entities set paused = true").await;
    assert!(verdict(&report_of(&scene, 0, "6").await).1.contains("paused"));
    scene.sql("update elven_sync.entities set paused = false").await;
    scene.set("ELVEN_API_SECRET", "wrong");
    scene.run().await;
    let (waits, says) = verdict(&report_of(&scene, 0, "6").await);
    assert!(waits == "pending" && says.contains("the entity has stopped: "), "{says}");
    scene.set("ELVEN_API_SECRET", SECRET);

    scene.sql("delete from ledger.balance_snapshots where id = 7").await;
    let (deleted, says) = verdict(&report_of(&scene, 0, "7").await);
    assert!(deleted == "deleted" && says.contains("in batch"), "{says}");
    scene.sandbox.set_rules(Vec::new());
    scene.run().await;
    output_of(&scene, 3, &["errors", "retry"]).await;
    let (retried, says) = verdict(&report_of(&scene, 0, "2").await);
    assert!(retried == "uploaded" && says.contains("uploaded later in batch"), "{says}");
    let number =
        scene.text("select error_id::text from elven_sync.sync_errors where resolved_at is null").await;
    output_of(&scene, 0, &["errors", "resolve", &number, "--reason", "a typing error"]).await;
    let (resolved, says) = verdict(&report_of(&scene, 0, "5").await);
    assert!(resolved == "resolved" && says.contains("a typing error"), "{says}");
}

#[sqlx::test(migrations = false)]
async fn status_row_reports_unknown_and_missing_rows(pool: PgPool) {
    let mut scene = TestEnv::new(pool).await;
    scene.sql("insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
               values ('acme', 'a', 'BTC', '2024-01-01Z', 1)").await;
    output_of(&scene, 0, &["entity", "add", "acme", "--timezone", "UTC", "--from-now"]).await;
    scene.sql("insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
               values ('acme', 'b', 'BTC', '2024-01-01Z', 2)").await;
    scene.run().await;
    assert_eq!(report_of(&scene, 0, "1").await["verdict"], "skipped");
    let text = output_of(&scene, 0, &["status", "--row", "2", "--entity", "acme"]).await;
    assert!(text.contains("acme: row 2 was uploaded in batch 1 of run 1 on 20"), "{text}");
    assert!(
        output_of(&scene, 3, &["status", "--row", "77"])
            .await
            .contains("neither in the ledger nor in the journal")
    );
    for id in ["x", "99999999999999999999"] {
        let refused = output_of(&scene, 1, &["status", "--row", id]).await;
        assert!(refused.contains("is no id of the ledger") && refused.contains("type bigint"), "{refused}");
    }
    assert!(
        output_of(&scene, 1, &["status", "--row", "2", "--entity", "acne"])
            .await
            .contains("did you mean `acme`")
    );
    output_of(&scene, 2, &["status", "--entity", "acme"]).await;
    scene.sql("alter table ledger.balance_snapshots disable trigger stamp_change_xid;
               insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance, change_xid)
               select 'acme', 'c', 'BTC', '2024-01-01Z', 3, change_xid from ledger.balance_snapshots where id = 2").await;
    assert_eq!(report_of(&scene, 3, "3").await["verdict"], "missing");

    // Ids that are no numbers, as PostgreSQL reads them.
    scene.sql("create table ledger.by_uuid as select '00000000-0000-0000-0000-00000000000a'::uuid as id, 'acme' as entity_id,
                      'u' as entity_account_id, 'BTC' as currency, now() as captured_at, 1::numeric as balance,
                      pg_current_xact_id() as change_xid;
               update elven_sync.sync_state set ledger_table = null, mapping = null;").await;
    scene.set("ELVEN_SYNC_LEDGER__TABLE", "ledger.by_uuid");
    scene.run().await;
    assert_eq!(report_of(&scene, 0, "{00000000-0000-0000-0000-00000000000A}").await["verdict"], "uploaded");
    assert!(output_of(&scene, 1, &["status", "--row", "7"]).await.contains("type uuid"));
}
