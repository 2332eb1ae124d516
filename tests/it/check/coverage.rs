//! A test provokes the finding of each check, and sees it end.

use std::path::Path;

use elven_sync::check::ids;

/// Checks whose finding cannot be provoked on a machine of one's own, each with the file and the name of its test.
const WITH_FACTS_OF_THEIR_OWN: [(&str, &str, &str); 5] = [
    ("database.version", "src/check/database.rs", "versions_that_are_too_old_or_untested_are_found"),
    ("database.tls", "src/check/database.rs", "a_connection_that_the_network_can_read_is_found"),
    ("ledger.writers", "src/check/ledger.rs", "a_transaction_that_is_open_for_long_is_found_with_its_end"),
    ("journal.size", "src/check/journal.rs", "sync_tables_that_are_large_are_found"),
    ("host.clock", "src/check/host.rs", "clocks_that_differ_are_found_in_both_directions"),
];

/// Checks that find nothing: they say what cannot be checked.
const WITHOUT_FINDINGS: [&str; 1] = ["api.import"];

fn read(name: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap()
}

/// The bodies of the tests that make checks.
fn tests() -> Vec<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/check");
    let files = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| std::fs::read_to_string(entry.unwrap().path()).unwrap());
    let others = ["tests/it/pooler/settings.rs", "tests/it/failover.rs"].map(read);
    files
        .chain(others)
        .flat_map(|text| text.split("async fn ").map(str::to_owned).collect::<Vec<_>>())
        .collect()
}

/// Returns the statuses that a test asserts of a check: those that follow its id before another one. Those of a list of
/// SQL that provokes findings end with their repair.
fn statuses<'t>(test: &'t str, id: &str) -> Vec<&'t str> {
    let mut statuses = Vec::new();
    for (place, _) in test.match_indices(&format!("\"{id}\"")) {
        let rest = &test[place + id.len() + 2..];
        let literals = rest.split('"').skip(1).step_by(2);
        let status =
            literals.take(3).find(|literal| ["ok", "warning", "failed", "skipped"].contains(literal));
        statuses.extend(status);
        if rest.starts_with(",\n") && test.contains("assert_each_appears_and_ends") {
            statuses.push("ok");
        }
    }
    statuses
}

#[test]
fn each_check_has_a_test_that_sees_its_finding_and_its_end() {
    let tests = tests();
    for id in ids().filter(|id| !WITHOUT_FINDINGS.contains(id)) {
        if let Some((_, file, test)) = WITH_FACTS_OF_THEIR_OWN.iter().find(|(of, ..)| *of == id) {
            assert!(read(file).contains(&format!("fn {test}()")), "{id}: {file} has no test {test}");
            continue;
        }
        let sees_both = |test: &String| {
            let statuses = statuses(test, id);
            let is_found = statuses.iter().any(|status| ["warning", "failed"].contains(status));
            is_found && statuses.contains(&"ok")
        };
        assert!(tests.iter().any(sees_both), "no test provokes a finding of {id} and sees it end");
    }
}
