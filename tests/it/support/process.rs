//! Processes of the connector: their output, their log and signals to them.

use std::process::Output;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Child;

use super::TestEnv;

/// The variable that names the fault point at which a process stops or kills itself.
pub const FAULT_POINT: &str = "ELVEN_SYNC_FAULT_POINT";

/// Sends a signal to a process that still runs.
pub fn signal(child: &Child, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap()), signal).unwrap();
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Executes a command, asserts its exit code, and returns what it printed to stdout and stderr.
pub async fn output_of(scene: &TestEnv, code: i32, arguments: &[&str]) -> String {
    let output = scene.output(arguments).await;
    let printed = format!("{}{}", stdout(&output), stderr(&output));
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {printed}");
    printed
}

/// Waits until a process logs a line with these words. Its standard error cannot be read after that.
pub async fn wait_for_log(child: &mut Child, words: &str) {
    let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
    while !log.next_line().await.unwrap().unwrap().contains(words) {}
    // Kept open, so that the process can continue to write.
    tokio::spawn(async move { while let Ok(Some(_)) = log.next_line().await {} });
}
