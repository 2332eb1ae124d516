//! Connections that can be cut: a listener for `axum::serve` whose streams have a switch.
//!
//! A handler of axum cannot return no response, and a response body that fails comes after the headers. So the switch
//! is below HTTP: after it is thrown, every write fails, and hyper closes the connection without a byte of the answer.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use axum::{extract::connect_info::Connected, serve};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
};

/// The switch of one connection. Handlers get it as their `ConnectInfo`.
#[derive(Clone, Default)]
pub(super) struct Switch(Arc<AtomicBool>);

impl Switch {
    /// Blocks all further writes to the connection. The connection closes at the next attempt to write, so the caller
    /// has to return a response, which is never sent.
    pub(super) fn cut(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    fn check(&self) -> io::Result<()> {
        if self.0.load(Ordering::SeqCst) { Err(io::ErrorKind::ConnectionAborted.into()) } else { Ok(()) }
    }
}

impl Connected<serve::IncomingStream<'_, Listener>> for Switch {
    fn connect_info(stream: serve::IncomingStream<'_, Listener>) -> Self {
        stream.io().switch.clone()
    }
}

/// A TCP listener whose connections have a [`Switch`].
pub(super) struct Listener(pub(super) TcpListener);

impl serve::Listener for Listener {
    type Io = Stream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        let (tcp, address) = serve::Listener::accept(&mut self.0).await;
        // An answer is one small write that the client waits for. Without this option it is only slower.
        tcp.set_nodelay(true).ok();
        (Stream { tcp, switch: Switch::default() }, address)
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.0.local_addr()
    }
}

/// A TCP stream that stops writing when its [`Switch`] is thrown.
pub(super) struct Stream {
    tcp: TcpStream,
    switch: Switch,
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_read(context, buffer)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.switch.check()?;
        Pin::new(&mut self.tcp).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.switch.check()?;
        Pin::new(&mut self.tcp).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(context)
    }
}
