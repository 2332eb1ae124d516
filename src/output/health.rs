//! `status`: the health of the entities.

use chrono::{DateTime, Utc};
use serde_json::json;

use super::{counted, json_line, line, lines, table, unregistered, when};
use crate::admin::HealthReport;
use crate::journal::Health;
use crate::ledger::Writer;
use crate::text::{counted_noun, quoted_option};

/// Prints `status`: the rows of `sync_health`, the entities that are not registered, and the oldest open transaction
/// that has written to the ledger.
pub fn health(report: &HealthReport, as_json: bool) {
    let HealthReport {
        entities,
        unregistered: pending,
        unregistered_unknown,
        entities_left_out,
        oldest_writer,
        webhook_failure,
    } = report;
    if as_json {
        json_line(&json!({
            "entities": entities,
            "unregistered_entities": pending,
            "unregistered_unknown": unregistered_unknown,
            "entities_left_out": entities_left_out,
            "oldest_writer": oldest_writer,
            "webhook_failure": webhook_failure,
        }));
        return;
    }
    if entities.is_empty() {
        line("no entity is registered; hint: elven-sync entity add ID --timezone ZONE");
    } else {
        health_of_entities(entities);
    }
    if let Some(problem) = unregistered_unknown {
        line(problem);
    }
    unregistered(pending, *entities_left_out);
    if let Some(writer) = oldest_writer {
        line(format_args!("{}; its rows are uploaded after it commits", describe(writer)));
    }
    if let Some(failure) = webhook_failure {
        line(format_args!(
            "{failure}; hint: `elven-sync check --only configuration` reads the files of [notify]; docs/operating.md, \
             \"When the webhook fails\", has what to do for each reason"
        ));
    }
}

/// Prints the rows of `sync_health`.
fn health_of_entities(entities: &[Health]) {
    let time = |at: Option<DateTime<Utc>>| at.map_or_else(|| "-".to_owned(), when);
    let header =
        ["entity", "status", "pending", "oldest pending", "last success", "open errors", "time zone"];
    lines(table(
        &header,
        &[2, 5],
        entities.iter().map(|entity| {
            vec![
                entity.entity_id.clone(),
                entity.status.clone(),
                counted(entity.pending_rows),
                time(entity.oldest_pending_at),
                time(entity.last_success_at),
                entity.open_errors.to_string(),
                entity.timezone.clone(),
            ]
        }),
    ));
    for entity in entities {
        if let Some(problem) = &entity.last_error {
            line(format_args!("{}: {problem}", entity.entity_id));
        }
        if entity.status == "stale" {
            let since = match (entity.pending_since, entity.checked_at) {
                (Some(since), _) => format!("rows are pending since {}", when(since)),
                (None, Some(last)) => format!("no run has polled it since {}", when(last)),
                (None, None) => "no run has polled it yet".to_owned(),
            };
            line(format_args!(
                "{}: {since}; hint: elven-sync run {}",
                entity.entity_id,
                quoted_option("--entity", &entity.entity_id)
            ));
        }
        if entity.status == "incomplete" {
            line(format_args!(
                "{}: {} open, and rows are set aside; hint: elven-sync errors list {}",
                entity.entity_id,
                counted_noun(entity.open_errors, "error is", "errors are"),
                quoted_option("--entity", &entity.entity_id)
            ));
        }
    }
}

/// Describes an open transaction, with what identifies its session.
fn describe(writer: &Writer) -> String {
    let mut text = format!("transaction {} has written to the ledger and is open", writer.transaction);
    let who = [
        writer.prepared_as.as_ref().map(|name| format!("prepared as '{name}'")),
        writer.pid.map(|pid| format!("pid {pid}")),
        writer.user_name.as_ref().map(|name| format!("user {name}")),
        writer.application_name.clone(),
        writer.state.clone(),
        writer.since.map(|since| format!("since {}", since.format("%Y-%m-%d %H:%M:%SZ"))),
    ];
    let who: Vec<String> = who.into_iter().flatten().collect();
    if !who.is_empty() {
        text = format!("{text} ({})", who.join(", "));
    }
    text
}
