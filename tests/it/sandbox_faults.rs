//! The answers of the sandbox under each fault, and the records that it keeps.

use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use elven_sync::journal::RunStatus;
use elven_sync::sandbox::{Fault, Options};
use reqwest::header::CONTENT_TYPE;
use reqwest::{Client, Method};
use sqlx::PgPool;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

use crate::sandbox::{Bench, GOOD, options, parse, refused};
use crate::support::{IMPORT, TestEnv, eventually, fault_rules, stderr, stdout};

const LIST: &str = "/open/v3/entityAccount";

async fn bench(rules: &[&str]) -> Bench {
    Bench::start(Options { rules: fault_rules(rules), ..options() }).await
}

/// Returns the fault of each request so far.
fn faults(bench: &Bench) -> Vec<String> {
    bench.sandbox.requests().into_iter().map(|request| request.fault.unwrap_or_default()).collect()
}

#[tokio::test]
async fn each_fault_has_its_documented_answer_and_effect() {
    let (json, html) = (Some("application/json"), Some("text/html"));
    let bench = bench(&[]).await;
    let mut kept = 0;
    for (rule, status, content_type, keeps, lists_too) in [
        ("reject:account=accountId456", 400, json, false, false),
        ("reject:currency=ETH", 400, json, false, false),
        ("reject:success-false", 200, json, false, false),
        ("refuses-all", 400, json, false, true),
        ("body-limit=100B", 413, html, false, false),
        ("revoked", 401, json, false, true),
        ("forbidden", 403, json, false, true),
        ("firewall", 403, html, false, true),
        ("firewall:account=accountId456", 403, html, false, false),
        ("changed", 404, html, false, true),
        ("throttle", 429, json, false, true),
        ("unavailable", 503, html, false, true),
        ("error-500", 500, html, false, true),
        ("error-500-kept", 500, None, true, false),
        ("html-200", 200, html, false, true),
        ("html-502", 502, html, false, true),
        ("slow=1ms", 200, json, true, true),
    ] {
        bench.sandbox.set_rules(fault_rules(&[rule]));
        let response = bench.import(GOOD).await;
        assert_eq!(response.status(), status, "{rule}");
        assert_eq!(response.headers().get(CONTENT_TYPE).map(|value| value.to_str().unwrap()), content_type);
        assert!(!response.headers().contains_key("retry-after"), "{rule}");
        if status >= 400 && content_type == json {
            refused(response, status).await;
        } else {
            let body = response.text().await.unwrap();
            assert_eq!(body.contains("<html>"), content_type == html, "{rule}: {body}");
            assert!(!body.contains(r#""success":true"#) || keeps, "{rule}: {body}");
        }
        kept += if keeps { 2 } else { 0 };
        assert_eq!(bench.sandbox.records_accepted(), kept, "{rule}");

        let list = bench.signed(Method::GET, LIST).send().await.unwrap();
        assert_eq!(list.status(), if lists_too { status } else { 200 }, "{rule}");
        let name = rule.split('=').next().unwrap();
        let shown = faults(&bench);
        let expected = [name, if lists_too { name } else { "" }];
        assert_eq!(shown[shown.len() - 2..], expected, "{rule}");
    }
    bench.sandbox.set_rules(Vec::new());
    assert_eq!(bench.import(GOOD).await.status(), 200, "no rules, no faults");
}

#[tokio::test]
async fn repeated_record_is_known_by_its_account_currency_and_datetime() {
    let bench = bench(&["answer-lost@once:1", "reject:repeated"]).await;
    assert!(bench.signed(Method::POST, IMPORT).body(GOOD).send().await.is_err(), "the answer is lost");
    assert_eq!(refused(bench.import(GOOD.replace("10.5", "11")).await, 400).await, 40014);
    let one_is_new = GOOD.replace("accountId456", "X");
    assert_eq!(refused(bench.import(one_is_new).await, 400).await, 40014);
    assert_eq!(bench.sandbox.records_accepted(), 2);
    for (part, other) in [("accountId", "X"), ("2023", "2024")] {
        assert_eq!(bench.import(GOOD.replace(part, other)).await.status(), 200, "{other}");
    }
    let other_currencies = GOOD.replace("BTC", "CHF").replace("ETH", "EUR");
    assert_eq!(bench.import(other_currencies).await.status(), 200);
}

#[tokio::test]
async fn reject_rules_match_the_records_of_a_batch() {
    let bench = bench(&["reject:account=X", "reject:currency=EUR", "reject:negative"]).await;
    for (good, bad) in [("accountId456", "X"), ("ETH", "EUR"), ("10.5", "-10.5")] {
        let response = bench.import(GOOD.replace(good, bad)).await;
        assert_eq!(response.status(), 400, "{bad}");
        let message = parse(response).await["data"]["message"].as_str().unwrap().to_owned();
        assert!(!message.contains(bad), "the culprit has to be found without: {message}");
    }
    assert_eq!(bench.sandbox.records_accepted(), 0);
    assert_eq!(bench.import(GOOD).await.status(), 200);
    assert_eq!(faults(&bench), ["reject:account", "reject:currency", "reject:negative", ""]);
}

#[tokio::test]
async fn retry_after_is_a_number_or_a_date() {
    let bench = bench(&["throttle=1500ms@once:1", "unavailable=1m"]).await;
    let throttled = bench.import(GOOD).await;
    assert_eq!(
        (throttled.status().as_u16(), &throttled.headers()["retry-after"]),
        (429, &"2".parse().unwrap())
    );
    let unavailable = bench.import(GOOD).await;
    assert_eq!(unavailable.status(), 503);
    let until = DateTime::parse_from_rfc2822(unavailable.headers()["retry-after"].to_str().unwrap()).unwrap();
    assert!((58..=60).contains(&(until.to_utc() - Utc::now()).num_seconds()), "{until}");
}

#[tokio::test]
async fn cut_connection_hides_whether_records_were_kept() {
    let bench = bench(&[]).await;
    for (rule, kept, list_is_cut) in
        [("cut-before", 0, true), ("outage=1h", 0, true), ("answer-lost", 2, false)]
    {
        bench.sandbox.set_rules(fault_rules(&[rule]));
        let error = bench.signed(Method::POST, IMPORT).body(GOOD).send().await.unwrap_err();
        assert!(error.is_request() && !error.is_timeout() && !error.is_connect(), "{rule}: {error:?}");
        assert_eq!(bench.sandbox.records_accepted(), kept, "{rule}");
        assert_eq!(bench.sandbox.requests().last().unwrap().status, None);
        assert_eq!(bench.signed(Method::GET, LIST).send().await.is_err(), list_is_cut, "{rule}");
    }
}

/// The client has given up before the request arrives, as with a slow network. The signature is that of the original
/// request.
#[tokio::test]
async fn late_request_is_cut_and_checked_on_arrival() {
    for (window, status, kept) in [(Duration::from_secs(30), 200, 2), (Duration::from_millis(100), 401, 0)] {
        let rules = fault_rules(&["late=500ms@once:1"]);
        let bench = Bench::start(Options { rules, signature_window: window, ..options() }).await;
        let error = bench.signed(Method::POST, IMPORT).body(GOOD).send().await.unwrap_err();
        assert!(error.is_request() && !error.is_timeout() && !error.is_connect(), "{error:?}");
        let requests = bench.sandbox.requests();
        assert_eq!((requests.len(), requests[0].status, requests[0].records), (1, None, 0));
        eventually("it arrives", async || bench.sandbox.requests().len() == 2).await;
        let late = bench.sandbox.requests().pop().unwrap();
        assert_eq!((late.status, late.records), (Some(status), kept));
        assert_eq!(late.fault.as_deref(), Some("late, delivered"));
        assert_eq!(bench.sandbox.records_accepted(), kept);
    }
}

#[tokio::test]
async fn outage_starts_with_an_import_and_ends_on_time() {
    let bench = bench(&["outage=300ms"]).await;
    bench.get(LIST).await;
    let began = Instant::now();
    let is_over = async || bench.signed(Method::POST, IMPORT).body(GOOD).send().await.is_ok();
    eventually("the outage is over", is_over).await;
    assert!((Duration::from_millis(300)..Duration::from_secs(5)).contains(&began.elapsed()));
    assert_eq!(bench.sandbox.records_accepted(), 2);
}

#[tokio::test]
async fn followed_redirect_is_recorded() {
    let bench = bench(&["redirect"]).await;
    let visits =
        || bench.sandbox.requests().iter().filter(|request| request.path == "/open/redirected").count();
    let request = bench.signed(Method::POST, IMPORT).body(GOOD).build().unwrap();
    let careful = Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).build().unwrap();
    let response = careful.execute(request).await.unwrap();
    assert_eq!(
        (response.status().as_u16(), &response.headers()["location"]),
        (302, &"/open/redirected".parse().unwrap())
    );
    assert_eq!(visits(), 0);
    assert_eq!(bench.import(GOOD).await.status(), 404);
    assert_eq!((visits(), bench.sandbox.records_accepted()), (1, 0));
}

#[tokio::test]
async fn shifted_clock_refuses_requests_and_shows_its_time() {
    for (rule, off_s) in [("clock=+90s", 90), ("clock=-90s", -90)] {
        let bench = bench(&[rule]).await;
        let response = bench.import(GOOD).await;
        let date = DateTime::parse_from_rfc2822(response.headers()["date"].to_str().unwrap()).unwrap();
        assert_eq!(refused(response, 401).await, 40104);
        let ahead_s = (date.to_utc() - Utc::now()).num_seconds();
        assert!((off_s - 2..=off_s + 1).contains(&ahead_s), "{rule}: {date}");
        for (method, path) in [(Method::POST, IMPORT), (Method::GET, LIST)] {
            assert_eq!(bench.signed(method.clone(), path).body(GOOD).send().await.unwrap().status(), 401);
            let corrected = bench.signed_at(method, path, date.timestamp_millis()).body(GOOD);
            assert_eq!(corrected.send().await.unwrap().status(), 200, "{rule} {path}");
        }
        assert!(faults(&bench).iter().all(|fault| fault == "clock"));
    }
}

#[tokio::test]
async fn slow_delays_answers_and_combines_with_other_faults() {
    let bench = bench(&["slow=100ms", "throttle@once:2"]).await;
    for status in [200, 429] {
        let began = Instant::now();
        assert_eq!(bench.import(GOOD).await.status(), status);
        assert!(began.elapsed() >= Duration::from_millis(100));
    }
    assert_eq!(faults(&bench), ["slow", "slow, throttle"]);
    // A client with a short timeout was served too.
    bench.sandbox.set_rules(fault_rules(&["slow=1h"]));
    let impatient = bench.signed(Method::POST, IMPORT).body(GOOD).timeout(Duration::from_millis(200));
    assert!(impatient.send().await.unwrap_err().is_timeout());
    assert_eq!(bench.sandbox.records_accepted(), 4);
}

#[tokio::test]
async fn same_seed_faults_the_same_requests() {
    let struck = async |seed| {
        let rules = fault_rules(&["throttle@30%", "answer-lost@30%"]);
        let bench = Bench::start(Options { rules, seed, ..options() }).await;
        for _ in 0..30 {
            bench.signed(Method::POST, IMPORT).body(GOOD).send().await.ok();
        }
        faults(&bench)
    };
    let first = struck(1).await;
    assert_eq!(struck(1).await, first);
    assert_ne!(struck(2).await, first);
    for fault in ["throttle", "answer-lost", ""] {
        assert!(first.iter().any(|struck| struck == fault), "{fault}: {first:?}");
    }
}

#[tokio::test]
async fn injected_fault_takes_precedence_over_rules() {
    let bench = bench(&["throttle@first:1"]).await;
    bench.sandbox.inject(Fault::CutBeforeWrite);
    assert!(bench.signed(Method::POST, IMPORT).body(GOOD).send().await.is_err());
    assert_eq!(bench.import(GOOD).await.status(), 429, "the rule has not counted the other's request");
    assert_eq!(bench.import(GOOD).await.status(), 200);
    assert_eq!(faults(&bench), ["CutBeforeWrite", "throttle", ""]);
}

#[tokio::test]
async fn sandbox_command_accepts_faults_and_refuses_unknown_ones() {
    let command = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_elven-sync"));
        command.arg("sandbox").args(arguments).env_clear().kill_on_drop(true);
        command
    };
    for (fault, expected) in [
        ("trottle", "the faults are reject:account=ID"),
        ("slow", "`slow=DURATION`"),
        ("throttle@10", "every:N"),
    ] {
        let output = command(&["--fault", fault]).output().await.unwrap();
        assert_eq!(output.status.code(), Some(2), "{fault}");
        assert!(stderr(&output).contains(expected), "{fault}: {}", stderr(&output));
    }
    let help = stdout(&command(&["--help"]).output().await.unwrap());
    assert!(help.contains("answer-lost") && help.contains("@WHEN is"), "{help}");
}

