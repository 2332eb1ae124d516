//! Problems that need a person, and rows that were set aside, as they are recorded in `sync_errors`.

use std::borrow::Cow;
use std::collections::HashSet;

use sqlx::PgExecutor;
use strum::{AsRefStr, VariantNames};

use super::release::release;
use super::storable_text::storable;
use crate::batch::InvalidRow;
use crate::database::Transaction;
use crate::watermark::LedgerId;

/// `sync_errors.kind`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, AsRefStr, VariantNames)]
#[strum(serialize_all = "snake_case")]
pub enum Kind {
    /// The row is invalid: it was refused before sending.
    InvalidRow,
    /// The key, the signature, a permission or the clock is wrong.
    Auth,
    /// The configuration or the URL is wrong, or the API changed.
    Config,
    /// The API refused the row, which was found by bisecting.
    RejectedRow,
    /// The API does not know the account of the rows.
    UnknownAccount,
    /// The API does not know the currency of the rows.
    UnknownCurrency,
    /// The API refused a whole batch.
    RejectedBatch,
    /// The lane was throttled by the API.
    Throttled,
    /// The API could not be reached, or the outcome of a request is unknown.
    Unavailable,
    /// The time zone of the entity is unknown.
    Timezone,
    /// The ledger has rows of an entity that is not registered.
    UnregisteredEntity,
    /// The watermark does not belong to this database.
    Watermark,
    /// The database could not read the rows of the entity.
    Ledger,
}

/// A problem to record.
#[derive(Clone, Debug)]
pub struct Problem {
    /// Its kind.
    pub kind: Kind,
    /// The batch in which it occurred.
    pub batch_id: Option<i64>,
    /// The ledger row, if it concerns one.
    pub ledger_id: Option<String>,
    /// HTTP status of the answer.
    pub http_status: Option<i32>,
    /// Error code in the answer.
    pub api_code: Option<String>,
    /// What happened, and a hint.
    pub message: String,
    /// The row as it would have been sent, as JSON.
    pub record: Option<String>,
}

impl Problem {
    /// Returns a problem of a lane that no answer of the API caused.
    pub fn of_lane(kind: Kind, message: impl Into<String>) -> Self {
        Self {
            kind,
            batch_id: None,
            ledger_id: None,
            http_status: None,
            api_code: None,
            message: message.into(),
            record: None,
        }
    }
}

/// Records problems of an entity; a problem that is already open gets another occurrence.
pub(super) async fn record(
    transaction: &mut Transaction,
    run_id: i64,
    entity_id: &str,
    problems: &[Problem],
) -> Result<(), sqlx::Error> {
    let each: Vec<(&str, &Problem)> = problems.iter().map(|problem| (entity_id, problem)).collect();
    record_each(transaction, run_id, &each).await?;
    let (kinds, ids): (Vec<String>, Vec<String>) = problems
        .iter()
        .filter_map(|problem| Some((problem.kind.as_ref().to_owned(), problem.ledger_id.clone()?)))
        .unzip();
    if !ids.is_empty() {
        // A row has only one open problem at a time.
        sqlx::query!(
            "update elven_sync.sync_errors e
                set resolved_at = clock_timestamp(), resolution = 'another problem of the row took its place'
               from unnest($2::text[], $3::text[]) now (kind, ledger_id)
              where e.entity_id = $1 and e.ledger_id = now.ledger_id and e.kind <> now.kind and e.resolved_at is null",
            entity_id,
            &kinds,
            &ids
        )
        .execute(&mut *transaction)
        .await?;
        let why = "another problem of the row took its place";
        let released: Vec<(&str, &str)> = ids.iter().map(|id| (id.as_str(), why)).collect();
        release(&mut *transaction, entity_id, None, &released).await?;
    }
    Ok(())
}

/// Records problems, each with its entity; a problem that is already open gets another occurrence.
pub(super) async fn record_each(
    transaction: &mut Transaction,
    run_id: i64,
    problems: &[(&str, &Problem)],
) -> Result<(), sqlx::Error> {
    let mut rest = problems.to_vec();
    while !rest.is_empty() {
        // One statement cannot update the same row twice, and rows of a ledger may share an id.
        let mut seen = HashSet::new();
        let key = |(entity_id, problem): &(&str, &Problem)| {
            (entity_id.to_string(), problem.kind, problem.ledger_id.clone())
        };
        let (once, repeated): (Vec<_>, Vec<_>) = rest.into_iter().partition(|each| seen.insert(key(each)));
        rest = repeated;
        let problems = || once.iter().map(|(_, problem)| *problem);
        let entity_ids: Vec<String> = once.iter().map(|(entity_id, _)| (*entity_id).to_owned()).collect();
        let kinds: Vec<String> = problems().map(|p| p.kind.as_ref().to_owned()).collect();
        let batch_ids: Vec<Option<i64>> = problems().map(|p| p.batch_id).collect();
        let ledger_ids: Vec<Option<String>> = problems().map(|p| p.ledger_id.clone()).collect();
        let http_statuses: Vec<Option<i32>> = problems().map(|p| p.http_status).collect();
        let mut api_codes: Vec<Option<String>> = problems().map(|p| p.api_code.clone()).collect();
        let mut messages: Vec<Option<String>> = problems().map(|p| Some(p.message.clone())).collect();
        let mut records: Vec<Option<String>> = problems().map(|p| p.record.clone()).collect();
        storable(&mut *transaction, [&mut api_codes, &mut messages, &mut records]).await?;
        sqlx::query!(
            "insert into elven_sync.sync_errors
                (run_id, entity_id, kind, batch_id, ledger_id, http_status, api_code, message, cause, record)
         select $1, entity_id, kind, batch_id, ledger_id, http_status, api_code, message,
                elven_sync.error_cause(message, record::jsonb, ledger_id), record::jsonb
           from unnest($2::text[], $3::text[], $4::bigint[], $5::text[], $6::integer[], $7::text[], $8::text[],
                       $9::text[])
                p (entity_id, kind, batch_id, ledger_id, http_status, api_code, message, record)
         on conflict (entity_id, kind, coalesce(ledger_id, ''),
                      (case when ledger_ids is null then 0 else error_id end)) where resolved_at is null do update
            set occurrences = sync_errors.occurrences + 1, last_seen_at = clock_timestamp(),
                run_id = excluded.run_id, batch_id = excluded.batch_id, http_status = excluded.http_status,
                api_code = excluded.api_code, message = excluded.message, cause = excluded.cause,
                record = excluded.record",
            run_id,
            &entity_ids,
            &kinds,
            &batch_ids as &[Option<i64>],
            &ledger_ids as &[Option<String>],
            &http_statuses as &[Option<i32>],
            &api_codes as &[Option<String>],
            &messages as &[Option<String>],
            &records as &[Option<String>]
        )
        .execute(&mut *transaction)
        .await?;
    }
    Ok(())
}

