//! The report of an audit as text, in lines of at most 80 columns.

use super::super::wrapped;
use super::answer::{NOT_PROVEN, SUMS_ARE, answer};
use crate::audit::{
    AuditedBatch, AuditedDigests, EntityAudit, Evidence, FirstOf, MadeWith, Names, Outcome, PeriodAudit,
    Total, summed,
};
use crate::journal::period::{PersonsAction, RowException};
use crate::text::{counted_noun, escaped, thousands};

/// The width of the report.
const COLUMNS: usize = 80;

/// The blanks before each level of the report.
const INDENT: usize = 2;

/// The most things of a list that the text shows.
const SHOWN_MAX: usize = 10;

/// The list of a report, and how many more things it has.
struct Report {
    lines: Vec<String>,
    /// The text is on a terminal, and not one of the files.
    is_shown: bool,
}

/// Returns the report. `is_shown`: it says how to write everything to files.
pub(super) fn document(audit: &PeriodAudit, is_shown: bool) -> String {
    let mut report = Report { lines: Vec::new(), is_shown };
    report.say(0, &answer(audit));
    report.hints(audit);
    report.say(
        0,
        &format!(
            "As of {}. Rows as the ledger has them now, by captured_at in the zone of their entity; the end of the \
             period is not included. In the sums, {SUMS_ARE}.",
            audit.at.format("%Y-%m-%d %H:%M:%SZ")
        ),
    );
    if audit.entities.iter().any(|entity| entity.to > audit.at) {
        report.say(0, "The period has not ended yet, so rows may still come.");
    }
    for entity in &audit.entities {
        report.entity(entity);
    }
    report.actions(&audit.actions);
    report.lines.push(String::new());
    report.digests(&audit.digests);
    report.say(0, &format!("Not proven: {NOT_PROVEN}."));
    report.lines.join("\n")
}

/// Wraps text from outside and words into lines with an indent.
pub(super) fn paragraph(text: &str, level: usize) -> Vec<String> {
    let indent = " ".repeat(level * INDENT);
    let lines = wrapped(&escaped(text), COLUMNS - indent.len() - INDENT);
    let lines = lines.into_iter().enumerate();
    lines.map(|(n, line)| format!("{indent}{}{line}", if n > 0 { "  " } else { "" })).collect()
}

impl Report {
    fn say(&mut self, level: usize, text: &str) {
        self.lines.extend(paragraph(text, level));
    }

    fn more(&mut self, level: usize, more: usize) {
        if more == 0 {
            return;
        }
        let more = thousands(i64::try_from(more).unwrap_or(i64::MAX));
        let place = if self.is_shown { "--csv DIR writes all" } else { "see the files beside this one" };
        self.say(level, &format!("and {more} more; {place}"));
    }

    /// The latest print on a line of its own, which is not wrapped.
    fn digests(&mut self, digests: &AuditedDigests) {
        match &digests.print {
            Some(print) => {
                self.say(0, "The journal was found to fit its digests, or each misfit is a finding. Its latest print:");
                self.lines.push(print.to_string());
            }
            None => self.say(0, "There is no print of the journal yet; `elven-sync digest` makes one."),
        }
        self.lines.push(String::new());
    }

    /// The next steps, one command a line.
    fn hints(&mut self, audit: &PeriodAudit) {
        let has = |outcome| audit.count(outcome) > 0;
        let any = |of: fn(&EntityAudit) -> bool| audit.entities.iter().any(of);
        let errors = has(Outcome::SetAside) || any(|entity| entity.uploaded_with_open_error() > 0);
        let unsettled = any(|entity| entity.unsettled > 0);
        for (is_needed, command) in [
            (has(Outcome::Pending) || unsettled, "elven-sync run"),
            (errors, "elven-sync errors list"),
            (has(Outcome::Unaccounted) || any(|entity| entity.findings() > 0), "elven-sync verify --deep"),
        ] {
            if is_needed {
                self.lines.push(format!("hint: {command}"));
            }
        }
    }

