//! The causes of open errors.

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::super::JournalError;
use super::without_amounts;
use crate::database::Transaction;

/// The most causes that are shown; all are counted.
const SHOWN_MAX: i64 = 20;

/// The causes of open errors.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Causes {
    /// The number of all causes.
    pub causes: i64,
    /// Those with the most rows.
    pub largest: Vec<CauseShown>,
}

/// A row of the view `error_causes`.
#[derive(Clone, Debug, Serialize)]
pub struct CauseShown {
    /// The entity.
    pub entity_id: String,
    /// The kind of the errors.
    pub kind: String,
    /// Error code in the answer of the API, without amounts.
    pub api_code: Option<String>,
    /// What happened, without the values of the rows and without amounts.
    pub cause: String,
    /// How many rows are concerned; for an error that concerns no row, how many errors there are.
    pub rows: i64,
    /// When the cause occurred first.
    pub first_seen_at: DateTime<Utc>,
    /// When the cause occurred last.
    pub last_seen_at: DateTime<Utc>,
    /// A ledger row with such an error.
    pub example_ledger_id: Option<String>,
    /// The command that settles the errors after the repair.
    pub hint: String,
}

impl Causes {
    /// Reads the view `error_causes`, of all entities or of one.
    pub(super) async fn read(
        transaction: &mut Transaction,
        entity_id: Option<&str>,
    ) -> Result<Self, JournalError> {
        let rows = sqlx::query!(
            r#"select entity_id as "entity_id!", kind as "kind!", api_code, cause as "cause!",
                      rows::bigint as "rows!", first_seen_at as "first_seen_at!", last_seen_at as "last_seen_at!",
                      example_ledger_id, hint as "hint!", count(*) over () as "causes!"
                 from elven_sync.error_causes
                where $1::text is null or entity_id = $1
                order by rows desc, entity_id, kind, cause, api_code
                limit $2"#,
            entity_id,
            SHOWN_MAX
        )
        .fetch_all(transaction)
        .await?;
        let causes = rows.first().map_or(0, |row| row.causes);
        let shown = |row: &str, hint: &str| {
            // The command is shown once.
            let cause = row.strip_suffix(hint).and_then(|cause| cause.strip_suffix("; hint: "));
            without_amounts(cause.unwrap_or(row))
        };
        let largest = rows
            .into_iter()
            .map(|row| CauseShown {
                cause: shown(&row.cause, &row.hint),
                entity_id: row.entity_id,
                kind: row.kind,
                api_code: row.api_code.as_deref().map(without_amounts_in_code),
                rows: row.rows,
                first_seen_at: row.first_seen_at,
                last_seen_at: row.last_seen_at,
                example_ledger_id: row.example_ledger_id,
                hint: row.hint,
            })
            .collect();
        Ok(Self { causes, largest })
    }

    /// The number of causes that are not shown.
    pub fn left_out(&self) -> i64 {
        self.causes - i64::try_from(self.largest.len()).unwrap_or(self.causes)
    }
}

/// A code is one word, such as `4003` or `INVALID_ACCOUNT`. An API could put any text in its place.
fn without_amounts_in_code(code: &str) -> String {
    let is_code = code.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'));
    if is_code { code.to_owned() } else { without_amounts(&format!("\"{code}\"")) }
}
