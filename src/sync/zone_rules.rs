//! Changes of the zone rules: which uploaded rows have other wall-clock times now, and where the database server has other
//! rules than this program. Each is reported once per change.

use std::collections::BTreeMap;
use std::ops::Range;

use chrono::{DateTime, Days, SecondsFormat, Utc};
use serde_json::{Value, json};

use super::{RunError, Target, Worker};
use crate::align::{Offsets, Zone};
use crate::journal::{EarlierRules, Lane, RulesFact, ServerDifference};
use crate::ledger::Uploaded;

/// So far ahead the rules of the database server are compared.
const COMPARED_DAYS: u64 = 366;

/// The note names no more zones than this.
const ZONES_NAMED_MAX: usize = 5;

impl Worker {
    /// Compares the zone rules in use with those of earlier uploads and with those of the database server. Returns what a
    /// person should know; the same is logged, and kept in `sync_facts`.
    ///
    /// Nothing depends on it: when it fails, the run goes on, and the next one compares again.
    pub(super) async fn compare_rules(&self, run_id: i64, targets: &[Target]) -> Vec<String> {
        if targets.is_empty() {
            return Vec::new();
        }
        match self.changes_of_rules(run_id, targets).await {
            Ok(notes) => {
                for note in &notes {
                    tracing::warn!("{note}");
                }
                notes
            }
            Err(problem) => {
                let problem = crate::output::chain(&problem);
                tracing::warn!("the time zone rules could not be compared with those of earlier runs: {problem}");
                Vec::new()
            }
        }
    }

    async fn changes_of_rules(&self, run_id: i64, targets: &[Target]) -> Result<Vec<String>, RunError> {
        let zones: BTreeMap<String, Zone> = targets
            .iter()
            .map(|target| target.zone.clone())
            .chain(self.ledger_zone())
            .map(|zone| (zone.name().to_owned(), zone))
            .collect();
        let entities: Vec<(String, Zone)> =
            targets.iter().map(|target| (target.entity_id.clone(), target.zone.clone())).collect();
        let zones: Vec<Zone> = zones.into_values().collect();
        let now = Utc::now();
        let until = now.checked_add_days(Days::new(COMPARED_DAYS)).unwrap_or(now);
        let seen = self.journal.see_rules(run_id, &entities, &zones, (now, until)).await?;
        let mut notes = self.notes_of_entities(targets, seen.changed).await?;
        notes.extend(self.notes_of_server(&zones, &seen.on_server, seen.reported).await?);
        Ok(notes)
    }

    /// The zone of a ledger whose `captured_at` has none: there the server's rules say which instant is meant.
    fn ledger_zone(&self) -> Option<Zone> {
        let name = self.settings.ledger.captured_at_zone.as_deref()?;
        self.settings.zones.get(name).ok()
    }

    /// Counts the uploaded rows of entities whose rules have changed, and records the rules.
    async fn notes_of_entities(
        &self,
        targets: &[Target],
        changed: Vec<EarlierRules>,
    ) -> Result<Vec<String>, RunError> {
        if changed.is_empty() {
            return Ok(Vec::new());
        }
        let ids: Vec<String> = changed.iter().map(|earlier| earlier.entity_id.clone()).collect();
        let lanes = self.journal.lanes(&ids).await?;
        let (mut notes, mut facts) = (Vec::new(), Vec::new());
        for earlier in changed {
            let Some(target) = targets.iter().find(|target| target.entity_id == earlier.entity_id) else { continue };
            let lane = lanes.get(&earlier.entity_id).cloned().unwrap_or_default();
            let change = self.change_of(&target.zone, &earlier, &lane).await?;
            notes.extend(change.as_ref().and_then(|change| change.note(&earlier.entity_id, &target.zone)));
            let value = json!({
                "timezone": target.zone.name(),
                "rules": target.zone.rules(),
                "changed": change.map(|change| change.to_json(&earlier.entity_id)),
            });
            facts.push(RulesFact { entity_id: earlier.entity_id, zone: target.zone.clone(), value });
        }
        self.journal.record_rules(&facts).await?;
        Ok(notes)
    }

