//! The columns of the CSV files of an audit.

use super::super::errors::time;
use crate::align::Number;
use crate::audit::{AuditedBatch, AuditedRow, Names, Total};
use crate::journal::period::{PersonsAction, RowException};
use crate::ledger::instant;

pub(super) const POPULATION: [&str; 17] = [
    "entity_id",
    "ledger_id",
    "captured_at",
    "local_time",
    "entity_account_id",
    "currency",
    "balance",
    "change_xid",
    "outcome",
    "evidence",
    "batch_id",
    "winner_id",
    "error_id",
    "error_kind",
    "api_code",
    "cause",
    "reason",
];

pub(super) const BATCHES: [&str; 26] = [
    "entity_id",
    "batch_id",
    "parent_id",
    "pass_id",
    "backfill_id",
    "run_id",
    "run_kind",
    "version",
    "status",
    "attempts",
    "ambiguous",
    "http_status",
    "created_at",
    "finished_at",
    "rows_in_period",
    "rows_read",
    "row_count",
    "rows_rejected",
    "rows_superseded",
    "body_sha256",
    "body",
    "timezone",
    "zone_rules",
    "map_version",
    "api_version",
    "source_id",
];

pub(super) const EXCEPTIONS: [&str; 16] = [
    "entity_id",
    "error_id",
    "kind",
    "http_status",
    "api_code",
    "cause",
    "rows",
    "open_rows",
    "ledger_ids",
    "first_seen_at",
    "last_seen_at",
    "resolved_at",
    "resolution",
    "dismissed",
    "settled_by",
    "settled_with",
];

pub(super) const ACTIONS: [&str; 8] =
    ["action_id", "at", "actor", "client", "action", "entity_id", "reason", "details"];

pub(super) const TOTALS: [&str; 9] = [
    "entity_id",
    "entity_account_id",
    "currency",
    "outcome",
    "rows",
    "sum",
    "not_summed",
    "first_captured_at",
    "last_captured_at",
];

pub(super) const SENT: [&str; 9] = [
    "entity_id",
    "entity_account_id",
    "currency",
    "evidence",
    "rows",
    "sum",
    "not_summed",
    "first_captured_at",
    "last_captured_at",
];

pub(super) const FINDINGS: [&str; 6] = ["entity_id", "what", "pass_id", "batch_id", "ledger_ids", "message"];

pub(super) fn population_fields(
    AuditedRow { entity_id, row, local, judged }: &AuditedRow<'_>,
) -> [Option<String>; 17] {
    let [account, currency] = row.names();
    let balance = row.balance().map(|balance| match Number::read(balance) {
        Ok(number) => {
            let mut written = Vec::new();
            number.write(&mut written);
            String::from_utf8_lossy(&written).into_owned()
        }
        Err(reason) => reason.to_string(),
    });
    let error = judged.error.as_ref();
    [
        Some((*entity_id).to_owned()),
        Some(row.id.to_string()),
        row.captured_at_us.map(|at| time(&instant(at))),
        local.map(|local| local.format("%Y-%m-%d %H:%M:%S").to_string()),
        account,
        currency,
        balance,
        Some(row.xid.to_string()),
        Some(judged.outcome.name().to_owned()),
        judged.evidence.map(|evidence| evidence.name().to_owned()),
        judged.batch_id.map(|batch_id| batch_id.to_string()),
        judged.winner_id.clone(),
        error.map(|error| error.error_id.to_string()),
        error.map(|error| error.kind.clone()),
        error.and_then(|error| error.api_code.clone()),
        error.map(|error| error.cause.clone()),
        Some(judged.reason.clone()).filter(|reason| !reason.is_empty()),
    ]
}

pub(super) fn batch_fields(entity_id: &str, batch: &AuditedBatch) -> [Option<String>; 26] {
    let facts = &batch.facts;
    let number = |number: Option<i64>| number.map(|number| number.to_string());
    [
        Some(entity_id.to_owned()),
        Some(facts.batch_id.to_string()),
        number(facts.parent_id),
        number(facts.pass_id),
        number(facts.backfill_id),
        Some(facts.run_id.to_string()),
        Some(facts.run_kind.clone()),
        Some(facts.version.clone()),
        Some(facts.status.clone()),
        Some(facts.attempts.to_string()),
        Some(facts.ambiguous.to_string()),
        number(facts.http_status.map(i64::from)),
        Some(time(&facts.created_at)),
        facts.finished_at.as_ref().map(time),
        Some(batch.rows_in_period.to_string()),
        Some(facts.rows_read.to_string()),
        Some(facts.row_count.to_string()),
        Some(facts.rows_rejected.to_string()),
        Some(facts.rows_superseded.to_string()),
        Some(facts.body_sha256.clone()),
        batch.body.map(|body| body.name().to_owned()),
        facts.timezone.clone(),
        facts.zone_rules.clone(),
        number(facts.map_version),
        number(facts.api_version.map(i64::from)),
        facts.source_id.clone(),
    ]
}

pub(super) fn total_fields(
    entity_id: &str,
    (account, currency): &Names,
    what: &str,
    total: &Total,
) -> [Option<String>; 9] {
    [
        Some(entity_id.to_owned()),
        account.clone(),
        currency.clone(),
        Some(what.to_owned()),
        Some(total.rows.to_string()),
        Some(total.sum.to_string()),
        Some(total.not_summed.to_string()),
        total.span().map(|(first, _)| time(&first)),
        total.span().map(|(_, last)| time(&last)),
    ]
}

pub(super) fn exception_fields(error: &RowException) -> [Option<String>; 16] {
    [
        Some(error.entity_id.clone()),
        Some(error.error_id.to_string()),
        Some(error.kind.clone()),
        error.http_status.map(|status| status.to_string()),
        error.api_code.clone(),
        Some(error.cause.clone()),
        Some(error.rows.to_string()),
        Some(error.open_rows.to_string()),
        Some(error.ledger_ids.join(" ")),
        Some(time(&error.first_seen_at)),
        Some(time(&error.last_seen_at)),
        error.resolved_at.as_ref().map(time),
        error.resolution.clone(),
        Some(error.dismissed.to_string()),
        error.settled_by.clone(),
        error.settled_with.clone(),
    ]
}

pub(super) fn action_fields(action: &PersonsAction) -> [Option<String>; 8] {
    [
        Some(action.action_id.to_string()),
        Some(time(&action.at)),
        Some(action.actor.clone()),
        action.client.clone(),
        Some(action.action.clone()),
        action.entity_id.clone(),
        action.reason.clone(),
        Some(action.details.to_string()),
    ]
}
