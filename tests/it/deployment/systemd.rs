//! The units of systemd: what `systemd-analyze` says of them, and that they start what exists.

use std::path::{Path, PathBuf};
use std::process::Command;

use elven_sync::config::reference;
use sqlx::PgPool;
use tempfile::TempDir;

use super::{OPERATING, STOP_S, assert_parses, not_tested, read};
use crate::support::{TestEnv, stderr, stdout};

const UNITS: [&str; 5] = [
    "elven-sync.service",
    "elven-sync-run.service",
    "elven-sync-run.timer",
    "elven-sync-verify.service",
    "elven-sync-verify.timer",
];
const SERVICES: [&str; 3] = ["elven-sync.service", "elven-sync-run.service", "elven-sync-verify.service"];
const PROGRAM: &str = "/usr/local/bin/elven-sync";
const CHECK: &str = "/usr/local/bin/elven-sync check --only configuration";

fn unit(name: &str) -> String {
    read(&format!("deploy/systemd/{name}"))
}

/// The values of a setting of a unit, in order.
fn values<'a>(unit: &'a str, key: &str) -> Vec<&'a str> {
    unit.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('=')).collect()
}

/// The units with the path of the program under test, in a folder.
fn units_of_this_program() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in UNITS {
        let text = unit(name).replace(PROGRAM, env!("CARGO_BIN_EXE_elven-sync"));
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    folder
}

/// Executes `systemd-analyze`. `None` where it is missing, or is older than the units need.
fn analyze(folder: &Path, arguments: &[&str]) -> Option<(bool, String)> {
    let run = |arguments: &[&str]| {
        let mut command = Command::new("systemd-analyze");
        command.args(arguments).current_dir(folder).env("SYSTEMD_COLORS", "0").output().ok()
    };
    let version =
        run(&["--version"]).and_then(|output| stdout(&output).split(' ').nth(1)?.parse::<u32>().ok());
    if version.is_none_or(|version| version < 250) {
        not_tested("the units of systemd", "systemd-analyze of systemd 250 or later");
        return None;
    }
    let output = run(arguments)?;
    Some((output.status.success(), format!("{}{}", stdout(&output), stderr(&output))))
}

#[test]
fn systemd_accepts_the_units() {
    let folder = units_of_this_program();
    let paths: Vec<PathBuf> = UNITS.iter().map(|name| folder.path().join(name)).collect();
    let verify = |paths: &[PathBuf]| {
        let words = std::iter::once("verify").chain(paths.iter().map(|path| path.to_str().unwrap()));
        analyze(folder.path(), &words.collect::<Vec<_>>())
    };
    let Some((is_right, said)) = verify(&paths) else { return };
    // A key that does not exist is a warning, and leaves the exit code as it is. Other units may have warnings, too.
    let of_ours: Vec<&str> = said.lines().filter(|line| line.contains("elven-sync")).collect();
    assert!(is_right && of_ours.is_empty(), "{said}");
    // The exit code and the warning mean what this test takes them for.
    let wrong = folder.path().join("elven-sync-wrong.service");
    let text = unit(SERVICES[0]).replace("WatchdogSec", "WatchdogSek");
    std::fs::write(&wrong, text.replace(PROGRAM, "/nonexistent/elven-sync")).unwrap();
    let (is_right, said) = verify(&[wrong]).unwrap();
    assert!(!is_right && said.contains("WatchdogSek"), "{said}");
}

/// Under 2.0, on a scale from 0 to 10 on which more is worse.
#[test]
fn systemd_rates_the_exposure_of_the_services_under_two() {
    let folder = units_of_this_program();
    for name in SERVICES {
        let path = folder.path().join(name);
        let rate = |threshold: &str| {
            let words = ["security", "--no-pager", "--offline=true", threshold, path.to_str().unwrap()];
            analyze(folder.path(), &words)
        };
        let Some((is_below, said)) = rate("--threshold=20") else { return };
        assert!(is_below && said.contains("Overall exposure level"), "{name}: {said}");
        let (is_below, _) = rate("--threshold=5").unwrap();
        assert!(!is_below, "the threshold has an effect");
    }
}

