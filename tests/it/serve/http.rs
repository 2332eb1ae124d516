//! Which requests are answered, and with what limits.

use std::time::{Duration, Instant};

use sqlx::{Executor, PgPool};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{Service, WAIT_MAX, ask, get};
use crate::support::TestEnv;

#[sqlx::test(migrations = false)]
async fn only_hosts_of_the_service_are_answered(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    let service = Service::start(&scene, &["--host", "metrics.internal"]).await;
    for (host, status) in [
        (service.address.as_str(), 200),
        ("localhost", 200),
        ("metrics.internal:9464", 200),
        ("evil.example", 421),
        ("10.0.0.1", 421),
    ] {
        for path in ["/healthz", "/metrics"] {
            let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n");
            let answer = ask(&service.address, &request).await;
            assert_eq!(answer.status, status, "{host}{path}: {answer:?}");
        }
    }
    let without = ask(&service.address, "GET /healthz HTTP/1.1\r\n\r\n").await;
    assert!([400, 421].contains(&without.status), "{without:?}");
    service.stop().await;
}

#[sqlx::test(migrations = false)]
async fn an_address_that_is_not_loopback_has_only_health_and_metrics(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    let service = Service::start_on(&scene, "0.0.0.0:0", &[]).await;
    for (path, status) in
        [("/healthz", 200), ("/metrics", 200), ("/", 404), ("/entities/acme", 404), ("/status.json", 404)]
    {
        assert_eq!(service.get(path).await.status, status, "{path}");
    }
    assert!(service.get("/").await.body.contains("--page"));
    service.stop().await;
    let service = Service::start(&scene, &[]).await;
    let other = service.get("/other").await;
    assert_eq!(
        (other.status, other.body.as_str()),
        (404, "elven-sync has /, /entities/ID, /status.json, /healthz, /readyz and /metrics here\n")
    );
    service.stop().await;
}

#[sqlx::test(migrations = false)]
async fn answers_are_not_stored_and_not_sniffed(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    let service = Service::start(&scene, &[]).await;
    for path in ["/healthz", "/readyz", "/metrics", "/", "/%00"] {
        let answer = service.get(path).await;
        for header in
            ["cache-control: no-store\n", "x-content-type-options: nosniff\n", "connection: close\n"]
        {
            assert!(answer.headers.contains(header), "{path}: {answer:?}");
        }
    }
    let head = ask(&service.address, "HEAD /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    assert_eq!((head.status, head.body.as_str()), (200, ""));
    let post =
        ask(&service.address, "POST /metrics HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n").await;
    assert!(post.status == 405 && post.headers.contains("allow: get, head\n"), "{post:?}");
    service.stop().await;
}

#[sqlx::test(migrations = false)]
async fn long_and_slow_requests_are_cut(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    let service = Service::start(&scene, &[]).await;
    let mut long = TcpStream::connect(&service.address).await.unwrap();
    let header = format!("GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: {}", "x".repeat(64 * 1024));
    // The connection may be closed before all is written.
    let _ = long.write_all(header.as_bytes()).await;
    let mut answer = Vec::new();
    let _ = long.read_to_end(&mut answer).await;
    assert!(!answer.starts_with(b"HTTP/1.1 200"), "a request has a size limit");

    let begun = Instant::now();
    let mut slow = TcpStream::connect(&service.address).await.unwrap();
    slow.write_all(b"GET /healthz HT").await.unwrap();
    let cut = tokio::time::timeout(Duration::from_secs(20), slow.read_to_end(&mut answer)).await;
    assert!(cut.is_ok() && begun.elapsed() > Duration::from_secs(5), "a request has a time limit");
    assert_eq!(get(&service.address, "/healthz", &[]).await.status, 200, "others are answered");
    service.stop().await;
}

/// As a scanner of ports opens them. A request that is complete is answered all the same.
#[sqlx::test(migrations = false)]
async fn idle_connections_keep_no_probe_from_being_answered(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    let service = Service::start(&scene, &["--every", "24h"]).await;
    service.answers("/readyz", 200).await;
    let mut lock = scene.pool.begin().await.unwrap();
    lock.execute("lock table elven_sync.entities in access exclusive mode").await.unwrap();
    let mut waiting = TcpStream::connect(&service.address).await.unwrap();
    let request = format!("GET /status.json HTTP/1.1\r\nHost: {}\r\n\r\n", service.address);
    waiting.write_all(request.as_bytes()).await.unwrap();
    let mut idle = Vec::new();
    // Fewer than the limit and the queue of the system together, so that opening them does not wait.
    for n in 0..340 {
        let mut connection = TcpStream::connect(&service.address).await.unwrap();
        if n % 2 == 0 {
            connection.write_all(b"GET /healthz HTTP/1.1\r\n").await.unwrap();
        }
        idle.push(connection);
    }
    for _ in 0..3 {
        let answer = timeout(Duration::from_secs(5), service.get("/healthz")).await;
        assert_eq!(answer.expect("it is answered at once").status, 200);
    }
    lock.rollback().await.unwrap();
    let mut answer = String::new();
    timeout(WAIT_MAX, waiting.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert!(answer.starts_with("HTTP/1.1 "), "{answer}");
    drop(idle);
    service.stop().await;
}
