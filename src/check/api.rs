//! The API: can it be reached, is each key accepted, and how does it answer?

use std::time::Duration;

use chrono::TimeDelta;

use super::finding::{Finding, Outcome, Status, Unmade, age, named};
use super::surroundings::Surroundings;
use crate::sync::{ApiProbe, ProbeOutcome};
use crate::text::counted_noun;

/// A smaller difference of clocks is not reported: `Date` has whole seconds.
const SKEW_MIN: TimeDelta = TimeDelta::seconds(2);

/// A longer answer is slow.
const ROUND_TRIP_MAX: Duration = Duration::from_secs(5);

/// Returns the answers to the credentials that could be read.
async fn asked(surroundings: &Surroundings) -> Result<Vec<&ApiProbe>, Unmade> {
    let probes = surroundings.probes().await?;
    let asked: Vec<&ApiProbe> =
        probes.iter().filter(|probe| !matches!(probe.outcome, ProbeOutcome::NoCredential(_))).collect();
    if asked.is_empty() {
        return Err(Unmade::NotApplicable("there is no credential to ask the API with".to_owned()));
    }
    Ok(asked)
}

/// Returns the answers of the API itself.
async fn answered(surroundings: &Surroundings) -> Result<Vec<&ApiProbe>, Unmade> {
    let mut answered = asked(surroundings).await?;
    answered.retain(|probe| probe.http_status.is_some());
    if answered.is_empty() { Err(Unmade::Needs("api.reachable")) } else { Ok(answered) }
}

/// What helps when the API does not answer as itself.
const REACH: &str = "check ELVEN_API_URL, the proxy (HTTPS_PROXY) and the firewall: curl -sS -o /dev/null -w '%{http_code}' \
     \"$ELVEN_API_URL\"";

/// DNS, TLS and the proxy work, and the API answers.
pub(super) async fn reachable(surroundings: &Surroundings) -> Outcome {
    let (settings, asked) = (surroundings.settings()?, asked(surroundings).await?);
    let problem = |probe: &&ApiProbe| match &probe.outcome {
        ProbeOutcome::Unreachable(problem) | ProbeOutcome::OtherApi(problem) => Some(problem.clone()),
        _ => None,
    };
    let problems: Vec<String> = asked.iter().filter_map(problem).collect();
    let Some(problem) = problems.first() else {
        return Ok(Finding::ok(format!("{} answers", settings.api_url)));
    };
    let mut finding = if problems.len() == asked.len() {
        Finding::of(Status::Failed, problem)
    } else {
        let part = format!("{} of {} requests: {problem}", problems.len(), asked.len());
        Finding::of(Status::Warning, &part)
    };
    finding.hint = Some(REACH.to_owned());
    Ok(finding)
}

/// Each key is accepted.
pub(super) async fn key(surroundings: &Surroundings) -> Outcome {
    let asked = asked(surroundings).await?;
    let of = |wanted: fn(&ProbeOutcome) -> Option<&String>| {
        let wanted = asked.iter().filter_map(move |probe| Some((&probe.credential, wanted(&probe.outcome)?)));
        wanted.map(|(name, said)| format!("`{name}` ({said})")).collect::<Vec<_>>()
    };
    let refused = of(|outcome| if let ProbeOutcome::Refused(said) = outcome { Some(said) } else { None });
    let unlisted =
        of(|outcome| if let ProbeOutcome::NotPermitted(said) = outcome { Some(said) } else { None });
    let rejected = of(|outcome| if let ProbeOutcome::Rejected(said) = outcome { Some(said) } else { None });
    let later = of(|outcome| if let ProbeOutcome::Throttled(said) = outcome { Some(said) } else { None });
    Ok(if !refused.is_empty() {
        Finding::failed(
            format!("the API refused credential {}", named(refused)),
            "check the key, the secret and this machine's clock; docs/operating.md#rotate-an-api-key",
        )
    } else if !unlisted.is_empty() {
        Finding::warning(
            format!(
                "credential {} may not list accounts; it may still be permitted to import, and unknown names are \
                 found more slowly",
                named(unlisted)
            ),
            "allow the key to read accounts and currencies at Elven",
        )
    } else if !rejected.is_empty() {
        Finding::warning(
            format!(
                "the API rejects the request for the list of accounts, which says nothing about the key: credential {}",
                named(rejected)
            ),
            "check ELVEN_API_URL and [api] version; elven-sync run --dry-run, and look at the answer to the first \
             import",
        )
    } else if !later.is_empty() {
        Finding::warning(format!("credential {}", named(later)), "elven-sync check --only api, later")
    } else {
        let listed = asked.iter().filter(|probe| probe.outcome == ProbeOutcome::Listed).count();
        let listed = i64::try_from(listed).unwrap_or(i64::MAX);
        Finding::ok(format!("{} accepted", counted_noun(listed, "key is", "keys are")))
    })
}

