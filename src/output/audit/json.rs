//! The report of an audit as one JSON document. Sums are strings, because many readers of JSON round numbers to doubles.

use serde_json::{Value, json};

use super::super::errors::time;
use super::answer::{NOT_PROVEN, SUMS_ARE, answer};
use crate::audit::{EntityAudit, Evidence, Names, Outcome, PeriodAudit, Total};

/// Returns the document.
pub(super) fn document(audit: &PeriodAudit) -> Value {
    json!({
        "answer": answer(audit),
        "complete": audit.is_complete(),
        "from": audit.from,
        "to": audit.to,
        "audited_at": time(&audit.at),
        "version": env!("CARGO_PKG_VERSION"),
        "sums": SUMS_ARE,
        "rows": counts(|outcome| audit.count(outcome), audit.entities.iter().map(|entity| entity.rows).sum()),
        "entities": audit.entities.iter().map(entity).collect::<Vec<_>>(),
        "actions": audit.actions,
        "digests": audit.digests,
        "not_proven": NOT_PROVEN,
    })
}

/// The rows by outcome.
fn counts(count: impl Fn(Outcome) -> i64, all: i64) -> Value {
    let mut counts: serde_json::Map<String, Value> =
        Outcome::ALL.iter().map(|outcome| (outcome.name().to_owned(), count(*outcome).into())).collect();
    counts.insert("all".to_owned(), all.into());
    counts.into()
}

fn entity(entity: &EntityAudit) -> Value {
    let totals = entity.totals.by_outcome.iter().flat_map(|(names, totals)| {
        let of_outcomes = Outcome::ALL.iter().zip(totals);
        of_outcomes.filter(|(_, total)| total.rows > 0).map(|(outcome, total)| {
            let mut row = of_names(names, total);
            row["outcome"] = outcome.name().into();
            row
        })
    });
    let proven = entity.totals.proven.iter().map(|((account, currency), total)| {
        of_names(&(Some(account.clone()), Some(currency.clone())), total)
    });
    let others = entity.totals.by_evidence.iter().flat_map(|(names, totals)| {
        let of_evidence = Evidence::ALL.iter().zip(totals);
        let others = of_evidence.filter(|(evidence, total)| **evidence != Evidence::Proven && total.rows > 0);
        others.map(|(evidence, total)| {
            let mut row = of_names(names, total);
            row["evidence"] = evidence.name().into();
            row
        })
    });
    let named: serde_json::Map<String, Value> =
        entity.named.iter().map(|(outcome, rows)| (outcome.name().to_owned(), json!(rows))).collect();
    let made_with = entity.made_with.iter().map(|(made, batches)| {
        let mut made = json!(made);
        made["batches"] = json!(batches);
        made
    });
    json!({
        "entity_id": entity.entity_id,
        "timezone": entity.timezone,
        "from": time(&entity.from),
        "to": time(&entity.to),
        "complete": entity.is_complete(),
        "rows": counts(|outcome| entity.count(outcome), entity.rows),
        "rows_with_open_error": entity.rows_with_open_error,
        "named": named,
        "totals": totals.collect::<Vec<_>>(),
        "sent": { "proven": proven.collect::<Vec<_>>(), "others": others.collect::<Vec<_>>() },
        "exceptions": entity.exceptions,
        "batches": {
            "count": entity.batches,
            "unsettled": entity.unsettled,
            "ambiguous": entity.ambiguous,
            "made_with": made_with.collect::<Vec<_>>(),
        },
        "verify": entity.proof,
    })
}

fn of_names((account, currency): &Names, total: &Total) -> Value {
    let span = total.span();
    json!({
        "entity_account_id": account,
        "currency": currency,
        "rows": total.rows,
        "sum": total.sum.to_string(),
        "not_summed": total.not_summed,
        "first_captured_at": span.map(|(first, _)| time(&first)),
        "last_captured_at": span.map(|(_, last)| time(&last)),
    })
}
