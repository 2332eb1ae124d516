//! Standing faults and the parser of their text form; pure.

use std::{fmt, num::NonZeroU64, str::FromStr, time::Duration};

use chrono::TimeDelta;
use humantime_serde::re::humantime;
use thiserror::Error;

/// Each fault in its text form, and its effect on a client, in at most 44 characters: then a line of the help text fits
/// 80 columns. The part in `[]` is optional.
const FAULTS: [(&str, &str); 25] = [
    ("reject:account=ID", "400 for an import with this account"),
    ("reject:currency=SYMBOL", "400 for an import with this currency"),
    ("reject:negative", "400 for an import with a negative balance"),
    ("reject:repeated", "400 for an import with a record it has kept"),
    ("reject:success-false", "200 for an import, with a refusal as body"),
    ("refuses-all", "400 for every request"),
    ("body-limit=SIZE", "413 with a proxy's page for a larger body"),
    ("revoked", "401"),
    ("forbidden", "403"),
    ("firewall", "403 with a firewall's page"),
    ("firewall:account=ID", "the same for an import with this account"),
    ("clock=OFFSET", "API clock ahead (+90s) or behind (-90s)"),
    ("changed", "404 with an HTML page"),
    ("redirect", "302 to another path"),
    ("throttle[=WAIT]", "429, Retry-After: WAIT in seconds"),
    ("unavailable[=WAIT]", "503, Retry-After: WAIT as a date"),
    ("cut-before", "connection cut without answer, nothing kept"),
    ("outage=DURATION", "cut-before for all requests, from an import"),
    ("answer-lost", "connection cut without answer, import kept"),
    ("late=DURATION", "connection cut, import delivered later"),
    ("error-500", "500, nothing kept"),
    ("error-500-kept", "500, import kept"),
    ("html-200", "200 with a login page, nothing kept"),
    ("html-502", "502 with a proxy's page, nothing kept"),
    ("slow=DURATION", "answer delayed"),
];

/// The forms of the values of [`FAULTS`].
const VALUES: &str =
    "DURATION, WAIT and OFFSET are e.g. 200ms, 5s or 2m, at most a day; SIZE is e.g. 500B, 100kB or 1MB";

/// The forms of a schedule.
const SCHEDULES: &str = "N% (of the requests, drawn from the seed), every:N (the Nth, the 2Nth, ...), first:N (the \
     first N) or once:N (only the Nth)";

/// The longest duration of a value. With it, computed times stay within the range of the calendar.
const DURATION_MAX: Duration = Duration::from_hours(24);

/// A standing fault: a failure of requests, and its schedule.
///
/// Its text form is `NAME[=VALUE][@WHEN]`, e.g. `throttle=2s@10%`. Without `@WHEN` it strikes every request that it can
/// strike; an outage strikes once. [`Rule::grammar`] lists the possible texts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    text: String,
    pub(super) what: FaultKind,
    pub(super) when: Schedule,
}

impl Rule {
    /// The text form and all faults, for the help text.
    pub fn grammar() -> String {
        let width = FAULTS.iter().map(|(usage, _)| usage.len()).max().unwrap_or_default();
        let line = |(usage, meaning): &(&str, &str)| format!("  {usage:width$}  {meaning}\n");
        let list: String = FAULTS.iter().map(line).collect();
        format!("NAME[=VALUE][@WHEN], where NAME[=VALUE] is one of\n{list}{VALUES}.\n@WHEN is {SCHEDULES}.")
    }

