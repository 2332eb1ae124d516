//! The recipes that start the connector: the files of `deploy`, the compose file and the image.

mod grafana;
mod kubernetes;
mod prometheus;
mod quotes;
mod systemd;

use std::path::Path;
use std::time::Duration;

use clap::CommandFactory;
use elven_sync::commands::Cli;
use elven_sync::sandbox::{Fault, Gate};
use nix::sys::signal::Signal;
use serde_json::Value;
use sqlx::PgPool;
use tokio::process::Command;

use crate::support::{TestEnv, output_of, scene_with_three_batches, signal, stderr, stdout, wait_for_log};

const COMPOSE: &str = include_str!("../../docker-compose.yml");
const DOCKERFILE: &str = include_str!("../../Dockerfile");
const OPERATING: &str = include_str!("../../docs/operating.md");
const README: &str = include_str!("../../README.md");
const CRON: &str = include_str!("../../deploy/cron/elven-sync");
const CRON_METRICS: &str = include_str!("../../deploy/cron/elven-sync-metrics");

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

/// A file of the repository.
fn read(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Says what is not tested, and how it would be.
#[expect(clippy::print_stderr, reason = "for the person who runs the tests")]
fn not_tested(what: &str, hint: &str) {
    eprintln!("NOT TESTED: {what}; hint: {hint}");
}

/// The documents of a YAML file, by the reader that `scripts/kubernetes-validate` installs, or by that of the machine.
fn yaml(name: &str) -> Option<Vec<Value>> {
    const TO_JSON: &str =
        "import json, sys, yaml; json.dump(list(yaml.safe_load_all(sys.stdin)), sys.stdout)";
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let installed = root.join("target/kubernetes-validate/bin/python");
    for python in [installed.to_str().unwrap(), "python3", "/usr/bin/python3"] {
        let run = |code: &str| {
            let file = std::fs::File::open(root.join(name)).unwrap();
            std::process::Command::new(python).args(["-c", code]).stdin(file).output()
        };
        if run("import yaml").is_ok_and(|output| output.status.success()) {
            let output = run(TO_JSON).unwrap();
            assert!(output.status.success(), "{name}: {}", stderr(&output));
            return Some(serde_json::from_slice(&output.stdout).unwrap());
        }
    }
    not_tested(name, "scripts/kubernetes-validate, which installs a reader of YAML");
    None
}

/// Asserts that the program accepts these arguments.
fn assert_parses(whose: &str, arguments: &[String]) {
    let words = std::iter::once("elven-sync").chain(arguments.iter().map(String::as_str));
    let parsed = Cli::command().try_get_matches_from(words);
    assert!(parsed.is_ok(), "{whose}: {arguments:?}: {parsed:?}");
}

/// The files for cron: those of the folder, and those that pages quote.
fn crontabs() -> Vec<(&'static str, String)> {
    let of_page = |page: &str| {
        page.split("```cron\n").skip(1).map(|rest| rest.split("```").next().unwrap().to_owned()).collect()
    };
    let mut crontabs = vec![
        ("deploy/cron/elven-sync", CRON.to_owned()),
        ("deploy/cron/elven-sync-metrics", CRON_METRICS.to_owned()),
    ];
    for (name, page) in [("README.md", README), ("docs/operating.md", OPERATING)] {
        let quoted: Vec<String> = of_page(page);
        assert!(!quoted.is_empty(), "{name}");
        crontabs.extend(quoted.into_iter().map(|crontab| (name, crontab)));
    }
    crontabs
}

/// The variables of a file for cron, and the commands with the fields of the time and the user left out.
fn parts(crontab: &str) -> (Vec<&str>, Vec<&str>) {
    let lines = crontab.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let (commands, variables): (Vec<_>, Vec<_>) = lines.partition(|line| line.contains("elven-sync  "));
    (variables, commands.into_iter().map(|line| line.split_once("elven-sync  ").unwrap().1).collect())
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
    for (page, crontab) in crontabs() {
        let (variables, lines) = parts(&crontab);
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
                    "OUT" => folder.path().join("elven_sync.prom").display().to_string(),
                    other => panic!("{page}: an unknown variable {other}"),
                };
                cron.env(name, value);
            }
            let output = cron.args(["-c", &written]).current_dir("/").output().await.unwrap();
            assert_eq!((output.status.code(), stderr(&output)), (Some(0), String::new()), "{page}: {line}");
            assert_eq!(stdout(&output), "", "cron would mail it: {line}");
            commands += 1;
        }
    }
    assert!(commands >= 7, "{commands}");
    let log = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
    assert!(log("run.log").contains("succeeded: 0 rows read"), "{}", log("run.log"));
    assert!(log("verify.log").contains("proven: for 1 of 1 entities"), "{}", log("verify.log"));
    assert!(log("elven_sync.prom").contains("\nelven_sync_up 1\n"), "{}", log("elven_sync.prom"));
    assert_eq!(log("metrics.log"), "");
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

