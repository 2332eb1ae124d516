//! The facts that a run records for the view `alerts`.

use chrono::TimeDelta;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::decisions::policy::SKEW_MIN;
use super::{RunError, Worker};
use crate::journal::{Fact, Subject, close_guard_gap, guard_gap, note_facts};
use crate::ledger::{Guard, LedgerError, Writer};

impl Worker {
    /// Records what a run sees before it sends anything. A run without these facts sends rows all the same.
    pub(super) async fn note_observed(&self, guard: (Guard, Instant)) {
        let (guard, observed) = guard;
        let is_intact = guard.is_intact();
        let mut facts = vec![
            Fact { observed, ..of_guard(&guard, self.ledger.name()) },
            Fact::new(Subject::Tzdata, of_rules(&self.settings.zones.version())),
            Fact::new(Subject::Limits, json!({ "max_rejections": self.settings.sync.max_rejections })),
        ];
        if !self.settings.notify.has_webhook() {
            // Ends the alert of a webhook that was removed.
            facts.push(Fact::new(Subject::Webhook, json!({ "configured": false })));
        }
        match self.ledger.observe().await {
            Ok(seen) => {
                facts.push(Fact::new(Subject::LedgerFiles, json!({ "tables": seen.tables })));
                facts.push(of_writer(seen.oldest_writer));
                facts.push(Fact::new(Subject::Server, json!({ "timeline": seen.timeline })));
            }
            Err(problem) => not_observed(&problem),
        }
        if self.record(&facts).await && is_intact {
            self.look_into_gap().await;
        }
    }

    /// Looks for rows that were written while the trigger was broken and are not stamped yet. Without any, the alert
    /// ends. They cannot be told from others in a view; then the person who repairs the trigger has to stamp the rows.
    async fn look_into_gap(&self) {
        let looked = async {
            let Some(gap) = guard_gap(&self.database, &self.ledger).await? else { return Ok(()) };
            if self.ledger.unstamped(gap, 1).await?.is_none_or(|unstamped| unstamped.is_empty()) {
                close_guard_gap(&self.database, gap).await?;
            }
            Ok::<_, RunError>(())
        };
        if let Err(problem) = looked.await {
            let error = crate::text::chain(&problem);
            tracing::warn!(
                error,
                "the rows that were written while the trigger of the ledger was broken could not be looked for; the run \
                 continues; hint: elven-sync verify"
            );
        }
    }

    /// Records how far the clock is off, if the API has answered in this run. Of several credentials, the one counts
    /// whose API is farther away. `clocks`: for each credential how far the clock is ahead, and when that was seen.
    pub(super) async fn note_clock(&self, clocks: impl Iterator<Item = (TimeDelta, Instant)>) {
        let Some((ahead, observed)) = clocks.max_by_key(|(ahead, _)| ahead.abs()) else { return };
        self.record(&[Fact { observed, ..Fact::new(Subject::Clock, of_clock(ahead)) }]).await;
    }

    /// Returns whether the trigger was broken before, and rows may still be without a stamp.
    async fn record(&self, facts: &[Fact]) -> bool {
        note_facts(&self.database, facts).await.unwrap_or_else(|problem| {
            let error = crate::text::chain(&problem);
            tracing::warn!(error, "the facts for the view alerts could not be recorded; the run continues");
            false
        })
    }
}

fn not_observed(problem: &LedgerError) {
    let error = crate::text::chain(problem);
    tracing::warn!(
        error,
        "the open transactions and the files of the ledger could not be read; the run continues"
    );
}

/// Returns the fact about the trigger of the ledger.
fn of_guard(guard: &Guard, ledger: &str) -> Fact {
    let value = json!({
        "ok": guard.is_intact(),
        "ledger": ledger,
        "message": guard.problem(),
        "tables": guard.tables,
        "broken": guard.broken,
        "next_xid": guard.next_xid,
    });
    Fact::new(Subject::Guard, value)
}

/// Returns the fact about the oldest writer. Its state is left out, because it changes with each statement.
fn of_writer(writer: Option<Writer>) -> Fact {
    let Some(writer) = writer else { return Fact::new(Subject::OldestWriter, json!({})) };
    let value = json!({
        "transaction": writer.transaction,
        "pid": writer.pid,
        "prepared_as": writer.prepared_as,
        "user_name": writer.user_name,
        "application_name": writer.application_name,
    });
    Fact { since: writer.since, ..Fact::new(Subject::OldestWriter, value) }
}

/// Returns the value for rules such as `2026f bundled`. `year`: `None` for a version that has none.
fn of_rules(rules: &str) -> Value {
    let version = rules.split(' ').next().unwrap_or_default();
    let year = version.get(..4).and_then(|year| year.parse::<u16>().ok());
    json!({ "version": version, "year": year, "rules": rules })
}

/// Returns the value for a clock that is ahead of the API's by this much. A `Date` has whole seconds, and a smaller
/// difference is no skew.
fn of_clock(ahead: TimeDelta) -> Value {
    json!({ "ok": ahead.abs() < SKEW_MIN, "ahead_s": ahead.num_seconds() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn year_of_the_rules_is_recorded_if_the_version_has_one() {
        for (rules, version, year) in [
            ("2026f bundled", "2026f", json!(2026)),
            ("2025b /usr/share/zoneinfo", "2025b", json!(2025)),
            ("unknown /opt/zones", "unknown", json!(null)),
        ] {
            assert_eq!(of_rules(rules), json!({ "version": version, "year": year, "rules": rules }));
        }
    }

    #[test]
    fn clock_that_is_off_by_less_than_the_date_can_tell_is_in_order() {
        for (ahead_ms, is_ok) in [(0, true), (2_999, true), (-2_999, true), (3_000, false), (-90_000, false)]
        {
            assert_eq!(of_clock(TimeDelta::milliseconds(ahead_ms))["ok"], is_ok, "{ahead_ms}");
        }
    }
}
