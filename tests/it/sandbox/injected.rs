//! Faults that a test injects.

use chrono::Utc;
use elven_sync::elven::signing::{KEY_HEADER, SIGN_HEADER, TIMESTAMP_HEADER, sign};
use elven_sync::sandbox::{Fault, Gate, Options};
use reqwest::{Method, StatusCode};
use tokio::time::timeout;

use super::{Bench, DEADLINE, GOOD, credential, options, refused};
use crate::support::IMPORT;

#[tokio::test]
async fn injected_answer_replaces_the_next_import() {
    let bench = Bench::start(options()).await;
    let headers = vec![("retry-after".to_owned(), "2".to_owned())];
    bench.sandbox.inject(Fault::Answer { status: 429, body: "slow down".to_owned(), headers });
    bench.get("/open/v3/currency").await;

    let response = bench.import(GOOD).await;
    assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(response.headers()["retry-after"], "2");
    assert_eq!(response.text().await.unwrap(), "slow down");
    assert_eq!(bench.sandbox.records_accepted(), 0);
    assert_eq!(bench.sandbox.requests()[1].fault.as_deref(), Some("Answer"));

    assert_eq!(bench.import(GOOD).await.status(), 200, "it happens once");
}

#[tokio::test]
async fn injected_faults_apply_in_order_and_only_where_possible() {
    let bench = Bench::start(options()).await;
    bench.sandbox.inject(Fault::FailAfterWrite { status: 502 });
    bench.sandbox.inject(Fault::Answer { status: 503, body: String::new(), headers: Vec::new() });

    assert_eq!(bench.import("[]").await.status(), 400, "nothing was kept, so no answer can be lost");
    let lost = bench.import(GOOD).await;
    assert_eq!(lost.status(), 502);
    assert_eq!(lost.text().await.unwrap(), "");
    assert_eq!(bench.sandbox.received().len(), 2);
    assert_eq!(bench.import("[]").await.status(), 503, "an answer is given to whatever comes");
    assert_eq!(bench.import(GOOD).await.status(), 200);
    let statuses: Vec<_> =
        bench.sandbox.requests().iter().map(|request| (request.status, request.records)).collect();
    assert_eq!(statuses, [(Some(400), 0), (Some(502), 2), (Some(503), 0), (Some(200), 2)]);
}

#[tokio::test]
async fn impossible_answer_is_reported() {
    let bench = Bench::start(options()).await;
    bench.sandbox.inject(Fault::Answer { status: 99, body: String::new(), headers: Vec::new() });
    let response = bench.import(GOOD).await;
    assert_eq!(response.status(), 500);
    assert!(response.text().await.unwrap().starts_with("the sandbox cannot send this answer"));
}

/// Reads from the socket, since an HTTP client shows little of a cut connection.
#[tokio::test]
async fn cut_connection_carries_no_byte_of_an_answer() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    let bench = Bench::start(options()).await;
    bench.sandbox.inject(Fault::CutAfterWrite);
    let now_ms = Utc::now().timestamp_millis();
    let signature = sign(&credential().secret, now_ms, "POST", IMPORT);
    let request = format!(
        "POST {IMPORT} HTTP/1.1\r\nhost: sandbox\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\
         {KEY_HEADER}: the-key\r\n{TIMESTAMP_HEADER}: {now_ms}\r\n{SIGN_HEADER}: {signature}\r\n\r\n{GOOD}",
        GOOD.len()
    );
    let mut socket = tokio::net::TcpStream::connect(bench.sandbox.address()).await.unwrap();
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    timeout(DEADLINE, socket.read_to_end(&mut answer)).await.unwrap().unwrap();
    assert_eq!(String::from_utf8_lossy(&answer), "");
    assert_eq!(bench.sandbox.received().len(), 2);
    assert_eq!(bench.sandbox.requests()[0].status, None);

    // An HTTP client gets an error, also on a connection that worked before. Other connections are not affected.
    assert_eq!(bench.import(GOOD).await.status(), 200);
    bench.sandbox.inject(Fault::CutAfterWrite);
    let error = bench.signed(Method::POST, IMPORT).body(GOOD).send().await.unwrap_err();
    assert!(error.is_request() && !error.is_timeout() && !error.is_connect(), "{error:?}");
    assert_eq!(bench.sandbox.requests().len(), 3, "and it did not send the request again by itself");
    assert_eq!(bench.import(GOOD).await.status(), 200);
}

#[tokio::test]
async fn an_answer_is_held_until_the_gate_opens() {
    let bench = Bench::start(options()).await;
    let gate = Gate::new();
    bench.sandbox.inject(Fault::HoldResponse(gate.clone()));
    let held = tokio::spawn(bench.signed(Method::POST, IMPORT).body(GOOD).send());

    timeout(DEADLINE, gate.reached()).await.unwrap();
    assert_eq!(bench.sandbox.received().len(), 2, "kept before it is answered");
    assert_eq!(bench.import(GOOD).await.status(), 200, "others are not held");
    assert!(!held.is_finished());
    gate.open();
    assert_eq!(held.await.unwrap().unwrap().status(), 200);
}

#[tokio::test]
async fn stopped_sandbox_closes_connections_and_frees_its_port() {
    let bench = Bench::start(options()).await;
    let gate = Gate::new();
    bench.sandbox.inject(Fault::HoldResponse(gate.clone()));
    let held = tokio::spawn(bench.signed(Method::POST, IMPORT).body(GOOD).send());
    timeout(DEADLINE, gate.reached()).await.unwrap();

    let address = bench.sandbox.address();
    timeout(DEADLINE, bench.sandbox.stop()).await.unwrap();
    let error = held.await.unwrap().unwrap_err();
    assert!(!error.is_timeout(), "{error:?}");
    let again = Bench::start(Options { listen: address, ..options() }).await;
    assert_eq!(again.import(GOOD).await.status(), 200);
    drop(again.sandbox);
    let refused = again.client.get(format!("http://{address}/sandbox")).send();
    assert!(timeout(DEADLINE, refused).await.unwrap().is_err());
}

#[tokio::test]
async fn a_lax_sandbox_counts_and_keeps_nothing() {
    let bench = Bench::start(Options { lax: true, ..options() }).await;
    assert_eq!(bench.import("[1,2,3]").await.status(), 200);
    assert_eq!(bench.sandbox.records_accepted(), 3);
    assert!(bench.sandbox.received().is_empty());
    assert_eq!(refused(bench.import(format!("[{}1]", "1,".repeat(1000))).await, 400).await, 40003);
    let unsigned = bench.bare(Method::POST, IMPORT).body("[1]").send().await.unwrap();
    assert_eq!(refused(unsigned, 401).await, 40101);
}
