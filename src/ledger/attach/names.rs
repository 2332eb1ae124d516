//! Names and source texts of the objects that `attach` creates.

use super::super::quoting::quote_identifier;

/// The longest name in bytes; PostgreSQL cuts longer names.
pub(super) const NAME_BYTES_MAX: usize = 63;

/// The suffixes of the two index names: for runs, and for backfills.
pub(super) const SUFFIXES: [&str; 2] = ["", BACKFILL];

pub(super) const BACKFILL: &str = "_backfill";

/// The beginning of the name of the trigger and of its function.
pub(in crate::ledger) const STAMP_PREFIX: &str = "elven_sync_stamp_";

/// Returns the body of the stamping function. It names its schema, so that a writer's `search_path` cannot put another
/// function in front of it.
pub(in crate::ledger) fn body(column: &str) -> String {
    format!(
        "begin\n    new.{} := pg_catalog.pg_current_xact_id();\n    return new;\nend",
        quote_identifier(column)
    )
}

pub(super) fn index_called(table: &str, suffix: &str) -> String {
    format!("{table}_elven_sync{suffix}")
}

/// Returns the name of the trigger and of its function.
pub(super) fn stamp_called(column: &str) -> String {
    let mut called = format!("{STAMP_PREFIX}{column}");
    while called.len() > NAME_BYTES_MAX {
        called.pop();
    }
    called
}
