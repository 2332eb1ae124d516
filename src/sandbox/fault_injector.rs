//! The standing faults: which of them strike a request, and how they change its answer.

use std::time::{Duration, Instant};

use axum::http::{
    StatusCode,
    header::{CONTENT_TYPE, LOCATION, RETRY_AFTER},
};
use chrono::{DateTime, TimeDelta, Utc};
use fastrand::Rng;

use super::{
    answers::Answers,
    fault::Fault,
    refusal::{Code, Refusal},
    rules::{FaultKind, Rule, Schedule},
    validate::Record,
};

/// The format of a time in an HTTP header.
pub(super) const HTTP_DATE: &str = "%a, %d %b %Y %H:%M:%S GMT";
/// The target of a redirect, an unknown path. The list of requests shows a client that follows it.
const REDIRECTED_PATH: &str = "/open/redirected";

/// The properties of a request that faults depend on.
pub(super) struct Asked<'r> {
    /// The request is an import, not a list.
    pub(super) import: bool,
    pub(super) body_bytes: u64,
    /// The records of an import that would be accepted; empty if they are only counted. `None`: it would be refused.
    pub(super) accepted: Option<&'r [Record<'r>]>,
    /// One of them has the account, currency and datetime of a record that is kept.
    pub(super) repeats: bool,
    /// The envelope of answers with status 200.
    pub(super) answers: Answers,
}

/// The faults that strike a request.
#[derive(Default)]
pub(super) struct InjectedFaults {
    /// Names of the faults.
    pub(super) names: Vec<String>,
    /// How far they put the clock ahead.
    pub(super) clock_ahead: TimeDelta,
    /// How long they delay the answer.
    pub(super) delay: Duration,
    /// The fault that replaces or prevents the answer.
    pub(super) fault: Option<Fault>,
}

/// The rules, each with its state.
pub(super) struct FaultInjector(Vec<Running>);

impl FaultInjector {
    /// Gives each rule its own stream of random numbers, so that a further rule does not change the draws of the
    /// others.
    pub(super) fn new(rules: Vec<Rule>, seed: u64) -> Self {
        let run = |(rule, stream)| Running {
            rule,
            concerned: 0,
            random: Rng::with_seed(seed.wrapping_add(stream)),
            outage_began: None,
        };
        Self(rules.into_iter().zip(0..).map(run).collect())
    }

    /// Whether a rule is about records that are kept already.
    pub(super) fn is_about_repeated(&self) -> bool {
        self.0.iter().any(|running| running.rule.what == FaultKind::RejectRepeated)
    }

    /// Finds the clock faults of a request. Called first, since the signature is checked by this clock.
    pub(super) fn clock(&mut self) -> InjectedFaults {
        let mut struck = InjectedFaults::default();
        for running in &mut self.0 {
            if let FaultKind::Clock(ahead) = running.rule.what
                && running.is_due()
            {
                struck.names.push(running.rule.name().to_owned());
                struck.clock_ahead += ahead;
            }
        }
        struck
    }

    /// Adds the other faults of a request. The first fault that strikes determines the answer, and the rules after it
    /// do not count the request; delays are added to any fault.
    pub(super) fn strike(&mut self, struck: &mut InjectedFaults, asked: &Asked<'_>, now: DateTime<Utc>) {
        for running in &mut self.0 {
            let what = &running.rule.what;
            if struck.fault.is_some() && !matches!(what, FaultKind::Slow(_)) || !running.strikes(asked) {
                continue;
            }
            struck.names.push(running.rule.name().to_owned());
            match running.rule.what {
                FaultKind::Slow(delay) => struck.delay += delay,
                ref what => struck.fault = fault(what, asked.answers, now),
            }
        }
    }
}

/// A rule and its state.
struct Running {
    rule: Rule,
    /// The number of requests so far that the rule can strike.
    concerned: u64,
    random: Rng,
    /// The beginning of the latest outage.
    outage_began: Option<Instant>,
}

impl Running {
    fn strikes(&mut self, asked: &Asked<'_>) -> bool {
        let FaultKind::Outage(length) = self.rule.what else {
            return concerns(&self.rule.what, asked) && self.is_due();
        };
        if self.outage_began.is_some_and(|began| began.elapsed() < length) {
            return true;
        }
        let begins = asked.import && self.is_due();
        if begins {
            self.outage_began = Some(Instant::now());
        }
        begins
    }

    /// Counts a request that the fault can strike, and returns whether it strikes.
    fn is_due(&mut self) -> bool {
        self.concerned += 1;
        match self.rule.when {
            Schedule::Rate(percent) => self.random.u8(..100) < percent,
            Schedule::Every(number) => self.concerned.is_multiple_of(number.get()),
            Schedule::First(number) => self.concerned <= number.get(),
            Schedule::Once(number) => self.concerned == number.get(),
        }
    }
}

