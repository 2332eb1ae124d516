//! The documents agree with the program: the configuration reference, the help texts, commands, links and examples.
//!
//! `make docs` writes the generated parts.

mod recipes;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use clap::CommandFactory;
use clap::error::ErrorKind;
use elven_sync::commands::Cli;
use elven_sync::config::{Environment, Flags, Settings, reference};

use crate::support::files_in;

const CONFIGURATION: &str = "docs/configuration.md";
const COMMANDS: &str = "docs/commands.md";
const EXAMPLE: &str = "elven-sync.example.toml";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(name: &str) -> String {
    std::fs::read_to_string(root().join(name)).unwrap_or_default()
}

/// Asserts that a file has the generated text, or writes it on request.
#[expect(clippy::disallowed_methods, reason = "for the person who runs the test, not for the connector")]
fn assert_is(name: &str, generated: &str) {
    if std::env::var_os("ELVEN_REWRITE_DOCS").is_some() {
        std::fs::write(root().join(name), generated).unwrap();
        return;
    }
    let present = read(name);
    let lines = present.lines().zip(generated.lines()).position(|(present, generated)| present != generated);
    assert!(
        present == generated,
        "{name} differs from the program at line {}; `make docs` writes it",
        1 + lines.unwrap_or_else(|| present.lines().count().min(generated.lines().count()))
    );
}

/// Returns the text with each part between `<!-- NAME ARGUMENT -->` and `<!-- end -->` replaced.
fn with_generated(text: &str, name: &str, mut generate: impl FnMut(&str) -> String) -> String {
    let mut result = String::new();
    let mut is_generated = false;
    for line in text.lines() {
        let begin = line.strip_prefix(&format!("<!-- {name} ")).and_then(|rest| rest.strip_suffix(" -->"));
        is_generated &= line != "<!-- end -->";
        if !is_generated {
            let _ = writeln!(result, "{line}");
        }
        if let Some(argument) = begin {
            let _ = write!(result, "\n{}\n", generate(argument));
            is_generated = true;
        }
    }
    assert!(!is_generated, "`<!-- end -->` is missing");
    result
}

// The configuration

/// Returns section, key and value of all settings. The value is `null` where there is none.
fn flat(values: &serde_json::Value) -> BTreeSet<(String, String, String)> {
    let mut settings = BTreeSet::new();
    let mut sections = vec![(String::new(), values)];
    while let Some((section, values)) = sections.pop() {
        for (key, value) in values.as_object().unwrap() {
            let name = if section.is_empty() { key.clone() } else { format!("{section}.{key}") };
            if value.is_object() {
                sections.push((name, value));
            } else {
                settings.insert((section.clone(), key.clone(), value.to_string()));
            }
        }
    }
    settings
}

fn defaults() -> serde_json::Value {
    reference::values("").unwrap()
}

#[test]
fn configuration_reference_has_every_key_and_default() {
    let described: BTreeSet<_> = reference::KEYS
        .iter()
        .map(|key| {
            let value = key.default.map_or_else(
                || "null".to_owned(),
                |default| {
                    let text = format!("[{}]\n{} = {default}\n", key.section, key.name);
                    let values = reference::values(&text).unwrap();
                    key.section.split('.').fold(&values, |values, section| &values[section])[key.name]
                        .to_string()
                },
            );
            (key.section.to_owned(), key.name.to_owned(), value)
        })
        .collect();
    assert_eq!(described.len(), reference::KEYS.len(), "a key is described twice");
    let settings = flat(&reference::values("[credentials.NAME]").unwrap());
    assert_eq!(described, settings);
    for key in reference::KEYS {
        assert!(reference::SECTIONS.iter().any(|(section, _)| *section == key.section), "{}", key.section);
    }
}

#[test]
fn configuration_page_is_generated_from_the_reference() {
    let text = with_generated(&read(CONFIGURATION), "keys", reference::section_table);
    let mut sections = Vec::new();
    let text = with_generated(&text, "variables", |_| reference::variable_table());
    assert_is(CONFIGURATION, &text);
    with_generated(&text, "keys", |section| {
        sections.push(section.to_owned());
        String::new()
    });
    let all: Vec<&str> = reference::SECTIONS.iter().map(|(section, _)| *section).collect();
    assert_eq!(sections, all, "a section is missing on the page");
}