    /// The name of the fault, as in the list of requests.
    pub(super) fn name(&self) -> &str {
        self.text.split(['=', '@']).next().unwrap_or_default()
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for Rule {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        let (fault, when) = text.rsplit_once('@').map_or((text, None), |(fault, when)| (fault, Some(when)));
        let (name, value) = fault.split_once('=').map_or((fault, None), |(name, value)| (name, Some(value)));
        let usage = usage(name).ok_or_else(|| RuleError::Name(name.to_owned()))?;
        let what = FaultKind::read(name, value).ok_or_else(|| RuleError::Value(fault.to_owned(), usage))?;
        let when = match when {
            Some(when) => Schedule::read(when).ok_or_else(|| RuleError::Schedule(when.to_owned()))?,
            None if matches!(what, FaultKind::Outage(_)) => Schedule::Once(NonZeroU64::MIN),
            None => Schedule::Every(NonZeroU64::MIN),
        };
        Ok(Self { text: text.to_owned(), what, when })
    }
}

/// Why a text is not a [`Rule`].
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RuleError {
    /// No fault has this name.
    #[error("there is no fault `{0}`; the faults are {list}", list = FAULTS.map(|(usage, _)| usage).join(", "))]
    Name(String),
    /// The fault with its value, and its text form.
    #[error("`{0}` does not have the form `{1}`; {VALUES}")]
    Value(String, &'static str),
    /// The text after the `@`.
    #[error("`@{0}` is not a schedule; a schedule is {SCHEDULES}")]
    Schedule(String),
}

/// Returns the text form of the fault with a name.
fn usage(name: &str) -> Option<&'static str> {
    let mut usages = FAULTS.iter().map(|(usage, _)| *usage);
    usages.find(|usage| usage.split(['[', '=']).next() == Some(name))
}

/// The kind of a standing fault. `fault_injector` has its effect on an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum FaultKind {
    RejectAccount(String),
    RejectCurrency(String),
    RejectNegative,
    RejectRepeated,
    SuccessFalse,
    RefusesAll,
    /// The most bytes that are accepted.
    BodyLimit(u64),
    Revoked,
    Forbidden,
    Firewall,
    FirewallAccount(String),
    /// How far the clock is ahead; negative for behind.
    Clock(TimeDelta),
    Changed,
    Redirect,
    /// The wait in `Retry-After`, if that header is sent.
    Throttle(Option<Duration>),
    /// The wait in `Retry-After`, if that header is sent.
    Unavailable(Option<Duration>),
    CutBefore,
    Outage(Duration),
    AnswerLost,
    Late(Duration),
    Error500,
    Error500Kept,
    Html200,
    Html502,
    Slow(Duration),
}

impl FaultKind {
    fn read(name: &str, value: Option<&str>) -> Option<Self> {
        Some(match (name, value) {
            ("reject:account", Some(id)) if !id.is_empty() => Self::RejectAccount(id.to_owned()),
            ("reject:currency", Some(symbol)) if !symbol.is_empty() => {
                Self::RejectCurrency(symbol.to_owned())
            }
            ("reject:negative", None) => Self::RejectNegative,
            ("reject:repeated", None) => Self::RejectRepeated,
            ("reject:success-false", None) => Self::SuccessFalse,
            ("refuses-all", None) => Self::RefusesAll,
            ("body-limit", Some(value)) => Self::BodyLimit(size(value)?),
            ("revoked", None) => Self::Revoked,
            ("forbidden", None) => Self::Forbidden,
            ("firewall", None) => Self::Firewall,
            ("firewall:account", Some(id)) if !id.is_empty() => Self::FirewallAccount(id.to_owned()),
            ("clock", Some(value)) => Self::Clock(offset(value)?),
            ("changed", None) => Self::Changed,
            ("redirect", None) => Self::Redirect,
            ("throttle", None) => Self::Throttle(None),
            ("throttle", Some(value)) => Self::Throttle(Some(duration(value)?)),
            ("unavailable", None) => Self::Unavailable(None),
            ("unavailable", Some(value)) => Self::Unavailable(Some(duration(value)?)),
            ("cut-before", None) => Self::CutBefore,
            ("outage", Some(value)) => Self::Outage(duration(value)?),
            ("answer-lost", None) => Self::AnswerLost,
            ("late", Some(value)) => Self::Late(duration(value)?),
            ("error-500", None) => Self::Error500,
            ("error-500-kept", None) => Self::Error500Kept,
            ("html-200", None) => Self::Html200,
            ("html-502", None) => Self::Html502,
            ("slow", Some(value)) => Self::Slow(duration(value)?),
            _ => return None,
        })
    }
}

/// Which of the requests that it can strike a fault strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Schedule {
    /// This percentage of the requests.
    Rate(u8),
    Every(NonZeroU64),
    First(NonZeroU64),
    Once(NonZeroU64),
}

impl Schedule {
    fn read(text: &str) -> Option<Self> {
        if let Some(percent) = text.strip_suffix('%') {
            return percent.parse().ok().filter(|percent| (1..=100).contains(percent)).map(Self::Rate);
        }
        let (kind, number) = text.split_once(':')?;
        let number = number.parse().ok()?;
        Some(match kind {
            "every" => Self::Every(number),
            "first" => Self::First(number),
            "once" => Self::Once(number),
            _ => return None,
        })
    }
}

fn duration(text: &str) -> Option<Duration> {
    humantime::parse_duration(text).ok().filter(|duration| *duration <= DURATION_MAX)
}

/// Parses a duration with an optional sign; without a sign the clock is ahead.
fn offset(text: &str) -> Option<TimeDelta> {
    let (length, behind) = match text.strip_prefix('-') {
        Some(length) => (length, true),
        None => (text.strip_prefix('+').unwrap_or(text), false),
    };
    let offset = TimeDelta::from_std(duration(length)?).ok()?;
    Some(if behind { -offset } else { offset })
}

