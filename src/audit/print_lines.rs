//! Prints in texts that people keep: a line of a log, a summary, JSON, or metrics.

use serde_json::Value;

use crate::journal::PrintLine;

/// The length of a root in hex.
const ROOT_CHARS: usize = 64;

/// Returns the prints that a text names, in order, each once.
pub fn print_lines(text: &str) -> Vec<PrintLine> {
    let mut found = Vec::new();
    match serde_json::from_str(text) {
        Ok(value) => in_json(&value, &mut found),
        Err(_) => text.lines().for_each(|line| match serde_json::from_str(line) {
            Ok(value @ (Value::Object(_) | Value::Array(_))) => in_json(&value, &mut found),
            _ => in_words(line, &mut found),
        }),
    }
    let mut once: Vec<PrintLine> = Vec::new();
    for line in found {
        if !once.contains(&line) {
            once.push(line);
        }
    }
    once
}

fn root(text: &str) -> Option<String> {
    let is_root = text.len() == ROOT_CHARS && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_root.then(|| text.to_ascii_lowercase())
}

/// An object with `print_id` and `root`, however deep; or a text with a print in it.
fn in_json(value: &Value, found: &mut Vec<PrintLine>) {
    match value {
        Value::Object(fields) => {
            let print_id = fields
                .get("print_id")
                .and_then(|id| id.as_i64().or_else(|| id.as_str().and_then(|id| id.parse().ok())));
            let root = fields.get("root").and_then(Value::as_str).and_then(root);
            if let Some((print_id, root)) = print_id.zip(root) {
                found.push(PrintLine { print_id, root });
            }
            fields.values().for_each(|value| in_json(value, found));
        }
        Value::Array(values) => values.iter().for_each(|value| in_json(value, found)),
        Value::String(text) => text.lines().for_each(|line| in_words(line, found)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// A number and a root, with nothing but the word `root` between them.
fn in_words(line: &str, found: &mut Vec<PrintLine>) {
    let words: Vec<&str> =
        line.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty()).collect();
    for (place, word) in words.iter().enumerate() {
        let Some(root) = root(word) else { continue };
        let mut before = words[..place].iter().rev().skip_while(|word| **word == "root");
        if let Some(print_id) = before.next().and_then(|word| word.parse().ok()) {
            found.push(PrintLine { print_id, root });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_print_is_found_in_each_text_that_has_one() {
        let root = "ab".repeat(32);
        let line = PrintLine { print_id: 12, root: root.clone() };
        let texts = [
            format!("12 {root}"),
            format!("print: 12 {}\n", root.to_uppercase()),
            format!("run 7 succeeded: 3 rows read; 2026-03-01\nprint: 12 {root}\n"),
            format!("2026-03-01T10:00:00Z  INFO print print_id=12 root={root}"),
            format!("elven_sync_print_info{{print_id=\"12\",root=\"{root}\"}} 1"),
            format!(
                "{{\"print_id\":12,\"at\":\"2026-03-01\",\"previous\":\"{}\",\"root\":\"{root}\"}}",
                "cd".repeat(32)
            ),
            format!(
                "{{\"level\":\"INFO\",\"print\":{{\"root\":\"{root}\",\"print_id\":\"12\"}}}}\n{{\"level\":\"INFO\"}}"
            ),
            format!("{{\"text\":\"all well\\nprint 12 {root}\"}}"),
        ];
        for text in texts {
            assert_eq!(print_lines(&text), std::slice::from_ref(&line), "{text}");
        }
        for text in ["", "12 abcd", "[]", &root, &format!("at {root}"), &format!("12 {root}0")] {
            assert_eq!(print_lines(text), [], "{text}");
        }
    }
}
