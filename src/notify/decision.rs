//! What is told of alerts: pure, so that a day of failures takes no time to test.
//!
//! Alerts are told by name, and not by entity: an outage of all entities is one message. A message is due when
//! - an alert of a name begins, of which nothing was told. After an end, the first hour is waited out, unless an alert is
//!   critical for an entity that was not told as critical since the last quiet hour;
//! - it becomes worse: its severity rises above the one that was told; or the number of its entities has doubled and
//!   grown by five since the last message; or it holds for an entity that was not told, and the last message about the
//!   name is an hour old;
//! - no alert of the name is left.
//!
//! While a message about a name is not delivered, nothing else is decided about it.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, TimeDelta, Utc};

use crate::config::Severity;
use crate::journal::{Alert, AlertsNow, MessageKind, Notification, Told};

/// The alert that is never told: the webhook that would be told of it is the one that fails.
const NOT_TOLD: &str = "WebhookFailing";
/// For how long an alert that has ended is not told again, nor new entities of an alert that was told.
const QUIET: TimeDelta = TimeDelta::hours(1);
/// An alert that has doubled is worse if it has grown by this number at least.
const GROWTH_MIN: i64 = 5;
/// The most entities that a message lists.
const ENTITIES_MAX: usize = 20;

/// What is to be done about the alerts of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Decision<'a> {
    pub name: &'a str,
    /// The revision of the notification; 0 if there is none.
    pub revision: i64,
    pub action: Action<'a>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Action<'a> {
    /// Tell the webhook.
    Tell {
        told: Told,
        /// The subjects that were told as critical since the last quiet hour, with this message.
        critical: Vec<String>,
        /// The alerts, worst first; none at an end.
        alerts: Vec<&'a Alert>,
        /// The name still holds with a lower severity than those that are told.
        holds_below: bool,
    },
    /// Remember that the alert has ended for some of its subjects. These are left.
    Keep(Vec<String>),
}

/// Decides about all alerts. Alerts below `min` are not told.
pub(super) fn decide(state: &AlertsNow, min: Severity) -> Vec<Decision<'_>> {
    let mut named: BTreeMap<&str, (Vec<&Alert>, Option<&Notification>)> = BTreeMap::new();
    for alert in &state.alerts {
        named.entry(&alert.name).or_default().0.push(alert);
    }
    for notification in &state.notifications {
        named.entry(&notification.name).or_default().1 = Some(notification);
    }
    named.remove(NOT_TOLD);
    let decided = named.into_iter().filter(|(_, (_, known))| known.is_none_or(|known| !known.is_undelivered));
    decided
        .filter_map(|(name, (alerts, known))| {
            let action = of_name(state.now, min, alerts, known)?;
            Some(Decision { name, revision: known.map_or(0, |known| known.revision), action })
        })
        .collect()
}

/// Decides about the alerts of a name. `known`: what was told of it.
fn of_name<'a>(
    now: DateTime<Utc>,
    min: Severity,
    all: Vec<&'a Alert>,
    known: Option<&Notification>,
) -> Option<Action<'a>> {
    let told = known.and_then(|known| known.told.as_ref());
    let critical = known.map_or(&[][..], |known| &known.critical);
    let holds_below = all.iter().any(|alert| alert.severity < min);
    let mut alerts: Vec<&Alert> = all.into_iter().filter(|alert| alert.severity >= min).collect();
    alerts.sort_by_key(|alert| (std::cmp::Reverse(alert.severity), alert.since, alert.subject()));
    let tell = |kind, before: &[String], alerts: Vec<&'a Alert>| {
        let told = of_alerts(kind, now, &alerts)?;
        let critical = with_critical(before, &alerts);
        Some(Action::Tell { told, critical, alerts, holds_below })
    };
    match told {
        Some(told) if told.kind != MessageKind::Ended => {
            if alerts.is_empty() {
                // What was told before min_severity was raised is left as it is.
                return (told.severity >= min).then(|| Action::Tell {
                    told: Told { kind: MessageKind::Ended, at: now, subjects: Vec::new(), ..told.clone() },
                    critical: critical.to_vec(),
                    alerts: Vec::new(),
                    holds_below,
                });
            }
            if is_worse(now, told, &alerts) {
                return tell(MessageKind::Worse, critical, alerts);
            }
            let holding: BTreeSet<&str> = alerts.iter().map(|alert| alert.subject()).collect();
            let left = told.subjects.iter().filter(|subject| holding.contains(subject.as_str()));
            let left: Vec<String> = left.cloned().collect();
            (left.len() < told.subjects.len()).then_some(Action::Keep(left))
        }
        Some(ended) if now - ended.at < QUIET => {
            let is_new = |alert: &&Alert| {
                alert.severity == Severity::Critical && critical.iter().all(|known| known != alert.subject())
            };
            if alerts.iter().any(is_new) { tell(MessageKind::Began, critical, alerts) } else { None }
        }
        _ => tell(MessageKind::Began, &[], alerts),
    }
}

/// Returns the subjects that were told as critical, with those of these alerts.
fn with_critical(before: &[String], alerts: &[&Alert]) -> Vec<String> {
    let critical = alerts.iter().filter(|alert| alert.severity == Severity::Critical);
    let all: BTreeSet<&str> =
        critical.map(|alert| alert.subject()).chain(before.iter().map(String::as_str)).collect();
    all.into_iter().map(str::to_owned).collect()
}

/// Whether alerts are worse than what was told.
fn is_worse(now: DateTime<Utc>, told: &Told, alerts: &[&Alert]) -> bool {
    let count = number(alerts.len());
    let has_new = || {
        let known: BTreeSet<&str> = told.subjects.iter().map(String::as_str).collect();
        alerts.iter().any(|alert| !known.contains(alert.subject()))
    };
    alerts.iter().any(|alert| alert.severity > told.severity)
        || count >= told.count.saturating_mul(2) && count >= told.count.saturating_add(GROWTH_MIN)
        || now - told.at >= QUIET && has_new()
}

/// Returns what is told of alerts, worst first. `None`: there are none.
fn of_alerts(kind: MessageKind, at: DateTime<Utc>, alerts: &[&Alert]) -> Option<Told> {
    let severity = alerts.first()?.severity;
    let since = alerts.iter().map(|alert| alert.since).min()?;
    let entities = alerts.iter().filter_map(|alert| alert.entity_id.clone()).take(ENTITIES_MAX).collect();
    let subjects: BTreeSet<&str> = alerts.iter().map(|alert| alert.subject()).collect();
    let subjects = subjects.into_iter().map(str::to_owned).collect();
    Some(Told { kind, at, severity, count: number(alerts.len()), since, entities, subjects })
}

fn number(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
