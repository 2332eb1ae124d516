//! The recipes that start the connector: cron, the compose file and the image.

use std::path::Path;
use std::time::Duration;

use elven_sync::sandbox::{Fault, Gate};
use nix::sys::signal::Signal;
use sqlx::PgPool;
use tokio::process::Command;

use crate::support::{TestEnv, output_of, scene_with_three_batches, signal, stderr, stdout, wait_for_log};

const COMPOSE: &str = include_str!("../../docker-compose.yml");
const DOCKERFILE: &str = include_str!("../../Dockerfile");
const OPERATING: &str = include_str!("../../docs/operating.md");
const README: &str = include_str!("../../README.md");

/// What a worker needs after a signal, with the default settings: `[sync] shutdown_grace`, and 3 s for its records.
const STOP_S: u64 = 28;

/// The folder of the program, and the folders of the system.
fn path() -> String {
    let program = Path::new(env!("CARGO_BIN_EXE_elven-sync"));
    format!("{}:/usr/bin:/bin", program.parent().unwrap().display())
}

/// The variables of the connector in `scene`, as an environment file without quotes.
fn environment_file(scene: &TestEnv) -> String {
    let command = scene.command(&[]);
    let variables = command.as_std().get_envs().filter_map(|(name, value)| Some((name, value?)));
    let lines = variables.map(|(name, value)| format!("{}='{}'", name.display(), value.display()));
    lines.collect::<Vec<_>>().join("\n")
}

/// The blocks of `cron` of a page: the variables, and the commands with the fields of the time and the user left out.
fn crontabs(page: &str) -> Vec<(Vec<String>, Vec<String>)> {
    page.split("```cron\n")
        .skip(1)
        .map(|rest| {
            let lines = rest.split("```").next().unwrap().lines();
            let (commands, variables): (Vec<_>, Vec<_>) =
                lines.partition(|line| line.contains("elven-sync  "));
            let command = |line: &str| line.split_once("elven-sync  ").unwrap().1.to_owned();
            (variables.into_iter().map(str::to_owned).collect(), commands.into_iter().map(command).collect())
        })
        .collect()
}

/// Cron starts `/bin/sh -c` with an almost empty environment, in the home directory of the user.
#[sqlx::test(migrations = false)]
async fn cron_lines_run_as_cron_starts_them(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    scene.entity("acme", "UTC").await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("env");
    std::fs::write(&file, environment_file(&scene)).unwrap();
    let mut commands = 0;
    for (page, text) in [("README.md", README), ("docs/operating.md", OPERATING)] {
        let crontabs = crontabs(text);
        assert!(!crontabs.is_empty(), "{page}");
        for (variables, lines) in crontabs {
            for line in lines {
                // Cron turns the first % into the end of the command.
                assert!(!line.contains('%'), "{page}: {line}");
                let written = line.replace("/etc/elven-sync/env", file.to_str().unwrap());
                let mut cron = Command::new("/bin/sh");
                cron.env_clear().envs([("HOME", "/"), ("LOGNAME", "elven-sync"), ("SHELL", "/bin/sh")]);
                for variable in &variables {
                    let (name, _) = variable.split_once('=').unwrap();
                    let value = match name {
                        "PATH" => path(),
                        "LOG" => folder.path().display().to_string(),
                        other => panic!("{page}: an unknown variable {other}"),
                    };
                    cron.env(name, value);
                }
                let output = cron.args(["-c", &written]).current_dir("/").output().await.unwrap();
                assert_eq!(
                    (output.status.code(), stderr(&output)),
                    (Some(0), String::new()),
                    "{page}: {line}"
                );
                assert_eq!(stdout(&output), "", "cron would mail it: {line}");
                commands += 1;
            }
        }
    }
    assert!(commands >= 3);
    let log = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
    assert!(log("run.log").contains("succeeded: 0 rows read"), "{}", log("run.log"));
    assert!(log("verify.log").contains("proven: for 1 of 1 entities"), "{}", log("verify.log"));
}

/// The lines of a service of the compose file.
fn service(name: &str) -> Vec<&'static str> {
    let lines = COMPOSE.lines().skip_while(|line| *line != format!("  {name}:")).skip(1);
    lines.take_while(|line| line.is_empty() || line.starts_with("    ")).collect()
}

fn value<'a>(service: &[&'a str], key: &str) -> Option<&'a str> {
    service.iter().find_map(|line| line.trim().strip_prefix(key)?.strip_prefix(':').map(str::trim))
}

#[test]
fn containers_get_signals_and_the_time_to_end() {
    let connector = service("connector");
    let grace = value(&connector, "stop_grace_period").and_then(|grace| grace.strip_suffix('s')).unwrap();
    assert!(grace.parse::<u64>().unwrap() > STOP_S, "{grace}");
    for name in ["connector", "sandbox"] {
        let init = value(&service(name), "init").and_then(|value| value.split_whitespace().next());
        assert_eq!(init, Some("true"), "{name}");
    }
    for line in COMPOSE.lines().chain(DOCKERFILE.lines()).map(str::trim) {
        let exec =
            ["entrypoint:", "command:", "ENTRYPOINT", "CMD"].iter().find_map(|word| line.strip_prefix(word));
        assert!(exec.is_none_or(|form| form.trim().starts_with('[')), "not the exec form: {line}");
    }
    for recipe in OPERATING.lines().filter(|line| line.starts_with("docker run ")) {
        let seconds = recipe.split_once("--stop-timeout ").and_then(|(_, rest)| rest.split(' ').next());
        assert!(recipe.contains("--init") && seconds.unwrap().parse::<u64>().unwrap() > STOP_S, "{recipe}");
    }
    for key in ["TimeoutStopSec=", "terminationGracePeriodSeconds: "] {
        let rest = OPERATING.split_once(key).unwrap().1;
        let seconds: String = rest.chars().take_while(char::is_ascii_digit).collect();
        assert!(seconds.parse::<u64>().unwrap() > STOP_S, "{key}{seconds}");
    }
}

