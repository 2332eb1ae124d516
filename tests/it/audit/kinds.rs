//! Each kind of state that a row can have is counted exactly once, as `status --row` has it.

use elven_sync::sandbox::Fault;
use serde_json::Value;
use sqlx::{Connection, Executor, PgConnection, PgPool};

use super::{assert_agrees_with_status, audited, counted, execute, outcomes, text_of};
use crate::support::{TestEnv, fault_rules, output_of};

async fn scene(pool: PgPool) -> TestEnv {
    let mut scene = TestEnv::new(pool).await;
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "4");
    scene.set("ELVEN_SYNC_RETRY__INITIAL", "1ms");
    scene.set("ELVEN_SYNC_RETRY__ATTEMPTS", "1");
    scene
}

/// Adds a row of acme to January 2024.
async fn add(scene: &TestEnv, account: &str, second: &str, balance: &str) {
    execute(
        scene,
        format!(
            "insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
             values ('acme', '{account}', 'BTC', timestamptz '2024-01-05 12:00:00Z' + interval '{second} s', '{balance}')"
        ),
    )
    .await;
}

const JANUARY: [&str; 2] = ["2024-01-01", "2024-02-01"];

async fn january(scene: &TestEnv, code: i32) -> Value {
    audited(scene, code, JANUARY[0], JANUARY[1]).await
}

#[sqlx::test(migrations = false)]
async fn each_state_of_a_row_is_counted_once_as_status_row_has_it(pool: PgPool) {
    let scene = scene(pool).await;
    // Rows 1 and 2 are skipped; a backfill sends row 2 later.
    add(&scene, "skipped", "1", "1").await;
    add(&scene, "backfilled", "2", "2").await;
    output_of(&scene, 0, &["entity", "add", "acme", "--timezone", "Europe/Berlin", "--from-now"]).await;
    scene.sandbox.set_rules(fault_rules(&["reject:account=x7", "reject:account=x8", "reject:account=x9"]));
    let mut slow = PgConnection::connect(&scene.url).await.unwrap();
    for (account, second, balance) in [
        ("a", "0", "3"),
        // Three rivals: the newest is sent.
        ("b", "0.1", "4"),
        ("b", "0.2", "5"),
        ("b", "0.3", "6"),
        ("x7", "0", "7"),
        ("x8", "1", "8"),
        ("x9", "2", "9"),
        ("c", "0", "NaN"),
        ("d", "0", "11"),
        ("e", "0", "12"),
    ] {
        add(&scene, account, second, balance).await;
    }
    slow.execute("begin").await.unwrap();
    slow.execute(
        "insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
         values ('acme', 'slow', 'BTC', '2024-01-05Z', 13)",
    )
    .await
    .unwrap();
    scene.sql("select pg_current_xact_id()").await;
    scene.run().await;
    slow.execute("commit").await.unwrap();
    let backfill = [
        "backfill",
        "--from",
        "2024-01-05T12:00:02Z",
        "--to",
        "2024-01-05T12:00:03Z",
        "--account",
        "backfilled",
    ];
    output_of(&scene, 0, &backfill).await;
    // Row 7 is dismissed, row 8 is sent by a retry, row 9 stays set aside.
    let error =
        |row: &str| format!("select error_id::text from elven_sync.sync_errors where ledger_id = '{row}'");
    let number: String =
        sqlx::query_scalar(sqlx::AssertSqlSafe(error("7"))).fetch_one(&scene.pool).await.unwrap();
    output_of(&scene, 0, &["errors", "resolve", &number, "--reason", "a test account"]).await;
    let number: String =
        sqlx::query_scalar(sqlx::AssertSqlSafe(error("8"))).fetch_one(&scene.pool).await.unwrap();
    scene.sandbox.set_rules(Vec::new());
    output_of(&scene, 0, &["errors", "retry", &number]).await;
    // Row 11 has a newer version, row 12 is deleted, and row 14 is behind the watermark.
    scene.sql("update ledger.balance_snapshots set balance = 110 where id = 11; delete from ledger.balance_snapshots where id = 12;
               alter table ledger.balance_snapshots disable trigger stamp_change_xid;
               insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance, change_xid)
               select 'acme', 'z', 'BTC', '2024-01-06Z', 14, change_xid from ledger.balance_snapshots where id = 3;
               alter table ledger.balance_snapshots enable always trigger stamp_change_xid").await;

    let population = assert_agrees_with_status(&scene, 3, JANUARY[0], JANUARY[1]).await;
    let outcome = |id: &str| population[id]["outcome"].as_str();
    for (id, expected) in [
        ("1", "not_synced"),
        ("2", "uploaded"),
        ("3", "uploaded"),
        ("4", "superseded"),
        ("5", "superseded"),
        ("6", "uploaded"),
        ("7", "not_synced"),
        ("8", "uploaded"),
        ("9", "set_aside"),
        ("10", "set_aside"),
        ("11", "pending"),
        ("13", "pending"),
        ("14", "unaccounted"),
    ] {
        assert_eq!(outcome(id), expected, "row {id}: {:?}", population[id]);
    }
    assert_eq!(population.len(), 13);
    assert_eq!([&population["4"]["winner_id"], &population["5"]["winner_id"]], ["6", "6"]);
    assert_eq!(population["9"]["error_kind"], "rejected_row");
    assert!(population["7"]["reason"].contains("a test account"), "{:?}", population["7"]);
    let audit = january(&scene, 3).await;
    let expected = [
        ("all", 13),
        ("uploaded", 4),
        ("superseded", 2),
        ("set_aside", 2),
        ("pending", 2),
        ("not_synced", 2),
        ("unaccounted", 1),
    ];
    assert_eq!(outcomes(&audit), counted(&expected), "{audit}");
    assert_eq!(audit["entities"][0]["verify"]["groups"][0]["what"], "unlisted_row", "{audit}");

    // Who settled an error, and why.
    let exceptions = audit["entities"][0]["exceptions"]["first"].as_array().unwrap();
    let of_row = |id: &str| exceptions.iter().find(|error| error["ledger_ids"][0] == id).unwrap();
    let who = scene.text("select session_user::text").await;
    assert_eq!(
        (&of_row("7")["settled_by"], &of_row("7")["resolution"]),
        (&who.into(), &"a test account".into())
    );
    assert_eq!((&of_row("8")["settled_by"], &of_row("8")["open_rows"]), (&Value::Null, &0.into()));
    assert_eq!((&of_row("9")["resolved_at"], &of_row("9")["open_rows"]), (&Value::Null, &1.into()));
    let actions: Vec<&str> = audit["actions"]["first"]
        .as_array()
        .unwrap()
        .iter()
        .map(|action| action["action"].as_str().unwrap())
        .collect();
    for action in ["entity_add", "from_now", "backfill", "resolve"] {
        assert!(actions.contains(&action), "{actions:?}");
    }
}

