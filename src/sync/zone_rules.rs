//! Changes of the zone rules: uploaded rows that have other wall-clock times now, and zones for which the database
//! server has other rules than this program. Each change is reported once.

use std::collections::BTreeMap;

use chrono::{DateTime, Days, SecondsFormat, Utc};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::lane_worker::Target;
use super::{RunError, Worker};
use crate::align::{Offsets, Zone};
use crate::database::Transient;
use crate::journal::{EarlierRules, JournalError, Lane, RulesFact, RulesSeen, ServerDifference};
use crate::ledger::Uploaded;
use crate::text::quoted_option;
use crate::watermark::Snapshot;

/// How far into the future the rules of the database server are compared.
const COMPARED_DAYS: u64 = 366;

/// The most entities that are named.
const ENTITIES_NAMED_MAX: usize = 20;

/// The most zones that are named.
const ZONES_NAMED_MAX: usize = 5;

/// The state of the zone rules before a run sends anything.
#[derive(Debug)]
pub(super) struct Seen {
    zones: Vec<Zone>,
    rules: RulesSeen,
    /// The lanes of entities whose rules have changed: rows up to these watermarks were uploaded with the earlier
    /// rules.
    lanes: BTreeMap<String, Lane>,
}

impl Worker {
    /// Compares the zone rules in use with the rules of earlier uploads and of the database server. Returns notes for
    /// the operator, which are also logged and recorded in `sync_facts`.
    pub(super) async fn compare_rules(&self, run_id: i64, targets: &[Target]) -> Vec<String> {
        let seen = self.see_rules(run_id, targets).await;
        self.notes_of_rules(targets, seen).await
    }

    /// Returns a digest of what is compared: the entities, their zones, and the rules in use.
    pub(super) fn rules_digest(&self, targets: &[Target]) -> String {
        let of_entities = targets.iter().map(|target| (target.entity_id.as_str(), target.rules.zone.clone()));
        let mut compared: Vec<_> = of_entities.chain(self.ledger_zone().map(|zone| ("", zone))).collect();
        compared.sort_by(|a, b| a.0.cmp(b.0));
        let mut digest = Sha256::new();
        digest.update(self.settings.zones.version());
        for (entity_id, zone) in compared {
            for part in [entity_id, zone.name(), zone.rules()] {
                digest.update(u64::try_from(part.len()).unwrap_or_default().to_be_bytes());
                digest.update(part);
            }
        }
        hex::encode(digest.finalize())
    }

    /// Reads the state of the zone rules. `None`: the same rules were compared less than an hour ago; or that failed,
    /// then the run sends rows all the same, and the next run tries again.
    pub(super) async fn see_rules(&self, run_id: i64, targets: &[Target]) -> Option<Seen> {
        if targets.is_empty() {
            return None;
        }
        match self.journal.are_rules_compared(&self.rules_digest(targets)).await {
            Ok(false) => {}
            Ok(true) => return None,
            Err(problem) => {
                not_compared(&problem);
                return None;
            }
        }
        let zones: BTreeMap<String, Zone> = targets
            .iter()
            .map(|target| target.rules.zone.clone())
            .chain(self.ledger_zone())
            .map(|zone| (zone.name().to_owned(), zone))
            .collect();
        let zones: Vec<Zone> = zones.into_values().collect();
        let now = Utc::now();
        let until = now.checked_add_days(Days::new(COMPARED_DAYS)).unwrap_or(now);
        let entity_ids: Vec<&str> = targets.iter().map(|target| target.entity_id.as_str()).collect();
        let see = async {
            let rules = self.journal.see_rules(run_id, &entity_ids, &zones, now..until).await?;
            let uploaded = rules.changed.iter().filter(|earlier| earlier.rows_uploaded > 0);
            let ids: Vec<String> = uploaded.map(|earlier| earlier.entity_id.clone()).collect();
            let lanes = if ids.is_empty() {
                BTreeMap::new()
            } else {
                self.journal.lanes(&ids, &self.mapping).await?
            };
            Ok::<_, JournalError>((rules, lanes))
        };
        match see.await {
            Ok((rules, lanes)) => Some(Seen { zones, rules, lanes }),
            Err(problem) => {
                not_compared(&problem);
                None
            }
        }
    }

