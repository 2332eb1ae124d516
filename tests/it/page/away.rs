//! While the sync tables cannot be read, the page says so.

use serde_json::Value;
use sqlx::PgPool;

use super::started;
use crate::proxy::Network;
use crate::serve::Service;
use crate::support::{TestEnv, eventually};

#[sqlx::test(migrations = false)]
async fn page_without_database_says_when_it_was_last_read(pool: PgPool) {
    let mut scene = TestEnv::new(pool).await;
    let network = Network::to(&scene.url).await;
    scene.set("DATABASE_URL", network.url());
    scene.entity("acme", "UTC").await;
    let service = started(&scene).await;
    let known = service.get("/status.json").await;
    let as_of = serde_json::from_str::<Value>(&known.body).unwrap()["as_of"].clone();
    network.cut();
    service.answers("/", 503).await;
    let second = as_of.as_str().unwrap()[..19].replace('T', " ");
    for path in ["/", "/entities/acme"] {
        let page = service.get(path).await;
        assert_eq!(page.status, 503, "{page:?}");
        assert!(
            page.body.contains("The sync tables cannot be read, so the state of the sync is not known."),
            "{page:?}"
        );
        assert!(page.body.contains(&format!("They were last read at {second} UTC.")), "{page:?}");
        assert!(!page.body.contains("up to date"), "{page:?}");
    }
    let json: Value = serde_json::from_str(&service.get("/status.json").await.body).unwrap();
    assert_eq!((&json["last_read_at"], json["verdict"].is_null()), (&as_of, true), "{json}");
    network.mend();
    service.answers("/", 200).await;
    service.stop().await;
}

#[sqlx::test(migrations = false)]
async fn page_without_a_database_from_the_start_says_so(pool: PgPool) {
    let mut scene = TestEnv::new(pool).await;
    let network = Network::to(&scene.url).await;
    network.cut();
    scene.set("DATABASE_URL", network.url());
    scene.set("ELVEN_SYNC_DATABASE__RECONNECT_TIMEOUT", "1s");
    let service = Service::start(&scene, &["--every", "24h"]).await;
    let mut page = String::new();
    eventually("an answer", async || {
        let answer = service.get("/").await;
        page = answer.body;
        answer.status == 503
    })
    .await;
    assert!(page.contains("They were not read yet since the process started."), "{page}");
    service.stop().await;
}
