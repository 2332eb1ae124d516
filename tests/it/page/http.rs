//! Where the page is served, and with which headers.

use sqlx::PgPool;

use super::{FILLED, Page, path};
use crate::serve::{Service, ask, get};
use crate::support::TestEnv;

const HEADERS: [&str; 5] = [
    "cache-control: no-store\n",
    "x-content-type-options: nosniff\n",
    "referrer-policy: no-referrer\n",
    "x-frame-options: deny\n",
    "content-security-policy: default-src 'none'; style-src 'sha256-",
];

#[sqlx::test(migrations = false)]
async fn pages_load_and_run_nothing(pool: PgPool) {
    let page = Page::filled(pool).await;
    for path in
        ["/".to_owned(), "/?refresh=30".to_owned(), path("globex"), path("nobody"), "/status.json".to_owned()]
    {
        let answer = page.service.get(&path).await;
        for header in HEADERS {
            assert!(answer.headers.contains(header), "{path}: {header}: {}", answer.headers);
        }
        assert!(
            answer.headers.contains("; base-uri 'none'; form-action 'none'; frame-ancestors 'none'\n"),
            "{}",
            answer.headers
        );
        for word in
            ["<script", "<form", "<iframe", "<img", "<link", " style=", "http://", "https://", "postgres://"]
        {
            assert!(!answer.body.contains(word), "{path} has {word}");
        }
    }
    page.service.stop().await;
}

#[sqlx::test(migrations = false)]
async fn page_is_refreshed_only_on_request_and_within_bounds(pool: PgPool) {
    let page = Page::filled(pool).await;
    assert!(!page.html("/").await.source.contains("http-equiv"));
    for place in ["/", "/entities/globex"] {
        let refreshed = page.html(&format!("{place}?refresh=30")).await;
        assert!(
            refreshed.source.contains("<meta http-equiv=\"refresh\" content=\"30\">"),
            "{}",
            refreshed.source
        );
        for wrong in ["4", "3601", "-30", "30;url=//evil", "", "x"] {
            let answer = page.service.get(&format!("{place}?refresh={wrong}")).await;
            assert_eq!(answer.status, 400, "{wrong}: {answer:?}");
            assert!(answer.body.contains("hint: /?refresh=30"), "{answer:?}");
        }
    }
    page.service.stop().await;
}

#[sqlx::test(migrations = false)]
async fn only_get_and_head_of_known_hosts_are_answered(pool: PgPool) {
    let page = Page::filled(pool).await;
    for path in ["/", "/status.json", "/entities/globex"] {
        for method in ["POST", "PUT", "DELETE", "OPTIONS"] {
            let request = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n");
            assert_eq!(ask(&page.service.address, &request).await.status, 405, "{method} {path}");
        }
        let head =
            ask(&page.service.address, &format!("HEAD {path} HTTP/1.1\r\nHost: localhost\r\n\r\n")).await;
        assert_eq!((head.status, head.body.as_str()), (200, ""), "{path}");
        let foreign =
            ask(&page.service.address, &format!("GET {path} HTTP/1.1\r\nHost: evil.example\r\n\r\n")).await;
        assert_eq!(foreign.status, 421, "{path}");
    }
    page.service.stop().await;
}

#[sqlx::test(migrations = false)]
async fn other_addresses_than_loopback_have_the_page_only_on_request(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    scene.sql(FILLED).await;
    let paths = ["/", "/status.json", "/entities/hooli"];
    for (arguments, status) in [(&[][..], 404), (&["--page"][..], 200)] {
        let service = Service::start_on(&scene, "0.0.0.0:0", arguments).await;
        for path in paths {
            assert_eq!(get(&service.address, path, &[]).await.status, status, "{path} {arguments:?}");
        }
        service.stop().await;
    }
}