    /// Counts the rows that a change of the rules affects, and records the result. That may take long; rows that are
    /// sent meanwhile are not counted.
    pub(super) async fn notes_of_rules(&self, targets: &[Target], seen: Option<Seen>) -> Vec<String> {
        let Some(Seen { zones, rules, lanes }) = seen else { return Vec::new() };
        let notes = async {
            let mut notes = self.notes_of_entities(targets, rules.changed, &lanes).await?;
            notes.extend(self.notes_of_server(&zones, &rules.on_server, rules.reported).await?);
            self.journal.record_comparison(&self.rules_digest(targets)).await?;
            Ok::<_, RunError>(notes)
        };
        let notes = notes.await.unwrap_or_else(|problem| {
            not_compared(&problem);
            Vec::new()
        });
        for note in &notes {
            tracing::warn!("{note}");
        }
        notes
    }

    /// The zone of a ledger whose `captured_at` has no zone. The rules of the server decide which instants it means.
    fn ledger_zone(&self) -> Option<Zone> {
        let name = self.settings.ledger.captured_at_zone.as_deref()?;
        self.settings.zones.get(name).ok()
    }

    /// Counts the uploaded rows of entities whose rules have changed, and records the rules.
    async fn notes_of_entities(
        &self,
        targets: &[Target],
        changed: Vec<EarlierRules>,
        lanes: &BTreeMap<String, Lane>,
    ) -> Result<Vec<String>, RunError> {
        let targets: BTreeMap<&str, &Target> =
            targets.iter().map(|target| (target.entity_id.as_str(), target)).collect();
        let (mut notes, mut facts) = (Vec::new(), Vec::new());
        for earlier in changed {
            // The entity may have been given another zone just now.
            let zone = targets.get(earlier.entity_id.as_str()).map(|target| &target.rules.zone);
            let Some(zone) = zone.filter(|zone| zone.name() == earlier.timezone) else { continue };
            let change = match earlier_rules(&earlier, zone, &self.settings.zones.version()) {
                Some(rules) => Some(self.change_to(zone, &earlier, rules, lanes).await?),
                None => None,
            };
            notes.extend(change.as_ref().and_then(|change| change.note(&earlier.entity_id, zone)));
            let value = json!({
                "timezone": zone.name(),
                "rules": zone.rules(),
                "changed": change.map(|change| change.to_json(&earlier.entity_id)),
            });
            facts.push(RulesFact { entity_id: earlier.entity_id, zone: zone.clone(), value });
        }
        if !facts.is_empty() {
            self.journal.record_rules(&facts).await?;
        }
        if notes.len() > ENTITIES_NAMED_MAX {
            let more = notes.split_off(ENTITIES_NAMED_MAX).len();
            notes.push(format!(
                "the time zone rules of {more} more entities have changed, with uploaded rows that have other \
                 wall-clock times; hint: select entity_id, value -> 'changed' from elven_sync.sync_facts where name = \
                 'zone_rules'"
            ));
        }
        Ok(notes)
    }