#[test]
fn example_file_has_every_key_and_default() {
    assert_is(EXAMPLE, &reference::example());
    let text = reference::example();
    assert_eq!(reference::values(&text).unwrap(), defaults());
    // Also the keys without a default. The comments before them are sentences.
    let is_setting = |line: &str| line.starts_with("# [") || line.contains(" = ") && !line.contains(". ");
    let uncommented: String = text
        .lines()
        .map(|line| line.strip_prefix("# ").filter(|_| is_setting(line)).unwrap_or(line).to_owned() + "\n")
        .collect();
    let uncommented = uncommented.replace("[ledger.columns]\n", "[ledger.columns]\n# ");
    let values = reference::values(&uncommented).unwrap();
    assert!(flat(&values).iter().all(|(_, _, value)| value != "null"), "a key is missing: {values}");
}

/// Finds `environment.get("NAME")` anywhere in the program, and names in constants.
#[test]
fn every_environment_variable_is_documented() {
    let described: BTreeSet<&str> =
        reference::VARIABLES.iter().flat_map(|variable| variable.names).copied().collect();
    for (file, text) in files_in("src", "rs") {
        for rest in text.split("environment.get(\"").skip(1) {
            let name = rest.split('"').next().unwrap();
            // Only in test code.
            assert!(described.contains(name) || name == "ELVEN_SYNC_FAULT_POINT", "{name} in {file}");
        }
    }
}

// The help texts

fn help(arguments: &str) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_elven-sync"))
        .args(arguments.split_whitespace().filter(|argument| *argument != "elven-sync"))
        .arg("--help")
        .env_clear()
        .env("COLUMNS", "100")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(output.status.success(), "{arguments}: {output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
}

/// Collects all commands, each with its parents: `elven-sync entity add`.
fn commands(command: &clap::Command, above: &str, all: &mut Vec<String>) {
    let name = format!("{above}{}", command.get_name());
    all.push(name.clone());
    for below in command.get_subcommands().filter(|below| below.get_name() != "help") {
        commands(below, &format!("{name} "), all);
    }
}

#[test]
fn commands_page_has_every_help_text() {
    let mut shown = Vec::new();
    let text = with_generated(&read(COMMANDS), "help", |command| {
        shown.push(command.to_owned());
        format!("```text\n{}```\n", help(command))
    });
    assert_is(COMMANDS, &text);
    let mut all = Vec::new();
    commands(&Cli::command(), "", &mut all);
    shown.sort();
    all.sort();
    assert_eq!(shown, all, "a command is missing on the page");
}

// All documents

struct Document {
    /// Path from the root of the repository.
    name: String,
    text: String,
}

struct Fence<'a> {
    language: &'a str,
    text: String,
    line: usize,
}

impl Document {
    fn all() -> Vec<Self> {
        let beside =
            ["README.md", "CONTRIBUTING.md"].map(|name| Self { text: read(name), name: name.to_owned() });
        let docs = files_in("docs", "md")
            .into_iter()
            .map(|(name, text)| Self { name: format!("docs/{name}"), text });
        beside.into_iter().chain(docs).collect()
    }

    fn fences(&self) -> Vec<Fence<'_>> {
        let mut fences: Vec<Fence<'_>> = Vec::new();
        let mut is_inside = false;
        for (index, line) in self.text.lines().enumerate() {
            if let Some(language) = line.trim_start().strip_prefix("```") {
                is_inside = !is_inside;
                if is_inside {
                    fences.push(Fence { language, text: String::new(), line: index + 1 });
                }
            } else if let Some(fence) = fences.last_mut().filter(|_| is_inside) {
                fence.text += line;
                fence.text.push('\n');
            }
        }
        assert!(!is_inside, "{}: a fence is not closed", self.name);
        fences
    }

    /// Returns the text without fences and without `code`.
    fn prose(&self) -> String {
        let mut is_inside = false;
        let mut prose = String::new();
        for line in self.text.lines() {
            let is_fence = line.trim_start().starts_with("```");
            is_inside ^= is_fence;
            if !is_inside && !is_fence {
                prose += line;
                prose.push('\n');
            }
        }
        prose
    }

    /// Returns the anchors of its headings, and those that are written as `<a id="...">`.
    fn anchors(&self) -> BTreeSet<String> {
        let prose = self.prose();
        let headings = prose.lines().filter(|line| line.starts_with('#'));
        let explicit = prose.split("<a id=\"").skip(1).filter_map(|rest| rest.split('"').next());
        headings
            .map(|line| {
                let heading = line.trim_start_matches('#').trim().to_lowercase();
                let kept = heading.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
                kept.map(|c| if c == ' ' { '-' } else { c }).collect::<String>()
            })
            .chain(explicit.map(str::to_owned))
            .collect()
    }
}

