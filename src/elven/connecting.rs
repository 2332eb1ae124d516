//! Connections that opened late. A request that was signed before is not written to such a connection, because the API
//! may refuse its signature by then. The connection is kept for the next request, which is signed later.

use std::any::Any;
use std::error::Error;
use std::future::{Future, ready};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tower_layer::Layer;
use tower_service::Service;

/// A connection that took longer than this to open is late. Together with the maximum age of a signature before its
/// request is handed over, this is at most 1 s.
pub(super) const CONNECT_MAX: Duration = Duration::from_millis(400);
/// A late connection that stays unused for this long is closed: the server may close it at any moment.
const KEPT_MAX: Duration = Duration::from_secs(10);

type BoxError = Box<dyn Error + Send + Sync>;

/// The error for a late connection: it is open now, and the request was not written to it.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("connecting took so long that the request has to be signed again")]
pub(super) struct OpenedLate;

impl OpenedLate {
    /// Returns whether this error is why a request was not written.
    pub(super) fn is_behind(problem: &(dyn Error + 'static)) -> bool {
        let mut next = Some(problem);
        while let Some(problem) = next {
            if problem.is::<OpenedLate>() {
                return true;
            }
            next = problem.source();
        }
        false
    }
}

/// The late connections of a client, all to its one address.
#[derive(Clone, Default)]
pub(super) struct Late(Arc<Mutex<Vec<Kept>>>);

struct Kept {
    since: Instant,
    connection: Box<dyn Any + Send>,
}

impl Late {
    fn keep(&self, connection: impl Any + Send) {
        let kept = Kept { since: Instant::now(), connection: Box::new(connection) };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(kept);
    }

    fn take<T: 'static>(&self) -> Option<T> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|kept| kept.since.elapsed() < KEPT_MAX);
        kept.pop()?.connection.downcast().ok().map(|connection| *connection)
    }
}

impl<S> Layer<S> for Late {
    type Service = Connect<S>;

    fn layer(&self, inner: S) -> Connect<S> {
        Connect { inner, late: self.clone() }
    }
}

/// Opens connections, and keeps late ones.
#[derive(Clone)]
pub(super) struct Connect<S> {
    inner: S,
    late: Late,
}

impl<S, To> Service<To> for Connect<S>
where
    S: Service<To, Error = BoxError>,
    S::Response: Send + 'static,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, to: To) -> Self::Future {
        if let Some(connection) = self.late.take() {
            return Box::pin(ready(Ok(connection)));
        }
        let (begun, connecting, late) = (Instant::now(), self.inner.call(to), self.late.clone());
        Box::pin(async move {
            let connection = connecting.await?;
            if begun.elapsed() <= CONNECT_MAX {
                return Ok(connection);
            }
            late.keep(connection);
            Err(OpenedLate.into())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a fake connection after a delay.
    #[derive(Clone)]
    struct Slow(Duration);

    impl Service<()> for Slow {
        type Response = &'static str;
        type Error = BoxError;
        type Future = Pin<Box<dyn Future<Output = Result<&'static str, BoxError>> + Send>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, (): ()) -> Self::Future {
            let takes = self.0;
            Box::pin(async move {
                std::thread::sleep(takes);
                Ok("connection")
            })
        }
    }

    #[tokio::test]
    async fn a_connection_that_was_opened_late_is_kept_for_the_next_request() {
        let mut connect = Late::default().layer(Slow(CONNECT_MAX + Duration::from_millis(50)));
        let late = connect.call(()).await.unwrap_err();
        assert!(OpenedLate::is_behind(&*late), "{late}");
        let begun = Instant::now();
        assert_eq!(connect.call(()).await.unwrap(), "connection");
        assert!(begun.elapsed() < CONNECT_MAX, "it was open already");
        assert!(connect.call(()).await.is_err(), "it is used once");
        let mut connect = Late::default().layer(Slow(Duration::ZERO));
        assert_eq!(connect.call(()).await.unwrap(), "connection");
    }
}
