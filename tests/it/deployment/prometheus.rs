//! The alerts of Prometheus: the tests of the rules, and that everything they name exists.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use sqlx::PgPool;

use super::{not_tested, read, yaml};
use crate::documents::anchors;
use crate::support::{TestEnv, stderr, stdout};

const RULES: &str = "deploy/prometheus/alerts.yml";
const TESTS: &str = "deploy/prometheus/tests.yml";
const METRICS: &str = include_str!("../../data/metrics.txt");

/// A rule, as it is written.
struct Rule {
    /// The name without `ElvenSync`.
    name: String,
    text: String,
}

impl Rule {
    fn all() -> Vec<Self> {
        let text = read(RULES);
        let rule = |text: &str| {
            let name = text.lines().next().unwrap().strip_prefix("ElvenSync").unwrap();
            Self { name: name.to_owned(), text: text.to_owned() }
        };
        text.split("- alert: ").skip(1).map(rule).collect()
    }

    /// The value of a key that is on one line.
    fn value(&self, key: &str) -> Option<&str> {
        self.text.lines().find_map(|line| line.trim().strip_prefix(key)?.strip_prefix(": "))
    }
}

/// Executes promtool, if it is installed, and asserts that it accepts the files.
fn promtool(arguments: &[&str]) {
    let root = env!("CARGO_MANIFEST_DIR");
    let Ok(output) = Command::new("promtool").args(arguments).current_dir(root).output() else {
        return not_tested(&format!("promtool {}", arguments.join(" ")), "apt-get install prometheus");
    };
    assert!(output.status.success(), "{}{}", stdout(&output), stderr(&output));
}

#[test]
fn rules_pass_their_tests() {
    promtool(&["test", "rules", TESTS]);
    promtool(&["check", "rules", RULES]);
    promtool(&["check", "config", "deploy/prometheus/prometheus.yml"]);
}

#[test]
fn each_rule_is_tested_firing_and_silent() {
    let Some(tests) = yaml(TESTS) else { return };
    let mut tested = BTreeSet::new();
    for test in tests[0]["tests"].as_array().unwrap() {
        for expected in test["alert_rule_test"].as_array().unwrap() {
            let name = expected["alertname"].as_str().unwrap().to_owned();
            tested.insert((name, expected["exp_alerts"].as_array().unwrap().is_empty()));
        }
    }
    for rule in Rule::all() {
        for is_silent in [true, false] {
            let name = format!("ElvenSync{}", rule.name);
            assert!(tested.contains(&(name, is_silent)), "{}: silent: {is_silent}", rule.name);
        }
    }
}

/// The words of a text that begin with `elven_sync_`.
pub fn metrics_in(text: &str) -> BTreeSet<String> {
    let word = |rest: &str| -> String {
        rest.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect()
    };
    text.split("elven_sync_").skip(1).map(|rest| format!("elven_sync_{}", word(rest))).collect()
}

#[test]
fn metrics_and_anchors_that_rules_name_exist() {
    let anchors = anchors("docs/operating.md");
    let metrics: BTreeSet<&str> = METRICS.lines().map(|line| line.split(' ').next().unwrap()).collect();
    for file in [RULES, TESTS, "deploy/prometheus/prometheus.yml"] {
        for metric in metrics_in(&read(file)) {
            assert!(metrics.contains(metric.as_str()), "{file}: {metric}");
        }
    }
    let rules = Rule::all();
    assert!(rules.len() > 20);
    for rule in rules {
        let runbook = rule.value("runbook").unwrap_or_else(|| panic!("{}: no runbook", rule.name));
        let anchor = runbook.strip_prefix("docs/operating.md#").unwrap();
        assert_eq!(anchor, format!("alert-{}", rule.name.to_lowercase()));
        assert!(anchors.contains(anchor), "{runbook}");
        // The labels that a rule selects by, or keeps, are those of the metric, or Prometheus' own.
        let expression = rule.value("expr").unwrap();
        for metric in metrics_in(expression) {
            let family = METRICS.lines().find(|line| line.starts_with(&format!("{metric} "))).unwrap();
            let selected = expression.split('{').skip(1).filter_map(|rest| rest.split('=').next());
            for label in selected {
                let mut labels = family.split(['{', ',', '}', '|']).skip(1);
                assert!(labels.any(|of| of == label), "{}: {metric} has no label {label}", rule.name);
            }
        }
    }
}

/// A name or a severity that is added to the view needs a rule.
#[sqlx::test(migrations = false)]
async fn each_alert_of_the_view_has_a_rule_with_its_severity(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    let view = scene.text("select pg_get_viewdef('elven_sync.alerts')").await;
    let rules = Rule::all();
    let mut names = BTreeSet::new();
    for branch in view.split("SELECT '").skip(1) {
        let name = branch.split('\'').next().unwrap();
        // The column after the name. One that depends on something begins with CASE.
        let severity = branch.lines().nth(1).unwrap().trim().strip_prefix('\'');
        let severity = severity.map(|text| text.split('\'').next().unwrap());
        let rule =
            rules.iter().find(|rule| rule.name == name).unwrap_or_else(|| panic!("no rule for {name}"));
        let expression = rule.value("expr").unwrap();
        assert_eq!(rule.value("severity"), severity, "{name}");
        let kept = if severity.is_some() { "job, namespace" } else { "job, namespace, severity" };
        assert_eq!(expression, format!("max by ({kept}) (elven_sync_alerts{{name=\"{name}\"}}) > 0"));
        names.insert(name);
    }
    for rule in rules.iter().filter(|rule| rule.text.contains("(elven_sync_alerts{")) {
        assert!(names.contains(rule.name.as_str()), "the view has no {}", rule.name);
    }
}

/// The command at the top of the file.
#[test]
fn runbooks_become_links_by_the_command_of_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let text = read(RULES);
    std::fs::write(folder.path().join("alerts.yml"), &text).unwrap();
    let command = text.lines().find_map(|line| line.strip_prefix("#   sed -i ")).unwrap();
    let output =
        Command::new("/bin/sh").args(["-c", &format!("sed -i {command}")]).current_dir(&folder).output();
    assert!(output.unwrap().status.success());
    let linked = std::fs::read_to_string(folder.path().join("alerts.yml")).unwrap();
    assert_eq!(linked.matches("\n          runbook_url: https://").count(), Rule::all().len());
    let path = folder.path().join("alerts.yml");
    if Path::new("/usr/bin/promtool").exists() {
        promtool(&["check", "rules", path.to_str().unwrap()]);
    }
}