/// Returns whether a fault can strike a request.
fn concerns(what: &FaultKind, asked: &Asked<'_>) -> bool {
    let mut records = asked.accepted.unwrap_or_default().iter();
    match what {
        FaultKind::RejectAccount(account) | FaultKind::FirewallAccount(account) => {
            records.any(|record| record.entity_account_id == *account)
        }
        FaultKind::RejectCurrency(currency) => records.any(|record| record.currency == *currency),
        FaultKind::RejectNegative => records.any(|record| record.balance.starts_with('-')),
        FaultKind::RejectRepeated => asked.repeats,
        FaultKind::SuccessFalse | FaultKind::AnswerLost | FaultKind::Late(_) | FaultKind::Error500Kept => {
            asked.import && asked.accepted.is_some()
        }
        FaultKind::BodyLimit(bytes) => asked.import && asked.body_bytes > *bytes,
        FaultKind::Clock(_) => false,
        _ => true,
    }
}

/// Returns the fault of the answer. `None`: the answer is not changed.
fn fault(what: &FaultKind, answers: Answers, now: DateTime<Utc>) -> Option<Fault> {
    Some(match what {
        FaultKind::Clock(_) | FaultKind::Slow(_) => return None,
        // The message does not name the record, since the documentation does not say whether the real API does.
        FaultKind::RejectAccount(_) | FaultKind::RejectCurrency(_) | FaultKind::RejectNegative => {
            refusal(Code::Fault, "a record cannot be imported", None)
        }
        FaultKind::RejectRepeated => refusal(Code::Repeated, "a record was imported before", None),
        FaultKind::SuccessFalse => answer(StatusCode::OK, JSON, answers.refusal().to_owned(), None),
        FaultKind::RefusesAll => refusal(Code::Fault, "the request is not understood", None),
        FaultKind::BodyLimit(_) => page(StatusCode::PAYLOAD_TOO_LARGE, None),
        FaultKind::Revoked => refusal(Code::KeyRevoked, "the key has been revoked", None),
        FaultKind::Forbidden => refusal(Code::Forbidden, "the key may not do this", None),
        FaultKind::Firewall | FaultKind::FirewallAccount(_) => {
            html(StatusCode::FORBIDDEN, "This request was blocked by a firewall", None)
        }
        FaultKind::Changed => page(StatusCode::NOT_FOUND, None),
        FaultKind::Redirect => page(StatusCode::FOUND, Some((LOCATION.as_str(), REDIRECTED_PATH.to_owned()))),
        FaultKind::Throttle(wait) => {
            let seconds = wait.map(|wait| wait.as_millis().div_ceil(1000).to_string());
            let header = seconds.map(|seconds| (RETRY_AFTER.as_str(), seconds));
            refusal(Code::Throttled, "too many requests", header)
        }
        FaultKind::Unavailable(wait) => {
            let date = wait.map(|wait| (now + wait).format(HTTP_DATE).to_string());
            page(StatusCode::SERVICE_UNAVAILABLE, date.map(|date| (RETRY_AFTER.as_str(), date)))
        }
        FaultKind::CutBefore | FaultKind::Outage(_) => Fault::CutBeforeWrite,
        FaultKind::AnswerLost => Fault::CutAfterWrite,
        FaultKind::Late(delay) => Fault::DeliverLate(*delay),
        FaultKind::Error500 => page(StatusCode::INTERNAL_SERVER_ERROR, None),
        FaultKind::Error500Kept => Fault::FailAfterWrite { status: 500 },
        FaultKind::Html200 => html(StatusCode::OK, "Log in to use this network", None),
        FaultKind::Html502 => page(StatusCode::BAD_GATEWAY, None),
    })
}

const JSON: &str = "application/json";

