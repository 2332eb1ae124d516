//! The accounts that the receiver knows. It refuses a body with another one, and lists those that it knows.

use std::collections::HashSet;
use std::path::Path;

use anyhow::Context;
use serde_json::{Value, json};

/// The currencies of the ledgers.
const CURRENCIES: [&str; 3] = ["BTC", "ETH", "USD"];

/// What stands before an account in a body.
const FIELD: &[u8] = br#""entityAccountId":""#;

const REFUSED: &str = r#"{"status":"failed","data":{"code":19734,"message":"The account is unknown"}}"#;

#[derive(Debug)]
pub(crate) struct Known {
    sorted: Vec<String>,
    accounts: HashSet<Vec<u8>>,
}

impl Known {
    /// Reads the accounts from a file, one a line.
    pub(crate) fn read(file: &Path) -> anyhow::Result<Self> {
        let text =
            std::fs::read_to_string(file).with_context(|| format!("{} cannot be read", file.display()))?;
        let sorted: Vec<String> = text.lines().map(str::to_owned).collect();
        let accounts = sorted.iter().map(|account| account.as_bytes().to_vec()).collect();
        Ok(Self { sorted, accounts })
    }

    /// Whether all accounts of a body are known.
    pub(crate) fn has_all_of(&self, body: &[u8]) -> bool {
        let mut rest = body;
        while let Some(at) = rest.windows(FIELD.len()).position(|bytes| bytes == FIELD) {
            rest = &rest[at + FIELD.len()..];
            let end = rest.iter().position(|byte| *byte == b'"').unwrap_or(rest.len());
            if !self.accounts.contains(&rest[..end]) {
                return false;
            }
        }
        true
    }

    /// Returns a page of a list. `path`: the path of the request with its query.
    pub(crate) fn page(&self, path: &str) -> String {
        let number = |name: &str, default: usize| {
            let given = path.split(['?', '&']).find_map(|part| part.strip_prefix(name));
            given.and_then(|value| value.parse().ok()).unwrap_or(default)
        };
        let (page, limit) = (number("page=", 1), number("limit=", 10));
        let (total, list): (usize, Vec<Value>) = if path.contains("/currency") {
            let list =
                CURRENCIES.iter().map(|name| json!({"currency": name, "name": name, "type": "CRYPTO"}));
            (CURRENCIES.len(), list.skip((page - 1) * limit).take(limit).collect())
        } else {
            let list = self.sorted.iter().map(|id| json!({"entityAccountId": id, "name": id}));
            (self.sorted.len(), list.skip((page - 1) * limit).take(limit).collect())
        };
        json!({"total": total, "list": list}).to_string()
    }
}

/// Returns the refusal of a body with an unknown account, as a whole answer.
pub(crate) fn refusal() -> String {
    answer("400 Bad Request", REFUSED)
}

/// Returns a whole answer.
pub(crate) fn answer(status: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}
