//! The progress that a person sees.

use std::io::Read;
use std::process::Stdio;

use nix::pty::{Winsize, openpty};
use sqlx::PgPool;

use super::add_minutes;
use crate::support::{TestEnv, fault_rules, stderr};

const RANGE: [&str; 5] = ["backfill", "--from", "2024-01-01", "--to", "2025-01-01"];

/// An environment whose batches take some seconds together.
async fn slow_scene(pool: PgPool, rows: i32, each: &str) -> TestEnv {
    let mut scene = TestEnv::new(pool).await;
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "10");
    scene.set("ELVEN_SYNC_SYNC__REQUESTS_IN_FLIGHT", "1");
    scene.entity("acme", "UTC").await;
    add_minutes(&scene, "acme", rows).await;
    scene.sandbox.set_rules(fault_rules(&[each]));
    scene
}

/// Also for a run over a long history. A short one logs nothing.
#[sqlx::test(migrations = false)]
async fn progress_is_logged_periodically_without_a_terminal(pool: PgPool) {
    let scene = slow_scene(pool, 100, "slow=700ms").await;
    for arguments in [&RANGE[..], &["run"]] {
        let output = scene.output(arguments).await;
        let log = stderr(&output);
        assert_eq!(output.status.code(), Some(0), "{log}");
        let lines: Vec<&str> = log.lines().filter(|line| line.contains("INFO progress")).collect();
        assert_eq!(lines.len(), 1, "after 5 seconds of 7: {log}");
        for words in ["rows_done=", "rows_total=100", "rows_per_second=", "left=", "entities_left=1"] {
            assert!(lines[0].contains(words), "{words}: {}", lines[0]);
        }
    }
    let mut command = scene.command(&RANGE);
    command.env("ELVEN_SYNC_LOG", "warn");
    assert!(!stderr(&command.output().await.unwrap()).contains("progress"), "it was asked not to");
    scene.sandbox.set_rules(Vec::new());
    assert!(!stderr(&scene.output(&RANGE).await).contains("progress"));
}

#[sqlx::test(migrations = false)]
async fn progress_bars_and_log_lines_do_not_mix(pool: PgPool) {
    let scene = slow_scene(pool, 70, "slow=700ms").await;
    let size = Winsize { ws_row: 40, ws_col: 120, ws_xpixel: 0, ws_ypixel: 0 };
    let terminal = openpty(Some(&size), None).unwrap();
    let mut child = scene
        .command(&["-vv", "backfill", "--from", "2024-01-01", "--to", "2025-01-01"])
        .env("TERM", "xterm-256color")
        .stderr(Stdio::from(terminal.slave))
        .spawn()
        .unwrap();
    let mut master = std::fs::File::from(terminal.master);
    let reading = std::thread::spawn(move || {
        let (mut seen, mut buffer) = (Vec::new(), [0; 4096]);
        // Reading fails once no process has the terminal open.
        while let Ok(count @ 1..) = master.read(&mut buffer) {
            seen.extend_from_slice(&buffer[..count]);
        }
        String::from_utf8_lossy(&seen).into_owned()
    });
    assert_eq!(child.wait().await.unwrap().code(), Some(0));
    drop(child);
    let seen = reading.join().unwrap();
    assert!(seen.contains("of 70 rows") && seen.contains("/s") && seen.contains("left"), "{seen}");
    assert!(seen.contains("acme") && seen.contains("all"), "{seen}");
    // The bars are erased before a line is logged, and each log line stands alone.
    let accepted: Vec<&str> = seen.lines().filter(|line| line.contains("accepted")).collect();
    assert_eq!(accepted.len(), 7, "{seen}");
    for line in accepted {
        let before = line.split("accepted").next().unwrap();
        assert!(!before.rsplit("\u{1b}[2K").next().unwrap().contains("rows,"), "{line:?}");
    }
    // At the end the bars are erased.
    assert!(!seen.contains("INFO progress"), "{seen}");
}
