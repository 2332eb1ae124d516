//! The journal.

use super::finding::{Finding, Outcome, Status, Unmade, age, named, size as size_text};
use super::surroundings::Surroundings;
use crate::config::OnAmbiguous;
use crate::journal::{AlertCount, EntityFact};
use crate::sync::watermark_check::check_watermark;
use crate::text::{counted_noun, quoted_option};

/// An open pass or batch without a worker is left from a run that ended; the next run finishes it. In seconds.
const LEFT_MAX_S: i64 = 3600;

/// A last success, or a last run, is old after this, in seconds: the default of `freshness`.
const SUCCESS_MAX_S: i64 = 3600;

/// A `verify` is old after this, in seconds.
const VERIFY_MAX_S: i64 = 30 * 86_400;

/// The sync tables are large from this size on, in bytes.
const BYTES_MAX: i64 = 10 << 30;

fn count(things: usize) -> i64 {
    i64::try_from(things).unwrap_or(i64::MAX)
}

/// Names the entities of facts, each with its value in words.
fn entities(facts: &[&EntityFact], words: impl Fn(&EntityFact) -> String) -> String {
    named(facts.iter().map(|fact| format!("`{}` ({})", fact.entity_id, words(fact))))
}

/// Each watermark belongs to this cluster, ledger and mapping.
pub(super) async fn watermarks(surroundings: &Surroundings) -> Outcome {
    let (ledger, lanes) = (surroundings.rows().await?, surroundings.lanes().await?);
    // Only the cluster and the snapshot are needed.
    let probed = ledger.probe(&[]).await?;
    let refused: Vec<_> = lanes
        .iter()
        .filter_map(|(entity_id, lane)| check_watermark(ledger, entity_id, lane, &probed).err())
        .map(|problem| problem.to_string())
        .collect();
    let Some(first) = refused.first() else {
        let what = counted_noun(count(lanes.len()), "watermark belongs", "watermarks belong");
        return Ok(Finding::ok(format!("{what} to this cluster, ledger and mapping")));
    };
    let mut finding = Finding::of(Status::Failed, first);
    if refused.len() > 1 {
        finding.message = format!("{}; {} more entities are refused", finding.message, refused.len() - 1);
    }
    Ok(finding)
}

/// No pass is open without a worker for long.
pub(super) async fn passes(surroundings: &Surroundings) -> Outcome {
    let facts = surroundings.journal().await?;
    let old: Vec<&EntityFact> = facts.open_passes.iter().filter(|pass| pass.value > LEFT_MAX_S).collect();
    Ok(if old.is_empty() {
        Finding::ok(match facts.open_passes.len() {
            0 => "no pass is open without a worker".to_owned(),
            open => format!(
                "{} open, younger than an hour; the next run finishes it",
                counted_noun(count(open), "pass is", "passes are")
            ),
        })
    } else {
        Finding::warning(
            format!("passes are open and no worker is at them: {}", entities(&old, |pass| age(pass.value))),
            "elven-sync run",
        )
    })
}

/// No batch is without an answer.
pub(super) async fn batches(surroundings: &Surroundings) -> Outcome {
    let facts = surroundings.journal().await?;
    let holds = surroundings.settings()?.sync.on_ambiguous == OnAmbiguous::Hold;
    Ok(of_batches(&facts.unanswered, &facts.announced, holds))
}

/// `holds`: a batch of unknown outcome waits for a decision of a person.
fn of_batches(unanswered: &[EntityFact], announced: &[EntityFact], holds: bool) -> Finding {
    let shown = |facts: &[EntityFact]| {
        let batches = facts.iter().map(|fact| fact.value).sum();
        let facts: Vec<&EntityFact> = facts.iter().collect();
        (counted_noun(batches, "batch", "batches"), entities(&facts, |fact| fact.value.to_string()), batches)
    };
    let mut found = Vec::new();
    if !unanswered.is_empty() {
        let (batches, entities, _) = shown(unanswered);
        found.push(format!("the outcome of {batches} is unknown: {entities}"));
    }
    if !announced.is_empty() {
        let (batches, entities, count) = shown(announced);
        let (are, them) = if count == 1 { ("is", "it") } else { ("are", "them") };
        found.push(format!("{batches} {are} announced, and no worker is at {them}: {entities}"));
    }
    let stopped = unanswered.iter().chain(announced).find(|fact| fact.about.is_some());
    let (what, hint) = match stopped.or(unanswered.first().filter(|_| holds)) {
        // A run stops again, or holds them again.
        Some(fact) => (
            "the error of the entity says what to do",
            format!("elven-sync errors list {}", quoted_option("--entity", &fact.entity_id)),
        ),
        None if unanswered.iter().chain(announced).map(|fact| fact.value).sum::<i64>() == 1 => {
            ("the next run sends it", "elven-sync run".to_owned())
        }
        None => ("the next run sends them", "elven-sync run".to_owned()),
    };
    if found.is_empty() {
        return Finding::ok("each batch has an answer");
    }
    Finding::warning(format!("{}; {what}", found.join("; ")), hint)
}