    fn entity(&mut self, entity: &EntityAudit) {
        self.lines.push(String::new());
        let time = |at: &chrono::DateTime<chrono::Utc>| at.format("%Y-%m-%dT%H:%M:%SZ").to_string();
        self.say(
            0,
            &format!(
                "Entity {} ({}), {} to {}: {}",
                entity.entity_id,
                entity.timezone,
                time(&entity.from),
                time(&entity.to),
                counted_noun(entity.rows, "row", "rows")
            ),
        );
        let counts = Outcome::ALL.map(|outcome| (entity.count(outcome), outcome.words()));
        let counts = counts.iter().filter(|(count, _)| *count > 0);
        let counts: Vec<String> =
            counts.map(|(count, words)| format!("{} {words}", thousands(*count))).collect();
        if !counts.is_empty() {
            self.say(1, &format!("Outcomes: {}", counts.join(", ")));
        }
        self.named(entity);
        self.totals(entity);
        self.sent(entity);
        self.exceptions(&entity.exceptions);
        self.batches(entity);
        self.findings(entity);
    }

    fn named(&mut self, entity: &EntityAudit) {
        for (outcome, rows) in &entity.named {
            if *outcome == Outcome::Superseded {
                continue;
            }
            let count = counted_noun(i64::try_from(rows.count).unwrap_or(i64::MAX), "row", "rows");
            self.say(1, &format!("{count} {}:", outcome.words()));
            for row in rows.first.iter().take(SHOWN_MAX) {
                self.say(2, &format!("row {}: {}", row.ledger_id, without_hint(&row.reason)));
            }
            self.more(2, rows.count - rows.first.len().min(SHOWN_MAX));
        }
        if entity.rows_nowhere > 0 {
            let count = counted_noun(entity.rows_nowhere, "row is", "rows are");
            self.say(
                1,
                &format!("{count} in the ledger that the journal does not include or that cannot be read"),
            );
        }
    }

    fn totals(&mut self, entity: &EntityAudit) {
        if entity.totals.by_outcome.is_empty() {
            return;
        }
        self.say(1, "Control totals by account and currency, as the ledger spells them:");
        for (names, totals) in entity.totals.by_outcome.iter().take(SHOWN_MAX) {
            self.say(2, &format!("{}: {}", named(names), total(&summed(totals.iter()), "row", "rows")));
            let parts: Vec<String> = Outcome::ALL
                .iter()
                .zip(totals)
                .filter(|(_, total)| total.rows > 0)
                .map(|(outcome, total)| {
                    format!("{} {}, sum {}", thousands(total.rows), outcome.words(), total.sum)
                })
                .collect();
            self.say(3, &parts.join("; "));
        }
        self.more(2, entity.totals.by_outcome.len().saturating_sub(SHOWN_MAX));
    }

    fn sent(&mut self, entity: &EntityAudit) {
        let totals = &entity.totals;
        if !totals.proven.is_empty() {
            self.say(1, "Sent and proven: records of bodies made again with the recorded sha256, as sent:");
            for ((account, currency), sent) in totals.proven.iter().take(SHOWN_MAX) {
                self.say(2, &format!("{account} {currency}: {}", total(sent, "record", "records")));
            }
            self.more(2, totals.proven.len().saturating_sub(SHOWN_MAX));
        }
        for evidence in Evidence::ALL.into_iter().filter(|evidence| *evidence != Evidence::Proven) {
            let all = totals.of_evidence(evidence);
            if all.rows == 0 {
                continue;
            }
            let rows = counted_noun(all.rows, "row", "rows");
            self.say(1, &format!("Uploaded, {}: {rows}; {}:", evidence.words(), meaning(evidence)));
            let rows = totals.by_evidence.iter().map(|(names, totals)| (names, &totals[evidence as usize]));
            let rows: Vec<_> = rows.filter(|(_, total)| total.rows > 0).collect();
            for (names, of_names) in rows.iter().take(SHOWN_MAX) {
                self.say(2, &format!("{}: {}", named(names), total(of_names, "row", "rows")));
            }
            self.more(2, rows.len().saturating_sub(SHOWN_MAX));
        }
    }

