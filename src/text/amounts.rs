//! Messages without amounts, for those who may see the state of the sync and not the balances.
//!
//! A message can repeat text of the API or of the database server, which can hold an amount in any form. So numbers are
//! replaced unless their form or the words around them show what they are.

/// What stands for a number.
const PLACEHOLDER: &str = "<number>";
/// The most digits of a count in the connector's own words.
const COUNT_DIGITS_MAX: usize = 9;
/// What the connector counts.
const NOUNS: [&str; 16] = [
    "rows", "row", "records", "record", "batches", "batch", "bytes", "requests", "attempts", "entities",
    "more", "ms", "s", "min", "h", "d",
];
/// What the connector numbers.
const NUMBERED: [&str; 8] = ["batch", "pass", "backfill", "run", "transaction", "pid", "line", "port"];

/// Returns a message in which numbers that could be amounts are replaced.
///
/// These numbers stay: times such as `2024-01-31 12:00:00Z`, and the status after `HTTP`. Outside of quotation marks,
/// where the words are the connector's own, also counts (`5 rows`), ids (`batch 17`, `code 4001`), and names in
/// backticks. The API's message and the values in messages of PostgreSQL are in quotation marks.
pub fn without_amounts(message: &str) -> String {
    // Nothing says where a quotation ends, because it may contain quotation marks itself.
    let quoted = message.find('"').zip(message.rfind('"'));
    let mut shown = String::with_capacity(message.len());
    let mut at = 0;
    while let Some(next) = message[at..].chars().next() {
        let rest = &message[at..];
        let is_own = quoted.is_none_or(|(begin, end)| at < begin || at > end);
        let kept = if is_own && next == '`' {
            rest[1..].find(['`', '"']).map_or(1, |end| end + 1)
        } else if next.is_numeric() {
            kept_number(&message[..at], rest, is_own)
        } else {
            next.len_utf8()
        };
        if kept > 0 {
            shown.push_str(&rest[..kept]);
            at += kept;
        } else {
            shown.push_str(PLACEHOLDER);
            at += number(rest);
        }
    }
    shown
}

/// Returns the length of what stays of a text that begins with a number: 0 if the number is replaced.
fn kept_number(before: &str, rest: &str, is_own: bool) -> usize {
    let after_number =
        before.chars().next_back().is_some_and(|c| c.is_alphanumeric() || matches!(c, '.' | ',' | '-'));
    if after_number {
        return 0;
    }
    let time = time(rest);
    if time > 0 {
        return time;
    }
    let length = number(rest);
    let digits = &rest[..length];
    if !digits.bytes().all(|b| b.is_ascii_digit()) {
        return 0;
    }
    let after = &rest[length..];
    let ends = !after.starts_with(|c: char| c.is_alphanumeric() || c == '%');
    let is_status = before.ends_with("HTTP ") && length == 3;
    let is_own_number = is_own
        && length <= COUNT_DIGITS_MAX
        && (before.ends_with("(code ")
            || NUMBERED.iter().any(|word| {
                before.strip_suffix(' ').and_then(|before| before.strip_suffix(word)).is_some_and(ends_word)
            })
            || after
                .strip_prefix(' ')
                .is_some_and(|after| NOUNS.iter().any(|noun| begins_with_word(after, noun))));
    if ends && (is_status || is_own_number) { length } else { 0 }
}

/// Whether a text ends where a word begins.
fn ends_word(before: &str) -> bool {
    !before.ends_with(char::is_alphanumeric)
}

fn begins_with_word(text: &str, word: &str) -> bool {
    text.strip_prefix(word).is_some_and(|after| !after.starts_with(char::is_alphanumeric))
}

/// The length of a number at the beginning of a text: digits, and single separators between them.
fn number(text: &str) -> usize {
    let mut end = 0;
    let mut characters = text.char_indices().peekable();
    while let Some((at, c)) = characters.next() {
        let follows = characters.peek().is_some_and(|(_, next)| next.is_numeric());
        let joins = matches!(
            c,
            '.' | ',' | '_' | '\'' | '\u{2019}' | '\u{a0}' | '\u{2009}' | '\u{202f}' | '\u{66b}' | '\u{66c}'
        );
        if !(c.is_numeric() || joins && follows) {
            break;
        }
        end = at + c.len_utf8();
    }
    end
}

