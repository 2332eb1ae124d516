//! A request is signed right before it is sent, and a refused signature is repaired where possible.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use elven_sync::journal::RunStatus;
use httpdate::fmt_http_date;
use sqlx::PgPool;
use tokio::net::{TcpSocket, TcpStream};

use super::{add, good, scene};
use crate::stub::{Stub, StubRequest, StubResponse, list, respond};

use crate::support::{assert_stays, eventually, output_of};

/// Maximum age of a signature for this API, in milliseconds. A busy machine takes time between writing and reading.
const WINDOW_MS: i64 = 2_000;

fn fresh(asked: &StubRequest, after: Duration) -> StubResponse {
    if asked.age_ms > WINDOW_MS { respond(401) } else { StubResponse { after, ..respond(200) } }
}

#[sqlx::test(migrations = false)]
async fn request_delayed_by_permits_or_rate_is_signed_again(pool: PgPool) {
    let mut scene = scene(pool).await;
    scene.set("ELVEN_SYNC_SYNC__LEASE", "30s");
    scene.set("ELVEN_SYNC_API__SIGNATURE_WINDOW", "30s");
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "1");
    for (rate, slow_ms, rows) in [(None, 2_500, 8), (Some("1"), 0, 6)] {
        if let Some(rate) = rate {
            scene.set("ELVEN_SYNC_API__REQUESTS_PER_SECOND", rate);
        }
        add(&scene, &good(rows)).await;
        let stub = Stub::of(&mut scene, move |asked| fresh(asked, Duration::from_millis(slow_ms))).await;
        let report = scene.run().await;
        assert_eq!(report.status, RunStatus::Succeeded, "{:?}", stub.imports());
        assert_eq!(stub.imports().len(), rows, "none was refused");
        let oldest = stub.imports().iter().map(|asked| asked.age_ms).max();
        assert!(oldest.is_some_and(|age_ms| age_ms < WINDOW_MS), "{oldest:?} ms");
    }
}

/// No connection is accepted for a while. The client asks again after a second.
#[sqlx::test(migrations = false)]
async fn request_delayed_by_its_connection_is_signed_again(pool: PgPool) {
    let mut scene = scene(pool).await;
    add(&scene, &good(3)).await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    scene.set("ELVEN_API_URL", &format!("http://{address}"));
    // These connections fill the queue of the server until no further one is accepted.
    let mut queue = Vec::new();
    while let Ok(Ok(stream)) =
        tokio::time::timeout(Duration::from_millis(300), TcpStream::connect(address)).await
    {
        queue.push(stream);
    }
    let begun = Instant::now();
    let late = async {
        let being_sent = "select count(*)::text from elven_sync.sync_batches where status = 'sending'";
        let is_being_sent = async || scene.text(being_sent).await == "1";
        eventually("the batch is being sent", is_being_sent).await;
        assert_stays("the batch waits for its connection", Duration::from_millis(500), is_being_sent).await;
        Stub::on(listener, |asked| if asked.age_ms > 900 { respond(401) } else { respond(200) })
    };
    let (report, stub) = tokio::join!(scene.run(), late);
    assert!(begun.elapsed() > Duration::from_millis(900), "the connection was late");
    assert_eq!(report.status, RunStatus::Succeeded, "{:?}", stub.imports());
    assert_eq!(
        (stub.imports().len(), report.counters.requests),
        (1, 1),
        "it was sent once, by a fresh signature"
    );
    assert_eq!(scene.text("select attempts::text from elven_sync.sync_batches").await, "1");
}

