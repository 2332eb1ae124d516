//! A proxy before the server that counts the statements of the client (PostgreSQL manual, "Frontend/Backend
//! Protocol"), for any settings of the server.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, ensure};
use serde::Serialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use url::Url;

const PORT: u16 = 5432;

#[derive(Default)]
struct Counters {
    connections: AtomicU32,
    simple: AtomicU32,
    executed: AtomicU32,
    bracket: AtomicU32,
    syncs: AtomicU32,
}

/// The counters of the client.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Asked {
    pub(crate) connections: u32,
    /// All statements. Several in one message count once.
    pub(crate) statements: u32,
    /// The statements that begin or end a transaction, with the settings in them.
    pub(crate) brackets: u32,
    /// The number of times that the client waited for the server.
    pub(crate) round_trips: u32,
}

/// A running proxy. It ends when it is dropped.
pub(crate) struct Proxy {
    /// The URL of the database through the proxy.
    pub(crate) url: Url,
    counters: Arc<Counters>,
    _tasks: JoinSet<()>,
}

impl Proxy {
    pub(crate) async fn start(server: &Url) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let host = server.host_str().context("DATABASE_URL names no host")?.to_owned();
        let target = (host, server.port().unwrap_or(PORT));
        let mut url = server.clone();
        url.set_host(Some("127.0.0.1"))?;
        url.set_port(Some(listener.local_addr()?.port())).ok().context("DATABASE_URL takes no port")?;
        // Encrypted traffic cannot be counted.
        url.set_query(Some("sslmode=disable"));
        let counters = Arc::new(Counters::default());
        let mut tasks = JoinSet::new();
        let shared = counters.clone();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let (target, counters) = (target.clone(), shared.clone());
                // Either side may close the connection at any time.
                connections.spawn(async move { drop(forward(client, target, &counters).await) });
            }
        });
        Ok(Self { url, counters, _tasks: tasks })
    }

    pub(crate) fn asked(&self) -> Asked {
        let counted = |counter: &AtomicU32| counter.load(Ordering::SeqCst);
        let Counters { connections, simple, executed, bracket, syncs } = &*self.counters;
        Asked {
            connections: counted(connections),
            statements: counted(simple) + counted(executed),
            brackets: counted(bracket),
            round_trips: counted(simple) + counted(syncs),
        }
    }
}

async fn forward(client: TcpStream, target: (String, u16), counters: &Counters) -> anyhow::Result<()> {
    let server = TcpStream::connect(target).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    counters.connections.fetch_add(1, Ordering::SeqCst);
    let (from_client, mut to_client) = client.into_split();
    let (mut from_server, to_server) = server.into_split();
    let answers = async { Ok(copy(&mut from_server, &mut to_client).await?) };
    tokio::try_join!(count(from_client, to_server, counters), answers)?;
    Ok(())
}

/// Forwards the messages of the client one by one.
async fn count(
    mut client: OwnedReadHalf,
    mut server: OwnedWriteHalf,
    counters: &Counters,
) -> anyhow::Result<()> {
    // Only the first message has no type.
    let length = client.read_u32().await?;
    pass_on(&mut client, &mut server, &[], length).await?;
    loop {
        let kind = client.read_u8().await?;
        let length = client.read_u32().await?;
        let message = pass_on(&mut client, &mut server, &[kind], length).await?;
        let counter = match kind {
            b'Q' if is_bracket(&message) => {
                counters.bracket.fetch_add(1, Ordering::SeqCst);
                &counters.simple
            }
            b'Q' => &counters.simple,
            b'E' => &counters.executed,
            b'S' => &counters.syncs,
            _ => continue,
        };
        counter.fetch_add(1, Ordering::SeqCst);
    }
}

fn is_bracket(statement: &[u8]) -> bool {
    let statement = statement.to_ascii_lowercase();
    [b"begin".as_slice(), b"commit", b"rollback"].iter().any(|word| statement.starts_with(word))
}

/// `length` includes itself, but not the type.
async fn pass_on(
    client: &mut OwnedReadHalf,
    server: &mut OwnedWriteHalf,
    kind: &[u8],
    length: u32,
) -> anyhow::Result<Vec<u8>> {
    ensure!(length >= 4, "a message is shorter than its length");
    let mut message = vec![0; length as usize - 4];
    client.read_exact(&mut message).await?;
    server.write_all(&[kind, &length.to_be_bytes(), &message].concat()).await?;
    Ok(message)
}
