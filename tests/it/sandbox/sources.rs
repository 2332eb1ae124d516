//! Version 4 of the import, and its sources.

use elven_sync::sandbox::{Answers, Options, SourceType};
use reqwest::Method;

use super::{Bench, options, parse, refused};

const IMPORT_V4: &str = "/open/v4/account/treasuryBalance";
const SOURCES: &str = "/open/v3/transaction/source";

fn record(fields: &str) -> String {
    format!(r#"{{"entityAccountId":"a",{fields}"datetime":"2023-01-01 01:01:01","balance":10.50}}"#)
}

impl Bench {
    async fn import_v4(&self, body: String) -> reqwest::Response {
        self.signed(Method::POST, IMPORT_V4).body(body).send().await.unwrap()
    }

    async fn create(&self, body: &'static str) -> reqwest::Response {
        self.signed(Method::POST, SOURCES).body(body).send().await.unwrap()
    }
}

#[tokio::test]
async fn a_source_is_created_listed_and_imported_to() {
    let bench = Bench::start(options()).await;
    let made = parse(bench.create(r#"{"name":"ledger","type":"OPENAPI_BALANCE"}"#).await).await;
    assert_eq!(made["sourceId"], "source-1");
    assert_eq!(
        refused(bench.create(r#"{"name":"ledger","type":"OPENAPI_BALANCE"}"#).await, 400).await,
        40016
    );
    assert_eq!(parse(bench.create(r#"{"name":"transactions"}"#).await).await["sourceId"], "source-2");
    let listed = bench.get(&format!("{SOURCES}?type=OPENAPI_BALANCE")).await;
    let ledger = serde_json::json!({"sourceId": "source-1", "name": "ledger", "type": "OPENAPI_BALANCE"});
    assert_eq!(listed, serde_json::json!({"total": 1, "list": [ledger]}));

    let body = format!("[{}]", record(r#""sourceId":"source-1","symbol":"BTC","assetID":"ETH","#));
    assert_eq!(bench.import_v4(body).await.status(), 200);
    let received = bench.sandbox.received();
    let kept = (&*received[0].currency, received[0].currency_field, received[0].source_id.as_deref());
    assert_eq!(kept, ("ETH", "assetID", Some("source-1")), "assetID decides");
    for id in ["source-2", "source-9"] {
        let body = format!("[{}]", record(&format!(r#""sourceId":"{id}","symbol":"BTC","#)));
        assert_eq!(refused(bench.import_v4(body).await, 400).await, 40015, "{id} is no source for balances");
    }
    assert_eq!(bench.sandbox.sources_made_by_imports(), 0);
    let response = bench.signed(Method::DELETE, SOURCES).send().await.unwrap();
    assert_eq!(response.headers()["allow"], "GET, POST");
    assert_eq!(refused(response, 405).await, 40501);
}

#[tokio::test]
async fn an_import_that_names_no_source_creates_one_which_is_counted() {
    let options = Options { answers: Answers::Wrapped, sources: ["pinned".to_owned()].into(), ..options() };
    let bench = Bench::start(options).await;
    let without = record(r#""symbol":"BTC","#);
    let pinned = record(r#""sourceId":"pinned","symbol":"BTC","#);
    for _ in 0..2 {
        assert_eq!(bench.import_v4(format!("[{without},{without},{pinned}]")).await.status(), 200);
    }
    assert_eq!(bench.import_v4(format!("[{pinned}]")).await.status(), 200);
    assert_eq!(bench.import_v4("[{}]".to_owned()).await.status(), 400);
    assert_eq!(bench.sandbox.sources_made_by_imports(), 2);
    let sources: Vec<_> = bench
        .sandbox
        .sources()
        .into_iter()
        .map(|source| (source.source_id, source.kind, source.made_by_import))
        .collect();
    let made = |id: &str, by_import| (id.to_owned(), SourceType::Balance, by_import);
    assert_eq!(sources, [made("pinned", false), made("source-1", true), made("source-2", true)]);
    let of_records: Vec<_> =
        bench.sandbox.received().into_iter().filter_map(|record| record.source_id).collect();
    assert_eq!(of_records, ["source-1", "source-1", "pinned", "source-2", "source-2", "pinned", "pinned"]);
    let page = bench.bare(Method::GET, "/sandbox").send().await.unwrap().text().await.unwrap();
    assert!(page.contains("<dd>2</dd><dt>sources created by imports without a sourceId</dt>"), "{page}");
    let listed = bench.bare(Method::GET, "/sandbox/sources?limit=1").send().await.unwrap();
    assert_eq!(parse(listed).await[0]["sourceId"], "source-2");
    let wrapped = parse(bench.create(r#"{"name":"x"}"#).await).await;
    assert_eq!(wrapped["data"]["sourceId"], "source-3");
}
