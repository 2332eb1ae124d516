//! The receiver: an API that accepts everything, in its own process, at nearly no cost.
//!
//! One thread per connection reads requests as HTTP/1.1 with a content length, counts the records of a body by their
//! opening braces, and sends the documented success answer. Signatures are not checked.

use std::io::{BufRead, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use elven_sync::output::line;
use nix::sys::resource::UsageWho;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout};

use crate::known::{self, Known};
use crate::process::{cpu_s, myself};

/// Larger than a body of 1000 records, so that most need few reads.
const BUFFER_BYTES: usize = 256 << 10;

const ANSWER: &[u8] =
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 16\r\n\r\n{\"success\":true}";

#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct Options {
    /// From the first byte of a request to its answer, in milliseconds
    #[arg(long, default_value_t = 0)]
    pub(crate) latency: u32,
    /// Accept connections and read nothing
    #[arg(long)]
    pub(crate) stalled: bool,
    /// The accounts that it knows, one a line; else it knows all
    #[arg(long)]
    pub(crate) accounts: Option<PathBuf>,
}

/// The totals since the start.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
pub(crate) struct Arrived {
    pub(crate) requests: u64,
    pub(crate) records: u64,
    pub(crate) cpu_s: f64,
}

#[derive(Default)]
struct Counters {
    requests: AtomicU64,
    records: AtomicU64,
}

/// The role: prints its address, then the totals for each line of its input, until its input ends.
pub(crate) fn serve(options: &Options) -> anyhow::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    line(format_args!("http://{}", listener.local_addr()?));
    let known = options.accounts.as_deref().map(Known::read).transpose()?.map(Arc::new);
    let counters = Arc::new(Counters::default());
    let (shared, options) = (counters.clone(), options.clone());
    std::thread::spawn(move || {
        let mut stalled = Vec::new();
        for stream in listener.incoming().flatten() {
            if options.stalled {
                stalled.push(stream);
                continue;
            }
            let (counters, known) = (shared.clone(), known.clone());
            let latency = Duration::from_millis(options.latency.into());
            // A client that closes its connection ends its thread.
            std::thread::spawn(move || answer_all(stream, latency, known.as_deref(), &counters));
        }
    });
    for asked in std::io::stdin().lock().lines() {
        asked?;
        line(serde_json::to_string(&Arrived {
            requests: counters.requests.load(Ordering::SeqCst),
            records: counters.records.load(Ordering::SeqCst),
            cpu_s: cpu_s(UsageWho::RUSAGE_SELF)?,
        })?);
    }
    Ok(())
}

/// Serves one request after another, until the client closes the connection.
fn answer_all(
    mut stream: TcpStream,
    latency: Duration,
    known: Option<&Known>,
    counters: &Counters,
) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let (mut filled, mut began) = (0, None);
        let head_bytes = loop {
            let read = stream.read(&mut buffer[filled..])?;
            if read == 0 {
                return Ok(());
            }
            began.get_or_insert_with(Instant::now);
            filled += read;
            if let Some(end) = buffer[..filled].windows(4).position(|four| four == b"\r\n\r\n") {
                break end + 4;
            }
            if filled == buffer.len() {
                bail!("a head of more than {BUFFER_BYTES} bytes");
            }
        };
        let length = content_length(&buffer[..head_bytes])?;
        let mut missing = (head_bytes + length).checked_sub(filled).context("requests in a pipeline")?;
        let mut records = count_records(&buffer[head_bytes..filled]);
        let mut body = if known.is_some() { buffer[head_bytes..filled].to_vec() } else { Vec::new() };
        let request = if known.is_some() { request_line(&buffer[..head_bytes]) } else { String::new() };
        while missing > 0 {
            let room = missing.min(BUFFER_BYTES);
            let read = stream.read(&mut buffer[..room])?;
            if read == 0 {
                bail!("the body ended early");
            }
            records += count_records(&buffer[..read]);
            if known.is_some() {
                body.extend_from_slice(&buffer[..read]);
            }
            missing -= read;
        }
        if let Some(began) = began {
            std::thread::sleep(latency.saturating_sub(began.elapsed()));
        }
        counters.requests.fetch_add(1, Ordering::SeqCst);
        match known {
            Some(known) if request.starts_with("GET ") => {
                stream.write_all(known::answer("200 OK", &known.page(&request)).as_bytes())?;
            }
            Some(known) if !known.has_all_of(&body) => stream.write_all(known::refusal().as_bytes())?,
            _ => {
                counters.records.fetch_add(records, Ordering::SeqCst);
                stream.write_all(ANSWER)?;
            }
        }
    }
}

/// Returns the method and the path of a request.
fn request_line(head: &[u8]) -> String {
    let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let line = String::from_utf8_lossy(line);
    line.rsplit_once(' ').map_or_else(String::new, |(request, _)| request.to_owned())
}

fn content_length(head: &[u8]) -> anyhow::Result<usize> {
    let head = std::str::from_utf8(head)?;
    let mut lengths = head.lines().filter_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse())
    });
    Ok(lengths.next().transpose()?.unwrap_or(0))
}

/// Counts opening braces. Sums of up to 255 fit a byte, so that the compiler can count many at once.
fn count_records(bytes: &[u8]) -> u64 {
    let braces = |chunk: &[u8]| chunk.iter().map(|byte| u8::from(*byte == b'{')).sum::<u8>();
    bytes.chunks(255).map(|chunk| u64::from(braces(chunk))).sum()
}

/// A running receiver.
pub(crate) struct Receiver {
    pub(crate) url: String,
    input: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
    /// Its process ends when this is dropped.
    _process: Child,
}

impl Receiver {
    pub(crate) async fn start(options: &Options) -> anyhow::Result<Self> {
        let mut command = myself("receiver")?;
        command.arg("--latency").arg(options.latency.to_string());
        if options.stalled {
            command.arg("--stalled");
        }
        if let Some(accounts) = &options.accounts {
            command.arg("--accounts").arg(accounts);
        }
        let mut process = command.stdin(Stdio::piped()).spawn()?;
        let input = process.stdin.take().context("the receiver has no input")?;
        let mut lines = BufReader::new(process.stdout.take().context("the receiver has no output")?).lines();
        let url = lines.next_line().await?.context("the receiver did not start")?;
        Ok(Self { url, input, lines, _process: process })
    }

    pub(crate) async fn arrived(&mut self) -> anyhow::Result<Arrived> {
        self.input.write_all(b"\n").await?;
        let answer = self.lines.next_line().await?.context("the receiver ended early")?;
        Ok(serde_json::from_str(&answer)?)
    }
}
