//! Connections to the HTTP server, with limits: of their number, of what they send, and of their time.
//!
//! A connection carries one request. No request has a body that is read, so a connection that sends more than a request
//! line and headers is ended.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::serve;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::{Instant, Sleep, sleep};

/// The most connections at once. One more ends the connection that has waited longest for the end of its request, so
/// that idle ones keep no probe from being answered.
const CONNECTIONS_MAX: usize = 256;
/// The end of the headers, and so of a request.
const REQUEST_END: [u8; 4] = *b"\r\n\r\n";
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
    idle: Idle,
}

impl Listener {
    pub(super) fn new(tcp: TcpListener) -> Self {
        Self { tcp, permits: Arc::new(Semaphore::new(CONNECTIONS_MAX)), idle: Idle::default() }
    }

    /// Waits until there is room for a connection. If there is none, ends one that is idle.
    async fn permit(&self) -> Option<OwnedSemaphorePermit> {
        if let Ok(permit) = self.permits.clone().try_acquire_owned() {
            return Some(permit);
        }
        self.idle.end_oldest();
        // The semaphore is never closed.
        self.permits.clone().acquire_owned().await.ok()
    }
}

/// The connections whose request is not complete, by the order in which they were accepted.
#[derive(Clone, Default)]
struct Idle(Arc<Mutex<Waiting>>);

#[derive(Default)]
struct Waiting {
    accepted: u64,
    /// What ends each of them.
    ends: BTreeMap<u64, oneshot::Sender<()>>,
}

impl Idle {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self) -> IdleConnection {
        let (end, ended) = oneshot::channel();
        let mut waiting = self.lock();
        waiting.accepted += 1;
        let number = waiting.accepted;
        waiting.ends.insert(number, end);
        IdleConnection { idle: self.clone(), number, ended }
    }

    fn end_oldest(&self) {
        if let Some((_, end)) = self.lock().ends.pop_first() {
            // One that has just ended by itself makes room, too.
            let _ = end.send(());
        }
    }
}

/// A connection whose request is not complete.
struct IdleConnection {
    idle: Idle,
    number: u64,
    ended: oneshot::Receiver<()>,
}

impl Drop for IdleConnection {
    fn drop(&mut self) {
        self.idle.lock().ends.remove(&self.number);
    }
}

impl serve::Listener for Listener {
    type Io = Stream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        let (tcp, address) = serve::Listener::accept(&mut self.tcp).await;
        let permit = self.permit().await;
        tcp.set_nodelay(true).ok();
        let stream = Stream {
            tcp,
            bytes_left: REQUEST_BYTES_MAX,
            deadline: Box::pin(sleep(REQUEST_MAX)),
            answers: false,
            idle: Some(self.idle.add()),
            last_bytes: [0; 4],
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
    /// The request is not complete.
    idle: Option<IdleConnection>,
    /// The last bytes of the request.
    last_bytes: [u8; 4],
    _permit: Option<OwnedSemaphorePermit>,
}

impl Stream {
    /// Fails after the deadline, and for an idle connection when another one needs its place.
    fn in_time(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        if let Some(idle) = &mut self.idle
            && Pin::new(&mut idle.ended).poll(context).is_ready()
        {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
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
        for byte in &buffer.filled()[before..] {
            self.last_bytes.rotate_left(1);
            self.last_bytes[3] = *byte;
            if self.last_bytes == REQUEST_END {
                self.idle = None;
            }
        }
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