    /// What a change of the rules means for the uploaded rows of an entity. `None`: nothing was uploaded by other rules of
    /// this zone.
    async fn change_of(
        &self,
        zone: &Zone,
        earlier: &EarlierRules,
        lane: &Lane,
    ) -> Result<Option<RulesChange>, RunError> {
        if earlier.rows_uploaded == 0 {
            return Ok(None);
        }
        let (rules, offsets) = match (&earlier.recorded, &earlier.tzdata) {
            // Somebody has given the entity another zone.
            (Some((name, _)), _) if name != zone.name() => return Ok(None),
            // The same offsets under another version or from another source.
            (Some((_, rules)), _) if zone.follows(rules) => return Ok(None),
            (Some((name, rules)), _) => (rules.clone(), self.journal.recorded_offsets(name, rules).await?),
            (None, Some(tzdata)) if *tzdata == self.settings.zones.version() => return Ok(None),
            (None, Some(tzdata)) if tzdata == chrono_tz::IANA_TZDB_VERSION => {
                (tzdata.clone(), Offsets::of_chrono_tz(zone.name()))
            }
            (None, Some(tzdata)) => (tzdata.clone(), None),
            (None, None) => return Ok(None),
        };
        let Some(offsets) = offsets else { return Ok(Some(RulesChange { rules, uploaded: None })) };
        let periods = zone.offsets().differences(&offsets);
        let progress = lane.progress(&earlier.entity_id);
        let uploaded = self.ledger.uploaded_in(&progress, earlier.skipped.as_ref(), &periods).await?;
        Ok(Some(RulesChange { rules, uploaded: Some((uploaded, periods)) }))
    }

    /// Says for which zones the server has other rules, unless that was said.
    async fn notes_of_server(
        &self,
        zones: &[Zone],
        differences: &[ServerDifference],
        reported: Option<Value>,
    ) -> Result<Vec<String>, RunError> {
        let reported = reported.unwrap_or_else(|| json!({}));
        let rules_of = |name: &str| zones.iter().find(|zone| zone.name() == name).map_or("", Zone::rules);
        // One run may be of a few entities: what was said of other zones still holds.
        let mut value: serde_json::Map<String, Value> = reported
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(name, _)| zones.iter().all(|zone| zone.name() != name.as_str()))
            .map(|(name, known)| (name.clone(), known.clone()))
            .collect();
        for difference in differences {
            // While it lasts the first instant at which they differ is a later one each time.
            let known = reported.get(&difference.zone).filter(|known| known["rules"] == rules_of(&difference.zone));
            let found = || difference_json(difference, rules_of(&difference.zone));
            value.insert(difference.zone.clone(), known.cloned().unwrap_or_else(found));
        }
        let value = Value::Object(value);
        if value == reported {
            return Ok(Vec::new());
        }
        self.journal.record_server_rules(&value).await?;
        let is_new = |difference: &&ServerDifference| reported.get(&difference.zone) != value.get(&difference.zone);
        let new: Vec<&ServerDifference> = differences.iter().filter(is_new).collect();
        let ledger_zone = self.settings.ledger.captured_at_zone.as_deref();
        let mut notes: Vec<String> = new
            .iter()
            .take(ZONES_NAMED_MAX)
            .map(|difference| server_note(difference, rules_of(&difference.zone), ledger_zone))
            .collect();
        if new.len() > ZONES_NAMED_MAX {
            let more = new.len() - ZONES_NAMED_MAX;
            notes.push(format!(
                "the rules of the database server differ for {more} more time zones; hint: select value from \
                 elven_sync.sync_facts where name = 'server_zone_rules'"
            ));
        }
        Ok(notes)
    }
}

/// The zone rules of an entity are others than those of its earlier uploads.
struct RulesChange {
    /// Those of its earlier uploads.
    rules: String,
    /// The uploaded rows whose wall-clock time differs, if there are any, and the periods in which it does. `None`: what the
    /// earlier rules say is not known.
    uploaded: Option<(Option<Uploaded>, Vec<Range<i64>>)>,
}

