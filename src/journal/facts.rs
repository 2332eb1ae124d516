//! Facts that only a run or a command can observe, as the view `alerts` reads them from `sync_facts`.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::JournalError;
use super::storable_text::storable;
use crate::database::Database;

/// A fact that is not written again before this time, unless its value changes.
const WRITTEN_EVERY: Duration = Duration::from_mins(1);
/// Keys of a value that are no part of what was observed: they say what was there before, and when it was observed.
const BESIDE_VALUE: [&str; 6] = ["before", "next_xid", "gap_from", "gap_seen", "gap_until", "gap_since"];

/// The subject of a fact: `sync_facts.name`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::AsRefStr)]
#[strum(serialize_all = "snake_case")]
pub enum Subject {
    /// The clock of this machine beside the API's: `ok`, `ahead_s`.
    Clock,
    /// The oldest open transaction that has written to the ledger: `transaction`, `pid` and what else is known of it;
    /// nothing if there is none. It holds since the transaction began.
    OldestWriter,
    /// Whether each row of the ledger is stamped: `ok`, `message`, what was found, and the snapshot of that time. After
    /// the trigger was broken also the gap (`gap_from`, `gap_seen`, `gap_until`, `gap_since`), until `verify` finds no row in it.
    Guard,
    /// The tables that the ledger consists of, and their files: `tables`; and `before`, those before the last change.
    LedgerFiles,
    /// The server: `timeline`, which each promotion of a copy changes.
    Server,
    /// The zone rules in use: `version`, `year`, `rules`.
    Tzdata,
    /// Settings that alerts are measured by: `max_rejections`.
    Limits,
    /// The result of `verify`, of all entities or of one: `ok`, `findings`, `deep`.
    Verify,
    /// Whether the configuration can be used: `ok`, `message`.
    Config,
    /// Whether a run waits for a lock of another session: `ok`, `message`.
    LockWait,
    /// Whether alerts can be delivered to the webhook: `ok`, `message`; or `configured`: false.
    Webhook,
}

/// A fact as it was observed.
#[derive(Clone, Debug)]
pub struct Fact {
    /// Its subject.
    pub subject: Subject,
    /// Its entity. `None`: the installation.
    pub entity_id: Option<String>,
    /// What was observed. A value with `ok` holds since `ok` has changed, any other one since the value has changed.
    pub value: Value,
    /// Since when it holds, if that is known.
    pub since: Option<DateTime<Utc>>,
    /// When it was observed.
    pub observed: Instant,
}

impl Fact {
    /// Returns a fact about the installation that was observed just now.
    pub fn new(subject: Subject, value: Value) -> Self {
        Self { subject, entity_id: None, value, since: None, observed: Instant::now() }
    }

    /// Returns a fact about whether something is in order. `problem`: what is wrong.
    pub fn of_state(subject: Subject, problem: Option<&str>) -> Self {
        Self::new(subject, json!({ "ok": problem.is_none(), "message": problem }))
    }
}

