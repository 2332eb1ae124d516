//! Version 4 of the import: records under a pinned source, and the change from one version to the other.

use elven_sync::journal::RunStatus;
use elven_sync::sandbox::{Options, Received};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use sqlx::{AssertSqlSafe, Executor, PgPool};

use crate::stub::{Stub, StubRequest, StubResponse, respond};
use crate::support::{KEY, SECRET, SOURCE, TestEnv, fault_rules, is_import, output_of, stderr, stdout};
use crate::verify::proof;

const VERSION: &str = "ELVEN_SYNC_API__VERSION";
const PATH: &str = "/open/v4/account/treasuryBalance";
const OTHER_SOURCE: &str = "other-source";

/// The version and the source of each batch.
const BATCHES: &str = "
    select string_agg(concat_ws(' ', batch_id, status, coalesce(api_version::text, 'none'), source_id), ','
                      order by batch_id)
      from elven_sync.sync_batches";

/// The open errors.
const OPEN: &str = "select coalesce(string_agg(concat_ws(' ', entity_id, kind), ',' order by error_id), '')
                      from elven_sync.sync_errors where resolved_at is null";

/// A sandbox with two sources, and a connector for a version.
async fn scene(pool: PgPool, version: &str) -> TestEnv {
    let scene = TestEnv::new(pool).await;
    let options = Options { sources: [OTHER_SOURCE.to_owned()].into(), ..Options::default() };
    let mut scene = TestEnv::connect_like(scene.pool.clone(), options).await;
    scene.set(VERSION, version);
    scene.set("ELVEN_SYNC_SYNC__REQUESTS_IN_FLIGHT", "1");
    scene.set("ELVEN_SYNC_RETRY__ATTEMPTS", "1");
    scene
}

/// Inserts rows `from..=until` of an entity.
async fn insert(scene: &TestEnv, entity: &str, from: i32, until: i32) {
    let insert = format!(
        "insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
         select '{entity}', '{entity}-' || n, 'BTC', '2024-01-01Z', n from generate_series({from}, {until}) n"
    );
    (&scene.pool).execute(AssertSqlSafe(insert)).await.unwrap();
}

/// Registers an entity with a source, or without one.
async fn register(scene: &TestEnv, entity: &str, source: Option<&str>) {
    scene.entity(entity, "UTC").await;
    let update = sqlx::query("update elven_sync.entities set source_id = $2 where entity_id = $1");
    update.bind(entity).bind(source).execute(&scene.pool).await.unwrap();
}

async fn set_source(scene: &TestEnv, entity: &str, source: &str) -> String {
    output_of(scene, 0, &["entity", "set", entity, "--source-id", source]).await
}

/// Returns the accepted records: account, field of the currency, currency, source.
fn received(scene: &TestEnv) -> Vec<String> {
    let shown = |r: Received| {
        let source = r.source_id.unwrap_or_else(|| "none".to_owned());
        format!("{} {}={} {source}", r.entity_account_id, r.currency_field, r.currency)
    };
    let mut received: Vec<String> = scene.sandbox.received().into_iter().map(shown).collect();
    received.sort();
    received
}

/// Returns path and hash of each import.
fn imports(scene: &TestEnv) -> Vec<(String, String)> {
    let requests = scene.sandbox.requests().into_iter().filter(|request| is_import(&request.path));
    requests.map(|request| (request.path, request.body_sha256)).collect()
}

/// Verifies with all bodies. Returns how many bodies were proven and how many were not provable.
async fn bodies(scene: &TestEnv) -> (usize, usize) {
    let proof = proof(scene, true).await;
    assert!(proof.iter().all(|entity| entity.findings.is_empty()), "{proof:?}");
    let sum = |count: fn(&elven_sync::audit::EntityProof) -> usize| proof.iter().map(count).sum();
    (sum(|entity| entity.bodies_proven), sum(|entity| entity.bodies_not_provable))
}

