//! `serve`: the connector as a service.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::connect::duration;
use super::exit_code::SUCCEEDED;
use super::signals::signals_of_service;
use crate::config::{Flags, Settings};
use crate::serve;

/// The port where none is given.
const DEFAULT_PORT: u16 = 9464;

#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// Time from the start of a run to the start of the next, from 1s to 24h
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = interval)]
    every: Duration,
    /// Address and port of the status page, /healthz, /readyz and /metrics; port 0 takes a free port
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9464")]
    listen: SocketAddr,
    /// Host name under which the address is known, can be repeated; requests that name another host are refused
    #[arg(long = "host", value_name = "NAME", value_parser = host)]
    hosts: Vec<String>,
    /// Serve the status page also on an address that is not loopback
    #[arg(long)]
    page: bool,
}

/// Parses the interval between runs.
fn interval(text: &str) -> Result<Duration, String> {
    let wanted = duration(text)?;
    let range = Duration::from_secs(1)..=Duration::from_hours(24);
    if range.contains(&wanted) { Ok(wanted) } else { Err("expected 1s to 24h".to_owned()) }
}

/// Parses a host name as a request names it, without the port. Other names would never be met.
fn host(text: &str) -> Result<String, String> {
    let is_label = |label: &str| {
        !label.is_empty() && label.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'))
    };
    if text.parse::<IpAddr>().is_ok() || text.split('.').all(is_label) {
        return Ok(text.to_owned());
    }
    Err("expected a host name or an IP address, without scheme, port, path and a dot at the end".to_owned())
}

pub(super) async fn run(options: Options, flags: Flags, settings: Settings) -> anyhow::Result<u8> {
    let Options { every, listen, hosts, page } = options;
    serve::check(&settings)?;
    let signals = signals_of_service()?;
    let listener = serve::listen(listen).map_err(|problem| {
        // A fixed port, since the monitoring has to find it.
        let hint = if problem.kind() == ErrorKind::AddrInUse {
            let other = listen.port().checked_add(1).unwrap_or(DEFAULT_PORT);
            let other = SocketAddr::new(listen.ip(), other);
            let port = listen.port();
            format!("`ss -ltnp 'sport = :{port}'` shows the process that has it; or elven-sync serve --listen {other}")
        } else {
            format!("elven-sync serve --listen 127.0.0.1:{DEFAULT_PORT}")
        };
        anyhow::anyhow!("serve cannot listen on {listen}: {problem}; hint: {hint}")
    })?;
    serve::serve(serve::Options { every, hosts, page, flags, settings }, listener, signals).await?;
    Ok(SUCCEEDED)
}
