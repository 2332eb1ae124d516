//! `sandbox`: a local Elven API.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use super::exit_code::SUCCEEDED;
use crate::output;
use crate::sandbox::{self, Answers, Rule, Sandbox};
use crate::text::{escaped, quoted};

#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// Address and port to listen on; port 0 takes a free port
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8460")]
    listen: SocketAddr,
    /// API key that the sandbox accepts
    #[arg(long, default_value = "sandbox-key")]
    key: String,
    /// Secret of the API key; never a real one
    #[arg(long, default_value = "sandbox-secret")]
    secret: String,
    /// Account that the sandbox knows, can be repeated; by default it knows every account
    #[arg(long = "account", value_name = "ID")]
    accounts: Vec<String>,
    /// Currency that the sandbox knows besides the built-in ones; can be repeated
    #[arg(long = "currency", value_name = "SYMBOL")]
    currencies: Vec<String>,
    /// Source for balances that the sandbox has, for version 4 of the import; can be repeated
    #[arg(long = "source", value_name = "ID")]
    sources: Vec<String>,
    /// Envelope of the answers; the pages of the API disagree about it
    #[arg(long, value_enum, default_value_t)]
    answers: Answers,
    /// Fault and its schedule; can be repeated, --help lists the faults
    #[arg(long = "fault", value_name = "FAULT", long_help = fault_help())]
    rules: Vec<Rule>,
    /// Seed of the faults with a rate; by default a random one
    #[arg(long, value_name = "NUMBER")]
    seed: Option<u64>,
}

fn fault_help() -> String {
    format!("Fault and its schedule; can be repeated: {}", Rule::grammar())
}

pub(super) async fn run(options: Options) -> anyhow::Result<u8> {
    let credential = sandbox::Credential::new("sandbox", &options.key, &options.secret);
    let faults = options.rules.iter().map(Rule::to_string).collect::<Vec<_>>().join(", ");
    // A small number, which is easy to type again.
    let seed = options.seed.unwrap_or_else(|| fastrand::u16(..).into());
    let mut settings = sandbox::Options {
        listen: options.listen,
        credentials: vec![credential],
        answers: options.answers,
        rules: options.rules,
        seed,
        ..Default::default()
    };
    settings.currencies.extend(options.currencies);
    settings.sources.extend(options.sources);
    if !options.accounts.is_empty() {
        settings.accounts = Some(BTreeSet::from_iter(options.accounts));
    }
    let accounts = match &settings.accounts {
        None => "every account name is accepted; name the known ones with --account ID".to_owned(),
        Some(known) => {
            format!("known accounts: {}", known.iter().map(|id| escaped(id)).collect::<Vec<_>>().join(", "))
        }
    };
    let listen = options.listen;
    let sandbox = Sandbox::start(settings).await.map_err(|problem| {
        anyhow::anyhow!(
            "the sandbox cannot listen on {listen}: {problem}; hint: elven-sync sandbox --listen {}",
            SocketAddr::new(listen.ip(), 0)
        )
    })?;
    let url = sandbox.url();
    output::lines(format_args!(
        "the sandbox listens; point elven-sync at it with\n\n  export ELVEN_API_URL={url}\n  export \
         ELVEN_API_KEY={} ELVEN_API_SECRET={}\n\nreceived records: {url}/sandbox   (Ctrl-C stops the sandbox)",
        exported(&options.key),
        exported(&options.secret)
    ));
    output::lines(format_args!("\n{accounts}"));
    if !faults.is_empty() {
        output::lines(format_args!("\nfaults: {}   (--seed {seed} repeats them)", escaped(&faults)));
    }
    let (mut stop, _) = super::signals::stop_on_signal(std::time::Duration::ZERO)?;
    stop.changed().await?;
    sandbox.stop().await;
    Ok(SUCCEEDED)
}

/// A value as a word of a shell command, in quotes only where they are needed.
fn exported(value: &str) -> String {
    let is_plain =
        value.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'));
    if is_plain && !value.is_empty() { value.to_owned() } else { quoted(value) }
}
