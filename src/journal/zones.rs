//! Zone rules: which ones were in use, what they say, and what the database server makes of the same instants.

use chrono::{DateTime, NaiveDateTime, Utc};
use serde_json::Value;

use super::{Journal, JournalError};
use crate::align::{Change, Offsets, Zone};
use crate::database::Transaction;
use crate::watermark::Snapshot;

/// Name of the fact that has the rules of an entity.
const OF_ENTITY: &str = "zone_rules";
/// Name of the fact that has what differs on the database server.
const OF_SERVER: &str = "server_zone_rules";

/// An entity whose zone rules are not those recorded for it.
#[derive(Clone, Debug)]
pub struct EarlierRules {
    /// The entity.
    pub entity_id: String,
    /// The zone and rules that were recorded. `None`: nothing was.
    pub recorded: Option<(String, String)>,
    /// Version of the rules of the run before this one.
    pub tzdata: Option<String>,
    /// Records of the entity that were uploaded.
    pub rows_uploaded: i64,
    /// Rows in this snapshot were skipped when the entity was registered, and not uploaded.
    pub skipped: Option<Snapshot>,
}

/// A zone for which the rules of the database server differ.
#[derive(Clone, Debug)]
pub struct ServerDifference {
    /// The zone.
    pub zone: String,
    /// The first instant of those compared at which they differ.
    pub at: DateTime<Utc>,
    /// The wall-clock time by the rules of this program.
    pub local: NaiveDateTime,
    /// The wall-clock time by those of the server. `None`: it does not know the zone.
    pub on_server: Option<NaiveDateTime>,
}

/// What the journal and the server say of the zone rules in use.
#[derive(Debug, Default)]
pub struct RulesSeen {
    /// Entities whose rules changed, or were never recorded.
    pub changed: Vec<EarlierRules>,
    /// Zones for which the server has other rules.
    pub on_server: Vec<ServerDifference>,
    /// What was last recorded of these. `None`: nothing was.
    pub reported: Option<Value>,
}

/// The rules of an entity, and what was reported of them.
#[derive(Debug)]
pub struct RulesFact {
    /// The entity.
    pub entity_id: String,
    /// Its zone.
    pub zone: Zone,
    /// What is kept for people to read.
    pub value: Value,
}

impl Journal {
    /// Compares the zones of entities with those that were recorded for them, and `zones` with the rules of the server
    /// between two instants.
    pub async fn see_rules(
        &self,
        run_id: i64,
        entities: &[(String, Zone)],
        zones: &[Zone],
        (from, to): (DateTime<Utc>, DateTime<Utc>),
    ) -> Result<RulesSeen, JournalError> {
        let see = || async {
            let mut transaction = self.database.begin_reading().await?;
            let changed = changed(&mut transaction, run_id, entities).await?;
            let on_server = differences(&mut transaction, zones, from, to).await?;
            let reported = sqlx::query_scalar!(
                "select value from elven_sync.sync_facts where name = $1 and coalesce(entity_id, '') = ''",
                OF_SERVER
            )
            .fetch_optional(&mut transaction)
            .await?;
            transaction.commit().await?;
            Ok::<_, JournalError>(RulesSeen { changed, on_server, reported })
        };
        self.database.again(see).await
    }

    /// The offsets of a zone by rules that were recorded. `None`: they were not.
    pub async fn recorded_offsets(&self, zone: &str, rules: &str) -> Result<Option<Offsets>, JournalError> {
        let read = || async {
            let mut transaction = self.database.begin_reading().await?;
            let offsets = offsets(&mut transaction, zone, rules).await?;
            transaction.commit().await?;
            Ok::<_, JournalError>(offsets)
        };
        self.database.again(read).await
    }

    /// Records the rules of entities, and what these rules say.
    pub async fn record_rules(&self, facts: &[RulesFact]) -> Result<(), JournalError> {
        let record = || async {
            let mut transaction = self.database.begin().await?;
            for fact in facts {
                insert_offsets(&mut transaction, &fact.zone).await?;
            }
            let entity_ids: Vec<&str> = facts.iter().map(|fact| fact.entity_id.as_str()).collect();
            let values: Vec<Value> = facts.iter().map(|fact| fact.value.clone()).collect();
            sqlx::query!(
                "insert into elven_sync.sync_facts (name, entity_id, value)
                 select $1, entity_id, value from unnest($2::text[], $3::jsonb[]) f (entity_id, value)
                  order by entity_id
                 on conflict (name, coalesce(entity_id, '')) do update
                    set value = excluded.value, since = clock_timestamp(), checked_at = clock_timestamp()",
                OF_ENTITY,
                &entity_ids as &[&str],
                &values
            )
            .execute(&mut transaction)
            .await?;
            transaction.commit().await?;
            Ok(())
        };
        self.database.again(record).await
    }

    /// Records for which zones the server has other rules.
    pub async fn record_server_rules(&self, value: &Value) -> Result<(), JournalError> {
        self.database
            .execute(|| {
                sqlx::query!(
                    "insert into elven_sync.sync_facts (name, value) values ($1, $2)
                     on conflict (name, coalesce(entity_id, '')) do update
                        set value = excluded.value, since = clock_timestamp(), checked_at = clock_timestamp()",
                    OF_SERVER,
                    value
                )
            })
            .await?;
        Ok(())
    }
}

