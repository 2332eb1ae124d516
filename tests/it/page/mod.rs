//! The status page of `serve`.

mod amounts;
mod away;
mod browser;
mod devtools;
mod hostile;
mod html;
mod http;
mod many;
mod numbers;
mod rights;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;
use sqlx::PgPool;

use self::html::Html;
use crate::serve::{Answer, Service};
use crate::support::{TestEnv, eventually};

/// Entities of each status, and what happened to them in the last day and before.
pub const FILLED: &str = include_str!("filled.sql");

/// A service whose only run is over, over a filled journal.
pub struct Page {
    pub scene: TestEnv,
    pub service: Service,
}

impl Page {
    pub async fn filled(pool: PgPool) -> Self {
        Self::with(pool, FILLED).await
    }

    /// Starts a service, waits for its run, and fills the journal.
    pub async fn with(pool: PgPool, sql: &'static str) -> Self {
        let scene = TestEnv::new(pool).await;
        let service = started(&scene).await;
        scene.sql(sql).await;
        Self { scene, service }
    }

    /// Requests a page, which must be there.
    pub async fn html(&self, path: &str) -> Html {
        let answer = self.service.get(path).await;
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
        Html::of(&body(&answer))
    }

    pub async fn json(&self) -> Value {
        let answer = self.service.get("/status.json").await;
        assert_eq!(answer.status, 200, "{answer:?}");
        serde_json::from_str(&body(&answer)).unwrap()
    }

    /// Returns the JSON that a query gives.
    pub async fn sql(&self, sql: &'static str) -> Value {
        sqlx::query_scalar(sql).fetch_one(&self.scene.pool).await.unwrap()
    }
}

/// Starts a service, and waits for the only run that it makes.
pub async fn started(scene: &TestEnv) -> Service {
    let service = Service::start(scene, &["--every", "24h"]).await;
    let is_over = async || {
        scene.text("select count(*)::text from elven_sync.sync_runs where finished_at is not null").await
            == "1"
    };
    eventually("the end of the run", is_over).await;
    service
}

/// The body of an answer, which has a length.
pub fn body(answer: &Answer) -> String {
    assert!(answer.headers.contains("content-length: "), "{answer:?}");
    answer.body.clone()
}

/// Percent-encodes an id for a path.
pub fn path(entity_id: &str) -> String {
    format!("/entities/{}", utf8_percent_encode(entity_id, NON_ALPHANUMERIC))
}
