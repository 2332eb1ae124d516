//! Manual pages and completions.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};

use clap::CommandFactory;
use elven_sync::commands::Cli;

fn generate(arguments: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_elven-sync"));
    let output = command.arg("generate").args(arguments).env_clear().output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Returns the names of the pages: one for each command, and its own for each command below.
fn pages_of(command: &clap::Command, name: &str, pages: &mut BTreeSet<String>) {
    pages.insert(format!("{name}.1"));
    for below in command.get_subcommands().filter(|below| below.get_name() != "help") {
        pages_of(below, &format!("{name}-{}", below.get_name()), pages);
    }
}

fn has(program: &str) -> bool {
    let found =
        Command::new("sh").args(["-c", &format!("command -v {program}")]).stdout(Stdio::null()).status();
    found.unwrap().success()
}

/// Renders a page, if there is a program for it.
#[expect(clippy::print_stderr, reason = "says what was left out")]
fn rendered(page: &Path) -> Option<String> {
    if !has("groff") {
        eprintln!("groff is not installed, so that no manual page was rendered");
        return None;
    }
    let output = Command::new("groff").args(["-man", "-Tutf8", "-ww"]).arg(page).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{}", page.display());
    // A bold letter is printed over itself.
    let mut text = String::new();
    for c in String::from_utf8(output.stdout).unwrap().chars() {
        if c == '\u{8}' {
            text.pop();
        } else {
            text.push(c);
        }
    }
    Some(text)
}

#[test]
fn each_command_has_a_manual_page_that_renders() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("man1");
    assert_eq!(generate(&["man", "--out", out.to_str().unwrap()]), "");
    let written: BTreeSet<String> = std::fs::read_dir(&out)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    let mut expected = BTreeSet::new();
    pages_of(&Cli::command(), "elven-sync", &mut expected);
    assert_eq!(written, expected);
    for page in &written {
        if let Some(text) = rendered(&out.join(page)) {
            assert!(text.contains("SYNOPSIS") && text.contains("--quiet"), "{page}: {text}");
        }
    }
    let main = generate(&["man"]);
    assert_eq!(main, std::fs::read_to_string(out.join("elven-sync.1")).unwrap());
    assert!(main.contains("Upload new rows of all entities"), "{main}");
}

#[test]
fn a_folder_that_cannot_be_written_is_named() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_elven-sync"));
    let output = command.args(["generate", "man", "--out", "/dev/null/man"]).env_clear().output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("the manual pages cannot be written into /dev/null/man"), "{said}");
}

/// A real bash completes a command and an option.
#[test]
fn bash_completes_commands_and_options() {
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("completions");
    std::fs::write(&script, generate(&["completions", "bash"])).unwrap();
    for (words, expected) in [("che", "check"), ("entity pau", "pause"), ("check --onl", "--only")] {
        let ask = format!(
            "source {}; COMP_WORDS=(elven-sync {words}); COMP_CWORD=$(( ${{#COMP_WORDS[@]}} - 1 ))
             complete=$(complete -p elven-sync); complete=${{complete#*-F }}
             ${{complete%% *}} elven-sync \"${{COMP_WORDS[$COMP_CWORD]}}\" \"${{COMP_WORDS[$COMP_CWORD-1]}}\"
             echo \"${{COMPREPLY[*]}}\"",
            script.display()
        );
        let output = Command::new("bash").args(["--norc", "-c", &ask]).output().unwrap();
        assert_eq!(
            String::from_utf8(output.stdout).unwrap().trim(),
            expected,
            "{words}: {:?}",
            output.stderr
        );
    }
}

#[test]
fn each_shell_gets_completions() {
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let script = generate(&["completions", shell]);
        for word in ["backfill", "quiet", "pause"] {
            assert!(script.contains(word), "{shell} lacks {word}");
        }
        if ["bash", "zsh", "fish"].contains(&shell) && has(shell) {
            let folder = tempfile::tempdir().unwrap();
            let file = folder.path().join("completions");
            std::fs::write(&file, script).unwrap();
            let checked = Command::new(shell).arg("-n").arg(&file).output().unwrap();
            assert!(checked.status.success(), "{shell}: {checked:?}");
        }
    }
}