/// Resolves the errors of the lanes of entities that are up to date.
pub(super) async fn resolve_of_lanes(
    transaction: &mut Transaction,
    entity_ids: &[String],
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "update elven_sync.sync_errors
            set resolved_at = clock_timestamp(), resolution = 'the entity was brought up to date'
          where entity_id = any ($1) and ledger_id is null and ledger_ids is null and resolved_at is null
            and kind <> 'unregistered_entity'",
        entity_ids
    )
    .execute(transaction)
    .await?;
    Ok(())
}

/// Counts the rows of an entity that the API refused and that are still set aside.
pub(super) async fn rejections(executor: impl PgExecutor<'_>, entity_id: &str) -> Result<usize, sqlx::Error> {
    rejections_with(executor, entity_id, &[]).await
}

/// The same count, as if these rows were set aside as well.
pub(super) async fn rejections_with(
    executor: impl PgExecutor<'_>,
    entity_id: &str,
    ledger_ids: &[String],
) -> Result<usize, sqlx::Error> {
    let count = sqlx::query_scalar!(
        r#"select count(*) as "count!" from (
               select ledger_id from elven_sync.sync_errors
                where entity_id = $1 and kind = 'rejected_row' and resolved_at is null
                union select unnest($2::text[])) set_aside"#,
        entity_id,
        ledger_ids
    )
    .fetch_one(executor)
    .await?;
    Ok(usize::try_from(count).unwrap_or(usize::MAX))
}

pub(crate) fn invalid(batch_id: Option<i64>, row: &InvalidRow) -> Problem {
    Problem {
        kind: Kind::InvalidRow,
        batch_id,
        ledger_id: Some(row.id.to_string()),
        http_status: None,
        api_code: None,
        message: format!(
            "{}; hint: correct the row in the ledger table, and the next run uploads it; after a correction \
             elsewhere (a view, a map, another row), run `elven-sync errors retry`",
            row.reason
        ),
        record: Some(row.record.clone()),
    }
}

/// A row whose open errors are resolved, and why.
#[derive(Clone, Debug)]
pub struct Resolution {
    /// The row.
    pub ledger_id: String,
    /// `sync_errors.resolution`.
    pub why: Cow<'static, str>,
}

impl Resolution {
    /// Returns the resolution for a row.
    pub fn new(row: &LedgerId, why: impl Into<Cow<'static, str>>) -> Self {
        Self { ledger_id: row.to_string(), why: why.into() }
    }

    /// Returns the resolution for a row that is not sent, because a newer one of its key was uploaded.
    pub fn superseded(row: &LedgerId, newer: &LedgerId) -> Self {
        Self::new(row, format!("superseded by row {newer} of the same account, currency and second"))
    }
}

/// Resolves the errors of rows, apart from those that `batch_id` has recorded, and releases the rows if they are held.
pub(super) async fn resolve(
    transaction: &mut Transaction,
    entity_id: &str,
    batch_id: Option<i64>,
    resolved: &[Resolution],
) -> Result<(), sqlx::Error> {
    if resolved.is_empty() {
        return Ok(());
    }
    let (ids, why): (Vec<String>, Vec<String>) =
        resolved.iter().map(|row| (row.ledger_id.clone(), row.why.clone().into_owned())).unzip();
    sqlx::query!(
        "update elven_sync.sync_errors e
            set resolved_at = clock_timestamp(), resolution = r.why
           from unnest($3::text[], $4::text[]) r (ledger_id, why)
          where e.entity_id = $1 and e.ledger_id = r.ledger_id and e.resolved_at is null
            and ($2::bigint is null or e.batch_id is distinct from $2)",
        entity_id,
        batch_id,
        &ids,
        &why
    )
    .execute(&mut *transaction)
    .await?;
    let released: Vec<(&str, &str)> =
        ids.iter().zip(&why).map(|(id, why)| (id.as_str(), why.as_str())).collect();
    release(transaction, entity_id, batch_id, &released).await
}