fn size(text: &str) -> Option<u64> {
    let digits = text.find(|character: char| !character.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let bytes = match unit {
        "" | "B" => 1,
        "kB" => 1_000,
        "MB" => 1_000_000,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(text: &str) -> Rule {
        text.parse().expect(text)
    }

    fn number(number: u64) -> NonZeroU64 {
        number.try_into().unwrap()
    }

    #[test]
    fn texts_are_parsed_to_their_rules() {
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        for (text, what) in [
            ("reject:account=a=b c", FaultKind::RejectAccount("a=b c".to_owned())),
            ("reject:account=a@b@every:1", FaultKind::RejectAccount("a@b".to_owned())),
            ("reject:currency=BTC@every:1", FaultKind::RejectCurrency("BTC".to_owned())),
            ("body-limit=100kB", FaultKind::BodyLimit(100_000)),
            ("body-limit=500B", FaultKind::BodyLimit(500)),
            ("body-limit=1MB", FaultKind::BodyLimit(1_000_000)),
            ("body-limit=0", FaultKind::BodyLimit(0)),
            ("clock=+90s", FaultKind::Clock(TimeDelta::seconds(90))),
            ("clock=90s", FaultKind::Clock(TimeDelta::seconds(90))),
            ("clock=-1m 30s", FaultKind::Clock(TimeDelta::seconds(-90))),
            ("throttle", FaultKind::Throttle(None)),
            ("throttle=2s", FaultKind::Throttle(seconds(2))),
            ("unavailable=1m", FaultKind::Unavailable(seconds(60))),
            ("late=4s", FaultKind::Late(Duration::from_secs(4))),
            ("slow=1day", FaultKind::Slow(Duration::from_hours(24))),
        ] {
            let rule = rule(text);
            assert_eq!((rule.what, rule.when), (what, Schedule::Every(NonZeroU64::MIN)), "{text}");
        }
        for (text, when) in [
            ("throttle@10%", Schedule::Rate(10)),
            ("throttle=2s@100%", Schedule::Rate(100)),
            ("outage=5s", Schedule::Once(number(1))),
            ("outage=5s@once:7", Schedule::Once(number(7))),
            ("cut-before@every:50", Schedule::Every(number(50))),
            ("error-500@first:3", Schedule::First(number(3))),
        ] {
            assert_eq!(rule(text).when, when, "{text}");
            assert_eq!(rule(text).to_string(), text);
        }
    }

    /// With a value and, where the value is optional, without.
    #[test]
    fn every_fault_in_the_list_can_be_parsed_and_is_documented() {
        let page = include_str!("../../docs/sandbox.md");
        for (usage, _) in FAULTS {
            let with_value = usage.replace(['[', ']'], "");
            let value = match with_value.split_once('=').map(|(_, value)| value) {
                Some("SIZE") => "1kB",
                Some("OFFSET" | "DURATION" | "WAIT") => "1s",
                Some(_) => "x",
                None => "",
            };
            let name = usage.split(['[', '=']).next().unwrap();
            let text = if value.is_empty() { name.to_owned() } else { format!("{name}={value}") };
            assert_eq!(rule(&text).name(), name);
            assert_eq!(rule(&format!("{text}@5%")).name(), name);
            assert_eq!(name.parse::<Rule>().is_ok(), value.is_empty() || usage.contains('['), "{usage}");
            assert!(page.contains(&format!("\n| `{usage}` |")), "docs/sandbox.md describes {usage}");
        }
    }

    #[test]
    fn a_wrong_text_has_an_error_of_its_part() {
        for name in ["", "Throttle", "trottle@10%", "reject=a", "reject:", "=5s", "@10%", "throttle:1"] {
            let problem = name.parse::<Rule>().expect_err(name);
            assert!(matches!(&problem, RuleError::Name(_)), "{name}: {problem}");
            assert!(problem.to_string().contains("reject:account=ID, "), "the list: {problem}");
        }
        for value in [
            "reject:account",
            "reject:account=",
            "reject:negative=5",
            "cut-before=",
            "slow",
            "slow=",
            "slow=5",
            "slow=25h",
            "slow=-5s",
            "clock=+-5s",
            "clock=-99999999999years",
            "body-limit=100kb",
            "body-limit=kB",
            "body-limit=-1",
            "body-limit=99999999999999MB",
            "throttle=soon",
        ] {
            let problem = value.parse::<Rule>().expect_err(value);
            assert!(matches!(&problem, RuleError::Value(..)), "{value}: {problem}");
        }
        for when in ["", "10", "0%", "101%", "1.5%", "-1%", "%", "every", "every:", "every:0", "10:every"] {
            let problem = format!("throttle@{when}").parse::<Rule>().expect_err(when);
            assert_eq!(problem, RuleError::Schedule(when.to_owned()));
        }
    }
}