impl RulesChange {
    /// What a person has to know, if rows are concerned.
    fn note(&self, entity_id: &str, zone: &Zone) -> Option<String> {
        let Self { rules, uploaded } = self;
        let changed = format!(
            "entity `{entity_id}`: the rules of time zone {} are {} now; earlier uploads were made by {rules}",
            zone.name(),
            zone.rules()
        );
        match uploaded {
            None => Some(format!(
                "{changed}, which are not known to this program, so it cannot say which uploaded rows have other wall-clock \
                 times; hint: where the rules differ, send the range again with elven-sync backfill"
            )),
            Some((None, _)) => None,
            Some((Some(uploaded), _)) => Some(format!(
                "{changed}. {} uploaded rows captured from {} to {} have other wall-clock times; their records with the \
                 earlier times stay at Elven until they are deleted there; hint: {}",
                crate::output::thousands(uploaded.rows),
                second(uploaded.first),
                second(uploaded.last),
                backfill(entity_id, uploaded)
            )),
        }
    }

    fn to_json(&self, entity_id: &str) -> Value {
        let uploaded = self.uploaded.as_ref().and_then(|(uploaded, _)| uploaded.as_ref());
        let periods = self.uploaded.as_ref().map(|(_, periods)| periods);
        let instant = |unix_s: i64| DateTime::from_timestamp(unix_s, 0).map(second);
        json!({
            "earlier_rules": self.rules,
            "rows": uploaded.map_or(0, |uploaded| uploaded.rows),
            "first_captured_at": uploaded.map(|uploaded| second(uploaded.first)),
            "last_captured_at": uploaded.map(|uploaded| second(uploaded.last)),
            "differ_from": periods.and_then(|periods| instant(periods.first()?.start)),
            "is_known": periods.is_some(),
            "backfill": uploaded.map(|uploaded| backfill(entity_id, uploaded)),
        })
    }
}

/// The command that sends rows with their present times.
fn backfill(entity_id: &str, uploaded: &Uploaded) -> String {
    let quoted = entity_id.replace('\'', "'\\''");
    // The end of a range is not part of it.
    let end = DateTime::from_timestamp(uploaded.last.timestamp() + 1, 0).unwrap_or(uploaded.last);
    format!("elven-sync backfill --entity '{quoted}' --from {} --to {}", second(uploaded.first), second(end))
}

fn second(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Secs, true)
}

fn difference_json(difference: &ServerDifference, rules: &str) -> Value {
    json!({
        "rules": rules,
        "at": second(difference.at),
        "elven_sync": difference.local.to_string(),
        "server": difference.on_server.map(|local| local.to_string()),
    })
}

fn server_note(difference: &ServerDifference, rules: &str, ledger_zone: Option<&str>) -> String {
    let ServerDifference { zone, at, local, on_server } = difference;
    let says = on_server.map_or_else(|| "does not know the zone".to_owned(), |on_server| format!("has {on_server}"));
    let means = if ledger_zone == Some(zone) {
        "the server's rules decide which instants the ledger's captured_at names ([ledger] captured_at_zone), so rows are \
         sent with a wrong time"
    } else {
        "elven-sync sends its own, so SQL with AT TIME ZONE does not show what Elven has"
    };
    // PostgreSQL looks among its abbreviations first.
    let hint = if on_server.is_some() && zone.bytes().all(|byte| byte.is_ascii_uppercase()) {
        "PostgreSQL takes this name for an abbreviation with one fixed offset; name a zone such as Europe/Paris instead"
    } else {
        "update the time zone data of the database server (package tzdata, or PostgreSQL itself)"
    };
    format!(
        "time zone {zone}: the rules of the database server differ from those in use ({rules}): at {} the server {says}, \
         elven-sync has {local}; {means}; hint: {hint}",
        second(*at)
    )
}
