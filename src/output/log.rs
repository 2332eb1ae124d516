//! The fields of a log line.

use std::collections::HashSet;
use std::fmt::Debug;
use std::sync::{Mutex, PoisonError};

use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::{DefaultFields, Writer};
use tracing_subscriber::layer::Context;

use super::escaped;

/// Writes the message of an event, and the fields of events and spans, escaped: text from outside cannot make a line of
/// its own.
#[derive(Debug)]
pub(super) struct Fields;

impl<'w> FormatFields<'w> for Fields {
    fn format_fields<R: RecordFields>(&self, mut writer: Writer<'w>, fields: R) -> std::fmt::Result {
        let mut text = String::new();
        DefaultFields::new().format_fields(Writer::new(&mut text), fields)?;
        writer.write_str(&escaped(&text))
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