/// Records facts in one statement. A fact is written when its value has changed, and otherwise once a minute. What was
/// observed before the recorded value is left out. Returns whether the trigger of the ledger was broken before, and no
/// check since then has shown that each row is stamped.
pub async fn note_facts(database: &Database, facts: &[Fact]) -> Result<bool, JournalError> {
    let names: Vec<&str> = facts.iter().map(|fact| fact.subject.as_ref()).collect();
    let entity_ids: Vec<Option<String>> = facts.iter().map(|fact| fact.entity_id.clone()).collect();
    let since: Vec<Option<DateTime<Utc>>> = facts.iter().map(|fact| fact.since).collect();
    let note = || async {
        let mut transaction = database.begin().await?;
        let mut values: Vec<Option<String>> =
            facts.iter().map(|fact| Some(fact.value.to_string().replace("\\u0000", "?"))).collect();
        storable(&mut transaction, [&mut values]).await?;
        let ages_s: Vec<f64> = facts.iter().map(|fact| fact.observed.elapsed().as_secs_f64()).collect();
        let was_broken = sqlx::query_scalar!(
            r#"with observed as (
                 select name, entity_id, value::jsonb, since,
                        clock_timestamp() - make_interval(secs => age_s) as observed_at
                   from unnest($1::text[], $2::text[], $3::text[], $4::timestamptz[], $5::float8[])
                        f (name, entity_id, value, since, age_s)),
             noted as (
             insert into elven_sync.sync_facts as f (name, entity_id, value, since, checked_at)
             select name, entity_id, value, coalesce(since, observed_at), observed_at
               from observed order by name, entity_id
             on conflict (name, coalesce(entity_id, '')) do update
                set value = case when f.value - $7::text[] = excluded.value - $7::text[]
                                     then f.value || excluded.value
                                 else elven_sync.merged_fact(f.name, f.value, f.since, excluded.value, excluded.since) end,
                    since = case when f.value - $7::text[] = excluded.value - $7::text[]
                                      or f.value -> 'ok' = excluded.value -> 'ok' then f.since
                                 -- A transaction that was prepared meanwhile began as long ago as before.
                                 when f.value -> 'transaction' = excluded.value -> 'transaction'
                                     then least(f.since, excluded.since)
                                 else excluded.since end,
                    checked_at = excluded.checked_at
              where (f.checked_at < excluded.checked_at or f.checked_at > clock_timestamp())
                and not elven_sync.outlasts(f.name, f.value, excluded.value)
                and (f.value - $7::text[] <> excluded.value - $7::text[] or f.checked_at > clock_timestamp()
                     or f.checked_at < excluded.checked_at - make_interval(secs => $6)))
             select exists (select from elven_sync.sync_facts
                             where name = 'guard' and (elven_sync.is_bad(value) or value ? 'gap_from')) as "is!""#,
            &names as &[&str],
            &entity_ids as &[Option<String>],
            &values as &[Option<String>],
            &since as &[Option<DateTime<Utc>>],
            &ages_s,
            WRITTEN_EVERY.as_secs_f64(),
            &BESIDE_VALUE as &[&str]
        )
        .fetch_one(&mut transaction)
        .await?;
        transaction.commit().await?;
        Ok(was_broken)
    };
    if facts.is_empty() {
        return Ok(false);
    }
    database.retry(note).await
}

/// The result of `verify` for an entity.
#[derive(Clone, Debug)]
pub struct Verified {
    /// The entity.
    pub entity_id: String,
    /// The number of findings.
    pub findings: usize,
}

/// Records the result of `verify`. `all`: it verified all entities. Then those without findings have no fact of their
/// own, unless they had one before, which is in order now.
pub async fn note_verified(
    database: &Database,
    verified: &[Verified],
    all: bool,
    deep: bool,
) -> Result<(), JournalError> {
    let value = |findings: usize| json!({ "ok": findings == 0, "findings": findings, "deep": deep });
    let of_entity = |entity: &Verified| Fact {
        entity_id: Some(entity.entity_id.clone()),
        ..Fact::new(Subject::Verify, value(entity.findings))
    };
    let mut facts: Vec<Fact> =
        verified.iter().filter(|entity| !all || entity.findings > 0).map(of_entity).collect();
    if all {
        facts.push(Fact::new(Subject::Verify, value(verified.iter().map(|entity| entity.findings).sum())));
        let found: Vec<String> = facts.iter().filter_map(|fact| fact.entity_id.clone()).collect();
        let in_order = value(0);
        let others = || {
            sqlx::query!(
                r#"update elven_sync.sync_facts f
                      set since = case when f.value -> 'ok' = 'true'::jsonb then f.since else clock_timestamp() end,
                          value = $2, checked_at = clock_timestamp()
                    where f.name = 'verify' and f.entity_id is not null and f.entity_id <> all ($1)
                      and not elven_sync.outlasts(f.name, f.value, $2)"#,
                &found,
                in_order
            )
        };
        database.execute(others).await?;
    }
    note_facts(database, &facts).await.map(drop)
}