/// An additional header.
type Header = Option<(&'static str, String)>;

/// A refusal by the API itself.
fn refusal(code: Code, message: &str, header: Header) -> Fault {
    let refusal = Refusal::new(code, message);
    answer(refusal.status(), JSON, refusal.body(), header)
}

/// The page of a proxy in front of the API.
fn page(status: StatusCode, header: Header) -> Fault {
    html(status, &status.to_string(), header)
}

fn html(status: StatusCode, title: &str, header: Header) -> Fault {
    let body = format!("<!doctype html><html><title>{title}</title><h1>{title}</h1></html>\n");
    answer(status, "text/html", body, header)
}

fn answer(status: StatusCode, content_type: &str, body: String, header: Header) -> Fault {
    let content_type = (CONTENT_TYPE.to_string(), content_type.to_owned());
    let header = header.map(|(name, value)| (name.to_owned(), value));
    Fault::Answer {
        status: status.as_u16(),
        body,
        headers: [content_type].into_iter().chain(header).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IMPORT: Asked<'_> =
        Asked { import: true, body_bytes: 100, accepted: Some(&[]), repeats: false, answers: Answers::Bare };
    const REFUSED: Asked<'_> = Asked { accepted: None, ..IMPORT };
    const LIST: Asked<'_> = Asked { import: false, ..IMPORT };

    fn standing(rules: &[&str], seed: u64) -> FaultInjector {
        FaultInjector::new(rules.iter().map(|rule| rule.parse().unwrap()).collect(), seed)
    }

    impl FaultInjector {
        fn names(&mut self, asked: &Asked<'_>) -> String {
            let mut struck = self.clock();
            self.strike(&mut struck, asked, Utc::now());
            struck.names.join(" ")
        }

        /// The numbers of the imports that are struck, counted from 1.
        fn struck(&mut self, imports: usize) -> Vec<usize> {
            (1..=imports).filter(|_| !self.names(&IMPORT).is_empty()).collect()
        }
    }

    #[test]
    fn schedules() {
        for (rule, expected) in [
            ("throttle@every:3", vec![3, 6, 9]),
            ("throttle@first:2", vec![1, 2]),
            ("throttle@once:4", vec![4]),
            ("throttle@100%", (1..=10).collect()),
            ("throttle", (1..=10).collect()),
        ] {
            assert_eq!(standing(&[rule], 0).struck(10), expected, "{rule}");
        }
    }

    #[test]
    fn a_rate_is_kept_and_its_seed_repeats_the_draws() {
        let drawn = |rules: &[&str], seed| standing(rules, seed).struck(10_000);
        let struck = drawn(&["throttle@10%"], 7);
        assert!((900..1100).contains(&struck.len()), "{}", struck.len());
        assert_eq!(drawn(&["throttle@10%"], 7), struck);
        assert_ne!(drawn(&["throttle@10%"], 8), struck);
        assert_eq!(
            drawn(&["throttle@10%", "html-502@once:20000"], 7),
            struck,
            "another rule's draws are its own"
        );
    }

    #[test]
    fn only_requests_that_can_be_struck_count() {
        let mut lost = standing(&["answer-lost@once:2"], 0);
        assert_eq!(
            [&IMPORT, &REFUSED, &LIST, &IMPORT].map(|asked| lost.names(asked)),
            ["", "", "", "answer-lost"]
        );
        let mut large = standing(&["body-limit=100B"], 0);
        let larger = Asked { body_bytes: 101, ..REFUSED };
        assert_eq!([&IMPORT, &larger].map(|asked| large.names(asked)), ["", "body-limit"]);
        let mut repeated = standing(&["reject:repeated@once:2"], 0);
        let again = Asked { repeats: true, ..IMPORT };
        assert_eq!([&IMPORT, &again, &again].map(|asked| repeated.names(asked)), ["", "", "reject:repeated"]);
        let mut throttle = standing(&["throttle@every:2"], 0);
        assert_eq!([&LIST, &IMPORT, &REFUSED].map(|asked| throttle.names(asked)), ["", "throttle", ""]);
    }

    #[test]
    fn the_first_fault_decides_and_delays_and_clocks_are_added() {
        let mut standing = standing(
            &["throttle@once:2", "cut-before@once:2", "slow=1s", "slow=2s", "clock=+5s", "clock=-7s"],
            0,
        );
        let both = "clock clock";
        assert_eq!(standing.names(&IMPORT), format!("{both} slow slow"));
        assert_eq!(standing.names(&IMPORT), format!("{both} throttle slow slow"));
        assert_eq!(standing.names(&IMPORT), format!("{both} cut-before slow slow"), "the second that it saw");
        let mut struck = standing.clock();
        standing.strike(&mut struck, &IMPORT, Utc::now());
        assert_eq!((struck.clock_ahead, struck.delay), (TimeDelta::seconds(-2), Duration::from_secs(3)));
        assert!(struck.fault.is_none());
    }

    #[test]
    fn an_outage_begins_with_an_import_and_ends() {
        let mut outage = standing(&["outage=1h"], 0);
        assert_eq!([&LIST, &IMPORT, &LIST].map(|asked| outage.names(asked)), ["", "outage", "outage"]);
        let mut over = standing(&["outage=0s@every:2"], 0);
        assert_eq!(over.struck(4), [2, 4], "each as long as nothing");
    }
}