/// The command of the service `connector`, with the signal that `docker stop` sends to its first process alone.
#[sqlx::test(migrations = false)]
async fn stopping_the_container_ends_the_run_in_it(pool: PgPool) {
    let scene = scene_with_three_batches(pool).await;
    let entrypoint: Vec<String> =
        serde_json::from_str(value(&service("connector"), "entrypoint").unwrap()).unwrap();
    let entrypoint: Vec<String> = entrypoint.iter().map(|word| word.replace("$$", "$")).collect();
    let start = || {
        let command = scene.command(&[]);
        let variables = command.as_std().get_envs().filter_map(|(name, value)| Some((name, value?)));
        let mut shell = Command::new(&entrypoint[0]);
        shell.args(&entrypoint[1..]).env_clear().envs(variables).env("PATH", path()).kill_on_drop(true);
        shell.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::piped()).spawn().unwrap()
    };
    let gate = Gate::new();
    scene.sandbox.inject(Fault::HoldResponse(gate.clone()));
    let mut container = start();
    gate.reached().await;
    signal(&container, Signal::SIGTERM);
    // The shell passes the signal on, which takes its time.
    wait_for_log(&mut container, "stopping after the requests in flight").await;
    gate.open();
    let ended = tokio::time::timeout(Duration::from_secs(20), container.wait()).await;
    assert_eq!(ended.expect("it ends").unwrap().code(), Some(143));
    let runs = "select string_agg(status, ',' order by run_id) from elven_sync.sync_runs";
    assert_eq!(scene.text(runs).await, "interrupted", "the run has recorded its end");
    // Between two runs it ends at once, although it waits a minute for the next run.
    let mut container = start();
    crate::support::eventually("the second run has ended", async || {
        scene.text(runs).await == "interrupted,succeeded"
    })
    .await;
    // Repeated: a process that the shell is just starting does not get the signal that the shell passes on.
    let ending = async {
        while container.try_wait().unwrap().is_none() {
            signal(&container, Signal::SIGTERM);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), ending).await.expect("it ends");
    output_of(&scene, 0, &["verify"]).await;
}

/// As env files and compose files leave variables that nobody filled in.
#[sqlx::test(migrations = false)]
async fn empty_environment_variables_count_as_unset(pool: PgPool) {
    let mut scene = scene_with_three_batches(pool).await;
    for name in [
        "ELVEN_SYNC_CONFIG",
        "ELVEN_SYNC_LEDGER_URL",
        "ELVEN_SYNC_LOG",
        "ELVEN_SYNC_X__Y",
        "ELVEN_SYNC_NO__SUCH__KEY",
        "ELVEN_SYNC_API__TIMEOUT",
        "ELVEN_SYNC_SYNC__REQUESTS_IN_FLIGHT",
        "ELVEN_SYNC_LEDGER__TABLE",
        "ELVEN_SYNC_LEDGER__COLUMNS__ID",
        "ELVEN_SYNC_LEDGER__CAPTURED_AT_ZONE",
        "ELVEN_SYNC_LEDGER__BALANCE_SCALE",
        "ELVEN_SYNC_CREDENTIALS__DEFAULT__KEY_FILE",
        "ELVEN_SYNC_TIME__ZONEINFO",
        "ELVEN_API_KEY_FILE",
        "ELVEN_API_SECRET_FILE",
        "TZDIR",
        "TZ",
        "HTTPS_PROXY",
        "HTTP_PROXY",
        "ALL_PROXY",
        "NO_PROXY",
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
        "PGHOST",
        "PGHOSTADDR",
        "PGPORT",
        "PGUSER",
        "PGPASSWORD",
        "PGDATABASE",
        "PGSSLMODE",
        "PGSSLROOTCERT",
        "PGSSLCERT",
        "PGSSLKEY",
        "PGAPPNAME",
        "PGOPTIONS",
        "PGPASSFILE",
    ] {
        scene.set(name, "");
    }
    let text = output_of(&scene, 0, &["run"]).await;
    assert!(text.contains("6 uploaded"), "{text}");
    assert!(!text.contains("WARN"), "{text}");
    for (name, expected) in
        [("DATABASE_URL", "DATABASE_URL is not set"), ("ELVEN_API_KEY", "ELVEN_API_KEY is not set")]
    {
        let before =
            scene.command(&[]).as_std().get_envs().find(|(of, _)| *of == name).unwrap().1.unwrap().to_owned();
        scene.set(name, "");
        let said = output_of(&scene, 1, &["run"]).await;
        assert!(said.contains(expected), "{name}: {said}");
        scene.set(name, before.to_str().unwrap());
    }
}
