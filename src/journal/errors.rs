//! Recorded errors: problems that need a person, and rows that were set aside.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::JournalError;
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
    /// What happened, and a hint.
    pub message: String,
    /// HTTP status of the answer.
    pub http_status: Option<i32>,
    /// Error code in the answer.
    pub api_code: Option<String>,
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
    /// Include resolved errors.
    pub resolved: bool,
}

impl RecordedError {
    /// Returns the errors that match, the newest first.
    pub async fn list(database: &Database, wanted: &Wanted) -> Result<Vec<Self>, JournalError> {
        Ok(database.retry(|| sqlx::query_as!(
            RecordedError,
            r#"select error_id, kind, entity_id, ledger_id, message, http_status, api_code, record::text, occurrences,
                      first_seen_at, last_seen_at, resolved_at, resolution, run_id, batch_id
                 from elven_sync.sync_errors
                where ($4 or resolved_at is null)
                  and (cardinality($1::bigint[]) = 0 or error_id = any ($1))
                  and (cardinality($2::text[]) = 0 or entity_id = any ($2))
                  and (cardinality($3::text[]) = 0 or kind = any ($3))
                order by last_seen_at desc, error_id desc"#,
            &wanted.ids,
            &wanted.entities,
            &wanted.kinds,
            wanted.resolved
        ).fetch_all(database)).await?)
    }

    /// Closes by hand the open errors that match, all of them or none. Returns how many there were of each kind.
    ///
    /// `None`: one of the wanted numbers is not open any more, so nothing was changed.
    pub async fn resolve(
        database: &Database,
        wanted: &Wanted,
        reason: &str,
    ) -> Result<Option<BTreeMap<String, usize>>, JournalError> {
        let resolve = || async {
            let mut transaction = database.begin().await?;
            let reason = storable_one(&mut transaction, Some(reason)).await?;
            let kinds = sqlx::query_scalar!(
                "update elven_sync.sync_errors set resolved_at = clock_timestamp(), resolution = $4, dismissed = true
                  where resolved_at is null
                    and (cardinality($1::bigint[]) = 0 or error_id = any ($1))
                    and (cardinality($2::text[]) = 0 or entity_id = any ($2))
                    and (cardinality($3::text[]) = 0 or kind = any ($3))
              returning kind",
                &wanted.ids,
                &wanted.entities,
                &wanted.kinds,
                reason
            )
            .fetch_all(&mut transaction)
            .await?;
            if !wanted.ids.is_empty() && kinds.len() != wanted.ids.len() {
                transaction.rollback().await?;
                return Ok(None);
            }
            transaction.commit().await?;
            let mut counts = BTreeMap::new();
            for kind in kinds {
                *counts.entry(kind).or_default() += 1;
            }
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
