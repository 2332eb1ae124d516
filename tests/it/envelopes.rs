//! The envelopes of answers, of any length, compressed or not.

use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use chrono::TimeDelta;
use elven_sync::config::ApiVersion;
use elven_sync::elven::{Answer, Client, ResponseClass, classify};
use elven_sync::journal::{self, RunStatus};
use elven_sync::sandbox::{Answers, Options};
use flate2::Compression;
use flate2::write::GzEncoder;
use sqlx::PgPool;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::support::{TestEnv, eventually, fault_rules, output_of};

const ROWS: &str =
    "insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
     select 'acme', 'a' || n, 'BTC', '2024-01-01Z', n from generate_series(1, 8) n";

const BATCHES: &str = "select string_agg(concat_ws(' ', status, attempts, ambiguous), ',' order by batch_id)
                         from elven_sync.sync_batches";

const OPEN: &str =
    "select coalesce(string_agg(concat_ws(' ', kind, http_status, ledger_id), ',' order by ledger_id), '')
                      from elven_sync.sync_errors where resolved_at is null";

async fn scene_with_answers(pool: PgPool, answers: Answers) -> TestEnv {
    let database = pool.clone().into();
    journal::migrate(&database).await.unwrap();
    journal::migrate_ledger(&database).await.unwrap();
    let mut scene = TestEnv::connect_like(pool, Options { answers, ..Options::default() }).await;
    scene.set("ELVEN_SYNC_RETRY__ATTEMPTS", "1");
    scene.entity("acme", "UTC").await;
    scene
}

/// An upload, a refused row that bisection finds, a refused row that only the list of accounts proves, a whole batch
/// refused with status 200, and a retry.
async fn assert_understood(pool: PgPool, answers: Answers) {
    let scene = scene_with_answers(pool, answers).await;
    scene.sql(ROWS).await;
    scene.sandbox.set_rules(fault_rules(&["reject:account=a3"]));
    assert_eq!(scene.run().await.status, RunStatus::Incomplete);
    assert_eq!(scene.sandbox.records_accepted(), 7);
    assert_eq!(scene.text(OPEN).await, "rejected_row 400 3");

    // A single row: only a signed GET, whose list is wrapped, shows that the credential is good.
    scene.sql("insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
               values ('acme', 'b', 'BTC', '2024-01-02Z', 1)").await;
    scene.sandbox.set_rules(fault_rules(&["reject:success-false"]));
    assert_eq!(scene.run().await.status, RunStatus::Incomplete);
    assert_eq!(scene.text(OPEN).await, "rejected_row 400 3,rejected_row 200 9", "a 2xx that says no");

    scene.sandbox.set_rules(Vec::new());
    output_of(&scene, 0, &["errors", "retry"]).await;
    assert_eq!(scene.text(OPEN).await, "");
    assert_eq!(scene.sandbox.records_accepted(), 9);
    assert_eq!(scene.run().await.status, RunStatus::Succeeded);
}

#[sqlx::test(migrations = false)]
async fn a_bare_envelope_is_understood(pool: PgPool) {
    assert_understood(pool, Answers::Bare).await;
}

#[sqlx::test(migrations = false)]
async fn a_wrapped_envelope_is_understood(pool: PgPool) {
    assert_understood(pool, Answers::Wrapped).await;
}

#[sqlx::test(migrations = false)]
async fn a_wrapped_true_envelope_is_understood(pool: PgPool) {
    assert_understood(pool, Answers::WrappedTrue).await;
}

/// The answer of the stub to each import.
#[derive(Clone)]
struct Said {
    status: u16,
    headers: &'static str,
    body: Vec<u8>,
    /// This many bytes of the body are sent at once, and the rest once the flag is set.
    rest: Option<(usize, watch::Receiver<bool>)>,
}

impl Said {
    fn new(status: u16, headers: &'static str, body: impl Into<Vec<u8>>) -> Self {
        Self { status, headers, body: body.into(), rest: None }
    }
}

/// Starts an API that answers every request with the same bytes. Returns its address.
async fn stub(said: Said) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let said = Arc::new(said);
    tokio::spawn(async move {
        while let Ok((connection, _)) = listener.accept().await {
            // A client that has read enough closes the connection.
            let said = Arc::clone(&said);
            tokio::spawn(async move { answer(connection, &said).await.ok() });
        }
    });
    url
}

