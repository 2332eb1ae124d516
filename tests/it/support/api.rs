//! The API side of a test: its path, its credential and its faults.

use elven_sync::sandbox::Rule;

/// The path of imports, version 3.
pub const IMPORT: &str = "/open/v3/account/treasuryBalance";

/// Whether a request with this path is an import, of either version.
pub fn is_import(path: &str) -> bool {
    path.ends_with("/account/treasuryBalance")
}

/// The key of the credential `default`.
pub const KEY: &str = "test-key-4be1";
/// The secret of the credential `default`.
pub const SECRET: &str = "test-secret-91cd";

/// Parses fault rules of the sandbox, as `docs/sandbox.md` describes them.
pub fn fault_rules(rules: &[&str]) -> Vec<Rule> {
    rules.iter().map(|rule| rule.parse().unwrap()).collect()
}
