//! The sandbox over real HTTP: it has to refuse what the API refuses, or a test against it proves nothing.

#![expect(clippy::unwrap_used, reason = "the helpers are test code too, outside of #[test] functions")]

mod injected;
mod sources;

use std::{collections::BTreeSet, time::Duration};

use chrono::{DateTime, TimeDelta, Utc};
use elven_sync::{
    elven::signing::{KEY_HEADER, SIGN_HEADER, TIMESTAMP_HEADER, sign},
    sandbox::{Credential, Options, Sandbox},
};
use reqwest::{Client, Method, RequestBuilder, Response, header::CONTENT_TYPE};
use serde_json::Value;

use crate::support::IMPORT;

pub const GOOD: &str = r#"[{"entityAccountId":"accountId123","currency":"BTC","datetime":"2023-01-01 01:01:01","balance":10.5},{"entityAccountId":"accountId456","currency":"ETH","datetime":"2023-01-02 02:02:02","balance":0.000000000000000001}]"#;
/// Every operation here should take less than a tenth of this.
const DEADLINE: Duration = Duration::from_secs(10);

fn credential() -> Credential {
    Credential::new("acme", "the-key", "the-secret")
}

pub fn options() -> Options {
    Options { credentials: vec![credential()], ..Options::default() }
}

/// A sandbox and a client that signs as `acme`.
pub struct Bench {
    pub sandbox: Sandbox,
    client: Client,
}

impl Bench {
    pub async fn start(options: Options) -> Self {
        // The second installation fails, and the first one is used.
        rustls::crypto::ring::default_provider().install_default().ok();
        let client = Client::builder().no_proxy().timeout(DEADLINE).build().unwrap();
        Self { sandbox: Sandbox::start(options).await.unwrap(), client }
    }

    /// Builds a request without the headers of the API.
    fn bare(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("{}{path}", self.sandbox.url()))
    }

    pub fn signed_at(&self, method: Method, path: &str, timestamp_ms: i64) -> RequestBuilder {
        let signature = sign(&credential().secret, timestamp_ms, method.as_str(), path);
        self.bare(method, path)
            .header(KEY_HEADER, "the-key")
            .header(TIMESTAMP_HEADER, timestamp_ms)
            .header(SIGN_HEADER, signature)
            .header(CONTENT_TYPE, "application/json")
    }

    pub fn signed(&self, method: Method, path: &str) -> RequestBuilder {
        self.signed_at(method, path, Utc::now().timestamp_millis())
    }

    pub async fn import(&self, body: impl Into<reqwest::Body>) -> Response {
        self.signed(Method::POST, IMPORT).body(body).send().await.unwrap()
    }

    pub async fn get(&self, path: &str) -> Value {
        let response = self.signed(Method::GET, path).send().await.unwrap();
        assert_eq!(response.status(), 200, "{path}");
        parse(response).await
    }
}

pub async fn parse(response: Response) -> Value {
    serde_json::from_str(&response.text().await.unwrap()).unwrap()
}

/// Asserts the documented failure body and returns its code.
pub async fn refused(response: Response, status: u16) -> u64 {
    assert_eq!(response.status(), status);
    assert_eq!(response.headers()[CONTENT_TYPE], "application/json");
    assert!(response.headers().contains_key("date"));
    let body = parse(response).await;
    assert_eq!(body["status"], "failed", "{body}");
    assert!(body["data"]["message"].is_string(), "{body}");
    body["data"]["code"].as_u64().unwrap()
}