#[sqlx::test(migrations = false)]
async fn records_of_version_4_name_the_pinned_source(pool: PgPool) {
    let scene = scene(pool, "4").await;
    register(&scene, "acme", Some(SOURCE)).await;
    register(&scene, "beta", Some(OTHER_SOURCE)).await;
    insert(&scene, "acme", 1, 1).await;
    assert_eq!(scene.run().await.status, RunStatus::Succeeded);
    let body = r#"[{"entityAccountId":"acme-1","sourceId":"test-source","symbol":"BTC","datetime":"2024-01-01 00:00:00","balance":1}]"#;
    assert_eq!(imports(&scene), [(PATH.to_owned(), hex::encode(Sha256::digest(body)))]);
    insert(&scene, "beta", 1, 2).await;
    assert_eq!(scene.run().await.status, RunStatus::Succeeded);
    let expected =
        ["acme-1 symbol=BTC test-source", "beta-1 symbol=BTC other-source", "beta-2 symbol=BTC other-source"];
    assert_eq!(received(&scene), expected);
    assert_eq!(scene.sandbox.sources_made_by_imports(), 0);
    assert_eq!(scene.text(BATCHES).await, "1 accepted 4 test-source,2 accepted 4 other-source");
    assert_eq!(bodies(&scene).await, (2, 0));
    let traced = output_of(&scene, 0, &["status", "--row", "1"]).await;
    assert!(traced.contains(&body[1..body.len() - 1]), "{traced}");
    output_of(&scene, 0, &["backfill", "--from", "2024-01-01", "--to", "2024-01-02"]).await;
    assert_eq!(received(&scene).len(), 6);
    assert_eq!(scene.sandbox.sources_made_by_imports(), 0);
}

#[sqlx::test(migrations = false)]
async fn without_a_pinned_source_nothing_is_sent_and_other_entities_go_on(pool: PgPool) {
    let scene = scene(pool, "4").await;
    register(&scene, "acme", None).await;
    register(&scene, "beta", Some(SOURCE)).await;
    register(&scene, "gamma", Some(" ")).await;
    for entity in ["acme", "beta", "gamma"] {
        insert(&scene, entity, 1, 2).await;
    }
    let rehearsed = output_of(&scene, 3, &["run", "--dry-run"]).await;
    assert!(rehearsed.contains("entity `acme` has no source"), "{rehearsed}");
    let text = output_of(&scene, 3, &["run"]).await;
    let hint = "hint: elven-sync entity set --source-id 'ID' 'acme', with an ID that `elven-sync reference sources` lists";
    assert!(
        text.contains("version 4 of the API would create a new source with each import")
            && text.contains(hint),
        "{text}"
    );
    assert_eq!(received(&scene), ["beta-1 symbol=BTC test-source", "beta-2 symbol=BTC test-source"]);
    assert_eq!(scene.text(OPEN).await, "acme config,gamma config");
    let health = output_of(&scene, 3, &["status"]).await;
    assert!(health.contains("failing") && health.contains("entity `acme` has no source"), "{health}");
    let backfill = ["backfill", "--from", "2024-01-01", "--to", "2024-01-02", "--entity", "acme"];
    let refused = output_of(&scene, 1, &backfill).await;
    assert!(refused.contains("has no source"), "{refused}");
    assert_eq!(imports(&scene).len(), 1, "nothing was sent for the others");

    set_source(&scene, "acme", SOURCE).await;
    set_source(&scene, "gamma", OTHER_SOURCE).await;
    output_of(&scene, 0, &["run"]).await;
    assert_eq!(received(&scene).len(), 6);
    assert_eq!(scene.text(OPEN).await, "");
    assert_eq!(scene.sandbox.sources_made_by_imports(), 0);
    assert!(
        scene
            .text("select mapping::text from elven_sync.sync_state limit 1")
            .await
            .contains("\"api_version\": 4")
    );
}