/// Returns the anchors of a page.
pub fn anchors(name: &str) -> BTreeSet<String> {
    Document { name: name.to_owned(), text: read(name) }.anchors()
}

/// Splits a command into words as a shell does. Returns `None` if it ends with something that is no command.
fn words(line: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quote = None;
    for c in line.chars() {
        match (quote, c) {
            (None, '#') if words.last().is_some_and(String::is_empty) => break,
            (None, '|' | ';' | '&' | '>') => break,
            (None, '\'' | '"') => quote = Some(c),
            (Some(open), _) if open == c => quote = None,
            (None, ' ') => words.push(String::new()),
            _ => words.last_mut().unwrap().push(c),
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

#[test]
fn every_documented_command_parses() {
    let mut wrong = String::new();
    let mut tested = 0;
    for document in Document::all() {
        for fence in document.fences().iter().filter(|fence| fence.language == "sh") {
            for line in fence.text.replace("\\\n", " ").split(['\n']).flat_map(|line| line.split("&&")) {
                let line = line.trim().trim_start_matches("$ ");
                if !line.starts_with("elven-sync ") {
                    continue;
                }
                tested += 1;
                if let Err(problem) = Cli::command().try_get_matches_from(words(line))
                    && !matches!(problem.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion)
                {
                    let _ = writeln!(wrong, "{} line {}: {line}\n{problem}", document.name, fence.line);
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
    assert!(tested > 20, "only {tested} commands were found");
}

#[test]
fn every_documented_setting_exists() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("elven-sync.toml");
    let mut wrong = String::new();
    for document in Document::all() {
        for fence in document.fences().iter().filter(|fence| fence.language == "toml") {
            std::fs::write(&path, &fence.text).unwrap();
            let flags = Flags { config: Some(path.clone()), ..Flags::default() };
            if let Err(problem) = Settings::load(&flags, Environment::default()) {
                let _ = writeln!(wrong, "{} line {}: {problem}", document.name, fence.line);
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn every_link_between_documents_resolves() {
    let documents = Document::all();
    let mut wrong = String::new();
    for document in &documents {
        let folder = Path::new(&document.name).parent().unwrap();
        for rest in document.prose().split("](").skip(1) {
            let target = rest.split(')').next().unwrap();
            if target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            let name = if file.is_empty() { document.name.clone() } else { joined(folder, file) };
            let leads_there = match documents.iter().find(|document| document.name == name) {
                Some(there) => anchor.is_empty() || there.anchors().contains(anchor),
                None => anchor.is_empty() && root().join(&name).exists(),
            };
            if !leads_there {
                let _ = writeln!(wrong, "{}: {target}", document.name);
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

/// Files and functions that the pages for contributors name.
#[test]
fn every_file_and_function_of_the_internals_exists() {
    let (program, tests) = (files_in("src", "rs"), files_in("tests", "rs"));
    let sources: String = program.values().chain(tests.values()).map(String::as_str).collect();
    let in_folder = |folder: &str, files: &BTreeMap<String, String>| -> Vec<String> {
        files.keys().map(|name| format!("{folder}/{name}")).collect()
    };
    let files = [in_folder("src", &program), in_folder("tests", &tests)].concat();
    let mut missing = Vec::new();
    for page in ["architecture", "recovery", "decisions", "performance"] {
        let text = read(&format!("docs/internals/{page}.md"));
        for code in text.split('`').skip(1).step_by(2) {
            let is_name = |text: &str| text.chars().all(|c| c.is_alphanumeric() || "_:/.".contains(c));
            if !is_name(code) {
                continue;
            }
            let ends = |file: &String| file == code || file.ends_with(&format!("/{code}"));
            let exists = match code.rsplit_once("::") {
                _ if Path::new(code).extension().is_some_and(|kind| kind == "rs") => files.iter().any(ends),
                Some((kind, name)) if !kind.is_empty() && !name.is_empty() => {
                    [format!("fn {name}"), format!("{name}:"), format!("    {name}"), format!("mod {name}")]
                        .iter()
                        .any(|definition| sources.contains(definition))
                }
                _ => true,
            };
            if !exists {
                missing.push(format!("{page}.md: {code}"));
            }
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
}

/// Resolves a relative path of a link from the root of the repository.
fn joined(folder: &Path, file: &str) -> String {
    let mut path = PathBuf::new();
    for part in folder.join(file).components() {
        match part {
            std::path::Component::ParentDir => {
                path.pop();
            }
            part => path.push(part),
        }
    }
    path.to_str().unwrap().to_owned()
}

// The SQL of the documents
