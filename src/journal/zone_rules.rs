//! Zone rules: the recorded rules of entities, and a comparison with the rules of the database server.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde_json::Value;
use sqlx::AssertSqlSafe;

use super::{Journal, JournalError};
use crate::align::{Change, Offsets, Zone};
use crate::database::Transaction;
use crate::ledger::{quote_array, quote_literal};

/// The name of the fact with the rules of an entity.
const OF_ENTITY: &str = "zone_rules";
/// The distance between two instants at which the rules of the server are compared, in seconds.
const COMPARED_EVERY_S: i64 = 72 * 3600;

/// The name of the fact with the differences on the database server.
const OF_SERVER: &str = "server_zone_rules";

/// The name of the fact with the digest of the zones and rules that were compared last.
const COMPARISON: &str = "zone_rules_compared";

/// For how long a comparison is not repeated. The rules of the database server may change without any other sign.
const COMPARED_FOR: Duration = Duration::from_hours(1);

/// An entity whose zone rules differ from the recorded ones.
#[derive(Clone, Debug, Deserialize)]
pub struct EarlierRules {
    /// The entity.
    pub entity_id: String,
    /// Its current zone.
    pub timezone: String,
    /// The recorded zone and rules. `None`: nothing was recorded.
    pub recorded: Option<(String, String)>,
    /// The version of the rules of the run that opened its newest pass, or else of the previous run.
    pub tzdata: Option<String>,
    /// The number of uploaded records of the entity.
    pub rows_uploaded: i64,
    /// Rows in this snapshot were skipped when the entity was registered.
    pub skipped: Option<String>,
}

/// A zone for which the rules of the database server differ.
#[derive(Clone, Debug, Deserialize)]
pub struct ServerDifference {
    /// The zone.
    pub zone: String,
    /// The first compared instant at which they differ, in Unix seconds.
    pub at_s: i64,
    /// The wall-clock time by the rules of this program.
    pub local: String,
    /// The wall-clock time by the rules of the server. `None`: it does not know the zone.
    pub on_server: Option<String>,
}

/// The result of the comparison of the zone rules in use with the journal and the server.
#[derive(Debug, Deserialize)]
pub struct RulesSeen {
    /// Registered entities whose rules changed, or were never recorded.
    pub changed: Vec<EarlierRules>,
    /// Zones for which the rules of the server differ.
    pub on_server: Vec<ServerDifference>,
    /// The last recorded differences of the server. `None`: nothing was recorded.
    pub reported: Option<Value>,
}

/// The rules of an entity, and what was reported about them.
#[derive(Debug)]
pub struct RulesFact {
    /// The entity.
    pub entity_id: String,
    /// Its zone.
    pub zone: Zone,
    /// The recorded value, for people to read.
    pub value: Value,
}

impl Journal {
    /// Compares the zones of entities with their recorded rules, and with the rules of the server in a period. One
    /// message, because each run does this.
    pub async fn see_rules(
        &self,
        run_id: i64,
        entity_ids: &[&str],
        zones: &[Zone],
        period: Range<DateTime<Utc>>,
    ) -> Result<RulesSeen, JournalError> {
        let sql = seen_sql(run_id, entity_ids, zones, period.start.timestamp(), period.end.timestamp());
        let see =
            || sqlx::query_scalar(AssertSqlSafe(sql.clone())).fetch_one(self.database.single_round_trip());
        let seen: String = self.database.retry(see).await?;
        serde_json::from_str(&seen).map_err(|problem| sqlx::Error::Decode(problem.into()).into())
    }

    /// Returns the offsets of a zone by recorded rules. `None`: the rules were not recorded.
    pub async fn recorded_offsets(&self, zone: &str, rules: &str) -> Result<Option<Offsets>, JournalError> {
        let read = || async {
            let mut transaction = self.database.begin_reading().await?;
            let offsets = offsets(&mut transaction, zone, rules).await?;
            transaction.commit().await?;
            Ok::<_, JournalError>(offsets)
        };
        self.database.retry(read).await
    }