    /// Finds the uploaded rows of an entity that a change of the rules affects. `rules`: the rules of its earlier
    /// uploads.
    async fn change_to(
        &self,
        zone: &Zone,
        earlier: &EarlierRules,
        rules: String,
        lanes: &BTreeMap<String, Lane>,
    ) -> Result<RulesChange, RunError> {
        let offsets = if earlier.recorded.is_some() {
            self.journal.recorded_offsets(zone.name(), &rules).await?
        } else if rules == chrono_tz::IANA_TZDB_VERSION {
            Offsets::of_chrono_tz(zone.name())
        } else {
            None
        };
        let Some(offsets) = offsets else {
            return Ok(RulesChange { rules, rows: AffectedRows::RulesUnknown });
        };
        let periods = zone.offsets().differences(&offsets);
        let lane = lanes.get(&earlier.entity_id).cloned().unwrap_or_default();
        let skipped: Option<Snapshot> = earlier.skipped.as_ref().and_then(|skipped| skipped.parse().ok());
        let progress = lane.progress(&earlier.entity_id);
        let rows = match self.ledger.uploaded_in(&progress, skipped.as_ref(), &periods).await {
            Ok(None) => AffectedRows::None,
            Ok(Some(uploaded)) => AffectedRows::Counted(uploaded),
            Err(problem) if problem.is_transient() => return Err(problem.into()),
            // One entity must not keep others from being reported, nor fail to be counted again in each run.
            Err(problem) => AffectedRows::NotCounted {
                problem: crate::text::chain(&problem),
                from: periods.first().map(|period| instant(period.start)).unwrap_or_default(),
            },
        };
        Ok(RulesChange { rules, rows })
    }

