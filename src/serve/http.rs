//! The HTTP server, on a thread and a runtime of its own: it answers while the main runtime is frozen.

use std::io;
use std::net::TcpListener;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::Response;

use super::answer::{PLAIN, text};
use super::connection::Listener;
use super::metrics::{Format, in_format};
use super::page;
use super::rules::Endpoint;
use super::shared::Shared;
use super::systemd;

/// Starts the server. Returns an error if its thread or its runtime cannot be started.
pub(super) fn start(listener: TcpListener, shared: Arc<Shared>) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let serve = move || {
        let served = runtime.block_on(async {
            tokio::spawn(keep_watchdog(shared.clone()));
            let listener = Listener::new(tokio::net::TcpListener::from_std(listener)?);
            axum::serve(listener, Router::new().fallback(answer).with_state(shared)).await
        });
        if let Err(problem) = served {
            tracing::error!(error = %problem, "the HTTP server ended");
        }
    };
    std::thread::Builder::new().name("http".to_owned()).spawn(serve)?;
    Ok(())
}

/// Tells systemd that the process is well, for as long as it is.
async fn keep_watchdog(shared: Arc<Shared>) {
    let Some(every) = systemd::watchdog_every() else { return };
    let mut ticks = tokio::time::interval(every);
    loop {
        ticks.tick().await;
        if shared.health.ailment().is_none() {
            systemd::is_well();
        }
    }
}

/// Answers a request.
async fn answer(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let response = response(&shared, request).await;
    shared.process.count_response(response.status().as_u16());
    response
}

async fn response(shared: &Arc<Shared>, request: Request) -> Response {
    let (head, _) = request.into_parts();
    let endpoint = match shared.rules.endpoint(&head) {
        Ok(endpoint) => endpoint,
        Err(refusal) => return text(refusal.status(), PLAIN, format!("{}\n", refusal.text())),
    };
    match endpoint {
        Endpoint::Healthz => verdict(shared.health.ailment()),
        Endpoint::Readyz => {
            shared.check().await;
            verdict(shared.health.unreadiness())
        }
        Endpoint::Metrics => metrics(shared, &head.headers).await,
        Endpoint::Page => page::status(shared, head.uri.query()).await,
        Endpoint::StatusJson => page::json(shared).await,
        Endpoint::Entity(id) => page::entity(shared, &id, head.uri.query()).await,
    }
}

async fn metrics(shared: &Shared, headers: &HeaderMap) -> Response {
    let accept = headers.get_all(header::ACCEPT).iter().filter_map(|accept| accept.to_str().ok());
    let format = Format::accepted(&accept.collect::<Vec<_>>().join(","));
    let readings = shared.readings().await;
    match in_format(format, shared.process.registry(), readings) {
        Ok(metrics) => text(StatusCode::OK, format.content_type(), metrics),
        Err(problem) => text(StatusCode::INTERNAL_SERVER_ERROR, PLAIN, format!("{problem}\n")),
    }
}

/// The answer of a check. `problem`: why it fails.
fn verdict(problem: Option<String>) -> Response {
    match problem {
        None => text(StatusCode::OK, PLAIN, "ok\n".to_owned()),
        Some(problem) => text(StatusCode::SERVICE_UNAVAILABLE, PLAIN, format!("{problem}\n")),
    }
}