    fn exceptions(&mut self, exceptions: &FirstOf<RowException>) {
        if exceptions.count == 0 {
            return;
        }
        self.say(1, "Exceptions: errors about rows of the period, and who settled them:");
        for error in exceptions.first.iter().take(SHOWN_MAX) {
            self.say(2, &exception(error));
        }
        self.more(2, exceptions.count - exceptions.first.len().min(SHOWN_MAX));
    }

    fn batches(&mut self, entity: &EntityAudit) {
        if entity.batches == 0 && entity.ambiguous.count == 0 {
            return;
        }
        let count = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.say(
            1,
            &format!(
                "Batches: {}; {} with an attempt of unknown outcome, {} of them unsettled",
                counted_noun(count(entity.batches), "batch", "batches"),
                thousands(count(entity.ambiguous.count)),
                thousands(count(entity.unsettled))
            ),
        );
        for batch in entity.ambiguous.first.iter().take(SHOWN_MAX) {
            self.say(2, &ambiguous(batch));
        }
        self.more(2, entity.ambiguous.count - entity.ambiguous.first.len().min(SHOWN_MAX));
        for (made, batches) in entity.made_with.iter().take(SHOWN_MAX) {
            self.say(2, &made_with(made, count(*batches)));
        }
        self.more(2, entity.made_with.len().saturating_sub(SHOWN_MAX));
    }

    fn findings(&mut self, entity: &EntityAudit) {
        let proof = &entity.proof;
        let count = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        let result = match entity.findings() {
            0 => "holds".to_owned(),
            findings => counted_noun(count(findings), "finding", "findings"),
        };
        self.say(
            1,
            &format!(
                "verify --deep over the changes of the watermark, and over {} with {} that may have rows of the \
                 period: {result}; {} proven, {} changed since, {} not provable",
                counted_noun(count(proof.passes), "pass", "passes"),
                counted_noun(count(proof.batches), "batch", "batches"),
                counted_noun(count(proof.bodies_proven), "body", "bodies"),
                thousands(count(proof.bodies_changed)),
                thousands(count(proof.bodies_not_provable))
            ),
        );
        for finding in proof.findings.iter().take(SHOWN_MAX) {
            self.say(2, &format!("{}: {}", finding.what, finding.message));
        }
        self.more(2, entity.findings() - proof.findings.len().min(SHOWN_MAX));
        if let Some(pruned) = &proof.pruned {
            self.say(
                1,
                &format!(
                    "Pruned: {} of batches that ended before {}; of the rows of the period in them, only their totals \
                     are known",
                    counted_noun(pruned.batches, "record", "records"),
                    pruned.until.format("%Y-%m-%d")
                ),
            );
        }
    }

    fn actions(&mut self, actions: &FirstOf<PersonsAction>) {
        self.lines.push(String::new());
        if actions.count == 0 {
            return self.say(0, "Actions of people since the begin of the period: none.");
        }
        self.say(0, "Actions of people since the begin of the period:");
        for action in actions.first.iter().take(SHOWN_MAX) {
            let entity = action.entity_id.as_ref().map_or_else(String::new, |id| format!(" of {id}"));
            let reason = action.reason.as_ref().map_or_else(String::new, |reason| format!(": {reason}"));
            let at = action.at.format("%Y-%m-%d %H:%MZ");
            self.say(1, &format!("{at} {}{entity} by {}{reason}", action.action, action.actor));
        }
        self.more(1, actions.count - actions.first.len().min(SHOWN_MAX));
    }
}

fn named((account, currency): &Names) -> String {
    let name = |name: &Option<String>| name.clone().unwrap_or_else(|| "NULL".to_owned());
    format!("{} {}", name(account), name(currency))
}