async fn changed(
    transaction: &mut Transaction,
    run_id: i64,
    entities: &[(String, Zone)],
) -> Result<Vec<EarlierRules>, JournalError> {
    let ids: Vec<&str> = entities.iter().map(|(entity_id, _)| entity_id.as_str()).collect();
    let zones: Vec<&str> = entities.iter().map(|(_, zone)| zone.name()).collect();
    let rules: Vec<&str> = entities.iter().map(|(_, zone)| zone.rules()).collect();
    let rows = sqlx::query!(
        r#"select e.entity_id as "entity_id!", f.value ->> 'timezone' as timezone, f.value ->> 'rules' as rules,
                  (select r.tzdata from elven_sync.sync_runs r where r.run_id < $4 order by r.run_id desc limit 1) as tzdata,
                  coalesce(s.rows_uploaded, 0) as "rows_uploaded!",
                  (select p.target::text from elven_sync.sync_passes p
                    where p.entity_id = e.entity_id and p.kind = 'from_now' order by p.pass_id desc limit 1) as skipped
             from unnest($1::text[], $2::text[], $3::text[]) e (entity_id, timezone, rules)
             left join elven_sync.sync_facts f on f.name = $5 and coalesce(f.entity_id, '') = e.entity_id
             left join elven_sync.sync_state s on s.entity_id = e.entity_id
            where (f.value ->> 'timezone', f.value ->> 'rules') is distinct from (e.timezone, e.rules)"#,
        &ids as &[&str],
        &zones as &[&str],
        &rules as &[&str],
        run_id,
        OF_ENTITY
    )
    .fetch_all(transaction)
    .await?;
    let decode = |problem: Box<dyn std::error::Error + Send + Sync>| sqlx::Error::Decode(problem);
    rows.into_iter()
        .map(|row| {
            let skipped = row.skipped.map(|text| text.parse::<Snapshot>()).transpose();
            Ok(EarlierRules {
                entity_id: row.entity_id,
                recorded: row.timezone.zip(row.rules),
                tzdata: row.tzdata,
                rows_uploaded: row.rows_uploaded,
                skipped: skipped.map_err(|problem| decode(problem.into()))?,
            })
        })
        .collect()
}

/// Compares every three days, and around each change of the clock.
async fn differences(
    transaction: &mut Transaction,
    zones: &[Zone],
    from: DateTime<Utc>,
    to: DateTime<Utc>,
) -> Result<Vec<ServerDifference>, JournalError> {
    let (mut names, mut begins, mut ends, mut offsets) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for zone in zones {
        let mut at = from.timestamp();
        while at < to.timestamp() {
            let (period, offset_s) = zone.offsets().at(at);
            let end = period.end.min(to.timestamp());
            let instants = DateTime::from_timestamp(at, 0).zip(DateTime::from_timestamp(end - 1, 0));
            let Some((begin, last)) = instants else { break };
            names.push(zone.name());
            begins.push(begin);
            ends.push(last);
            offsets.push(i32::try_from(offset_s).unwrap_or_default());
            at = end;
        }
    }
    let rows = sqlx::query!(
        r#"with asked as (
               select p.zone, array_agg(s.at order by s.at) as instants,
                      array_agg((s.at at time zone 'UTC') + make_interval(secs => p.offset_s) order by s.at) as locals
                 from unnest($1::text[], $2::timestamptz[], $3::timestamptz[], $4::integer[])
                      p (zone, begins, ends, offset_s)
                cross join lateral (select at from generate_series(p.begins, p.ends, interval '72 hours') at
                                    union select p.ends) s
                group by p.zone)
           select a.zone as "zone!", d.at as "at!", d.local as "local!", d.on_server
             from asked a
            cross join lateral (select u.at, u.local, u.on_server
                                  from unnest(a.instants, a.locals, elven_sync.server_clock(a.zone, a.instants))
                                       u (at, local, on_server)
                                 where u.on_server is distinct from u.local order by u.at limit 1) d
            order by a.zone"#,
        &names as &[&str],
        &begins,
        &ends,
        &offsets
    )
    .fetch_all(transaction)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| ServerDifference { zone: row.zone, at: row.at, local: row.local, on_server: row.on_server })
        .collect())
}

/// The offsets of a zone by rules that were recorded. `None`: they were not.
pub(super) async fn offsets(
    transaction: &mut Transaction,
    zone: &str,
    rules: &str,
) -> Result<Option<Offsets>, JournalError> {
    let row = sqlx::query!(
        "select changes, offsets_s from elven_sync.sync_zone_rules where timezone = $1 and rules = $2",
        zone,
        rules
    )
    .fetch_optional(transaction)
    .await?;
    let Some(row) = row else { return Ok(None) };
    let Some((first, later)) = row.offsets_s.split_first() else { return Ok(None) };
    let changes = row.changes.iter().zip(later);
    let changes =
        changes.map(|(at, offset_s)| Change { at_s: at.timestamp(), offset_s: i64::from(*offset_s) });
    Ok(Offsets::listed(i64::from(*first), changes).ok())
}

async fn insert_offsets(transaction: &mut Transaction, zone: &Zone) -> Result<(), sqlx::Error> {
    let offsets = zone.offsets();
    let changes: Vec<DateTime<Utc>> =
        offsets.changes().iter().filter_map(|change| DateTime::from_timestamp(change.at_s, 0)).collect();
    let all = std::iter::once(offsets.first_s()).chain(offsets.changes().iter().map(|change| change.offset_s));
    let all: Vec<i32> = all.map(|offset_s| i32::try_from(offset_s).unwrap_or_default()).collect();
    sqlx::query!(
        "insert into elven_sync.sync_zone_rules (timezone, rules, changes, offsets_s)
         values ($1, $2, $3, $4) on conflict do nothing",
        zone.name(),
        zone.rules(),
        &changes,
        &all
    )
    .execute(transaction)
    .await?;
    Ok(())
}
