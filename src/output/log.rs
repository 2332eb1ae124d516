//! The fields of a log line.

use std::collections::HashSet;
use std::fmt::{self, Debug, Write as _};
use std::sync::{Mutex, PoisonError};

use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::layer::Context;

use super::escaped;

/// Writes the message of an event, and the fields of events and spans, escaped: text from outside cannot make a line of
/// its own, and no id looks like another span.
#[derive(Debug)]
pub(super) struct Fields;

impl<'w> FormatFields<'w> for Fields {
    fn format_fields<R: RecordFields>(&self, mut writer: Writer<'w>, fields: R) -> fmt::Result {
        let mut text = Words::default();
        fields.record(&mut text);
        writer.write_str(&escaped(&text.0))
    }
}

/// The words of a line: the message as it stands, and each field as `name=value`.
#[derive(Default)]
struct Words(String);

impl Words {
    fn put(&mut self, field: &Field, value: fmt::Arguments<'_>) {
        let separator = if self.0.is_empty() { "" } else { " " };
        let _ = match field.name() {
            "message" => write!(self.0, "{separator}{value}"),
            name => write!(self.0, "{separator}{name}={value}"),
        };
    }
}

impl Visit for Words {
    fn record_str(&mut self, field: &Field, value: &str) {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let is_id = field.name() == "entity_id" && !value.is_empty() && value.chars().all(is_plain);
        if is_id || field.name() == "message" {
            self.put(field, format_args!("{value}"));
        } else {
            self.put(field, format_args!("{value:?}"));
        }
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.put(field, format_args!("{}", crate::text::chain(value)));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.put(field, format_args!("{value:?}"));
    }
}

/// The most notices that are remembered.
const NOTICES_MAX: usize = 1_000;

/// Logs each notice of PostgreSQL once per process. Some come with every connection, such as the warning of another
/// version of the collations.
#[derive(Debug, Default)]
pub(super) struct NoticesOnce {
    seen: Mutex<HashSet<String>>,
}

impl<S: Subscriber> Layer<S> for NoticesOnce {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        if event.metadata().target() != "sqlx::postgres::notice" {
            return true;
        }
        let mut message = Message::default();
        event.record(&mut message);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.len() >= NOTICES_MAX || seen.insert(message.0)
    }
}

/// The message of an event.
#[derive(Default)]
struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == "message" {
            self.0 = format!("{value:?}");
        }
    }
}