/// Prometheus knows the connector by a name that the connector accepts, and each mounted file exists.
#[test]
fn monitoring_of_the_compose_file_fits_together() {
    for name in ["reader", "prometheus", "grafana"] {
        let service = service(name);
        assert_eq!(value(&service, "profiles"), Some("[\"monitoring\"]"), "{name}");
        for mount in service.iter().filter_map(|line| line.trim().strip_prefix("- ./")) {
            let path = mount.split(':').next().unwrap();
            assert!(Path::new(env!("CARGO_MANIFEST_DIR")).join(path).exists(), "{name}: {path}");
        }
    }
    let target = "elven-sync:9464";
    assert!(read("deploy/prometheus/prometheus.yml").contains(&format!("targets: [\"{target}\"]")));
    let connector = service("connector");
    let command: Vec<String> = serde_json::from_str(value(&connector, "command").unwrap()).unwrap();
    assert_parses("docker-compose.yml", &command);
    assert_eq!(command.last().unwrap(), "elven-sync", "--host");
    assert_eq!(value(&connector, "network_mode"), Some("service:sandbox"));
    assert_eq!(value(&service("sandbox"), "aliases"), Some("[\"elven-sync\"]"));
    let grafana = service("grafana");
    let provisioning = read("deploy/grafana/provisioning/datasources/elven-sync.yml");
    let variables: Vec<&str> =
        provisioning.split('$').skip(1).map(|rest| rest.split_whitespace().next().unwrap()).collect();
    assert_eq!(variables.len(), 5);
    for variable in variables {
        assert!(value(&grafana, variable).is_some(), "docker-compose.yml does not set {variable}");
    }
    let folder = "/var/lib/grafana/dashboards";
    assert!(
        read("deploy/grafana/provisioning/dashboards/elven-sync.yml").contains(&format!("path: {folder}\n"))
    );
    assert!(grafana.iter().any(|line| line.ends_with(&format!(":{folder}:ro"))), "{grafana:?}");
}

#[test]
fn compose_accepts_the_compose_file() {
    for compose in [&["docker", "compose"][..], &["docker-compose"][..]] {
        let run = |arguments: &[&str]| {
            let mut command = std::process::Command::new(compose[0]);
            command.args(&compose[1..]).args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")).output()
        };
        if run(&["version"]).is_ok_and(|output| output.status.success()) {
            let output = run(&["--profile", "monitoring", "config", "--quiet"]).unwrap();
            assert!(output.status.success(), "{}", stderr(&output));
            return;
        }
    }
    not_tested("docker-compose.yml with compose itself", "apt-get install docker-compose");
}

/// The command of the service `connector`, with the signal that `docker stop` sends to its first process.
#[sqlx::test(migrations = false)]
async fn stopping_the_container_ends_the_run_in_it(pool: PgPool) {
    let scene = scene_with_three_batches(pool).await;
    let command: Vec<String> =
        serde_json::from_str(value(&service("connector"), "command").unwrap()).unwrap();
    let command: Vec<String> =
        command.iter().map(|word| word.replace("0.0.0.0:9464", "127.0.0.1:0")).collect();
    let words: Vec<&str> = command.iter().map(String::as_str).collect();
    let gate = Gate::new();
    scene.sandbox.inject(Fault::HoldResponse(gate.clone()));
    let mut container = scene.command(&words).spawn().unwrap();
    gate.reached().await;
    signal(&container, Signal::SIGTERM);
    wait_for_log(&mut container, "stopping after the requests in flight").await;
    gate.open();
    let ended = tokio::time::timeout(Duration::from_secs(20), container.wait()).await;
    assert_eq!(ended.expect("it ends").unwrap().code(), Some(0));
    let runs = "select string_agg(status, ',' order by run_id) from elven_sync.sync_runs";
    assert_eq!(scene.text(runs).await, "interrupted", "the run has recorded its end");
    // Between two runs it ends at once, although it waits a minute for the next run.
    let mut container = scene.command(&words).spawn().unwrap();
    wait_for_log(&mut container, "run 2 succeeded").await;
    signal(&container, Signal::SIGTERM);
    let ended = tokio::time::timeout(Duration::from_secs(20), container.wait()).await;
    assert_eq!(ended.expect("it ends").unwrap().code(), Some(0));
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
