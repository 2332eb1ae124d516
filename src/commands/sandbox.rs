//! `sandbox`: a local Elven API.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use super::exit_code::SUCCEEDED;
use crate::output;
use crate::sandbox::{self, Answers, Rule, Sandbox};
use crate::text::{escaped, quoted};

#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// Where to listen; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8460")]
    listen: SocketAddr,
    /// The API key that it knows
    #[arg(long, default_value = "sandbox-key")]
    key: String,
    /// The secret that belongs to it; a real one has no place here
    #[arg(long, default_value = "sandbox-secret")]
    secret: String,
    /// Accounts that it knows; all, when none is named
    #[arg(long = "account", value_name = "ID")]
    accounts: Vec<String>,
    /// Currencies that it knows besides the usual ones
    #[arg(long = "currency", value_name = "SYMBOL")]
    currencies: Vec<String>,
    /// The envelope of its answers: the API's pages disagree about it
    #[arg(long, value_enum, default_value_t)]
    answers: Answers,
    /// What goes wrong, and when; can be repeated, --help lists what there is
    #[arg(long = "fault", value_name = "FAULT", long_help = fault_help())]
    rules: Vec<Rule>,
    /// What faults with a rate are drawn from; any, when none is named
    #[arg(long, value_name = "NUMBER")]
    seed: Option<u64>,
}

fn fault_help() -> String {
    format!("What goes wrong, and when; can be repeated: {}", Rule::grammar())
}

pub(super) async fn run(options: Options) -> anyhow::Result<u8> {
    let credential = sandbox::Credential::new("sandbox", &options.key, &options.secret);
    let faults = options.rules.iter().map(Rule::to_string).collect::<Vec<_>>().join(", ");
    // Short enough to be typed again.
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
    if !options.accounts.is_empty() {
        settings.accounts = Some(BTreeSet::from_iter(options.accounts));
    }
    let sandbox = Sandbox::start(settings).await?;
    let url = sandbox.url();
    output::lines(format_args!(
        "the sandbox listens; point elven-sync at it with\n\n  export ELVEN_API_URL={url}\n  export \
         ELVEN_API_KEY={} ELVEN_API_SECRET={}\n\nwhat it received: {url}/sandbox   (Ctrl-C ends it)",
        exported(&options.key),
        exported(&options.secret)
    ));
    if !faults.is_empty() {
        output::lines(format_args!("\nfaults: {}   (--seed {seed} draws the same again)", escaped(&faults)));
    }
    let (mut stop, _) = super::run::stop_on_signal(std::time::Duration::ZERO)?;
    stop.changed().await?;
    sandbox.stop().await;
    Ok(SUCCEEDED)
}

/// A value as a shell takes it; in quotes only where that is needed.
fn exported(value: &str) -> String {
    let is_plain =
        value.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'));
    if is_plain && !value.is_empty() { value.to_owned() } else { quoted(value) }
}
