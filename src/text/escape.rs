//! Escaping of text from outside (ledger, API, database, configuration) for a terminal, and quoting for a command that
//! is pasted.

use std::fmt::Write as _;

/// Returns whether a character could move the cursor, hide or reorder text, or begin a line: the control characters
/// (C0, DEL, C1), line and paragraph separators, and the marks that change the direction of text.
fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}')
        || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Escapes a text to one line without effect on a terminal: a character that [`is_unsafe`] becomes `\n` or `\u{1b}`.
pub fn escaped(text: &str) -> String {
    escape(text, |c, escaped| escaped.extend(c.escape_default()))
}

/// Escapes a text of several lines and keeps its line breaks. Text from outside has to be [`escaped`] before it is put
/// into such a text, since it may contain line breaks.
pub(crate) fn escaped_lines(text: &str) -> String {
    let lines: Vec<String> = text.split('\n').map(escaped).collect();
    lines.join("\n")
}

/// Escapes JSON with escapes of JSON, so that a program reads the exact text.
pub(crate) fn escaped_json(json: &serde_json::Value) -> String {
    escape(&json.to_string(), |c, escaped| {
        for unit in c.encode_utf16(&mut [0; 2]) {
            let _ = write!(escaped, "\\u{unit:04x}");
        }
    })
}

fn escape(text: &str, write: impl Fn(char, &mut String)) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        if is_unsafe(c) {
            write(c, &mut escaped);
        } else {
            escaped.push(c);
        }
    }
    escaped
}

/// Quotes a text as one word of a shell command, for every POSIX shell.
///
/// The word is in single quotes, or in `$'...'` if the text has characters that affect a terminal (POSIX 2024; older
/// shells read another text, but run nothing).
pub fn quoted(text: &str) -> String {
    if !text.contains(is_unsafe) {
        return format!("'{}'", text.replace('\'', r"'\''"));
    }
    let mut quoted = "$'".to_owned();
    for c in text.chars() {
        // A quotation mark is not written as `\'`, which would end the text in a shell without `$'...'`.
        if is_unsafe(c) || matches!(c, '\'' | '\\') {
            for byte in c.encode_utf8(&mut [0; 4]).bytes() {
                let _ = write!(quoted, "\\{byte:03o}");
            }
        } else {
            quoted.push(c);
        }
    }
    quoted.push('\'');
    quoted
}

/// Quotes the last word of a shell command, so that it is no option even if it begins with a hyphen.
pub fn quoted_argument(text: &str) -> String {
    let end_of_options = if text.starts_with('-') { "-- " } else { "" };
    format!("{end_of_options}{}", quoted(text))
}

/// An option of a command with its quoted value, which is no option even if it begins with a hyphen.
pub fn quoted_option(option: &str, text: &str) -> String {
    let separator = if text.starts_with('-') { '=' } else { ' ' };
    format!("{option}{separator}{}", quoted(text))
}

/// Quotes a text as a string of an SQL statement that is pasted.
pub fn quoted_sql(text: &str) -> String {
    if !text.contains(|c| is_unsafe(c) || c == '\\') {
        return format!("'{}'", text.replace('\'', "''"));
    }
    let mut quoted = "E'".to_owned();
    for c in text.chars() {
        match c {
            '\'' => quoted.push_str("''"),
            '\\' => quoted.push_str("\\\\"),
            c if is_unsafe(c) => {
                let _ = write!(quoted, "\\u{:04x}", u32::from(c));
            }
            c => quoted.push(c),
        }
    }
    quoted.push('\'');
    quoted
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    const HOSTILE: [&str; 12] = [
        "plain",
        "",
        "x\u{1b}[2J\u{1b}]0;owned\u{7}\nrun 99 succeeded",
        "y' --timezone UTC; touch ./PWNED; echo '",
        "y'\n'; touch ./PWNED; echo '\u{9b}31m",
        "\\'; touch ./PWNED; echo \\\n",
        "$(touch ./PWNED) `touch ./PWNED` \"!!\" ~ *",
        "%s %n \\x41 \\101",
        "\u{202e}gnp.exe\u{2028}\u{2066}",
        "-rf",
        "Zürich 東京 🙂",
        "tab\tand\rreturn\u{7f}",
    ];

    #[test]
    fn escaped_text_has_no_effect_on_a_terminal() {
        assert_eq!(escaped("x\u{1b}[31m\n\u{9b}\u{7f}\u{202e}é"), "x\\u{1b}[31m\\n\\u{9b}\\u{7f}\\u{202e}é");
        assert_eq!(escaped_lines("a\nb\r\u{1b}"), "a\nb\\r\\u{1b}");
        for text in HOSTILE {
            let json = serde_json::json!({ "id": text });
            let shown = [escaped(text), escaped_json(&json), quoted(text), quoted_sql(text)];
            assert!(!shown.iter().any(|shown| shown.contains(is_unsafe)), "{shown:?}");
            let read: serde_json::Value = serde_json::from_str(&shown[1]).unwrap();
            assert_eq!(read, json, "JSON stays exact");
        }
    }

    /// Each installed shell runs only `printf`, for every text.
    #[test]
    fn a_shell_reads_the_quoted_text_and_runs_nothing_in_it() {
        let directory = tempfile::tempdir().unwrap();
        for shell in ["bash", "zsh", "ksh", "dash", "sh"] {
            for text in HOSTILE {
                let script = format!("printf '%s' {}", quoted(text));
                let mut command = Command::new(shell);
                command.args(["-c", &script]).current_dir(directory.path());
                let Ok(output) = command.output() else { continue };
                let is_old = matches!(shell, "dash" | "sh") && text.contains(is_unsafe);
                if !is_old {
                    assert_eq!(String::from_utf8_lossy(&output.stdout), text, "{shell}: {script}");
                }
                let files = std::fs::read_dir(directory.path()).unwrap().count();
                assert_eq!(files, 0, "{shell} ran something: {script}");
            }
        }
        assert_eq!(quoted_argument("-rf"), "-- '-rf'");
        assert_eq!(quoted_argument("a b"), "'a b'");
        assert_eq!(quoted_option("--entity", "-rf"), "--entity='-rf'");
        assert_eq!(quoted_option("--entity", "a b"), "--entity 'a b'");
        assert_eq!(quoted_sql("it's"), "'it''s'");
        assert_eq!(quoted_sql("a\\'\u{1b}"), "E'a\\\\''\\u001b'");
    }
}
