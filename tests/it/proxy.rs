//! A network between the connector and its database that fails at a commit on request, and that counts statements.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::OwnedReadHalf;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{oneshot, watch};
use url::Url;

/// A fault at a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The commit does not arrive, and the connection is cut.
    Lost,
    /// The commit arrives, and the connection is cut before the answer.
    Unanswered,
    /// The commit does not arrive, and neither side gets anything more from the other.
    Swallowed,
}

/// The network. Messages are parsed as in the manual, "Frontend/Backend Protocol".
pub struct Network {
    url: String,
    fails: Arc<Fails>,
}

struct Fails {
    server: String,
    commits: AtomicU64,
    connections: AtomicU64,
    statements: AtomicU64,
    next: Mutex<Option<(u64, Failure)>>,
    /// Words of the statement of which only a part arrives.
    torn: Mutex<Option<&'static str>>,
    /// Whether all traffic is blocked.
    down: watch::Sender<bool>,
    /// How often the existing connections were dropped.
    forgotten: watch::Sender<u32>,
}

impl Network {
    /// Starts a network to the database at this address.
    pub async fn to(url: &str) -> Self {
        let mut url = Url::parse(url).unwrap();
        let server = format!("{}:{}", url.host_str().unwrap(), url.port().unwrap_or(5432));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        url.set_host(Some("127.0.0.1")).unwrap();
        url.set_port(Some(listener.local_addr().unwrap().port())).unwrap();
        // Encrypted traffic cannot be parsed.
        url.query_pairs_mut().append_pair("sslmode", "disable");
        let fails = Arc::new(Fails {
            server,
            commits: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            statements: AtomicU64::new(0),
            next: Mutex::new(None),
            torn: Mutex::new(None),
            down: watch::Sender::new(false),
            forgotten: watch::Sender::new(0),
        });
        let shared = fails.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(carry(client, shared.clone()));
            }
        });
        Self { url: url.into(), fails }
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    /// Returns the number of connections and statements since the last call. The begin and the end of a transaction
    /// count as well, and several statements in one message count as one.
    pub fn count(&self) -> (u64, u64) {
        let Fails { connections, statements, .. } = &*self.fails;
        (connections.swap(0, Ordering::SeqCst), statements.swap(0, Ordering::SeqCst))
    }

    /// Lets the `number`th commit from now on fail, counted from 1.
    pub fn fail(&self, number: u64, failure: Failure) {
        let at = self.fails.commits.load(Ordering::SeqCst) + number;
        *self.fails.next.lock().unwrap() = Some((at, failure));
    }

    /// Does the same, and then blocks all traffic until [`Network::mend`].
    pub fn break_down(&self, number: u64, failure: Failure) {
        self.fail(number, failure);
        self.fails.down.send_replace(true);
    }

    /// Blocks all traffic until [`Network::mend`], also that of existing connections.
    pub fn cut(&self) {
        self.fails.down.send_replace(true);
        self.forget();
    }

    pub fn mend(&self) {
        self.fails.down.send_replace(false);
    }

    /// Drops the existing connections silently, as a firewall does.
    pub fn forget(&self) {
        self.fails.forgotten.send_modify(|times| *times += 1);
    }

    /// Lets only a part of the next statement with these words arrive: it is executed, but the message that ends it is
    /// missing. Then neither side gets anything more from the other.
    pub fn tear(&self, words: &'static str) {
        *self.fails.torn.lock().unwrap() = Some(words);
    }

    /// Whether a statement was torn, if one was to be.
    pub fn has_torn(&self) -> bool {
        self.fails.torn.lock().unwrap().is_none()
    }

    /// Whether the fault has happened.
    pub fn has_failed(&self) -> bool {
        self.fails.next.lock().unwrap().is_none()
    }
}

impl Fails {
    fn at_commit(&self) -> Option<Failure> {
        let number = self.commits.fetch_add(1, Ordering::SeqCst) + 1;
        let mut next = self.next.lock().unwrap();
        next.take_if(|(at, _)| *at == number).map(|(_, failure)| failure)
    }

