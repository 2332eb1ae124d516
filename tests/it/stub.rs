//! A small API on loopback whose answers a test defines, for faults that the sandbox does not have.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::support::TestEnv;

/// A request, and the status of its answer.
#[derive(Clone, Debug)]
pub struct StubRequest {
    pub method: Method,
    /// With its query.
    pub path: String,
    pub key: String,
    /// Age of its signature at its arrival.
    pub age_ms: i64,
    pub body: String,
    /// 0 until it is answered.
    pub status: u16,
}

impl StubRequest {
    pub fn is_import(&self) -> bool {
        self.method == Method::POST
    }

    /// Returns the accounts and balances of its records, in order.
    pub fn records(&self) -> Vec<(String, String)> {
        let json: Vec<Value> = serde_json::from_str(&self.body).unwrap_or_default();
        json.iter()
            .map(|record| {
                let account = record["entityAccountId"].as_str().unwrap().to_owned();
                (account, record["balance"].to_string())
            })
            .collect()
    }

    /// Whether it has a record of this account.
    pub fn has(&self, account: &str) -> bool {
        self.records().iter().any(|(has, _)| has == account)
    }
}

/// An answer.
#[derive(Clone, Debug)]
pub struct StubResponse {
    pub status: u16,
    pub body: String,
    pub headers: Vec<(&'static str, String)>,
    pub after: Duration,
}

/// Returns a documented answer.
pub fn respond(status: u16) -> StubResponse {
    let body = match status {
        200..300 => r#"{"success":true}"#,
        500.. => r#"{"message":"Internal server error"}"#,
        _ => r#"{"status":"failed","data":{"code":19734,"message":"no"}}"#,
    };
    StubResponse { status, body: body.to_owned(), headers: Vec::new(), after: Duration::ZERO }
}

/// Returns the documented answer to a call that reads.
pub fn list() -> StubResponse {
    StubResponse { body: r#"{"total":0,"list":[]}"#.to_owned(), ..respond(200) }
}

type Answer = dyn Fn(&StubRequest) -> StubResponse + Send + Sync;

struct Api {
    answer: Mutex<Box<Answer>>,
    asked: Mutex<Vec<StubRequest>>,
}

/// The API. It ends when it is dropped.
pub struct Stub {
    url: String,
    api: Arc<Api>,
    server: JoinHandle<()>,
}

impl Stub {
    /// Starts the API and makes it the API of the environment.
    pub async fn of(
        scene: &mut TestEnv,
        answer: impl Fn(&StubRequest) -> StubResponse + Send + Sync + 'static,
    ) -> Self {
        let stub = Self::on(TcpListener::bind("127.0.0.1:0").await.unwrap(), answer);
        scene.set("ELVEN_API_URL", &stub.url);
        stub
    }

    /// Starts the API on a socket that is already open.
    pub fn on(
        listener: TcpListener,
        answer: impl Fn(&StubRequest) -> StubResponse + Send + Sync + 'static,
    ) -> Self {
        let url = format!("http://{}", listener.local_addr().unwrap());
        let api = Arc::new(Api { answer: Mutex::new(Box::new(answer)), asked: Mutex::default() });
        let router = Router::new().fallback(serve).with_state(api.clone());
        let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { url, api, server }
    }

    /// Replaces the answers.
    pub fn answer(&self, answer: impl Fn(&StubRequest) -> StubResponse + Send + Sync + 'static) {
        *self.api.answer.lock().unwrap() = Box::new(answer);
    }

    pub fn requests(&self) -> Vec<StubRequest> {
        self.api.asked.lock().unwrap().clone()
    }

    /// Returns the imports that arrived, in order.
    pub fn imports(&self) -> Vec<StubRequest> {
        self.requests().into_iter().filter(StubRequest::is_import).collect()
    }

    /// Returns the accounts and balances that were accepted, in order of arrival.
    pub fn accepted(&self) -> Vec<(String, String)> {
        let accepted = |asked: &StubRequest| asked.status == 200;
        self.imports().iter().filter(|asked| accepted(asked)).flat_map(StubRequest::records).collect()
    }
}

impl Drop for Stub {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn serve(
    State(api): State<Arc<Api>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let signed_at_ms: i64 = header("elven-api-timestamp").parse().unwrap_or_default();
    let mut asked = StubRequest {
        method,
        path: uri.to_string(),
        key: header("elven-api-key").to_owned(),
        age_ms: chrono::Utc::now().timestamp_millis() - signed_at_ms,
        body: String::from_utf8_lossy(&body).into_owned(),
        status: 0,
    };
    let said = (api.answer.lock().unwrap())(&asked);
    asked.status = said.status;
    api.asked.lock().unwrap().push(asked);
    tokio::time::sleep(said.after).await;
    let mut response = (StatusCode::from_u16(said.status).unwrap(), said.body).into_response();
    for (name, value) in said.headers {
        response.headers_mut().insert(name, value.parse().unwrap());
    }
    response
}
