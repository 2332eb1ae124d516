//! Alerts are told to a webhook, over real HTTP: what is posted, when, how often, and what happens when it fails.

mod day;
mod delivery;
mod failures;
mod heartbeat;
mod meanwhile;

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use serde_json::Value;
use sqlx::{AssertSqlSafe, PgPool};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::support::TestEnv;

/// The secret part of the URLs.
pub const TOKEN: &str = "T0K3N-7f3a";

/// A request that the receiver got.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: Method,
    pub path: String,
    pub headers: HeaderMap,
    pub body: String,
}

impl Request {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }

    /// Returns type, name, severity and count, e.g. `began Failing critical 1`.
    pub fn summary(&self) -> String {
        let json = self.json();
        let kind = json["type"].as_str().unwrap().strip_prefix("alert.").unwrap().to_owned();
        let data = &json["data"];
        let text = |key: &str| data[key].as_str().unwrap();
        format!("{kind} {} {} {}", text("name"), text("severity"), data["count"])
    }
}

/// How the receiver answers.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
}

/// Returns an answer without headers.
pub fn status(status: u16) -> Answer {
    Answer { status, headers: Vec::new() }
}

type Answers = dyn Fn(&Request) -> Answer + Send + Sync;

struct Shared {
    requests: Mutex<Vec<Request>>,
    answers: Mutex<Box<Answers>>,
    /// While it is true, no request is answered.
    holds: watch::Sender<bool>,
}

/// The service behind webhook and heartbeat. It ends when it is dropped.
pub struct Receiver {
    pub url: String,
    shared: Arc<Shared>,
    server: JoinHandle<()>,
}

impl Receiver {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let shared = Arc::new(Shared {
            requests: Mutex::default(),
            answers: Mutex::new(Box::new(|_| status(204))),
            holds: watch::Sender::new(false),
        });
        let router = Router::new().fallback(receive).with_state(shared.clone());
        let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { url, shared, server }
    }

    /// Replaces the answers.
    pub fn answer(&self, answers: impl Fn(&Request) -> Answer + Send + Sync + 'static) {
        *self.shared.answers.lock().unwrap() = Box::new(answers);
    }

    /// Answers no request until it is called with `false`.
    pub fn hold(&self, holds: bool) {
        self.shared.holds.send_replace(holds);
    }

    pub fn requests(&self) -> Vec<Request> {
        self.shared.requests.lock().unwrap().clone()
    }

    /// Returns the messages about alerts, in order.
    pub fn messages(&self) -> Vec<Request> {
        self.requests().into_iter().filter(|request| request.method == Method::POST).collect()
    }

    pub fn heartbeats(&self) -> usize {
        self.requests().iter().filter(|request| request.method == Method::GET).count()
    }

    /// Returns the summaries of the messages since the last call, and forgets all requests.
    pub fn told(&self) -> Vec<String> {
        let told = self.messages().iter().map(Request::summary).collect();
        self.shared.requests.lock().unwrap().clear();
        told
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn receive(
    State(shared): State<Arc<Shared>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let body = String::from_utf8(body.to_vec()).unwrap();
    let request = Request { method, path: uri.to_string(), headers, body };
    let answer = (shared.answers.lock().unwrap())(&request);
    shared.requests.lock().unwrap().push(request);
    shared.holds.subscribe().wait_for(|holds| !*holds).await.unwrap();
    let mut response = StatusCode::from_u16(answer.status).unwrap().into_response();
    for (name, value) in answer.headers {
        response.headers_mut().insert(name, value.parse().unwrap());
    }
    response
}

/// An environment with entity `acme` and a webhook.
pub async fn scene_with_webhook(pool: PgPool) -> (TestEnv, Receiver) {
    let mut scene = TestEnv::new(pool).await;
    let receiver = Receiver::start().await;
    scene.set("ELVEN_SYNC_NOTIFY__WEBHOOK_URL", &format!("{}/hook/{TOKEN}", receiver.url));
    scene.set("ELVEN_SYNC_RETRY__ATTEMPTS", "1");
    scene.entity("acme", "UTC").await;
    (scene, receiver)
}

/// Lets time pass for everything that alerts and notifications know.
pub async fn minutes_pass(scene: &TestEnv, minutes: u32) {
    let sql = format!(
        "do $do$ declare t record; begin
             for t in select table_name,
                             string_agg(format('%1$I = %1$I - interval ''{minutes} minutes''', column_name), ', ') as moved
                        from information_schema.columns
                       where table_schema = 'elven_sync' and data_type = 'timestamp with time zone'
                         and table_name in ('entities', 'sync_state', 'sync_runs', 'sync_errors', 'sync_facts',
                                            'sync_notifications')
                       group by table_name loop
                 execute format('update elven_sync.%I set %s', t.table_name, t.moved);
             end loop;
         end $do$"
    );
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(&scene.pool).await.unwrap();
}

/// Breaks the guard, which the next run sees, or repairs it.
pub async fn set_guard(scene: &TestEnv, is_intact: bool) {
    scene
        .sql(if is_intact {
            "alter table ledger.balance_snapshots enable always trigger stamp_change_xid"
        } else {
            "alter table ledger.balance_snapshots disable trigger stamp_change_xid"
        })
        .await;
}