    /// Whether the last of these messages does not arrive. The statement is prepared before it is executed.
    fn tears(&self, messages: &[Vec<u8>], prepared: &mut bool) -> bool {
        let mut torn = self.torn.lock().unwrap();
        let Some(words) = *torn else { return false };
        *prepared |= messages.iter().any(|message| {
            message[0] == b'P' && message.windows(words.len()).any(|part| part == words.as_bytes())
        });
        let is_executed = *prepared && messages.iter().any(|message| message[0] == b'E');
        if is_executed {
            *torn = None;
        }
        is_executed
    }
}

/// Carries one connection to its end.
async fn carry(client: TcpStream, fails: Arc<Fails>) -> std::io::Result<()> {
    // Only faults that come later: the earlier connections fail by themselves.
    fails.down.subscribe().wait_for(|down| !*down).await.ok();
    fails.connections.fetch_add(1, Ordering::SeqCst);
    let server = TcpStream::connect(&fails.server).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let ((mut from_client, mut to_client), (mut from_server, mut to_server)) =
        (client.into_split(), server.into_split());
    // The first message has no type.
    to_server.write_all(&message(&mut from_client, 0).await?).await?;
    let (silence, silent) = oneshot::channel();
    let answers = tokio::spawn(async move {
        tokio::select! {
            // The server has closed the connection. Dropping closes the other side.
            _ = tokio::io::copy(&mut from_server, &mut to_client) => None,
            _ = silent => Some((from_server, to_client)),
        }
    });
    let mut forgotten = fails.forgotten.subscribe();
    let mut is_prepared = false;
    let (message, failure) = loop {
        let mut messages = tokio::select! {
            messages = flushed(&mut from_client) => messages?,
            Ok(()) = forgotten.changed() => break (Vec::new(), Failure::Swallowed),
        };
        if fails.tears(&messages, &mut is_prepared) {
            messages.pop();
            to_server.write_all(&messages.concat()).await?;
            break (Vec::new(), Failure::Swallowed);
        }
        let statements = messages.iter().filter(|message| matches!(message[0], b'Q' | b'E')).count();
        fails.statements.fetch_add(statements as u64, Ordering::SeqCst);
        // A simple query. The end of a read-only transaction counts, too, by itself or in one message with other
        // statements.
        let is_commit = |message: &Vec<u8>| {
            message[0] == b'Q' && (message[5..].starts_with(b"commit") || message.ends_with(b"; commit\0"))
        };
        let failure = messages.iter().any(is_commit).then(|| fails.at_commit()).flatten();
        let messages = messages.concat();
        match failure {
            None => to_server.write_all(&messages).await?,
            Some(failure) => break (messages, failure),
        }
    };
    silence.send(()).ok();
    // Kept open, so that no side learns that the other is gone.
    let Some((mut from_server, _to_client)) = answers.await? else { return Ok(()) };
    match failure {
        Failure::Lost => {}
        Failure::Unanswered => {
            to_server.write_all(&message).await?;
            from_server.read_u8().await?;
        }
        Failure::Swallowed => tokio::time::sleep(Duration::from_mins(1)).await,
    }
    Ok(())
}

/// Reads the messages up to one after which the client waits for an answer. They are carried together or not at all: the
/// connector writes them together, and a server that has got some of them waits for the others without a time limit.
async fn flushed(from: &mut OwnedReadHalf) -> std::io::Result<Vec<Vec<u8>>> {
    let mut messages = Vec::new();
    loop {
        let message = message(from, 1).await?;
        // Of the extended protocol: Parse, Bind, Describe, Execute, Close.
        let continues = matches!(message[0], b'P' | b'B' | b'D' | b'E' | b'C');
        messages.push(message);
        if !continues {
            return Ok(messages);
        }
    }
}

/// Reads a message: its type, if it has one, its length, and its body.
async fn message(from: &mut OwnedReadHalf, kind_bytes: usize) -> std::io::Result<Vec<u8>> {
    let mut message = vec![0; kind_bytes + 4];
    from.read_exact(&mut message).await?;
    let length = u32::from_be_bytes(message[kind_bytes..].try_into().unwrap());
    message.resize(kind_bytes + usize::try_from(length).unwrap(), 0);
    from.read_exact(&mut message[kind_bytes + 4..]).await?;
    Ok(message)
}