/// The answers have a documented form.
pub(super) async fn envelope(surroundings: &Surroundings) -> Outcome {
    let answered = answered(surroundings).await?;
    let listed: Vec<&&ApiProbe> =
        answered.iter().filter(|probe| probe.outcome == ProbeOutcome::Listed).collect();
    let Some(first) = listed.first() else {
        return Err(Unmade::NotApplicable(
            "no list was answered, of which the form could be seen".to_owned(),
        ));
    };
    let form = if first.is_wrapped { "lists are under `data`" } else { "lists are at the top level" };
    Ok(if listed.iter().all(|probe| probe.is_wrapped == first.is_wrapped) {
        Finding::ok(format!("{form}, which is one of the documented forms"))
    } else {
        Finding::warning(
            "lists have different forms",
            "elven-sync reference pull; a proxy may answer for the API",
        )
    })
}

/// The API's clock agrees with this machine's.
pub(super) async fn clock(surroundings: &Surroundings) -> Outcome {
    let (settings, answered) = (surroundings.settings()?, answered(surroundings).await?);
    let Some(ahead) = answered.iter().filter_map(|probe| probe.ahead).max_by_key(TimeDelta::abs) else {
        return Err(Unmade::NotApplicable("the answers have no Date".to_owned()));
    };
    if ahead.abs() < SKEW_MIN {
        return Ok(Finding::ok("this machine's clock agrees with the API's"));
    }
    let direction = if ahead > TimeDelta::zero() { "behind" } else { "ahead of" };
    let found = format!("this machine's clock is {} {direction} the API's", age(ahead.abs().num_seconds()));
    let window = settings.api.signature_window;
    let is_beyond = ahead.abs().to_std().is_ok_and(|skew| skew >= window);
    let what = if is_beyond {
        format!(
            "{found}, more than [api] signature_window = {window:?}; each run loses a request to correct it"
        )
    } else {
        found
    };
    Ok(Finding::warning(what, "timedatectl status"))
}

/// The API answers in time.
pub(super) async fn round_trip(surroundings: &Surroundings) -> Outcome {
    let (settings, answered) = (surroundings.settings()?, answered(surroundings).await?);
    let slowest = answered.iter().map(|probe| probe.round_trip).max().unwrap_or_default();
    let found = format!("the slowest answer took {} ms", slowest.as_millis());
    let limit = ROUND_TRIP_MAX.min(settings.api.timeout / 2);
    Ok(if slowest < limit {
        Finding::ok(found)
    } else {
        Finding::warning(
            format!("{found}; a request that takes longer than [api] timeout has an unknown outcome"),
            "check network and proxy, or raise [api] timeout",
        )
    })
}

/// Whether the keys may import cannot be tried.
pub(super) async fn import(surroundings: &Surroundings) -> Outcome {
    asked(surroundings).await?;
    let untried = "the permission to import cannot be tried without sending records";
    let facts = surroundings.journal().await.map_err(|_| Unmade::NotApplicable(untried.to_owned()))?;
    if facts.accepted == 0 {
        return Err(Unmade::NotApplicable(format!("{untried}; the first run shows it")));
    }
    Ok(Finding::ok(format!(
        "records of {} were accepted before; {untried} now",
        counted_noun(facts.accepted, "entity", "entities")
    )))
}