    /// Returns notes for the zones for which the server has other rules, unless they were reported already.
    async fn notes_of_server(
        &self,
        zones: &[Zone],
        differences: &[ServerDifference],
        reported: Option<Value>,
    ) -> Result<Vec<String>, RunError> {
        let reported = reported.unwrap_or_else(|| json!({}));
        let rules_of = |name: &str| zones.iter().find(|zone| zone.name() == name).map_or("", Zone::rules);
        // A run may have only a few entities; the reports for other zones still hold.
        let mut value: serde_json::Map<String, Value> = reported
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(name, _)| zones.iter().all(|zone| zone.name() != name.as_str()))
            .map(|(name, known)| (name.clone(), known.clone()))
            .collect();
        for difference in differences {
            // The first instant of a lasting difference moves on with time, so the first report is kept.
            let known =
                reported.get(&difference.zone).filter(|known| known["rules"] == rules_of(&difference.zone));
            let found = || difference_json(difference, rules_of(&difference.zone));
            value.insert(difference.zone.clone(), known.cloned().unwrap_or_else(found));
        }
        let value = Value::Object(value);
        if value == reported {
            return Ok(Vec::new());
        }
        self.journal.record_server_rules(&value).await?;
        let is_new =
            |difference: &&ServerDifference| reported.get(&difference.zone) != value.get(&difference.zone);
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

/// Returns the rules of earlier uploads of an entity, if they differ from the rules in use: the recorded rules of the
/// entity, or the version that an earlier version of this program recorded for a run.
fn earlier_rules(earlier: &EarlierRules, zone: &Zone, in_use: &str) -> Option<String> {
    let EarlierRules { recorded, rows_uploaded, tzdata, .. } = earlier;
    let rules = match recorded {
        _ if *rows_uploaded == 0 => None,
        // Another zone is no change of rules, and another version may have the same offsets.
        Some((name, rules)) => {
            Some(rules.as_str()).filter(|rules| name == zone.name() && !zone.follows(rules))
        }
        None => tzdata.as_deref().filter(|tzdata| *tzdata != in_use),
    };
    rules.map(str::to_owned)
}

fn not_compared(problem: &(dyn std::error::Error + 'static)) {
    let problem = crate::text::chain(problem);
    tracing::warn!("the time zone rules could not be compared with those of earlier runs: {problem}");
}

/// A change of the zone rules of an entity since its earlier uploads.
struct RulesChange {
    /// The rules of its earlier uploads.
    rules: String,
    rows: AffectedRows,
}

/// The uploaded rows whose wall-clock time changes with the rules in use.
enum AffectedRows {
    /// No row is affected.
    None,
    /// These rows are affected.
    Counted(Uploaded),
    /// The rows could not be counted; only the first instant at which the rules differ is known.
    NotCounted { problem: String, from: String },
    /// The offsets of the earlier rules are not known.
    RulesUnknown,
}

impl RulesChange {
    /// The note for the operator, if rows are affected.
    fn note(&self, entity_id: &str, zone: &Zone) -> Option<String> {
        let Self { rules, rows } = self;
        let changed = format!(
            "entity `{entity_id}`: the rules of time zone {} are {} now; earlier uploads were made by {rules}",
            zone.name(),
            zone.rules()
        );
        match rows {
            AffectedRows::None => None,
            AffectedRows::Counted(uploaded) => Some(format!(
                "{changed}. The wall-clock time changes for {} uploaded {} captured from {} to {}; the records with \
                 the earlier times stay at Elven until they are deleted there; hint: {}",
                crate::text::thousands(uploaded.rows),
                if uploaded.rows == 1 { "row" } else { "rows" },
                second(uploaded.first),
                second(uploaded.last),
                backfill(entity_id, uploaded)
            )),
            AffectedRows::NotCounted { problem, from } => Some(format!(
                "{changed}. The wall-clock time changes for rows captured from {from} on, which could not be counted: \
                 {problem}; the records with the earlier times stay at Elven until they are deleted there; hint: \
                 elven-sync backfill {} --from {from} --to {}",
                quoted_option("--entity", entity_id),
                second(Utc::now())
            )),
            AffectedRows::RulesUnknown => Some(format!(
                "{changed}, which are not known to this program, so it cannot say for which uploaded rows the \
                 wall-clock time changes; hint: elven-sync backfill {} --from START --to END, where the rules differ",
                quoted_option("--entity", entity_id)
            )),
        }
    }

    fn to_json(&self, entity_id: &str) -> Value {
        let rules = &self.rules;
        match &self.rows {
            AffectedRows::None => json!({ "earlier_rules": rules, "rows": 0 }),
            AffectedRows::Counted(uploaded) => json!({
                "earlier_rules": rules,
                "rows": uploaded.rows,
                "first_captured_at": second(uploaded.first),
                "last_captured_at": second(uploaded.last),
                "backfill": backfill(entity_id, uploaded),
            }),
            AffectedRows::NotCounted { problem, from } => {
                json!({ "earlier_rules": rules, "rows": null, "differ_from": from, "problem": problem })
            }
            AffectedRows::RulesUnknown => json!({ "earlier_rules": rules, "rows": null }),
        }
    }
}

/// The command that uploads the rows again with their present times.
fn backfill(entity_id: &str, uploaded: &Uploaded) -> String {
    let entity = quoted_option("--entity", entity_id);
    // The end of a range is not included.
    let end = DateTime::from_timestamp(uploaded.last.timestamp() + 1, 0).unwrap_or(uploaded.last);
    format!("elven-sync backfill {entity} --from {} --to {}", second(uploaded.first), second(end))
}

fn second(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Secs, true)
}

fn instant(unix_s: i64) -> String {
    DateTime::from_timestamp(unix_s, 0).map(second).unwrap_or_default()
}

fn difference_json(difference: &ServerDifference, rules: &str) -> Value {
    json!({
        "rules": rules,
        "at": instant(difference.at_s),
        "elven_sync": difference.local,
        "server": difference.on_server,
    })
}

fn server_note(difference: &ServerDifference, rules: &str, ledger_zone: Option<&str>) -> String {
    let ServerDifference { zone, at_s, local, on_server } = difference;
    let says = match on_server {
        Some(on_server) => format!("has {on_server}"),
        None => "does not know the zone".to_owned(),
    };
    let means = if ledger_zone == Some(zone) {
        "the server's rules decide which instants the ledger's captured_at names ([ledger] captured_at_zone), so rows \
         are sent with a wrong time"
    } else {
        "elven-sync sends its own, so SQL with AT TIME ZONE does not show what Elven has"
    };
    // PostgreSQL looks for an abbreviation first.
    let hint = if on_server.is_some() && zone.bytes().all(|byte| byte.is_ascii_uppercase()) {
        "PostgreSQL takes this name for an abbreviation with one fixed offset; name a zone such as Europe/Paris"
    } else {
        "update the time zone data of the database server (package tzdata, or PostgreSQL itself)"
    };
    format!(
        "time zone {zone}: the rules of the database server differ from those in use ({rules}): at {} the server \
         {says}, elven-sync has {local}; {means}; hint: {hint}",
        instant(*at_s)
    )
}
