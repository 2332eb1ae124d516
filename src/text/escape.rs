//! Text from outside (ledger, API, database, configuration) on its way to a terminal, and into a command to paste.

use std::fmt::Write as _;

/// Says whether a character could move the cursor, hide or reorder text, or begin a line: the control characters (C0,
/// DEL, C1), line and paragraph separators, and what changes the direction of text.
fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}')
        || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// A text in one line that does nothing to a terminal: what [`is_unsafe`] is written as `\n` or `\u{1b}`.
pub fn escaped(text: &str) -> String {
    escape(text, |c, escaped| escaped.extend(c.escape_default()))
}

/// The same for text of several lines, which stay lines. What comes from outside is to be [`escaped`] before it is put
/// into such a text, since it may make lines of its own.
pub(crate) fn escaped_lines(text: &str) -> String {
    let lines: Vec<String> = text.split('\n').map(escaped).collect();
    lines.join("\n")
}

/// The same for JSON: the escape is one of JSON's, so that a program reads the text exactly.
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

/// A word of a shell command: every POSIX shell takes it for this text and for nothing else.
///
/// In single quotes, or where the text has characters that a terminal would obey, in `$'...'` (POSIX 2024; older shells
/// take that for another text, but run nothing).
pub fn quoted(text: &str) -> String {
    if !text.contains(is_unsafe) {
        return format!("'{}'", text.replace('\'', r"'\''"));
    }
    let mut quoted = "$'".to_owned();
    for c in text.chars() {
        // A quotation mark is not written as `\'`, since that would end the text for a shell without `$'...'`.
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

/// A word of a shell command that comes last and is no option, although it may begin with a hyphen.
pub fn quoted_argument(text: &str) -> String {
    let end_of_options = if text.starts_with('-') { "-- " } else { "" };
    format!("{end_of_options}{}", quoted(text))
}

/// An option of a command with its value, which is no option itself, although it may begin with a hyphen.
pub fn quoted_option(option: &str, text: &str) -> String {
    let separator = if text.starts_with('-') { '=' } else { ' ' };
    format!("{option}{separator}{}", quoted(text))
}

/// A text in an SQL statement to paste.
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
    fn nothing_escaped_is_obeyed_by_a_terminal() {
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

    /// Runs nothing but `printf` in each shell that is there, whatever the text.
    #[test]
    fn a_shell_reads_what_was_quoted_and_runs_nothing() {
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