fn total(total: &Total, one: &str, many: &str) -> String {
    let rows = counted_noun(total.rows, one, many);
    let span = total.span().map_or_else(String::new, |(first, last)| {
        let time = |at: chrono::DateTime<chrono::Utc>| at.format("%Y-%m-%dT%H:%M:%SZ").to_string();
        format!(", {} to {}", time(first), time(last))
    });
    let without = match total.not_summed {
        0 => String::new(),
        rows => format!(
            " without {}",
            counted_noun(rows, "amount that is no number", "amounts that are no numbers")
        ),
    };
    format!("{rows}, sum {}{without}{span}", total.sum)
}

/// What a kind of evidence means, with which names and amounts the rows are shown.
fn meaning(evidence: Evidence) -> &'static str {
    match evidence {
        Evidence::Proven => "the body was made again",
        Evidence::ChangedSince => {
            "rows of their batch have changed since, so what was sent is known by its hash alone; names and amounts as \
             the ledger has them now"
        }
        Evidence::NotProvable => {
            "their body cannot be made again (rules no longer known, or a backfill or retry beside other rows); names \
             and amounts as the ledger has them now"
        }
        Evidence::Differs => {
            "their body has another hash, see the findings; names and amounts as the ledger has them now"
        }
        Evidence::Folded => {
            "prune has deleted the batch, so that a superseded row cannot be told from an uploaded one; names and \
             amounts as the ledger has them now"
        }
    }
}

fn exception(error: &RowException) -> String {
    let rows = match (&error.ledger_ids[..], error.rows) {
        ([id], 1) => format!("row {id}"),
        (ids, rows) => {
            let first = ids.first().map_or_else(String::new, |id| format!(", e.g. row {id}"));
            format!("{}{first}", counted_noun(i64::try_from(rows).unwrap_or(i64::MAX), "row", "rows"))
        }
    };
    let settled = match (&error.resolution, &error.settled_by) {
        (None, _) => "open".to_owned(),
        (Some(resolution), by) => {
            let at =
                error.resolved_at.map_or_else(String::new, |at| at.format(" %Y-%m-%d %H:%MZ").to_string());
            let by = match by {
                Some(actor) => format!(" by {actor}"),
                None if error.dismissed => " by hand".to_owned(),
                None => " by elven-sync".to_owned(),
            };
            format!("settled{at}{by}: {resolution}")
        }
    };
    let cause = without_hint(&error.cause);
    format!("error {}, {} of {rows}: {cause}; {settled}", error.error_id, error.kind)
}

/// The next steps are at the beginning of the report.
fn without_hint(text: &str) -> &str {
    text.split_once("; hint: ").map_or(text, |(text, _)| text)
}

fn ambiguous(batch: &AuditedBatch) -> String {
    let facts = &batch.facts;
    let state = match facts.status.as_str() {
        _ if batch.is_unsettled() => "unsettled: its outcome is unknown",
        "accepted" => "settled: sent again and accepted, so it may have been imported more than once",
        "split" => "settled by its parts",
        _ => "settled",
    };
    let rows = counted_noun(i64::try_from(batch.rows_in_period).unwrap_or(i64::MAX), "row", "rows");
    let attempts = counted_noun(i64::from(facts.attempts), "attempt", "attempts");
    format!(
        "batch {} of run {}, {rows}, {attempts}, `{}`; {state}",
        facts.batch_id, facts.run_id, facts.status
    )
}

fn made_with(made: &MadeWith, batches: i64) -> String {
    let or = |value: &Option<String>| value.clone().unwrap_or_else(|| "not recorded".to_owned());
    let number = |value: Option<i64>| value.map_or_else(|| "none".to_owned(), |value| value.to_string());
    format!(
        "{} by elven-sync {}, zone {}, rules {}, maps {}, API version {}{}",
        counted_noun(batches, "batch", "batches"),
        made.version,
        or(&made.timezone),
        or(&made.zone_rules),
        number(made.map_version),
        number(made.api_version.map(i64::from)),
        made.source_id.as_ref().map_or_else(String::new, |source| format!(", source {source}"))
    )
}
