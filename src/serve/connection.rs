//! Connections to the HTTP server, with limits: of their number, of what they send, and of their time.
//!
//! A connection carries one request. No request has a body that is read, so a connection that sends more than a request
//! line and headers is ended.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::serve;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep};

/// The most connections at once; others wait to be accepted.
const CONNECTIONS_MAX: usize = 256;
/// The most bytes of a request.
const REQUEST_BYTES_MAX: usize = 16 * 1024;
/// The time for a request, and for the work on its answer.
const REQUEST_MAX: Duration = Duration::from_secs(10);
/// The time for the answer, from its first byte.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// A TCP listener whose connections have limits.
pub(super) struct Listener {
    tcp: TcpListener,
    permits: Arc<Semaphore>,
}

impl Listener {
    pub(super) fn new(tcp: TcpListener) -> Self {
        Self { tcp, permits: Arc::new(Semaphore::new(CONNECTIONS_MAX)) }
    }
}

impl serve::Listener for Listener {
    type Io = Stream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        // The semaphore is never closed.
        let permit = self.permits.clone().acquire_owned().await.ok();
        let (tcp, address) = serve::Listener::accept(&mut self.tcp).await;
        tcp.set_nodelay(true).ok();
        let stream = Stream {
            tcp,
            bytes_left: REQUEST_BYTES_MAX,
            deadline: Box::pin(sleep(REQUEST_MAX)),
            answers: false,
            _permit: permit,
        };
        (stream, address)
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.tcp.local_addr()
    }
}

/// A connection.
pub(super) struct Stream {
    tcp: TcpStream,
    /// How many more bytes it may send.
    bytes_left: usize,
    deadline: Pin<Box<Sleep>>,
    /// The answer has begun.
    answers: bool,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Stream {
    /// Fails after the deadline.
    fn in_time(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        match self.deadline.as_mut().poll(context) {
            Poll::Ready(()) => Err(io::ErrorKind::TimedOut.into()),
            Poll::Pending => Ok(()),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.in_time(context)?;
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.tcp).poll_read(context, buffer))?;
        let read = buffer.filled().len() - before;
        let Some(left) = self.bytes_left.checked_sub(read) else {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, "the request is too long")));
        };
        self.bytes_left = left;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if !self.answers {
            self.answers = true;
            self.deadline.as_mut().reset(Instant::now() + ANSWER_MAX);
        }
        self.in_time(context)?;
        Pin::new(&mut self.tcp).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(context)
    }
}