/// No lease expired without being released.
pub(super) async fn leases(surroundings: &Surroundings) -> Outcome {
    let expired: Vec<&EntityFact> = surroundings.journal().await?.expired_leases.iter().collect();
    Ok(if expired.is_empty() {
        Finding::ok("no lease has expired")
    } else {
        Finding::warning(
            format!(
                "workers died or froze while they held leases: {}",
                entities(&expired, |lease| {
                    let by = lease.about.as_deref().unwrap_or("a worker");
                    format!("{by}, {} ago", age(lease.value))
                })
            ),
            "elven-sync run, which takes them over; then look at the log of that machine",
        )
    })
}

/// No entity is near the bound of rows that the API refused.
pub(super) async fn errors(surroundings: &Surroundings) -> Outcome {
    let (settings, facts) = (surroundings.settings()?, surroundings.journal().await?);
    let bound = count(settings.sync.max_rejections);
    let at_least =
        |bound: i64| facts.rejections.iter().filter(move |fact| fact.value >= bound).collect::<Vec<_>>();
    // 80 per cent.
    let (reached, near) = (at_least(bound.max(1)), at_least((bound.saturating_mul(4) / 5).max(1)));
    let words = |fact: &EntityFact| format!("{} open", fact.value);
    let hint = |facts: &[&EntityFact]| {
        let first = facts.first().map(|fact| quoted_option("--entity", &fact.entity_id)).unwrap_or_default();
        format!("elven-sync errors list {first}")
    };
    let open: i64 = facts.rejections.iter().map(|fact| fact.value).sum::<i64>() + facts.other_errors;
    Ok(if !reached.is_empty() {
        Finding::failed(
            format!(
                "entities stop at the next refusal ([sync] max_rejections = {bound}): {}",
                entities(&reached, words)
            ),
            hint(&reached),
        )
    } else if !near.is_empty() {
        Finding::warning(
            format!("entities are near [sync] max_rejections = {bound}: {}", entities(&near, words)),
            hint(&near),
        )
    } else if open > 0 {
        Finding::warning(
            format!("{} open", counted_noun(open, "error is", "errors are")),
            "elven-sync errors list",
        )
    } else {
        Finding::ok("no error is open")
    })
}

/// The last attempt of each entity succeeded.
pub(super) async fn failing(surroundings: &Surroundings) -> Outcome {
    let failing: Vec<&EntityFact> = surroundings.journal().await?.failing.iter().collect();
    let Some(first) = failing.first() else {
        return Ok(Finding::ok("the last attempt of each entity succeeded"));
    };
    // It may quote the API.
    let said = first.about.as_deref().unwrap_or("no reason recorded");
    let mut message = format!("entity `{}` fails: {said}", first.entity_id);
    if failing.len() > 1 {
        message = format!("{} entities fail; {message}", failing.len());
    }
    let hint = format!("elven-sync errors list {}", quoted_option("--entity", &first.entity_id));
    Ok(Finding::failed(message, hint))
}

/// Runs happen, and each entity had a success lately.
pub(super) async fn last_run(surroundings: &Surroundings) -> Outcome {
    let facts = surroundings.journal().await?;
    let Some(run) = &facts.last_run else {
        return Ok(Finding::warning("no run has ended yet", "elven-sync run"));
    };
    let found = format!("run {} began {} ago and {}", run.run_id, age(run.begun_s), ended(&run.status));
    if run.begun_s > SUCCESS_MAX_S {
        return Ok(Finding::warning(
            format!("{found}; is the schedule stopped?"),
            "look at the scheduler: systemctl list-timers, crontab -l, or kubectl get cronjobs",
        ));
    }
    if run.status == "failed" {
        // The problem of an entity is the finding of another check.
        return Ok(match run.error.as_deref().filter(|_| facts.failing.is_empty()) {
            Some(why) => Finding::failed(format!("{found}: {why}"), "elven-sync status"),
            None => Finding::failed(found, "elven-sync status"),
        });
    }
    if let Some(first) = facts.never_succeeded.first() {
        let named = named(facts.never_succeeded.iter().map(|id| format!("`{id}`")));
        return Ok(Finding::warning(
            format!("{found}; no run has brought {named} up to date yet"),
            format!("elven-sync run {}", quoted_option("--entity", first)),
        ));
    }
    let old: Vec<&EntityFact> = facts.last_success.iter().filter(|fact| fact.value > SUCCESS_MAX_S).collect();
    Ok(match old.first() {
        None => Finding::ok(found),
        Some(first) => Finding::warning(
            format!("{found}; the last success is old: {}", entities(&old, |fact| age(fact.value))),
            format!("elven-sync run {}", quoted_option("--entity", &first.entity_id)),
        ),
    })
}