#[test]
fn units_start_commands_that_exist_and_leave_time_to_end() {
    for name in SERVICES {
        let unit = unit(name);
        let commands = [values(&unit, "ExecStartPre"), values(&unit, "ExecStart")];
        // verify uses no key, and reads the configuration itself.
        let before: &[&str] = if name.contains("verify") { &[] } else { &[CHECK] };
        assert_eq!(commands[0], before, "{name}");
        for command in commands.concat() {
            let words = command.strip_prefix(PROGRAM).unwrap().split_whitespace().map(str::to_owned);
            assert_parses(name, &words.collect::<Vec<_>>());
        }
        assert_eq!(values(&unit, "SuccessExitStatus"), ["130 143"], "{name}");
        assert_eq!(values(&unit, "DynamicUser"), ["yes"], "{name}");
        let stop: u64 = values(&unit, "TimeoutStopSec")[0].trim_end_matches('s').parse().unwrap();
        assert!(stop > STOP_S, "{name}: {stop}");
        // Each variable is one of the program, and each file in %d is loaded.
        let known: Vec<&str> =
            reference::VARIABLES.iter().flat_map(|variable| variable.names).copied().collect();
        let loaded: Vec<&str> = values(&unit, "LoadCredential")
            .into_iter()
            .map(|value| value.split(':').next().unwrap())
            .collect();
        for assignment in values(&unit, "Environment") {
            let (variable, value) = assignment.split_once('=').unwrap();
            assert!(known.contains(&variable), "{name}: {variable}");
            if let Some(file) = value.strip_prefix("%d/") {
                assert!(loaded.contains(&file), "{name}: {file}");
            }
        }
    }
    assert_eq!(values(&unit(SERVICES[0]), "Type"), ["notify"]);
    assert!(unit("elven-sync-run.timer").contains("OnCalendar=minutely"));
}

/// The drop-in of the handbook works for each unit, whatever the folder of its credentials is called.
#[sqlx::test(migrations = false)]
async fn drop_in_gives_the_units_the_files_of_a_second_credential_and_of_the_webhook(pool: PgPool) {
    let mut scene = TestEnv::new(pool).await;
    let receiver = crate::notify::Receiver::start().await;
    scene.entity("acme", "UTC").await;
    scene.sql("update elven_sync.entities set credential = 'beta'").await;
    crate::alerts::add_row(&scene, "acme").await;
    let drop_in = read("deploy/systemd/credentials.conf");
    let folder = tempfile::tempdir().unwrap();
    let (hook, secret) = (format!("{}/hook", receiver.url), format!("whsec_{}", "A".repeat(44)));
    for (file, text) in [
        ("beta_key", "key-2"),
        ("beta_secret", "secret-2"),
        ("webhook_url", &hook),
        ("webhook_secret", &secret),
    ] {
        std::fs::write(folder.path().join(file), format!("{text}\n")).unwrap();
    }
    let mut loaded = Vec::new();
    for value in values(&drop_in, "LoadCredential") {
        loaded.push(format!("%d/{}", value.split_once(":/etc/elven-sync/").unwrap().0));
    }
    for assignment in values(&drop_in, "Environment") {
        let (variable, value) = assignment.split_once('=').unwrap();
        assert!(loaded.contains(&value.to_owned()), "{value}");
        scene.set(variable, &value.replace("%d", folder.path().to_str().unwrap()));
    }
    let checked = scene.output(&["check", "--only", "configuration"]).await;
    assert_eq!(checked.status.code(), Some(0), "{}", stdout(&checked));
    crate::notify::set_guard(&scene, false).await;
    let ran = scene.output(&["run"]).await;
    assert_eq!(ran.status.code(), Some(0), "{}", stderr(&ran));
    assert_eq!((scene.balances().len(), receiver.messages().len()), (1, 1));
    assert_ne!(receiver.messages()[0].header("webhook-signature"), "");
    // systemd accepts it.
    let units = units_of_this_program();
    let of_unit = units.path().join("elven-sync-run.service.d");
    std::fs::create_dir(&of_unit).unwrap();
    std::fs::write(of_unit.join("credentials.conf"), &drop_in).unwrap();
    let unit = units.path().join("elven-sync-run.service");
    if let Some((is_right, said)) = analyze(units.path(), &["verify", unit.to_str().unwrap()]) {
        assert!(is_right && !said.contains("credentials.conf"), "{said}");
    }
}

