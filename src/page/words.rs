//! How values are written on the page.

use std::borrow::{Borrow, Cow};

use chrono::{DateTime, Utc};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::text::{duration_text, escaped, thousands};

/// The most characters of a name on the page.
const NAME_CHARS_MAX: usize = 120;
/// The most characters of a message on the page.
const MESSAGE_CHARS_MAX: usize = 1000;
/// The most bytes of an encoded id in a link: the server reads no longer requests.
const LINK_BYTES_MAX: usize = 2000;
/// What is encoded in a path.
const IN_PATH: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// A name from outside: in one line, without characters that reorder text, and cut.
pub(super) fn name(text: &str) -> String {
    cut(&escaped(text), NAME_CHARS_MAX).into_owned()
}

/// A message: in one line, without characters that reorder text, and cut.
pub(super) fn message(text: &str) -> String {
    cut(&escaped(text), MESSAGE_CHARS_MAX).into_owned()
}

fn cut(text: &str, chars_max: usize) -> Cow<'_, str> {
    match text.char_indices().nth(chars_max) {
        None => Cow::Borrowed(text),
        Some((end, _)) => Cow::Owned(format!("{}\u{2026}", &text[..end])),
    }
}

/// The path of the page of an entity. `None`: its id cannot be in a path, since browsers resolve `.` and `..`, or is
/// too long.
pub(super) fn path(entity_id: &str) -> Option<String> {
    let path = format!("/entities/{}", utf8_percent_encode(entity_id, IN_PATH));
    (entity_id != "." && entity_id != ".." && path.len() <= LINK_BYTES_MAX).then_some(path)
}

/// A value with one form on the page.
pub(super) trait Value {
    fn written(&self) -> String;
}

impl Value for i64 {
    fn written(&self) -> String {
        thousands(*self)
    }
}

impl Value for i32 {
    fn written(&self) -> String {
        thousands(i64::from(*self))
    }
}

impl Value for DateTime<Utc> {
    fn written(&self) -> String {
        time(self)
    }
}

impl<V: Value> Value for Option<V> {
    fn written(&self) -> String {
        self.as_ref().map_or_else(|| "\u{2013}".to_owned(), Value::written)
    }
}

impl<V: Value> Value for &V {
    fn written(&self) -> String {
        (*self).written()
    }
}

/// Writes a number or a time; a dash stands for none.
pub(super) fn value(value: impl Value) -> String {
    value.written()
}

/// A time in full.
pub(super) fn time(at: &DateTime<Utc>) -> String {
    at.format("%Y-%m-%d %H:%M:%S UTC").to_string()
}

/// A duration in seconds, as it is entered.
pub(super) fn duration(seconds: impl Borrow<i64>) -> String {
    duration_text(*seconds.borrow())
}

/// Some names of a filter: all of them when none was asked for.
pub(super) fn filter(names: &[String], asked: impl Borrow<i32>) -> String {
    let asked = i64::from(*asked.borrow());
    if asked == 0 {
        return "all".to_owned();
    }
    let shown = names.iter().map(|text| name(text)).collect::<Vec<_>>().join(", ");
    match asked - i64::try_from(names.len()).unwrap_or(0) {
        more @ 1.. => format!("{shown} and {} more", thousands(more)),
        _ => shown,
    }
}

/// A quarter hour.
pub(super) fn minute(at: &DateTime<Utc>) -> String {
    at.format("%d %b %H:%M").to_string()
}

/// The time between two times, in its largest unit.
pub(super) fn age(now: &DateTime<Utc>, at: &DateTime<Utc>) -> String {
    match (*now - *at).num_seconds().max(0) {
        seconds @ 0..100 => format!("{seconds} s"),
        seconds @ 100..6_000 => format!("{} min", seconds / 60),
        seconds @ 6_000..172_800 => format!("{} h", seconds / 3600),
        seconds => format!("{} days", seconds / 86_400),
    }
}

/// A mark for a status of an entity, a run or a batch, which does not depend on colour.
pub(super) fn mark(status: &str) -> &'static str {
    match status {
        "ok" | "succeeded" | "accepted" => "\u{2713}",
        "failing" | "failed" | "rejected" | "refused" | "critical" => "\u{2715}",
        "stale" | "unknown" => "?",
        "incomplete" | "interrupted" | "warning" => "!",
        "paused" => "\u{2016}",
        _ => "\u{2026}",
    }
}

/// The class of a status: how bad it is.
pub(super) fn class(status: &str) -> &'static str {
    match status {
        "ok" | "succeeded" | "accepted" => "good",
        "failing" | "stale" | "failed" | "rejected" | "refused" | "critical" => "bad",
        "incomplete" | "interrupted" | "warning" | "unknown" => "warn",
        _ => "calm",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_encoded_for_a_path() {
        for (id, expected) in [
            ("acme-1", Some("/entities/acme-1")),
            ("a/b c%2F?#", Some("/entities/a%2Fb%20c%252F%3F%23")),
            ("é", Some("/entities/%C3%A9")),
            ("..", None),
            ("a..", Some("/entities/a..")),
        ] {
            assert_eq!(path(id).as_deref(), expected, "{id}");
        }
        assert_eq!(path(&"x".repeat(10_000)), None);
    }

    #[test]
    fn names_are_one_line_and_short() {
        assert_eq!(name("a\u{202e}b\nc"), "a\\u{202e}b\\nc");
        assert_eq!(name(&"x".repeat(10_000)).chars().count(), NAME_CHARS_MAX + 1);
    }

    #[test]
    fn an_age_has_one_unit() {
        let now = "2026-12-01T12:00:00Z".parse().unwrap();
        for (at, expected) in [
            ("2026-12-01T12:00:05Z", "0 s"),
            ("2026-12-01T11:59:00Z", "60 s"),
            ("2026-12-01T11:00:00Z", "60 min"),
            ("2026-11-30T12:00:01Z", "23 h"),
            ("2026-11-21T12:00:00Z", "10 days"),
        ] {
            assert_eq!(age(&now, &at.parse().unwrap()), expected, "{at}");
        }
    }
}