/// The length of a date, or of a date and a time, at the beginning of a text; 0 if there is none.
fn time(text: &str) -> usize {
    let bytes = text.as_bytes();
    let is = |from: usize, pattern: &[u8]| {
        bytes.get(from..from + pattern.len()).is_some_and(|found| {
            found.iter().zip(pattern).all(|(byte, wanted)| match wanted {
                b'0' => byte.is_ascii_digit(),
                b'T' => matches!(byte, b' ' | b'T'),
                wanted => byte == wanted,
            })
        })
    };
    if !is(0, b"0000-00-00") {
        return 0;
    }
    let mut end = 10;
    if is(end, b"T00:00:00") {
        end += 9;
        if bytes.get(end) == Some(&b'.') {
            let digits = bytes[end + 1..].iter().take_while(|byte| byte.is_ascii_digit()).count();
            end += if (1..=9).contains(&digits) { digits + 1 } else { 0 };
        }
    }
    if text[end..].starts_with(|c: char| c.is_numeric() || matches!(c, '.' | ',')) { 0 } else { end }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_of_the_api_are_replaced() {
        for (message, expected) in [
            (
                "\"balance 1234.56 of USD1,234.5 is wrong\" (code 4001)",
                "\"balance <number> of USD<number> is wrong\" (code 4001)",
            ),
            ("\"5 rows (code 77) and batch 3\"", "\"<number> rows (code <number>) and batch <number>\""),
            ("\"a \"quoted\" 12 rows\" x", "\"a \"quoted\" <number> rows\" x"),
            ("\"-1e5\"", "\"-<number>e<number>\""),
            ("\"1 234,5 1'234 ١٢٣ ½\"", "\"<number> <number> <number> <number> <number>\""),
            ("\"at 2024-01-31 12:00:00Z\"", "\"at 2024-01-31 12:00:00Z\""),
            ("\"2024-01-31.5 12024-01-31\"", "\"<number>-<number>-<number> <number>-<number>-<number>\""),
            ("\"`12`\"", "\"`<number>`\""),
            ("\"HTTP 500.25 HTTP 5000 HTTP 500\"", "\"HTTP <number> HTTP <number> HTTP 500\""),
        ] {
            assert_eq!(without_amounts(message), expected, "{message}");
        }
    }

    #[test]
    fn own_words_stay() {
        for message in [
            "the API refused a batch of 1000 records (HTTP 400): \"no\" (code 4001)",
            "entity `acme-7` waits for batch 17; nothing is sent for 20 s",
            "rate limited by the API (HTTP 429); not before 2026-12-01 12:45:40Z",
            "last checked at 2026-12-01 12:00:00Z",
            "a body of 104857 bytes is too large for the API (HTTP 413)",
        ] {
            assert_eq!(without_amounts(message), message);
        }
        for (message, expected) in [
            ("12.50 rows", "<number> rows"),
            ("batch 12.50", "batch <number>"),
            ("balance 12", "balance <number>"),
            ("`unclosed 12", "`unclosed <number>"),
            ("12 rowboats", "<number> rowboats"),
        ] {
            assert_eq!(without_amounts(message), expected, "{message}");
        }
    }

    proptest! {
        /// In a quotation, no amount stays, whatever stands around it.
        #[test]
        fn a_quoted_amount_never_stays(before in "[^0-9]{0,20}", after in "[^0-9]{0,20}", amount in "[1-9][0-9]{2,12}\\.[0-9]{2}") {
            let shown = without_amounts(&format!("\"{before}{amount}{after}\""));
            prop_assert!(!shown.contains(&amount), "{shown}");
            prop_assert!(!shown.contains(amount.split('.').next().unwrap()), "{shown}");
        }

        #[test]
        fn any_text_is_read(text in ".{0,60}") {
            let _ = without_amounts(&text);
        }
    }
}