    /// Records the rules of entities, and their offsets.
    pub async fn record_rules(&self, facts: &[RulesFact]) -> Result<(), JournalError> {
        let record = || async {
            let mut transaction = self.database.begin().await?;
            let zones: BTreeMap<_, _> =
                facts.iter().map(|fact| ((fact.zone.name(), fact.zone.rules()), &fact.zone)).collect();
            for zone in zones.into_values() {
                insert_offsets(&mut transaction, zone).await?;
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
        self.database.retry(record).await
    }

    /// Records the zones for which the rules of the server differ.
    pub async fn record_server_rules(&self, value: &Value) -> Result<(), JournalError> {
        self.record_fact(OF_SERVER, value).await
    }

    /// Returns whether zones and rules with this digest were compared less than an hour ago.
    pub async fn are_rules_compared(&self, rules_digest: &str) -> Result<bool, JournalError> {
        let sql = format!(
            "select exists (select from elven_sync.sync_facts f
                             where f.name = '{COMPARISON}' and coalesce(f.entity_id, '') = ''
                               and f.value = to_jsonb({}::text)
                               and f.checked_at > clock_timestamp() - make_interval(secs => {}))",
            quote_literal(rules_digest),
            COMPARED_FOR.as_secs()
        );
        let compared =
            || sqlx::query_scalar(AssertSqlSafe(sql.clone())).fetch_one(self.database.single_round_trip());
        Ok(self.database.retry(compared).await?)
    }

    /// Records that zones and rules with this digest were compared, so that runs of the next hour need not do it.
    pub async fn record_comparison(&self, rules_digest: &str) -> Result<(), JournalError> {
        self.record_fact(COMPARISON, &Value::from(rules_digest)).await
    }

    /// Records a fact about the installation.
    async fn record_fact(&self, name: &str, value: &Value) -> Result<(), JournalError> {
        self.database
            .execute(|| {
                sqlx::query!(
                    "insert into elven_sync.sync_facts (name, value) values ($1, $2)
                     on conflict (name, coalesce(entity_id, '')) do update
                        set value = excluded.value, since = clock_timestamp(), checked_at = clock_timestamp()",
                    name,
                    value
                )
            })
            .await?;
        Ok(())
    }
}

/// Returns the query. It compares with the server every three days, and around each change of the clock.
fn seen_sql(run_id: i64, entity_ids: &[&str], zones: &[Zone], from_s: i64, to_s: i64) -> String {
    let rules: Vec<String> = zones
        .iter()
        .map(|zone| format!("({}, {})", quote_literal(zone.name()), quote_literal(zone.rules())))
        .collect();
    let mut periods = Vec::new();
    for zone in zones {
        let mut at = from_s;
        while at < to_s {
            let (period, offset_s) = zone.offsets().at(at);
            let end = period.end.min(to_s);
            periods.push(format!("({}, {at}, {}, {offset_s})", quote_literal(zone.name()), end - 1));
            at = end;
        }
    }
    format!(
        "with used (timezone, rules) as (values {}),
              periods (timezone, begins, ends, offset_s) as (values {}),
              asked as (
                  select p.timezone, array_agg(to_timestamp(s.at) order by s.at) as instants,
                         array_agg((to_timestamp(s.at) at time zone 'UTC') + make_interval(secs => p.offset_s)
                                   order by s.at) as locals
                    from periods p
                   cross join lateral (select generate_series(p.begins, p.ends, {COMPARED_EVERY_S}) as at
                                       union select p.ends) s
                   group by p.timezone)
         select json_build_object(
             'changed', coalesce((
                 select json_agg(json_build_object(
                            'entity_id', e.entity_id, 'timezone', e.timezone,
                            'recorded', case when f.name is not null
                                             then json_build_array(f.value ->> 'timezone', f.value ->> 'rules') end,
                            'tzdata', coalesce(
                                (select r.tzdata from elven_sync.sync_passes p
                                 join elven_sync.sync_runs r using (run_id)
                                  where p.entity_id = e.entity_id and p.kind = 'pass' order by p.pass_id desc limit 1),
                                (select r.tzdata from elven_sync.sync_runs r where r.run_id < {run_id}
                                  order by r.run_id desc limit 1)),
                            'rows_uploaded', coalesce((select s.rows_uploaded from elven_sync.sync_state s
                                                       where s.entity_id = e.entity_id), 0),
                            'skipped', (select p.target::text from elven_sync.sync_passes p
                                         where p.entity_id = e.entity_id and p.kind = 'from_now'
                                         order by p.pass_id desc limit 1)) order by e.entity_id)
                   from elven_sync.entities e join used u using (timezone)
                   left join elven_sync.sync_facts f
                          on f.name = '{OF_ENTITY}' and coalesce(f.entity_id, '') = e.entity_id
                  where e.entity_id = any ({})
                    and (f.value ->> 'timezone', f.value ->> 'rules') is distinct from (u.timezone, u.rules)), '[]'),
             'on_server', coalesce((
                 select json_agg(json_build_object(
                            'zone', a.timezone, 'at_s', extract(epoch from d.at)::bigint,
                            'local', to_char(d.local, 'YYYY-MM-DD HH24:MI:SS'),
                            'on_server', to_char(d.on_server, 'YYYY-MM-DD HH24:MI:SS')) order by a.timezone)
                   from asked a
                  cross join lateral (
                      select u.at, u.local, u.on_server
                        from unnest(a.instants, a.locals, elven_sync.server_clock(a.timezone, a.instants))
                             u (at, local, on_server)
                       where u.on_server is distinct from u.local order by u.at limit 1) d), '[]'),
             'reported', (select f.value from elven_sync.sync_facts f
                           where f.name = '{OF_SERVER}' and coalesce(f.entity_id, '') = ''))::text",
        rules.join(", "),
        periods.join(", "),
        quote_array(entity_ids.iter().map(|entity_id| Some(*entity_id)))
    )
}

/// Returns the offsets of a zone by recorded rules. `None`: the rules were not recorded.
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
    let all =
        std::iter::once(offsets.first_s()).chain(offsets.changes().iter().map(|change| change.offset_s));
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