#[sqlx::test(migrations = false)]
async fn rows_of_an_open_pass_are_pending_until_they_are_accepted(pool: PgPool) {
    let mut scene = scene(pool).await;
    scene.set("ELVEN_SYNC_SYNC__REQUESTS_IN_FLIGHT", "1");
    scene.set("ELVEN_SYNC_SYNC__ON_AMBIGUOUS", "hold");
    scene.entity("acme", "UTC").await;
    for n in 1..=14 {
        add(&scene, &format!("a{n}"), "0", "1").await;
    }
    // The first batch is accepted, the outcome of the second one is unknown, and the others are not sent.
    scene.sandbox.set_rules(fault_rules(&["answer-lost@once:2"]));
    scene.run().await;
    assert_agrees_with_status(&scene, 3, JANUARY[0], JANUARY[1]).await;
    let audit = january(&scene, 3).await;
    assert_eq!(outcomes(&audit), counted(&[("all", 14), ("uploaded", 4), ("pending", 10)]), "{audit}");
    let batches = &audit["entities"][0]["batches"];
    assert_eq!(batches["unsettled"], 1, "{batches}");
    let text = text_of(&scene, 3, JANUARY[0], JANUARY[1]).await;
    assert!(
        text.starts_with("2024-01-01 to 2024-02-01 is NOT complete: 10 rows pending, 1 batch of unknown outcome, of 14 rows, 4 uploaded hint: elven-sync run"),
        "{text}"
    );
    assert!(
        text.contains("hint: elven-sync run") && text.contains("unsettled: its outcome is unknown"),
        "{text}"
    );

    // Sent again and accepted: settled, and listed all the same.
    scene.set("ELVEN_SYNC_SYNC__ON_AMBIGUOUS", "resend");
    scene.run().await;
    let audit = january(&scene, 0).await;
    assert_eq!(outcomes(&audit), counted(&[("all", 14), ("uploaded", 14)]), "{audit}");
    let ambiguous = &audit["entities"][0]["batches"]["ambiguous"];
    assert_eq!((&ambiguous["count"], &ambiguous["first"][0]["ambiguous"]), (&1.into(), &true.into()));
}