#[sqlx::test(migrations = false)]
async fn another_version_is_refused_until_a_person_accepts_it(pool: PgPool) {
    let mut scene = scene(pool, "3").await;
    register(&scene, "acme", Some(SOURCE)).await;
    insert(&scene, "acme", 1, 2).await;
    scene.run().await;
    assert_eq!(scene.text(BATCHES).await, "1 accepted 3", "a source has no meaning in version 3");
    // As a program has left it that did not record versions.
    insert(&scene, "acme", 3, 4).await;
    scene.run().await;
    scene.sql("update elven_sync.sync_batches set api_version = null where batch_id = 1").await;
    scene.forget_digests().await;
    scene.set(VERSION, "4");
    insert(&scene, "acme", 5, 6).await;
    let refused = output_of(&scene, 1, &["run"]).await;
    assert!(refused.contains("the API version was 3, now 4"), "{refused}");
    assert_eq!((scene.text(OPEN).await, imports(&scene).len()), ("acme watermark".to_owned(), 2));
    let rebind = ["entity", "rebind", "acme", "--mapping", "--reason", "version 4"];
    output_of(&scene, 1, &rebind).await;
    output_of(&scene, 0, &[&rebind[..], &["--yes"]].concat()).await;
    output_of(&scene, 0, &["run"]).await;
    assert_eq!(scene.text(BATCHES).await, "1 accepted none,2 accepted 3,3 accepted 4 test-source");
    let records = received(&scene);
    assert_eq!(records[0], "acme-1 currency=BTC none");
    assert_eq!(records[5], "acme-6 symbol=BTC test-source");
    // Each body is rebuilt for its own version, and for its own source.
    set_source(&scene, "acme", OTHER_SOURCE).await;
    assert_eq!(bodies(&scene).await, (3, 0));
    scene.sql("update elven_sync.sync_batches set source_id = 'x' where batch_id = 3").await;
    let altered = proof(&scene, true).await;
    assert_eq!(altered[0].findings[0].what, "body", "{altered:?}");
    scene.sql("update elven_sync.sync_batches set source_id = 'test-source' where batch_id = 3").await;
    // And back.
    scene.set(VERSION, "3");
    output_of(&scene, 0, &[&rebind[..], &["--yes"]].concat()).await;
    insert(&scene, "acme", 7, 7).await;
    output_of(&scene, 0, &["run"]).await;
    assert_eq!(imports(&scene)[3].0, "/open/v3/account/treasuryBalance");
    assert_eq!(bodies(&scene).await, (4, 0));
}

#[sqlx::test(migrations = false)]
async fn a_batch_whose_answer_was_lost_keeps_its_bytes_and_its_source(pool: PgPool) {
    let scene = scene(pool, "4").await;
    register(&scene, "acme", Some(SOURCE)).await;
    insert(&scene, "acme", 1, 3).await;
    scene.sandbox.set_rules(fault_rules(&["answer-lost@once:1"]));
    assert_eq!(scene.run().await.status, RunStatus::Failed);
    let said = set_source(&scene, "acme", OTHER_SOURCE).await;
    assert!(said.contains("records that were uploaded before stay at Elven as they are"), "{said}");
    insert(&scene, "acme", 4, 4).await;
    let run = scene.output(&["run"]).await;
    assert!(run.status.success(), "{}", stderr(&run));
    let warning = "it is sent again for version 4 with source `test-source`, for which it was made; other batches are \
                   made for version 4 with source `other-source` now";
    assert!(stderr(&run).contains(warning) && stderr(&run).contains("same_bytes=true"), "{}", stderr(&run));
    let imports = imports(&scene);
    assert_eq!(imports[0], imports[1], "the same path and the same bytes");
    assert_eq!(scene.text(BATCHES).await, "1 accepted 4 test-source,2 accepted 4 other-source");
    assert_eq!(received(&scene).last().unwrap(), "acme-4 symbol=BTC other-source");
    assert_eq!(bodies(&scene).await, (2, 0));
}