/// The commands of the unit, with the credentials as systemd gives them: files in a folder of the unit.
#[sqlx::test(migrations = false)]
async fn units_run_with_credentials_in_files(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    scene.entity("acme", "UTC").await;
    let folder = tempfile::tempdir().unwrap();
    let variables: Vec<(String, String)> = scene
        .command(&[])
        .as_std()
        .get_envs()
        .map(|(name, value)| (name.to_str().unwrap().to_owned(), value.unwrap().to_str().unwrap().to_owned()))
        .collect();
    let value = |name: &str| &variables.iter().find(|(of, _)| of == name).unwrap().1;
    for (file, of) in
        [("database_url", "DATABASE_URL"), ("key", "ELVEN_API_KEY"), ("secret", "ELVEN_API_SECRET")]
    {
        std::fs::write(folder.path().join(file), format!("{}\n", value(of))).unwrap();
    }
    let configuration = folder.path().join("elven-sync.toml");
    std::fs::write(&configuration, read("deploy/kubernetes/base/elven-sync.toml")).unwrap();
    for unit in [unit("elven-sync-run.service"), unit("elven-sync-verify.service")] {
        for started in [values(&unit, "ExecStartPre"), values(&unit, "ExecStart")].concat() {
            let mut command = scene.command(&[]);
            command.env_clear().env("ELVEN_API_URL", value("ELVEN_API_URL"));
            command.args(started.strip_prefix(PROGRAM).unwrap().split_whitespace());
            for assignment in values(&unit, "Environment") {
                let (variable, value) = assignment.split_once('=').unwrap();
                let value = value.replace("%d", folder.path().to_str().unwrap());
                let value = value.replace("/etc/elven-sync/elven-sync.toml", configuration.to_str().unwrap());
                command.env(variable, value);
            }
            let output = command.output().await.unwrap();
            assert_eq!(output.status.code(), Some(0), "{started}: {}{}", stdout(&output), stderr(&output));
        }
    }
    assert_eq!(scene.text("select status from elven_sync.sync_runs").await, "succeeded");
}

/// The recipe of the handbook for a command by hand, with the files of the units.
#[sqlx::test(migrations = false)]
async fn command_by_hand_works_with_the_files_of_the_units(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    let folder = tempfile::tempdir().unwrap();
    let plain = scene.command(&[]);
    let value = |name: &str| {
        let mut variables = plain.as_std().get_envs();
        variables
            .find_map(|(of, value)| (of == name).then(|| value.unwrap().to_str().unwrap().to_owned()))
            .unwrap()
    };
    for (file, of) in
        [("database_url", "DATABASE_URL"), ("key", "ELVEN_API_KEY"), ("secret", "ELVEN_API_SECRET")]
    {
        std::fs::write(folder.path().join(file), format!("{}\n", value(of))).unwrap();
    }
    std::fs::write(folder.path().join("elven-sync.toml"), read("deploy/kubernetes/base/elven-sync.toml"))
        .unwrap();
    let (_, recipe) = OPERATING.split_once("<!-- by hand with systemd -->\n\n```sh\n").expect("the recipe");
    let recipe = recipe.split_once("```").unwrap().0;
    assert!(recipe.contains("sudo env "), "{recipe}");
    // Each variable of the units is in the recipe.
    for assignment in values(&unit("elven-sync-run.service"), "Environment") {
        let variable = assignment.split_once('=').unwrap().0;
        assert!(recipe.contains(&format!("{variable}=/etc/elven-sync/")), "{variable}: {recipe}");
    }
    let script = recipe
        .replace("sudo env ", "env ")
        .replace("/etc/elven-sync", folder.path().to_str().unwrap())
        .replace("entity rewind 'acme'", "entity add 'acme' --timezone UTC");
    let mut shell = tokio::process::Command::new("sh");
    let output = shell.env_clear().env("PATH", super::path()).args(["-euc", &script]).output().await.unwrap();
    assert_eq!(output.status.code(), Some(0), "{script}: {}{}", stdout(&output), stderr(&output));
    assert_eq!(scene.text("select entity_id from elven_sync.entities").await, "acme");
}
