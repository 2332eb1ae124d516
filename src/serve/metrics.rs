//! The metrics in the text formats of Prometheus and OpenMetrics.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeGaugeValue, EncodeMetric, prometheus_text, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use crate::journal::metrics::{EntityReading, Readings, STATUSES};
use crate::text::escaped;

/// A format of metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// The text format of Prometheus, version 0.0.4.
    Prometheus,
    /// OpenMetrics, version 1.0.0.
    OpenMetrics,
}

impl Format {
    /// Returns the format that a client accepts: OpenMetrics only if it names that.
    pub(super) fn accepted(accept: &str) -> Self {
        if accept.contains("application/openmetrics-text") { Self::OpenMetrics } else { Self::Prometheus }
    }

    pub(super) fn content_type(self) -> &'static str {
        match self {
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// Returns the metrics that come from the sync tables.
///
/// # Errors
/// None in practice: a text can always be written.
pub fn of_tables(readings: Readings) -> Result<String, fmt::Error> {
    in_format(Format::Prometheus, &Registry::default(), Some(Arc::new(readings)))
}

/// Returns the metrics in a format. `process`: those of the process. `readings`: what the sync tables say; `None` while
/// the database is away.
pub(super) fn in_format(
    format: Format,
    process: &Registry,
    readings: Option<Arc<Readings>>,
) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Tables(readings)));
    let mut written = String::new();
    match format {
        Format::Prometheus => {
            prometheus_text::encode(&mut written, &registry)?;
            prometheus_text::encode(&mut written, process)?;
        }
        Format::OpenMetrics => {
            text::encode_registry(&mut written, &registry)?;
            text::encode_registry(&mut written, process)?;
            text::encode_eof(&mut written)?;
        }
    }
    Ok(written)
}

/// The labels of a series.
type Labels<'a> = [(&'static str, Cow<'a, str>)];

/// Writes the families, one after the other.
struct Families<'a>(DescriptorEncoder<'a>);

impl Families<'_> {
    /// Writes a family of gauges.
    fn gauges<'s, L: AsRef<Labels<'s>>, V: EncodeGaugeValue>(
        &mut self,
        name: &str,
        help: &str,
        series: impl IntoIterator<Item = (L, V)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (labels, value) in series {
            ConstGauge::new(value).encode(family.encode_family(&labels.as_ref())?)?;
        }
        Ok(())
    }

    /// Writes a family of counters. The name is that without `_total`.
    fn counters<'s, L: AsRef<Labels<'s>>>(
        &mut self,
        name: &str,
        help: &str,
        series: impl IntoIterator<Item = (L, i64)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, value) in series {
            let counter = ConstCounter::new(u64::try_from(value).unwrap_or(0));
            counter.encode(family.encode_family(&labels.as_ref())?)?;
        }
        Ok(())
    }
}

/// The metrics that come from the sync tables.
#[derive(Debug)]
struct Tables(Option<Arc<Readings>>);

impl Collector for Tables {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let info = [("version", env!("CARGO_PKG_VERSION"))];
        encoder
            .encode_descriptor("elven_sync", "Version of the program", None, MetricType::Info)?
            .encode_info(&info)?;
        let mut families = Families(encoder);
        families.gauges(
            "elven_sync_up",
            "1: the sync tables could be read; 0: they could not, and their metrics are missing",
            [([], i64::from(self.0.is_some()))],
        )?;
        let Some(readings) = &self.0 else { return Ok(()) };
        of_entities(&mut families, readings)?;
        of_installation(&mut families, readings)
    }
}

/// The labels of an entity.
fn entity(entity: &EntityReading) -> [(&'static str, Cow<'_, str>); 2] {
    [("entity", shown(&entity.entity_id)), ("credential", shown(&entity.credential))]
}

/// A text from outside as the value of a label. Control characters are escaped: the metrics are printed, too. So are
/// backslashes, or two entities could have one label.
fn shown(text: &str) -> Cow<'_, str> {
    if !text.contains('\\') && escaped(text) == text {
        return Cow::Borrowed(text);
    }
    Cow::Owned(escaped(&text.replace('\\', "\\\\")))
}