/// Nothing of a refused batch is at Elven, and the source may be why it was refused.
#[sqlx::test(migrations = false)]
async fn rows_that_were_refused_are_sent_under_the_corrected_source(pool: PgPool) {
    let mut scene = scene(pool, "4").await;
    scene.set("ELVEN_SYNC_SYNC__MAX_REJECTIONS", "1");
    register(&scene, "acme", Some("no-such-source")).await;
    insert(&scene, "acme", 1, 8).await;
    let text = output_of(&scene, 1, &["run"]).await;
    assert!(text.contains("FAILED"), "{text}");
    assert_eq!(scene.text(OPEN).await, "acme rejected_row,acme rejected_batch");
    let shown = output_of(&scene, 0, &["errors", "list", "--rows"]).await;
    assert!(shown.contains("no-such-source"), "{shown}");
    set_source(&scene, "acme", SOURCE).await;
    output_of(&scene, 0, &["run"]).await;
    assert_eq!(received(&scene).len(), 7, "the rest of the open pass");
    output_of(&scene, 0, &["errors", "retry"]).await;
    assert_eq!(received(&scene).len(), 8);
    assert!(received(&scene).iter().all(|record| record.ends_with(" test-source")));
    assert_eq!(scene.text(OPEN).await, "");
    bodies(&scene).await;
}