/// Rows of one batch, split until the refused ones stand alone.
#[sqlx::test(migrations = false)]
async fn rows_of_split_batches_have_the_outcome_of_their_part(pool: PgPool) {
    let mut scene = scene(pool).await;
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "100");
    scene.entity("acme", "UTC").await;
    for n in 1..=20 {
        add(&scene, &format!("a{n}"), "0", "1").await;
    }
    scene.sandbox.set_rules(fault_rules(&["reject:account=a3", "reject:account=a17"]));
    scene.run().await;
    let population = assert_agrees_with_status(&scene, 3, JANUARY[0], JANUARY[1]).await;
    let set_aside: Vec<&str> = population
        .values()
        .filter(|row| row["outcome"] == "set_aside")
        .map(|row| row["entity_account_id"].as_str())
        .collect();
    assert_eq!(set_aside, ["a17", "a3"]);
    // The rows that a backfill has set aside although their pass had uploaded them are not forgotten.
    scene.sandbox.set_rules(Vec::new());
    output_of(&scene, 0, &["errors", "retry"]).await;
    assert_eq!(outcomes(&january(&scene, 0).await), counted(&[("all", 20), ("uploaded", 20)]));
    scene.sandbox.set_rules(fault_rules(&["reject:account=a5"]));
    output_of(&scene, 3, &["backfill", "--from", JANUARY[0], "--to", JANUARY[1]]).await;
    let text = text_of(&scene, 3, JANUARY[0], JANUARY[1]).await;
    assert!(
        text.contains("is NOT complete: 1 other row with an open error, of 20 rows, 20 uploaded"),
        "{text}"
    );
}

/// A batch of a backfill without an answer keeps a period from being complete, although a pass has uploaded its rows.
#[sqlx::test(migrations = false)]
async fn unknown_outcome_of_a_backfill_is_unsettled(pool: PgPool) {
    let mut scene = scene(pool).await;
    scene.set("ELVEN_SYNC_SYNC__ON_AMBIGUOUS", "hold");
    scene.entity("acme", "UTC").await;
    for n in 1..=3 {
        add(&scene, &format!("a{n}"), "0", "1").await;
    }
    scene.run().await;
    january(&scene, 0).await;
    scene.sandbox.inject(Fault::CutAfterWrite);
    let backfill = ["backfill", "--from", JANUARY[0], "--to", JANUARY[1]];
    let output = scene.output(&backfill).await;
    assert_ne!(output.status.code(), Some(0));
    let audit = january(&scene, 3).await;
    assert_eq!(outcomes(&audit), counted(&[("all", 3), ("uploaded", 3)]));
    assert_eq!(audit["entities"][0]["batches"]["unsettled"], 1, "{audit}");
    // Another period has no part in it.
    audited(&scene, 0, "2024-02-01", "2024-03-01").await;
    scene.set("ELVEN_SYNC_SYNC__ON_AMBIGUOUS", "resend");
    output_of(&scene, 0, &backfill).await;
    january(&scene, 0).await;
}

/// Held rows: those of a name that the API does not know, and those that were released.
#[sqlx::test(migrations = false)]
async fn held_rows_are_set_aside_until_they_are_sent(pool: PgPool) {
    let mut scene = scene(pool).await;
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "100");
    scene.entity("acme", "UTC").await;
    execute(
        &scene,
        "insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
         select 'acme', 'a' || n, case when n % 3 = 0 then 'usd' else 'USD' end, timestamptz '2024-01-05Z' + n * interval '1 min', n
           from generate_series(1, 30) n"
            .to_owned(),
    )
    .await;
    scene.run().await;
    let population = assert_agrees_with_status(&scene, 3, JANUARY[0], JANUARY[1]).await;
    let held = population.values().filter(|row| row["error_kind"] == "unknown_currency").count();
    assert_eq!(held, 10);
    let audit = january(&scene, 3).await;
    let exception = &audit["entities"][0]["exceptions"]["first"][0];
    assert_eq!((&exception["rows"], &exception["open_rows"]), (&10.into(), &10.into()), "{audit}");
    output_of(&scene, 0, &["map", "currency", "usd", "USD", "--shared"]).await;
    scene.run().await;
    let population = assert_agrees_with_status(&scene, 0, JANUARY[0], JANUARY[1]).await;
    assert!(population.values().all(|row| row["outcome"] == "uploaded"), "{population:?}");
    // Sent under the names of the API, whatever the ledger's names are.
    let audit = january(&scene, 0).await;
    let sent = audit["entities"][0]["sent"]["proven"].as_array().unwrap();
    assert!(sent.iter().all(|total| total["currency"] == "USD"), "{audit}");
    assert_eq!(sent.iter().map(|total| total["rows"].as_i64().unwrap()).sum::<i64>(), 30, "{audit}");
}