#[sqlx::test(migrations = false)]
async fn every_row_arrives_despite_network_faults(pool: PgPool) {
    let mut scene = TestEnv::new(pool).await;
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "1");
    scene.entity("acme", "UTC").await;
    scene
        .sql(
            "insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
             select 'acme', 'a' || n, 'BTC', '2024-01-01Z', n from generate_series(1, 6) n",
        )
        .await;
    let rules =
        ["throttle@20%", "answer-lost@20%", "cut-before@20%", "html-200@20%", "error-500-kept@once:1"];
    scene.sandbox.set_rules(fault_rules(&rules));
    let mut runs = 1;
    while scene.run().await.status != RunStatus::Succeeded {
        runs += 1;
        assert!(runs < 100, "it does not come to its end");
    }
    let mut received = scene.received();
    assert!(received.len() > 6, "an answer was lost, so its records came again: {received:?}");
    received.dedup();
    let expected: Vec<String> = (1..=6).map(|n| format!("a{n} BTC 2024-01-01 00:00:00 {n}")).collect();
    assert_eq!(received, expected);
}

#[tokio::test]
async fn the_page_counts_requests_that_a_fault_refused_or_failed() {
    let bench = bench(&[]).await;
    bench.import(GOOD).await;
    bench.import("[]").await;
    let refusals =
        ["reject:account=accountId456", "refuses-all", "revoked", "throttle", "reject:success-false"];
    for rule in refusals.iter().chain(&["error-500", "html-502", "unavailable"]) {
        bench.sandbox.set_rules(fault_rules(&[rule]));
        bench.import(GOOD).await;
    }
    bench.sandbox.set_rules(Vec::new());
    let page = bench.signed(Method::GET, "/sandbox").send().await.unwrap().text().await.unwrap();
    let figures = page.split("<dd>").skip(1).map(|rest| rest.split("</dt>").next().unwrap());
    let figures: Vec<String> = figures.map(|figure| figure.replace("</dd><dt>", " ")).collect();
    for expected in ["10 requests", "6 requests refused", "3 requests cut or answered with 5xx"] {
        assert!(figures.contains(&expected.to_owned()), "{expected}: {figures:?}");
    }
    assert_eq!(page.matches("<tr class=\"bad\">").count(), 9, "each of them is marked");
}

/// A rehearsal without the names of its accounts proves nothing about them.
#[tokio::test]
async fn the_sandbox_says_at_its_start_which_accounts_it_accepts() {
    for (accounts, expected) in [
        (&[][..], "every account name is accepted; name the known ones with --account ID"),
        (&["--account", "bank-chf", "--account", "wallet-btc"], "known accounts: bank-chf, wallet-btc"),
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_elven-sync"));
        command.args(["sandbox", "--listen", "127.0.0.1:0"]).args(accounts).env_clear().kill_on_drop(true);
        let mut child = command.stdout(std::process::Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let said =
            async { while lines.next_line().await.unwrap().expect("the sandbox says it") != expected {} };
        assert!(tokio::time::timeout(Duration::from_secs(20), said).await.is_ok(), "{expected}");
    }
}
