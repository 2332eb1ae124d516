//! Standing faults at work: which of them strike a request, and what they make of its answer.

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

/// How HTTP writes a time.
pub(super) const HTTP_DATE: &str = "%a, %d %b %Y %H:%M:%S GMT";
/// Where a redirect leads. Nothing is there; who goes there all the same is in the list of requests.
const REDIRECTED_PATH: &str = "/open/redirected";

/// What a fault can tell requests apart by.
pub(super) struct Asked<'r> {
    /// Whether it is an import, or else a list.
    pub(super) import: bool,
    pub(super) body_bytes: u64,
    /// The records of an import that would be accepted, if they are looked at; `None` when it would be refused.
    pub(super) accepted: Option<&'r [Record<'r>]>,
    /// How an answer with status 200 is wrapped.
    pub(super) answers: Answers,
}

/// What goes wrong with a request.
#[derive(Default)]
pub(super) struct InjectedFaults {
    /// Names of the faults.
    pub(super) names: Vec<String>,
    /// How far the clock is ahead because of them.
    pub(super) clock_ahead: TimeDelta,
    /// How much later the answer comes.
    pub(super) delay: Duration,
    /// What becomes of the answer.
    pub(super) fault: Option<Fault>,
}

/// The rules, and how far each has come.
pub(super) struct FaultInjector(Vec<Running>);

impl FaultInjector {
    /// Each rule draws from numbers of its own, so that one more rule leaves the draws of the others alone.
    pub(super) fn new(rules: Vec<Rule>, seed: u64) -> Self {
        let run = |(rule, stream)| Running {
            rule,
            concerned: 0,
            random: Rng::with_seed(seed.wrapping_add(stream)),
            outage_began: None,
        };
        Self(rules.into_iter().zip(0..).map(run).collect())
    }

    /// What the clock is for a request. Asked first, since a signature is judged by it.
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

    /// Adds what else goes wrong with a request. The first fault that strikes decides what becomes of the
    /// answer, and those behind it do not get to see the request; a delay goes along with any.
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

/// A rule, and how far it has come.
struct Running {
    rule: Rule,
    /// Requests so far that it could have struck.
    concerned: u64,
    random: Rng,
    /// When the latest outage began.
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

    /// Counts one more request that the fault can strike, and says whether it does.
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

/// Whether a fault can strike a request.
fn concerns(what: &FaultKind, asked: &Asked<'_>) -> bool {
    let mut records = asked.accepted.unwrap_or_default().iter();
    match what {
        FaultKind::RejectAccount(account) => records.any(|record| record.entity_account_id == *account),
        FaultKind::RejectCurrency(currency) => records.any(|record| record.currency == *currency),
        FaultKind::RejectNegative => records.any(|record| record.balance.starts_with('-')),
        FaultKind::SuccessFalse | FaultKind::AnswerLost | FaultKind::Late(_) | FaultKind::Error500Kept => {
            asked.import && asked.accepted.is_some()
        }
        FaultKind::BodyLimit(bytes) => asked.import && asked.body_bytes > *bytes,
        FaultKind::Clock(_) => false,
        _ => true,
    }
}

/// What becomes of the answer; `None` for what leaves it as it is.
fn fault(what: &FaultKind, answers: Answers, now: DateTime<Utc>) -> Option<Fault> {
    Some(match what {
        FaultKind::Clock(_) | FaultKind::Slow(_) => return None,
        // Which record it was is left unsaid: the real API is not documented to say it.
        FaultKind::RejectAccount(_) | FaultKind::RejectCurrency(_) | FaultKind::RejectNegative => {
            refusal(Code::Fault, "a record cannot be imported", None)
        }
        FaultKind::SuccessFalse => answer(StatusCode::OK, JSON, answers.refusal().to_owned(), None),
        FaultKind::RefusesAll => refusal(Code::Fault, "the request is not understood", None),
        FaultKind::BodyLimit(_) => page(StatusCode::PAYLOAD_TOO_LARGE, None),
        FaultKind::Revoked => refusal(Code::KeyRevoked, "the key has been revoked", None),
        FaultKind::Forbidden => refusal(Code::Forbidden, "the key may not do this", None),
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

/// A header beyond those that HTTP needs.
type Header = Option<(&'static str, String)>;

/// An answer of the API itself.
fn refusal(code: Code, message: &str, header: Header) -> Fault {
    let refusal = Refusal::new(code, message);
    answer(refusal.status(), JSON, refusal.body(), header)
}

/// An answer of whatever stands in front of the API.
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
        Asked { import: true, body_bytes: 100, accepted: Some(&[]), answers: Answers::Bare };
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

        /// Which of a number of imports are struck, counted from 1.
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
    fn a_rate_is_kept_and_repeated_by_its_seed() {
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
        let mut throttle = standing(&["throttle@every:2"], 0);
        assert_eq!([&LIST, &IMPORT, &REFUSED].map(|asked| throttle.names(asked)), ["", "throttle", ""]);
    }

    #[test]
    fn the_first_decides_and_what_delays_or_sets_the_clock_goes_along() {
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