#[sqlx::test(migrations = false)]
async fn a_ledger_of_asset_ids_is_sent_as_asset_ids(pool: PgPool) {
    let mut scene = scene(pool, "4").await;
    scene.set("ELVEN_SYNC_LEDGER__CURRENCY_KIND", "asset_id");
    register(&scene, "acme", Some(SOURCE)).await;
    insert(&scene, "acme", 1, 1).await;
    scene.run().await;
    assert_eq!(received(&scene), ["acme-1 assetID=BTC test-source"]);
    assert_eq!(bodies(&scene).await, (1, 0));
    let kind = "select mapping->>'currency_kind' from elven_sync.sync_state";
    assert_eq!(scene.text(kind).await, "asset_id");
    // An error of one cause does not differ by the asset.
    scene.sandbox.set_rules(fault_rules(&["reject:currency=BTC"]));
    insert(&scene, "acme", 2, 2).await;
    scene.run().await;
    let record =
        scene.text("select record::text from elven_sync.sync_errors where resolved_at is null").await;
    assert!(record.contains(r#""assetID": "BTC""#), "{record}");
    let cause = "select elven_sync.error_cause('no such asset \"BTC\"', record, ledger_id) from elven_sync.sync_errors";
    assert_eq!(scene.text(cause).await, "no such asset \"<currency>\"");
    scene.unset("ELVEN_SYNC_LEDGER__CURRENCY_KIND");
    insert(&scene, "acme", 3, 3).await;
    let refused = output_of(&scene, 1, &["run"]).await;
    assert!(refused.contains("currency_kind was asset_id, now symbol"), "{refused}");
}

#[sqlx::test(migrations = false)]
async fn the_map_of_a_currency_says_what_its_name_is(pool: PgPool) {
    let scene = scene(pool, "4").await;
    register(&scene, "acme", Some(SOURCE)).await;
    let map = ["map", "currency", "bitcoin", "BTC"];
    output_of(&scene, 0, &[&map[..], &["--kind", "asset_id"]].concat()).await;
    let insert =
        "insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
                  values ('acme', 'a', 'bitcoin', '2024-01-01Z', 1), ('acme', 'b', 'ETH', '2024-01-01Z', 1)";
    scene.sql(insert).await;
    assert_eq!(scene.run().await.status, RunStatus::Succeeded);
    assert_eq!(received(&scene), ["a assetID=BTC test-source", "b symbol=ETH test-source"]);
    let listed = output_of(&scene, 0, &["map", "list"]).await;
    assert!(listed.contains("asset_id"), "{listed}");
    let said = output_of(&scene, 0, &[&map[..], &["--kind", "asset_id"]].concat()).await;
    assert!(said.contains("already"), "{said}");
    let said = output_of(&scene, 0, &map).await;
    assert!(said.contains("which is what [ledger] currency_kind says now"), "{said}");
    scene.sql("update ledger.balance_snapshots set balance = 2 where entity_account_id = 'b'").await;
    scene.sql("insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
               values ('acme', 'c', 'bitcoin', '2024-01-01Z', 1)").await;
    scene.run().await;
    assert!(received(&scene).contains(&"c symbol=BTC test-source".to_owned()));
    let proof = proof(&scene, true).await;
    assert_eq!((proof[0].findings.len(), proof[0].bodies_changed, proof[0].bodies_proven), (0, 1, 1));
}

#[sqlx::test(migrations = false)]
async fn the_source_of_an_entity_is_set_changed_and_removed(pool: PgPool) {
    let scene = scene(pool, "3").await;
    let added = ["entity", "add", "acme", "--timezone", "UTC", "--source-id", "s-1"];
    output_of(&scene, 0, &added).await;
    output_of(&scene, 0, &added).await;
    let other = ["entity", "add", "acme", "--timezone", "UTC", "--source-id", "s-2"];
    let refused = output_of(&scene, 1, &other).await;
    assert!(refused.contains("already registered with source `s-1`"), "{refused}");
    let said = set_source(&scene, "acme", "s-2").await;
    assert!(
        said.contains("entity `acme` has source `s-2` now") && said.contains("version 3 is configured"),
        "{said}"
    );
    assert!(set_source(&scene, "acme", "s-2").await.contains("nothing was changed"));
    let listed = output_of(&scene, 0, &["entity", "list"]).await;
    assert!(listed.contains("s-2"), "{listed}");
    set_source(&scene, "acme", "").await;
    assert_eq!(scene.text("select source_id from elven_sync.entities").await, "NULL");
    for wrong in [" ", "a\u{7}"] {
        let refused = output_of(&scene, 1, &["entity", "set", "acme", "--source-id", wrong]).await;
        assert!(refused.contains("the id of the source"), "{refused}");
    }
    let refused = output_of(&scene, 1, &["entity", "set", "acne", "--source-id", "s"]).await;
    assert!(refused.contains("did you mean `acme`"), "{refused}");
    output_of(&scene, 2, &["entity", "set", "acme"]).await;
    let actions =
        "select string_agg(concat_ws(' ', action, details->'source_id'->>'now'), ',' order by action_id)
                     from elven_sync.sync_actions where action = 'entity_set'";
    assert_eq!(scene.text(actions).await, "entity_set s-2,entity_set");
}

#[sqlx::test(migrations = false)]
async fn sources_at_elven_are_listed_with_the_entities_that_have_them(pool: PgPool) {
    let mut scene = scene(pool, "4").await;
    let none = output_of(&scene, 0, &["reference", "sources"]).await;
    assert!(none.contains("no entity is registered"), "{none}");
    register(&scene, "acme", Some(SOURCE)).await;
    register(&scene, "beta", None).await;
    register(&scene, "gamma", Some("gone")).await;
    let text = output_of(&scene, 0, &["reference", "sources"]).await;
    for expected in [
        "test-source",
        "OPENAPI_BALANCE",
        "entity `beta` has no source; hint: elven-sync entity set --source-id 'ID' 'beta'",
        "entity `gamma` has source `gone`, which is not listed",
    ] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
    let output = scene.output(&["reference", "sources", "--entity", "acme", "--json"]).await;
    let listed: Value = serde_json::from_str(&stdout(&output)).unwrap();
    let source = |id: &str, entities: &[&str]| json!({"source_id": id, "name": id, "type": "OPENAPI_BALANCE", "entities": entities});
    let sources = [source(OTHER_SOURCE, &[]), source(SOURCE, &["acme"])];
    assert_eq!(
        listed,
        json!({"credentials": [{"credential": "default", "sources": sources, "problem": null}]})
    );
    let unknown = output_of(&scene, 1, &["reference", "sources", "--entity", "acne"]).await;
    assert!(unknown.contains("did you mean `acme`"), "{unknown}");
    scene.sandbox.set_rules(fault_rules(&["forbidden"]));
    let refused = output_of(&scene, 1, &["reference", "sources"]).await;
    assert!(refused.contains("allow the key at Elven to call GET /open/v3/transaction/source"), "{refused}");
    scene.unset("ELVEN_API_KEY");
    let missing = output_of(&scene, 1, &["reference", "sources"]).await;
    assert!(missing.contains("ELVEN_API_KEY"), "{missing}");
    assert_eq!(scene.sandbox.sources_made_by_imports(), 0);
}

#[sqlx::test(migrations = false)]
async fn an_installation_without_a_source_is_told_how_to_create_one(pool: PgPool) {
    let mut scene = scene(pool, "4").await;
    register(&scene, "acme", None).await;
    let body = json!({"status": "success", "data": {"list": []}}).to_string();
    let empty = move |_: &StubRequest| StubResponse { body: body.clone(), ..respond(200) };
    let _api = Stub::of(&mut scene, empty).await;
    let text = output_of(&scene, 0, &["reference", "sources"]).await;
    assert!(
        text.contains("Elven lists no source for balances") && text.contains("docs/delivery.md"),
        "{text}"
    );
}

/// The documented request, as a person pastes it.
#[sqlx::test(migrations = false)]
async fn the_documented_request_creates_a_source_that_can_be_pinned(pool: PgPool) {
    let scene = scene(pool, "4").await;
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/delivery.md")).unwrap();
    let request = page.split("```sh").find(|block| block.contains("curl -s -X POST")).unwrap();
    let request = request.split("```").next().unwrap();
    let has = |program: &str| std::process::Command::new(program).arg("--version").output().is_ok();
    if !has("curl") || !has("openssl") {
        println!("NOT TESTED: this machine has no curl or no openssl");
        return;
    }
    let mut shell = tokio::process::Command::new("sh");
    let variables = [("ELVEN_API_URL", scene.sandbox.url()), ("ELVEN_API_KEY", KEY.to_owned())];
    shell.args(["-ec", request]).envs(variables).env("ELVEN_API_SECRET", SECRET).env("no_proxy", "*");
    let answer = stdout(&shell.output().await.unwrap());
    assert_eq!(answer, r#"{"sourceId":"source-1"}"#);
    register(&scene, "acme", None).await;
    let listed = output_of(&scene, 0, &["reference", "sources"]).await;
    assert!(listed.contains("source-1") && listed.contains("elven-sync"), "{listed}");
    set_source(&scene, "acme", "source-1").await;
    insert(&scene, "acme", 1, 1).await;
    assert_eq!(scene.run().await.status, RunStatus::Succeeded);
    assert_eq!(received(&scene), ["acme-1 symbol=BTC source-1"]);
}

#[sqlx::test(migrations = false)]
async fn wrong_settings_of_the_version_are_named(pool: PgPool) {
    let mut scene = scene(pool, "5").await;
    let refused = output_of(&scene, 1, &["status"]).await;
    assert!(refused.contains("ELVEN_SYNC_API__VERSION") && refused.contains("expected 3 or 4"), "{refused}");
    scene.set(VERSION, "3");
    scene.set("ELVEN_SYNC_LEDGER__CURRENCY_KIND", "asset_id");
    let refused = output_of(&scene, 1, &["status"]).await;
    assert!(
        refused.contains("ELVEN_SYNC_LEDGER__CURRENCY_KIND") && refused.contains("needs [api] version = 4"),
        "{refused}"
    );
    scene.unset(VERSION);
    scene.unset("ELVEN_SYNC_LEDGER__CURRENCY_KIND");
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("elven-sync.toml");
    scene.set("ELVEN_SYNC_CONFIG", file.to_str().unwrap());
    for (text, expected) in [
        ("[api]\nversion = 2\n", "line 2: [api] version: the value cannot be used; expected 3 or 4"),
        ("[api]\nversion = true\n", "line 2: [api] version"),
        ("[ledger]\ncurrency_kind = \"id\"\n", "line 2: [ledger] currency_kind"),
    ] {
        std::fs::write(&file, text).unwrap();
        let refused = output_of(&scene, 1, &["status"]).await;
        assert!(refused.contains(expected), "{expected}: {refused}");
    }
    std::fs::write(&file, "[api]\nversion = 4\n[ledger]\ncurrency_kind = \"asset_id\"\n").unwrap();
    output_of(&scene, 0, &["status"]).await;
}