async fn answer(connection: TcpStream, said: &Said) -> std::io::Result<()> {
    let mut connection = BufReader::new(connection);
    let mut length = 0;
    loop {
        let mut line = String::new();
        connection.read_line(&mut line).await?;
        if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        if line.trim().is_empty() {
            break;
        }
    }
    connection.read_exact(&mut vec![0; length]).await?;
    let head = format!(
        "HTTP/1.1 {} Said\r\ncontent-length: {}\r\nconnection: close\r\n{}\r\n",
        said.status,
        said.body.len(),
        said.headers
    );
    connection.write_all(head.as_bytes()).await?;
    let begun = said.rest.as_ref().map_or(said.body.len(), |(begun, _)| *begun);
    connection.write_all(&said.body[..begun]).await?;
    if let Some((_, rest)) = &said.rest {
        rest.clone().wait_for(|may| *may).await.ok();
        connection.write_all(&said.body[begun..]).await?;
    }
    connection.shutdown().await
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Returns an accepting answer of this many bytes.
fn long(bytes: usize) -> Vec<u8> {
    let mut body = br#"{"records":["#.to_vec();
    let end = br#"0],"success":true}"#;
    while body.len() + end.len() + 2 <= bytes {
        body.extend_from_slice(b"0,");
    }
    body.resize(bytes - end.len(), b' ');
    body.extend_from_slice(end);
    body
}

const EIGHT_MIB: usize = 8 << 20;

#[sqlx::test(migrations = false)]
async fn answers_with_bom_gzip_or_8_mib_are_understood(pool: PgPool) {
    const PACKED: &str = "content-encoding: gzip\r\n";
    let mut scene = TestEnv::new(pool).await;
    scene.set("ELVEN_SYNC_RETRY__ATTEMPTS", "1");
    scene.entity("acme", "UTC").await;
    let success = br#"{"status":"success","data":{}}"#;
    let packed = gzip(success);
    for (what, said, batch, error) in [
        ("a mark", Said::new(200, "", *b"\xef\xbb\xbf{\"success\":true}"), "accepted 1 f", ""),
        ("gzip", Said::new(200, PACKED, packed.clone()), "accepted 1 f", ""),
        (
            "gzip of a mark",
            Said::new(200, PACKED, gzip(b"\xef\xbb\xbf{\"success\":true}")),
            "accepted 1 f",
            "",
        ),
        ("an echo", Said::new(200, "", long(130_000)), "accepted 1 f", ""),
        (
            "a packed echo",
            Said::new(200, "Content-Encoding: GZIP\r\n", gzip(&long(130_000))),
            "accepted 1 f",
            "",
        ),
        ("8 MiB", Said::new(200, "", long(EIGHT_MIB)), "accepted 1 f", ""),
        ("8 MiB, packed", Said::new(200, PACKED, gzip(&long(EIGHT_MIB))), "accepted 1 f", ""),
        ("longer", Said::new(200, "", long(EIGHT_MIB + 1)), "unknown 1 f", "unavailable 200"),
        (
            "longer once unpacked",
            Said::new(200, PACKED, gzip(&long(EIGHT_MIB + 1))),
            "unknown 1 f",
            "unavailable 200",
        ),
        (
            "a bomb",
            Said::new(200, PACKED, gzip(&vec![b' '; 40 * EIGHT_MIB])),
            "unknown 1 f",
            "unavailable 200",
        ),
        (
            "cut gzip",
            Said::new(200, PACKED, packed[..packed.len() - 3].to_vec()),
            "unknown 1 f",
            "unavailable 200",
        ),
        ("no gzip", Said::new(200, PACKED, *success), "unknown 1 f", "unavailable 200"),
        (
            "a failure, packed",
            Said::new(409, PACKED, gzip(br#"{"data":{"code":7}}"#)),
            "rejected 1 f",
            "rejected_batch 409",
        ),
        ("a page, packed", Said::new(403, PACKED, gzip(b"<html>")), "rejected 1 f", "config 403"),
        (
            "a long page",
            Said::new(403, "", [b"<html>".to_vec(), vec![b' '; EIGHT_MIB]].concat()),
            "rejected 1 f",
            "config 403",
        ),
        (
            "a page by its type",
            Said::new(403, "content-type: text/html\r\n", *b"blocked"),
            "rejected 1 f",
            "config 403",
        ),
    ] {
        scene
            .sql("insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
                  values ('acme', 'a', 'BTC', '2024-01-01Z', 1)")
            .await;
        scene.set("ELVEN_API_URL", &stub(said).await);
        scene.run().await;
        assert_eq!(scene.text(BATCHES).await, batch, "{what}");
        assert_eq!(scene.text(OPEN).await, error, "{what}");
        scene.sql("truncate ledger.balance_snapshots; truncate elven_sync.sync_errors").await;
        // The other rows were deleted, so that the next run closes the pass.
        let url = scene.sandbox.url();
        scene.set("ELVEN_API_URL", &url);
        scene.run().await;
        scene.sql("delete from elven_sync.sync_batches; delete from elven_sync.sync_errors").await;
    }
}

#[sqlx::test(migrations = false)]
async fn firewall_page_is_reported_as_such(pool: PgPool) {
    let mut scene = TestEnv::new(pool).await;
    scene.entity("acme", "UTC").await;
    scene.sql(ROWS).await;
    let url =
        stub(Said::new(403, "content-type: application/json\r\n", *b" <html>Attention Required!</html>"))
            .await;
    scene.set("ELVEN_API_URL", &url);
    let printed = output_of(&scene, 1, &["run"]).await;
    assert!(printed.contains("a proxy or firewall answered with a page of its own"), "{printed}");
    assert!(!printed.contains("Attention"), "{printed}");
    assert_eq!(scene.text(OPEN).await, "config 403");
}

async fn import(url: &str, timeout: Duration) -> Answer {
    let settings = elven_sync::config::Settings::load(
        &elven_sync::config::Flags::default(),
        [("ELVEN_API_KEY", "k"), ("ELVEN_API_SECRET", "s")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into_iter()
            .collect(),
    );
    let client = Client::new(&url.parse().unwrap(), timeout).unwrap();
    let credential = settings.unwrap().credential("default").unwrap();
    let signed = client.sign_import(&credential, TimeDelta::zero(), ApiVersion::V3, "[]".into()).unwrap();
    client.send(signed).await
}

#[tokio::test(flavor = "multi_thread")]
async fn large_answers_are_read_one_at_a_time_within_timeout() {
    let (open, rest) = watch::channel(false);
    let held = Said { rest: Some((100_000, rest)), ..Said::new(200, "", long(200_000)) };
    let held = stub(held).await;
    let other = stub(Said::new(200, "", long(200_000))).await;
    let short = stub(Said::new(200, "", *b"{\"success\":true}")).await;
    let minute = Duration::from_mins(1);
    let first = tokio::spawn(async move { import(&held, minute).await });
    // It is the first to read a large answer as soon as the previous reader meets its own timeout.
    let waited = async || matches!(import(&other, Duration::from_millis(300)).await, Answer::Lost(_));
    eventually("another large answer waits", waited).await;
    assert_eq!(classify(&import(&short, minute).await), ResponseClass::Accepted, "a short one does not wait");
    let second = tokio::spawn({
        let other = other.clone();
        async move { import(&other, minute).await }
    });
    open.send_replace(true);
    assert_eq!(classify(&first.await.unwrap()), ResponseClass::Accepted);
    assert_eq!(classify(&second.await.unwrap()), ResponseClass::Accepted);
}
