//! Recorded errors: problems that need a person, and rows that were set aside.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::json;

use super::JournalError;
use super::actions::{Action, client_name};
use super::storable_text::storable_one;
use crate::database::Database;

/// A row of `sync_errors`.
#[derive(Clone, Debug, Serialize)]
pub struct RecordedError {
    /// Its number.
    pub error_id: i64,
    /// Its kind, as in the table.
    pub kind: String,
    /// The entity.
    pub entity_id: String,
    /// The ledger row, if it concerns one.
    pub ledger_id: Option<String>,
    /// The account or currency that the API does not know, because of which rows are held.
    pub name: Option<String>,
    /// The number of rows that are held; of a resolved error, of rows that it was about.
    pub rows: Option<i32>,
    /// What happened, and a hint.
    pub message: String,
    /// HTTP status of the answer.
    pub http_status: Option<i32>,
    /// Error code in the answer.
    pub api_code: Option<String>,
    /// The message without the values of the row. `None`: the message.
    pub cause: Option<String>,
    /// The row as it would have been sent, as JSON.
    pub record: Option<String>,
    /// How often it occurred.
    pub occurrences: i32,
    /// When it occurred first.
    pub first_seen_at: DateTime<Utc>,
    /// When it occurred last.
    pub last_seen_at: DateTime<Utc>,
    /// When it was resolved; `None`: open.
    pub resolved_at: Option<DateTime<Utc>>,
    /// What resolved it.
    pub resolution: Option<String>,
    /// The newest run in which it occurred.
    pub run_id: Option<i64>,
    /// The newest batch in which it occurred.
    pub batch_id: Option<i64>,
}

/// A filter for errors; empty lists mean all.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// Only errors with these numbers.
    pub ids: Vec<i64>,
    /// Only errors of these entities.
    pub entities: Vec<String>,
    /// Only errors of these kinds.
    pub kinds: Vec<String>,
    /// Only errors of these causes: each is the id of a cause, or a part of its text.
    pub causes: Vec<String>,
    /// Include resolved errors.
    pub resolved: bool,
}

impl Wanted {
    /// Returns whether the errors are chosen by what they are, and not by their numbers.
    pub fn has_filter(&self) -> bool {
        !(self.entities.is_empty() && self.kinds.is_empty() && self.causes.is_empty())
    }
}

impl RecordedError {
    /// Returns the numbers of the errors that match, the newest first. There may be millions, so they are one value.
    pub async fn numbers(database: &Database, wanted: &Wanted) -> Result<Vec<i64>, JournalError> {
        let numbers = || {
            sqlx::query_scalar!(
                r#"select coalesce(array_agg(error_id order by last_seen_at desc, error_id desc), '{}')
                              as "numbers!: Vec<i64>"
                     from elven_sync.sync_errors e
                    where ($4 or resolved_at is null)
                      and (cardinality($1::bigint[]) = 0 or error_id = any ($1))
                      and (cardinality($2::text[]) = 0 or entity_id = any ($2))
                      and (cardinality($3::text[]) = 0 or kind = any ($3))
                      and (cardinality($5::text[]) = 0 or elven_sync.has_cause(e, $5))"#,
                &wanted.ids,
                &wanted.entities,
                &wanted.kinds,
                wanted.resolved,
                &wanted.causes
            )
            .fetch_one(database)
        };
        Ok(database.retry(numbers).await?)
    }

    /// Returns the errors with these numbers, in their order. Unknown numbers are left out.
    pub async fn with_numbers(database: &Database, numbers: &[i64]) -> Result<Vec<Self>, JournalError> {
        Ok(database.retry(|| sqlx::query_as!(
            RecordedError,
            r#"select error_id as "error_id!", kind, entity_id, ledger_id, name, rows, message, http_status, api_code, cause,
                      record::text, occurrences, first_seen_at, last_seen_at, resolved_at, resolution, run_id, batch_id
                 from unnest($1::bigint[]) with ordinality w (error_id, place)
                 join elven_sync.sync_errors e using (error_id)
                order by w.place"#,
            numbers
        ).fetch_all(database)).await?)
    }

    /// Closes by hand the open errors that match, all of them or none. Returns how many there were of each kind.
    ///
    /// `None`: one of the wanted numbers is not open any more, so nothing was changed.
    pub async fn resolve(
        database: &Database,
        wanted: &Wanted,
        reason: &str,
    ) -> Result<Option<BTreeMap<String, i64>>, JournalError> {
        let client = client_name();
        let resolve = || async {
            let mut transaction = database.begin().await?;
            let reason = storable_one(&mut transaction, Some(reason)).await?;
            // Counted by the database, as there may be millions.
            let counts = sqlx::query!(
                r#"with resolved as (
                       update elven_sync.sync_errors e
                          set resolved_at = clock_timestamp(), resolution = $4, dismissed = true
                        where resolved_at is null
                          and (cardinality($1::bigint[]) = 0 or error_id = any ($1))
                          and (cardinality($2::text[]) = 0 or entity_id = any ($2))
                          and (cardinality($3::text[]) = 0 or kind = any ($3))
                          and (cardinality($5::text[]) = 0 or elven_sync.has_cause(e, $5))
                    returning entity_id, kind)
                   select entity_id, kind, count(*) as "count!" from resolved
                    group by entity_id, kind order by entity_id, kind"#,
                &wanted.ids,
                &wanted.entities,
                &wanted.kinds,
                reason,
                &wanted.causes
            )
            .fetch_all(&mut transaction)
            .await?;
            let mut by_entity: BTreeMap<String, BTreeMap<String, i64>> = BTreeMap::new();
            for row in counts {
                by_entity.entry(row.entity_id).or_default().insert(row.kind, row.count);
            }
            let mut counts: BTreeMap<String, i64> = BTreeMap::new();
            for (entity_id, kinds) in by_entity {
                let details = json!({ "errors": kinds });
                let (entity_id, reason) = (Some(entity_id.as_str()), reason.as_deref());
                let action = Action { what: "resolve", entity_id, reason, details: &details };
                action.record(&mut transaction, &client).await?;
                for (kind, count) in kinds {
                    *counts.entry(kind).or_default() += count;
                }
            }
            if !wanted.ids.is_empty() && usize::try_from(counts.values().sum::<i64>()) != Ok(wanted.ids.len())
            {
                transaction.rollback().await?;
                return Ok(None);
            }
            transaction.commit().await?;
            Ok(Some(counts))
        };
        database.retry(resolve).await
    }
}

/// The errors of one kind and entity.
#[derive(Clone, Debug)]
pub struct ErrorGroup {
    /// The entity.
    pub entity_id: String,
    /// The kind, as in the table.
    pub kind: String,
    /// How many there are.
    pub count: i64,
}

impl ErrorGroup {
    /// Counts the errors of each entity and kind, the most frequent first. `resolved`: also those that are not open.
    pub async fn list(database: &Database, resolved: bool) -> Result<Vec<Self>, JournalError> {
        let list = || {
            sqlx::query_as!(
                ErrorGroup,
                r#"select entity_id, kind, count(*) as "count!" from elven_sync.sync_errors
                    where $1 or resolved_at is null group by entity_id, kind order by 3 desc, 1, 2"#,
                resolved
            )
            .fetch_all(database)
        };
        Ok(database.retry(list).await?)
    }
}