/// The metrics with one series per entity.
fn of_entities(families: &mut Families<'_>, readings: &Readings) -> fmt::Result {
    let entities = &readings.entities;
    families.gauges(
        "elven_sync_pending_rows",
        "Ledger rows that wait to be uploaded, as of the last poll",
        entities.iter().map(|e| (entity(e), e.pending_rows)),
    )?;
    families.gauges(
        "elven_sync_last_success_timestamp_seconds",
        "When the entity was last up to date",
        entities.iter().filter_map(|e| Some((entity(e), e.last_success_at?))),
    )?;
    families.gauges(
        "elven_sync_consecutive_failures",
        "Failed attempts since the last success",
        entities.iter().map(|e| (entity(e), i64::from(e.consecutive_failures))),
    )?;
    families.gauges(
        "elven_sync_entity_status",
        "1 for the status of the entity in the view sync_health",
        entities.iter().map(|e| {
            let [id, credential] = entity(e);
            ([id, credential, ("status", Cow::Borrowed(e.status.as_str()))], 1_i64)
        }),
    )?;
    families.gauges(
        "elven_sync_pending_since_timestamp_seconds",
        "The poll that first found rows pending; missing when no row is pending",
        entities.iter().filter_map(|e| Some((entity(e), e.pending_since?))),
    )?;
    families.gauges(
        "elven_sync_checked_timestamp_seconds",
        "When the pending rows of the entity were last known",
        entities.iter().filter_map(|e| Some((entity(e), e.checked_at?))),
    )?;
    let uploaded: Vec<(Vec<_>, i64)> = if readings.lists_all() {
        entities.iter().map(|e| (vec![("entity", shown(&e.entity_id))], e.rows_uploaded)).collect()
    } else {
        vec![(Vec::new(), readings.rows_uploaded)]
    };
    families.counters(
        "elven_sync_rows_uploaded",
        "Records that the API accepted; above 500 entities, of all entities together",
        uploaded,
    )
}

/// The metrics of the installation.
fn of_installation(families: &mut Families<'_>, readings: &Readings) -> fmt::Result {
    families.gauges(
        "elven_sync_poll_timestamp_seconds",
        "When a run last checked the ledger for pending rows",
        readings.polled_at.map(|at| ([], at)),
    )?;
    families.gauges(
        "elven_sync_alerts",
        "Conditions that need attention, as in the view alerts; missing when there is none",
        readings.alerts.iter().map(|alert| {
            let labels = [("name", shown(&alert.name)), ("severity", shown(&alert.severity))];
            (labels, alert.alerts)
        }),
    )?;
    families.gauges(
        "elven_sync_entities",
        "Registered entities, by their status in the view sync_health",
        STATUSES.map(|status| ([("status", Cow::Borrowed(status))], readings.with_status(status))),
    )?;
    families.gauges(
        "elven_sync_open_errors",
        "Open errors, by kind",
        readings.open_errors.iter().map(|(kind, errors)| ([("kind", Cow::Borrowed(kind.as_str()))], *errors)),
    )?;
    families.gauges(
        "elven_sync_print_info",
        "The latest print of the journal; the value is always 1",
        readings.print.iter().map(|print| {
            let labels = [
                ("print_id", Cow::Owned(print.print_id.to_string())),
                ("root", Cow::Borrowed(print.root.as_str())),
            ];
            (labels, 1)
        }),
    )?;
    let requests = &readings.requests;
    families.counters(
        "elven_sync_requests",
        "Uploads that were sent, by outcome",
        [
            ("accepted", requests.accepted),
            ("refused", requests.refused),
            ("throttled", requests.throttled),
            ("unknown", requests.unknown),
        ]
        .map(|(outcome, count)| ([("outcome", Cow::Borrowed(outcome))], count)),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::RequestCounts;

    #[test]
    fn openmetrics_is_answered_only_to_clients_that_ask_for_it() {
        for (accept, expected) in [
            ("", Format::Prometheus),
            ("*/*", Format::Prometheus),
            ("text/plain;version=0.0.4;q=0.5,*/*;q=0.1", Format::Prometheus),
            (
                "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3",
                Format::OpenMetrics,
            ),
        ] {
            assert_eq!(Format::accepted(accept), expected, "{accept}");
        }
    }

    /// Text from outside must not add a series or a line.
    #[test]
    fn label_values_are_escaped() {
        let entity = EntityReading {
            entity_id: "a\"} 9\nb\\n\u{1b}".to_owned(),
            credential: "default".to_owned(),
            status: "ok".to_owned(),
            pending_rows: 5,
            pending_since: None,
            checked_at: None,
            last_success_at: None,
            rows_uploaded: 0,
            consecutive_failures: 0,
        };
        let readings = Readings {
            entities: vec![entity],
            entities_total: 1,
            rows_uploaded: 0,
            requests: RequestCounts::default(),
            polled_at: None,
            alerts: Vec::new(),
            open_errors: Vec::new(),
            print: None,
        };
        let written = of_tables(readings).unwrap();
        let expected = r#"elven_sync_pending_rows{entity="a\"} 9\\nb\\\\n\\u{1b}",credential="default"} 5"#;
        assert!(written.lines().any(|line| line == expected), "{written}");
    }
}
