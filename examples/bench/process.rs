//! Programs, and their cost. A small process stands between the benchmark and the program, so that the resource usage
//! of all its children is the usage of this one program, to the microsecond.

use std::ffi::OsString;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use elven_sync::output::line;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::{TimeVal, TimeValLike};
use serde::{Deserialize, Serialize};
use tokio::process::Command;

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Kill it after so many seconds; it must not have ended before
    #[arg(long)]
    kill_after: Option<u64>,
    /// The program and its arguments
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

/// The cost of a program, from its start to its end.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Taken {
    pub(crate) elapsed_s: f64,
    /// User and system time.
    pub(crate) cpu_s: f64,
    /// Maximum resident memory.
    pub(crate) peak_rss_mib: f64,
    /// Standard output.
    pub(crate) output: String,
    succeeded: bool,
}

/// The role: runs a program and reports its cost.
pub(crate) fn measure(options: &Options) -> anyhow::Result<()> {
    let (program, arguments) = options.command.split_first().context("no program")?;
    let began = Instant::now();
    let mut child = std::process::Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("{} cannot be started", program.display()))?;
    if let Some(seconds) = options.kill_after {
        std::thread::sleep(Duration::from_secs(seconds));
        ensure!(child.try_wait()?.is_none(), "it ended before it could be killed");
        child.kill()?;
    }
    let output = child.wait_with_output()?;
    let elapsed_s = began.elapsed().as_secs_f64();
    line(serde_json::to_string(&Taken {
        elapsed_s,
        cpu_s: cpu_s(UsageWho::RUSAGE_CHILDREN)?,
        peak_rss_mib: peak_rss_mib()?,
        output: String::from_utf8(output.stdout)?,
        // 3: the work is done, but a person should look.
        succeeded: matches!(output.status.code(), Some(0 | 3)) || options.kill_after.is_some(),
    })?);
    Ok(())
}

/// Runs a program and shows its standard error.
pub(crate) async fn run(
    command: &[&Path],
    environment: &[(String, String)],
    kill_after: Option<Duration>,
) -> anyhow::Result<Taken> {
    let mut measuring = myself("measure")?;
    if let Some(after) = kill_after {
        measuring.arg("--kill-after").arg(after.as_secs().to_string());
    }
    let running = measuring.arg("--").args(command).envs(environment.iter().cloned()).spawn()?;
    let output = running.wait_with_output().await?; // Not output(), which would keep stderr.
    let name = command.iter().map(|part| part.display().to_string()).collect::<Vec<_>>().join(" ");
    ensure!(output.status.success(), "{name} could not be measured");
    let taken: Taken = serde_json::from_slice(&output.stdout)?;
    ensure!(taken.succeeded, "{name} failed: {}", taken.output);
    Ok(taken)
}

/// Builds the command that starts this program in another role.
pub(crate) fn myself(role: &str) -> anyhow::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg(role).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit()).kill_on_drop(true);
    Ok(command)
}

/// User and system time.
pub(crate) fn cpu_s(who: UsageWho) -> anyhow::Result<f64> {
    let usage = getrusage(who)?;
    let micros = |time: TimeVal| u64::try_from(time.num_microseconds()).map(Duration::from_micros);
    Ok((micros(usage.user_time())? + micros(usage.system_time())?).as_secs_f64())
}

fn peak_rss_mib() -> anyhow::Result<f64> {
    let peak: u32 = getrusage(UsageWho::RUSAGE_CHILDREN)?.max_rss().try_into()?;
    // In KiB, on macOS in bytes.
    let unit = if cfg!(target_os = "macos") { 1024.0 * 1024.0 } else { 1024.0 };
    Ok(f64::from(peak) / unit)
}