#[sqlx::test(migrations = false)]
async fn replaced_key_file_is_read_again(pool: PgPool) {
    let mut scene = scene(pool).await;
    let files = tempfile::tempdir().unwrap();
    let path = files.path().join("key");
    std::fs::write(&path, "the-old-key").unwrap();
    scene.unset("ELVEN_API_KEY");
    scene.set("ELVEN_API_KEY_FILE", path.to_str().unwrap());
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "1");
    scene.set("ELVEN_SYNC_RETRY__ATTEMPTS", "1");
    add(&scene, &good(12)).await;
    // The key is replaced during the run, with several requests in flight.
    let stub = Stub::of(&mut scene, move |asked| {
        if asked.key == "the-new-key" {
            return respond(200);
        }
        std::fs::write(&path, "the-new-key").unwrap();
        StubResponse { after: Duration::from_millis(50), ..respond(401) }
    })
    .await;
    let report = scene.run().await;
    assert_eq!(report.status, RunStatus::Succeeded, "{:?}", report.entities);
    let accounts: BTreeSet<String> = stub.accepted().into_iter().map(|(account, _)| account).collect();
    assert_eq!((stub.accepted().len(), accounts.len()), (12, 12), "each row once");
    let refused = stub.imports().iter().filter(|asked| asked.status == 401).count();
    assert!(refused <= 4, "{refused}: only those that were in flight");
}

/// The key is revoked and the clock of the API is ahead: the first requests try that clock, and later ones do not.
#[sqlx::test(migrations = false)]
async fn ineffective_401_remedy_is_not_repeated_in_a_run(pool: PgPool) {
    let mut scene = scene(pool).await;
    scene.set("ELVEN_SYNC_SYNC__ENTITIES_AT_ONCE", "1");
    scene.set("ELVEN_SYNC_SYNC__REQUESTS_IN_FLIGHT", "1");
    for n in 1..12 {
        scene.entity(&format!("e{n}"), "UTC").await;
    }
    scene
        .sql(
            "insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
             select entity_id, 'a', 'BTC', '2024-01-01Z', 1 from elven_sync.entities",
        )
        .await;
    let stub = Stub::of(&mut scene, |_| {
        let date = fmt_http_date(std::time::SystemTime::now() + Duration::from_secs(90));
        StubResponse { headers: vec![("date", date)], ..respond(401) }
    })
    .await;
    assert_eq!(scene.run().await.status, RunStatus::Failed);
    let by_the_other_clock = stub.imports().iter().filter(|asked| asked.age_ms < -80_000).count();
    // Two lanes may try it before the first of them knows that it does not help.
    assert!((1..=3).contains(&by_the_other_clock), "{by_the_other_clock} requests by the other clock");
    // A signature that took more than a second on a busy machine is made again.
    assert!((13..=18).contains(&stub.imports().len()), "{} requests", stub.imports().len());
    let kinds = "select string_agg(distinct kind, ',') from elven_sync.sync_errors where resolved_at is null";
    assert_eq!(scene.text(kinds).await, "auth");
    stub.answer(|asked| if asked.is_import() { respond(200) } else { list() });
    assert_eq!(scene.run().await.status, RunStatus::Succeeded);
}

/// `errors retry` takes the same remedies as a run.
#[sqlx::test(migrations = false)]
async fn retry_signs_again_and_rereads_the_key(pool: PgPool) {
    let mut scene = scene(pool).await;
    let files = tempfile::tempdir().unwrap();
    let path = files.path().join("key");
    std::fs::write(&path, "the-old-key").unwrap();
    scene.unset("ELVEN_API_KEY");
    scene.set("ELVEN_API_KEY_FILE", path.to_str().unwrap());
    scene.set("ELVEN_SYNC_RETRY__ATTEMPTS", "1");
    add(&scene, &["bad".to_owned(), "a1".to_owned()]).await;
    let stub = Stub::of(&mut scene, |asked| match asked.is_import() {
        true if asked.has("bad") => respond(400),
        true => respond(200),
        false => list(),
    })
    .await;
    assert_eq!(scene.run().await.status, RunStatus::Incomplete);
    stub.answer(move |asked| {
        if asked.key == "the-new-key" {
            return respond(200);
        }
        std::fs::write(&path, "the-new-key").unwrap();
        respond(401)
    });
    output_of(&scene, 0, &["errors", "retry"]).await;
    assert_eq!(stub.accepted().len(), 2);
}
