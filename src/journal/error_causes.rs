//! The causes of errors: the errors of an entity, a kind and a code that differ only in the values of their rows.

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::{JournalError, Wanted};
use crate::database::Database;

/// The errors of one cause, as in the view `error_causes`.
#[derive(Clone, Debug, Serialize)]
pub struct ErrorCause {
    /// The entity.
    pub entity_id: String,
    /// The kind, as in the table.
    pub kind: String,
    /// Error code in the answer.
    pub api_code: Option<String>,
    /// What happened, without the values of the rows.
    pub cause: String,
    /// How many rows are concerned; for an error that concerns no row, how many errors there are.
    pub rows: i64,
    /// When the cause occurred first.
    pub first_seen_at: DateTime<Utc>,
    /// When the cause occurred last.
    pub last_seen_at: DateTime<Utc>,
    /// A ledger row with such an error. `None`: the error does not concern a single row.
    pub example_ledger_id: Option<String>,
    /// The command that settles the errors, or lists them if they are resolved.
    pub hint: String,
    /// The errors are resolved.
    pub resolved: bool,
    /// How many causes match, of which at most the limit are returned.
    #[serde(skip)]
    pub causes: i64,
}

impl ErrorCause {
    /// Returns the causes of the errors that match, those with the most rows first, at most `limit`.
    pub async fn list(
        database: &Database,
        wanted: &Wanted,
        limit: Option<i64>,
    ) -> Result<Vec<Self>, JournalError> {
        let list = || {
            sqlx::query_as!(
                ErrorCause,
                r#"select entity_id as "entity_id!", kind as "kind!", api_code, cause as "cause!", rows as "rows!",
                          first_seen_at as "first_seen_at!", last_seen_at as "last_seen_at!", example_ledger_id,
                          case when resolved
                               then 'elven-sync errors list --all --rows --cause '
                                    || elven_sync.cause_id(entity_id, kind, api_code, cause)
                               else coalesce(hint, elven_sync.error_hint(entity_id, kind, api_code, cause,
                                                                         example_ledger_id is not null))
                           end as "hint!",
                          resolved as "resolved!", causes as "causes!"
                     from (select entity_id, kind, api_code, coalesce(cause, message) as cause,
                                  sum(coalesce(rows, 1))::bigint as rows,
                                  min(first_seen_at) as first_seen_at, max(last_seen_at) as last_seen_at,
                                  min(elven_sync.example_row(e)) as example_ledger_id, min(hint) as hint,
                                  resolved_at is not null as resolved,
                                  count(*) over () as causes
                             from elven_sync.sync_errors e
                            where ($3 or resolved_at is null)
                              and (cardinality($1::text[]) = 0 or entity_id = any ($1))
                              and (cardinality($2::text[]) = 0 or kind = any ($2))
                              and (cardinality($4::text[]) = 0 or elven_sync.has_cause(e, $4))
                            group by entity_id, kind, api_code, coalesce(cause, message), resolved_at is not null
                            order by resolved_at is not null, sum(coalesce(rows, 1)) desc, entity_id, kind, 4
                            limit $5) g
                    order by resolved, rows desc, entity_id, kind, cause"#,
                &wanted.entities,
                &wanted.kinds,
                wanted.resolved,
                &wanted.causes,
                limit
            )
            .fetch_all(database)
        };
        Ok(database.retry(list).await?)
    }
}
