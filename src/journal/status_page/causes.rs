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

/// The most digits of a code that is a number, and of a number in a code that is a word.
const CODE_DIGITS_MAX: [usize; 2] = [9, 3];

/// A code is a number, such as `40011`, as Elven documents it, or one word, such as `INVALID_ACCOUNT`. An API could put
/// any text in its place. A number alone cannot be told from a code, so it stays; in a word, a longer number may be an
/// amount.
fn without_amounts_in_code(code: &str) -> String {
    let [of_number, of_part] = CODE_DIGITS_MAX;
    if code.len() <= of_number && code.bytes().all(|byte| byte.is_ascii_digit()) {
        return code.to_owned();
    }
    let longest = code.split(|c: char| !c.is_ascii_digit()).map(str::len).max().unwrap_or(0);
    let is_word = code.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'));
    if is_word && longest <= of_part { code.to_owned() } else { without_amounts(&format!("\"{code}\"")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_number_in_a_code_that_is_a_word_is_replaced() {
        for code in ["4003", "40105", "INVALID_ACCOUNT", "E101", "rate-limit-429", "V2_NO_SOURCE"] {
            assert_eq!(without_amounts_in_code(code), code);
        }
        for code in ["AMT-123456", "AMT_5000", "AMT5000000", "1234567890", "5000000 BTC", "X-88-002-2000"] {
            let shown = without_amounts_in_code(code);
            assert!(shown.contains("<number>"), "{code}: {shown}");
            let is_amount = |part: &str| part.len() > 3;
            assert!(!shown.split(|c: char| !c.is_ascii_digit()).any(is_amount), "{code}: {shown}");
        }
    }
}