/// Passes that were pruned: their rows were uploaded or superseded, and the audit says that it does not know which.
#[sqlx::test(migrations = false)]
async fn rows_of_pruned_passes_are_uploaded_by_a_folded_batch(pool: PgPool) {
    let scene = scene(pool).await;
    scene.entity("acme", "UTC").await;
    scene.sandbox.set_rules(fault_rules(&["reject:account=x"]));
    for n in 1..=6 {
        add(&scene, &format!("a{n}"), "0", "1").await;
        scene.run().await;
    }
    add(&scene, "x", "0", "1").await;
    scene.run().await;
    scene.sql(crate::prune::AGE).await;
    output_of(&scene, 0, &["prune", "--older-than", "90d"]).await;
    add(&scene, "a7", "0", "1").await;
    scene.run().await;
    let population = assert_agrees_with_status(&scene, 3, JANUARY[0], JANUARY[1]).await;
    let of = |account: &str| {
        let row = population.values().find(|row| row["entity_account_id"] == account).unwrap();
        (row["outcome"].clone(), row["evidence"].clone())
    };
    assert_eq!(of("a1"), ("uploaded".to_owned(), "folded".to_owned()));
    assert_eq!(of("x").0, "set_aside");
    assert_eq!(of("a7"), ("uploaded".to_owned(), "proven".to_owned()));
    let text = text_of(&scene, 3, JANUARY[0], JANUARY[1]).await;
    assert!(text.contains("Uploaded, by a folded batch: 6 rows"), "{text}");
}

/// Ids that are texts, rows that share an id, and a ledger that is a view.
#[sqlx::test(migrations = false)]
async fn rows_that_share_an_id_are_each_counted(pool: PgPool) {
    let mut scene = scene(pool).await;
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "10");
    scene.entity("acme", "UTC").await;
    scene.sql(crate::support::PARTS).await;
    scene.set("ELVEN_SYNC_LEDGER__TABLE", "ledger.parts");
    let insert = |from: i32, to: i32| {
        format!(
            "insert into ledger.parts (entity_id, entity_account_id, currency, captured_at, balance)
             select 'acme', n::text, 'BTC', '2024-01-05Z', n from generate_series({from}, {to}) n"
        )
    };
    execute(&scene, insert(1, 50)).await;
    scene.run().await;
    execute(&scene, insert(51, 60)).await;
    let audit = january(&scene, 3).await;
    assert_eq!(outcomes(&audit), counted(&[("all", 60), ("uploaded", 50), ("pending", 10)]), "{audit}");
    scene.run().await;
    assert_eq!(outcomes(&january(&scene, 0).await), counted(&[("all", 60), ("uploaded", 60)]));

    scene.sql("create table ledger.by_uuid as select gen_random_uuid() as id, 'acme' as entity_id, 'u' || n as entity_account_id,
                      'BTC' as currency, timestamptz '2024-01-05Z' as captured_at, 1::numeric as balance,
                      pg_current_xact_id() as change_xid from generate_series(1, 25) n;
               create view ledger.shown as select * from ledger.by_uuid;
               delete from elven_sync.sync_passes where false;
               update elven_sync.sync_state set ledger_table = null, mapping = null").await;
    scene.set("ELVEN_SYNC_LEDGER__TABLE", "ledger.shown");
    let audit = january(&scene, 3).await;
    assert_eq!(outcomes(&audit), counted(&[("all", 25), ("pending", 25)]), "{audit}");
    scene.run().await;
    assert_eq!(outcomes(&january(&scene, 0).await), counted(&[("all", 25), ("uploaded", 25)]));
}

/// A journal of another cluster says nothing about the rows of this one.
#[sqlx::test(migrations = false)]
async fn journal_of_another_cluster_accounts_for_no_row(pool: PgPool) {
    let scene = scene(pool).await;
    scene.entity("acme", "UTC").await;
    for n in 1..=3 {
        add(&scene, &format!("a{n}"), "0", "1").await;
    }
    scene.run().await;
    scene.sql("update elven_sync.sync_state set system_identifier = 1").await;
    let audit = january(&scene, 3).await;
    assert_eq!(outcomes(&audit), counted(&[("all", 3), ("unaccounted", 3)]), "{audit}");
    assert_eq!(audit["entities"][0]["verify"]["groups"][0]["what"], "watermark", "{audit}");
}