fn ended(status: &str) -> String {
    match status {
        "succeeded" => "succeeded".to_owned(),
        "interrupted" => "was interrupted".to_owned(),
        "failed" => "failed".to_owned(),
        other => format!("ended as {other}"),
    }
}

/// No alert holds, as the view `alerts` has them for the monitoring.
pub(super) async fn alerts(surroundings: &Surroundings) -> Outcome {
    let alerts = &surroundings.journal().await?.alerts;
    let Some(first) = alerts.first() else { return Ok(Finding::ok("no alert holds")) };
    let shown = |alert: &AlertCount| match alert.alerts {
        1 => format!("{} ({})", alert.name, alert.severity),
        count => format!("{} ({}, {count} times)", alert.name, alert.severity),
    };
    let names: Vec<String> = alerts.iter().map(shown).collect();
    let message = format!("alerts hold: {}", names.join(", "));
    let hint = "select * from elven_sync.alerts;";
    Ok(if first.severity == "critical" {
        Finding::failed(message, hint)
    } else {
        Finding::warning(message, hint)
    })
}

/// `verify` was run lately, where it was run at all.
pub(super) async fn verify(surroundings: &Surroundings) -> Outcome {
    let Some(verified_s) = surroundings.journal().await?.verified_s else {
        return Err(Unmade::NotApplicable("no verify is recorded".to_owned()));
    };
    let found = format!("the last verify was {} ago", age(verified_s));
    Ok(if verified_s <= VERIFY_MAX_S {
        Finding::ok(found)
    } else {
        Finding::warning(found, "elven-sync verify")
    })
}

/// The sync tables have a reasonable size.
pub(super) async fn size(surroundings: &Surroundings) -> Outcome {
    let facts = surroundings.journal().await?;
    Ok(of_size(facts.bytes, facts.largest.as_deref()))
}

fn of_size(bytes: i64, largest: Option<&str>) -> Finding {
    let largest = largest.map(|name| format!(", the largest is {name}")).unwrap_or_default();
    let found = format!("the sync tables have {}{largest}", size_text(bytes));
    if bytes < BYTES_MAX {
        Finding::ok(found)
    } else {
        Finding::warning(found, "elven-sync prune --older-than 90d")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_without_an_answer_are_told_from_those_without_an_outcome() {
        let fact = |about: Option<&str>| {
            [EntityFact { entity_id: "acme".to_owned(), value: 1, about: about.map(str::to_owned) }]
        };
        let [none, some, stopped] = [&[][..], &fact(None), &fact(Some("no more rows are set aside"))];
        let found = of_batches(some, none, false);
        assert_eq!(found.message, "the outcome of 1 batch is unknown: `acme` (1); the next run sends it");
        assert_eq!(found.hint.as_deref(), Some("elven-sync run"));
        // `on_ambiguous = "hold"`: a run would hold them again.
        assert_eq!(
            of_batches(some, none, true).hint.as_deref(),
            Some("elven-sync errors list --entity 'acme'")
        );
        let found = of_batches(none, stopped, false);
        assert_eq!(
            found.message,
            "1 batch is announced, and no worker is at it: `acme` (1); the error of the entity says what to do"
        );
        assert_eq!(found.hint.as_deref(), Some("elven-sync errors list --entity 'acme'"));
        assert_eq!(of_batches(none, some, true).hint.as_deref(), Some("elven-sync run"));
        assert_eq!(of_batches(none, none, true).status, Status::Ok);
    }

    #[test]
    fn sync_tables_that_are_large_are_found() {
        let large = of_size(11 << 30, Some("sync_batches"));
        assert_eq!(
            (large.status, large.hint.as_deref()),
            (Status::Warning, Some("elven-sync prune --older-than 90d"))
        );
        assert_eq!(large.message, "the sync tables have 11 GiB, the largest is sync_batches");
        assert_eq!(of_size(9 << 30, None).status, Status::Ok);
    }
}