#[tokio::test]
async fn import_is_accepted_and_stored_unchanged() {
    let bench = Bench::start(options()).await;
    let response = bench.import(GOOD).await;
    assert_eq!(response.status(), 200);
    assert!(response.headers().contains_key("date"));
    assert_eq!(response.text().await.unwrap(), r#"{"success":true}"#);
    bench.import(GOOD).await;

    let received = bench.sandbox.received();
    let balances: Vec<_> = received.iter().map(|record| (record.request, &*record.balance)).collect();
    assert_eq!(
        balances,
        [(1, "10.5"), (1, "0.000000000000000001"), (2, "10.5"), (2, "0.000000000000000001")]
    );
    assert_eq!(received[0].entity_account_id, "accountId123");
    assert_eq!(received[0].currency, "BTC");
    assert_eq!(received[0].datetime, "2023-01-01 01:01:01");
    assert_eq!(received[0].credential, "acme");
    assert_eq!(bench.sandbox.records_accepted(), 4);

    let requests = bench.sandbox.requests();
    assert_eq!(requests.len(), 2);
    assert_eq!((requests[0].method.as_str(), requests[0].path.as_str()), ("POST", IMPORT));
    assert_eq!(requests[0].status, Some(200));
    assert_eq!(requests[0].records, 2);
    assert_eq!(requests[0].body_bytes, GOOD.len() as u64);
    // printf '%s' BODY | sha256sum
    assert_eq!(requests[0].body_sha256, "be07e7aa2a3157b0e3178be6547d4a15e3387e303e5adb06b85a2ff8fb50a4dd");
}

#[tokio::test]
async fn each_signature_failure_has_its_own_code() {
    let bench = Bench::start(options()).await;
    let now_ms = Utc::now().timestamp_millis();
    let post = |key: Option<&str>, timestamp_ms: i64, signature: &str| {
        let request = bench.bare(Method::POST, IMPORT).header(CONTENT_TYPE, "application/json").body(GOOD);
        let request = request.header(TIMESTAMP_HEADER, timestamp_ms).header(SIGN_HEADER, signature);
        match key {
            Some(key) => request.header(KEY_HEADER, key).send(),
            None => request.send(),
        }
    };
    let signature = |timestamp_ms, method, path| sign(&credential().secret, timestamp_ms, method, path);
    let good = signature(now_ms, "POST", IMPORT);

    let missing_key = post(None, now_ms, &good).await.unwrap();
    assert_eq!(refused(missing_key, 401).await, 40101);
    let no_header_at_all = bench.bare(Method::POST, IMPORT).body(GOOD).send().await.unwrap();
    assert_eq!(refused(no_header_at_all, 401).await, 40101);
    let unknown_key = post(Some("another-key"), now_ms, &good).await.unwrap();
    assert_eq!(refused(unknown_key, 401).await, 40102);
    let seconds = now_ms / 1000;
    for stale_ms in [now_ms - 40_000, now_ms + 40_000, seconds] {
        let response = post(Some("the-key"), stale_ms, &signature(stale_ms, "POST", IMPORT)).await.unwrap();
        assert_eq!(refused(response, 401).await, 40104, "{stale_ms}");
    }
    let other_secret = sign(&"another-secret".into(), now_ms, "POST", IMPORT);
    for wrong in [
        &other_secret,
        &signature(now_ms, "GET", IMPORT),
        &signature(now_ms, "post", IMPORT),
        &signature(now_ms, "POST", "/open/v3/currency"),
        &signature(now_ms, "POST", &bench.sandbox.url()),
        &signature(now_ms - 1, "POST", IMPORT),
        "not base64!",
    ] {
        let response = post(Some("the-key"), now_ms, wrong).await.unwrap();
        assert_eq!(refused(response, 401).await, 40105, "{wrong}");
    }
    assert_eq!(bench.sandbox.records_accepted(), 0);

    let requests = bench.sandbox.requests();
    assert!(requests.iter().all(|request| request.status == Some(401) && request.message.is_some()));
    assert_eq!(requests[2].credential, None, "an unknown key has no label");
    assert_eq!(requests[3].credential.as_deref(), Some("acme"));
    let shown = format!("{requests:?}");
    assert!(!shown.contains("the-key") && !shown.contains("another-key"), "{shown}");
    assert_eq!(post(Some("the-key"), now_ms, &good).await.unwrap().status(), 200, "the control");
}

#[tokio::test]
async fn signature_window_can_be_narrowed() {
    let bench = Bench::start(Options { signature_window: Duration::from_secs(5), ..options() }).await;
    let ten_seconds_ago = Utc::now().timestamp_millis() - 10_000;
    let response = bench.signed_at(Method::POST, IMPORT, ten_seconds_ago).body(GOOD).send().await.unwrap();
    assert_eq!(refused(response, 401).await, 40104);
}

#[tokio::test]
async fn clock_offset_shows_in_the_date_header() {
    let bench = Bench::start(Options { clock_ahead: TimeDelta::minutes(10), ..options() }).await;
    let response = bench.import(GOOD).await;
    let date = response.headers()["date"].to_str().unwrap().to_owned();
    assert_eq!(refused(response, 401).await, 40104);

    let theirs = DateTime::parse_from_rfc2822(&date).unwrap();
    let ahead_s = (theirs.to_utc() - Utc::now()).num_seconds();
    assert!((590..=601).contains(&ahead_s), "{date}");
    let corrected = bench.signed_at(Method::POST, IMPORT, theirs.timestamp_millis()).body(GOOD).send().await;
    assert_eq!(corrected.unwrap().status(), 200);
}

#[tokio::test]
async fn batch_with_one_bad_record_is_refused_whole() {
    let bench =
        Bench::start(Options { accounts: Some(["accountId123".to_owned()].into()), ..options() }).await;
    assert_eq!(refused(bench.import(GOOD).await, 400).await, 40006);
    assert_eq!(refused(bench.import("[]").await, 400).await, 40002);
    assert_eq!(refused(bench.import("{}").await, 400).await, 40001);
    assert_eq!(refused(bench.import("").await, 400).await, 40001);
    assert_eq!(refused(bench.import(GOOD.replace("10.5", "\"10.5\"")).await, 400).await, 40010);
    assert!(bench.sandbox.received().is_empty());
    let message = bench.sandbox.requests()[0].message.clone().unwrap();
    assert!(message.contains("record 1") && message.contains("accountId456"), "{message}");
}

#[tokio::test]
async fn body_must_have_a_json_content_type() {
    let bench = Bench::start(options()).await;
    for (content_type, status) in
        [("text/plain", 415), ("application/jsonp", 415), ("Application/JSON; charset=utf-8", 200)]
    {
        let mut request = bench.signed(Method::POST, IMPORT).body(GOOD).build().unwrap();
        request.headers_mut().insert(CONTENT_TYPE, content_type.parse().unwrap());
        assert_eq!(bench.client.execute(request).await.unwrap().status(), status, "{content_type}");
    }
}

#[tokio::test]
async fn a_body_over_the_limit_is_answered_413() {
    let bench = Bench::start(Options { body_bytes_max: GOOD.len(), ..options() }).await;
    assert_eq!(bench.import(GOOD).await.status(), 200, "the limit itself is allowed");
    assert_eq!(refused(bench.import(format!("{GOOD} ")).await, 413).await, 41301);
    // The body is still being sent when the limit is passed. The client still has to get the answer.
    let large = vec![b' '; 20_000_000];
    assert_eq!(refused(bench.import(large).await, 413).await, 41301);
    assert_eq!(bench.sandbox.records_accepted(), 2);
    assert_eq!(bench.sandbox.requests()[2].body_bytes, 20_000_000);
}

#[tokio::test]
async fn unknown_paths_and_methods() {
    let bench = Bench::start(options()).await;
    for path in ["/open/v5/account/treasuryBalance", "/open/v3/currency/", "/open/", "/nowhere"] {
        let response = bench.signed(Method::GET, path).send().await.unwrap();
        assert_eq!(refused(response, 404).await, 40401, "{path}");
    }
    for (method, path, allowed) in [
        (Method::GET, IMPORT, "POST"),
        (Method::PUT, IMPORT, "POST"),
        (Method::GET, "/open/v4/account/treasuryBalance", "POST"),
        (Method::POST, "/open/v3/currency", "GET"),
    ] {
        let response = bench.signed(method, path).send().await.unwrap();
        assert_eq!(response.headers()["allow"], allowed);
        assert_eq!(refused(response, 405).await, 40501, "{path}");
    }
}

#[tokio::test]
async fn currencies_are_listed_in_pages() {
    let currencies: BTreeSet<String> = (10..35).map(|number| format!("C{number}")).collect();
    let bench = Bench::start(Options { currencies, ..options() }).await;
    let symbols = |answer: &Value| -> Vec<String> {
        let list = answer["list"].as_array().unwrap();
        list.iter().map(|entry| entry["currency"].as_str().unwrap().to_owned()).collect()
    };

    let first = bench.get("/open/v3/currency").await;
    assert_eq!(first["total"], 25);
    assert_eq!(symbols(&first).len(), 10, "the documented default");
    assert_eq!(symbols(&first)[0], "C10");
    let third = bench.get("/open/v3/currency?page=3&limit=10").await;
    assert_eq!(symbols(&third), ["C30", "C31", "C32", "C33", "C34"]);
    assert!(symbols(&bench.get("/open/v3/currency?page=18446744073709551615&limit=1000").await).is_empty());
    let found = bench.get("/open/v3/currency?keyword=c2&limit=3").await;
    assert_eq!((found["total"].as_u64(), symbols(&found).len()), (Some(10), 3));

    for query in ["page=0", "limit=0", "limit=1001", "page=-1", "page=x"] {
        let response = bench.signed(Method::GET, &format!("/open/v3/currency?{query}")).send().await.unwrap();
        assert_eq!(refused(response, 400).await, 40011, "{query}");
    }
}

#[tokio::test]
async fn built_in_currencies_have_names_and_kinds() {
    let bench = Bench::start(options()).await;
    let found = bench.get("/open/v3/currency?keyword=Bitcoin").await;
    let entries = found["list"].as_array().unwrap();
    let bitcoin = entries.iter().find(|entry| entry["currency"] == "BTC").unwrap();
    assert_eq!(bitcoin.to_string(), r#"{"currency":"BTC","name":"Bitcoin","type":"CRYPTO"}"#);
    assert_eq!(bench.get("/open/v3/currency?keyword=Euro").await["list"][0]["type"], "FIAT");
}

#[tokio::test]
async fn the_query_is_part_of_the_signed_path() {
    let bench = Bench::start(options()).await;
    let path = "/open/v3/currency?page=1&limit=10&keyword=%41";
    bench.get(path).await;
    let now_ms = Utc::now().timestamp_millis();
    for signed in [
        "/open/v3/currency",
        "/open/v3/currency?limit=10&page=1&keyword=%41",
        "/open/v3/currency?page=1&limit=10&keyword=A",
    ] {
        let response = bench
            .bare(Method::GET, path)
            .header(KEY_HEADER, "the-key")
            .header(TIMESTAMP_HEADER, now_ms)
            .header(SIGN_HEADER, sign(&credential().secret, now_ms, "GET", signed))
            .send()
            .await
            .unwrap();
        assert_eq!(refused(response, 401).await, 40105, "{signed}");
    }
    assert_eq!(bench.sandbox.requests()[0].path, path);
}

#[tokio::test]
async fn account_list_has_the_configured_accounts() {
    let known =
        Bench::start(Options { accounts: Some(["b", "a"].map(String::from).into()), ..options() }).await;
    let answer = known.get("/open/v3/entityAccount?page=2&limit=1").await;
    assert_eq!(answer["total"], 2);
    assert_eq!(answer["list"][0]["entityAccountId"], "b");
    for field in ["name", "platformId", "identity", "memo"] {
        assert!(answer["list"][0][field].is_string(), "{field}");
    }

    // A sandbox that knows every account cannot list them.
    let every = Bench::start(options()).await;
    every.import(GOOD).await;
    assert_eq!(every.get("/open/v3/entityAccount").await["total"], 0);
}

#[tokio::test]
async fn received_records_are_shown() {
    let bench = Bench::start(options()).await;
    bench.import(GOOD.replace("accountId123", "<script>")).await;
    bench.import("[]").await;

    let page = bench.bare(Method::GET, "/").send().await.unwrap();
    assert!(page.url().path().ends_with("/sandbox"));
    assert_eq!(page.headers()[CONTENT_TYPE], "text/html; charset=utf-8");
    let page = page.text().await.unwrap();
    assert!(page.contains("&lt;script&gt;") && !page.contains("<script>"));
    assert!(page.contains("the array holds no record"));
    assert!(!page.contains("the-key") && !page.contains("the-secret"));

    let text = |path: &str| {
        let request = bench.bare(Method::GET, path);
        async { request.send().await.unwrap().text().await.unwrap() }
    };
    let all: Value = serde_json::from_str(&text("/sandbox/received").await).unwrap();
    assert_eq!(all.as_array().unwrap().len(), 2);
    assert_eq!(
        text("/sandbox/received?account=accountId456&limit=5").await,
        r#"[{"entityAccountId":"accountId456","currency":"ETH","datetime":"2023-01-02 02:02:02","balance":0.000000000000000001,"request":1,"credential":"acme"}]"#
    );
    let last: Value = serde_json::from_str(&text("/sandbox/requests?limit=1").await).unwrap();
    assert_eq!((last[0]["seq"].as_u64(), last[0]["status"].as_u64()), (Some(2), Some(400)));
}
