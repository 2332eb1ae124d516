//! The output of `digest`.

use serde_json::json;

use super::{json_line, line};
use crate::journal::{ChainEnd, Print};

/// Prints a print: its number and its root, or all of it as JSON.
pub fn digest(print: &Print, chains: &[ChainEnd], as_json: bool) {
    if as_json {
        json_line(&json!({
            "print_id": print.print_id,
            "at": print.at,
            "previous": print.previous.as_ref().map(hex::encode),
            "root": hex::encode(&print.root),
            "system_identifier": print.system_identifier,
            "entities": chains,
        }));
    } else {
        line(print.line());
    }
}
