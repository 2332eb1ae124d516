//! What is read about held rows.

use std::collections::HashSet;

use super::release::{IdSearch, still_held};
use super::{Journal, JournalError};
use crate::watermark::LedgerId;

/// A name because of which rows of an entity are held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldName {
    /// The entity.
    pub entity_id: String,
    /// `unknown_account` or `unknown_currency`.
    pub kind: String,
    /// The account or the currency, as it was sent.
    pub name: String,
    /// It was refused again within a day.
    pub waits: bool,
    /// The names of the rows in the ledger.
    pub ledger_names: Vec<String>,
}

/// An error that holds rows, as it is now.
#[derive(Clone, Debug)]
pub struct HeldNow {
    /// Its number.
    pub error_id: i64,
    /// `unknown_account` or `unknown_currency`.
    pub kind: String,
    /// The account or the currency that the API did not know.
    pub name: String,
    /// The rows that it holds.
    pub ids: Vec<LedgerId>,
    /// Their names in the ledger.
    pub ledger_names: Vec<String>,
}

impl Journal {
    /// Returns whether the API ever accepted a record of an entity.
    pub async fn has_accepted(&self, entity_id: &str) -> Result<bool, JournalError> {
        let query = || {
            sqlx::query_scalar!(
                r#"select exists (select from elven_sync.sync_state where entity_id = $1 and rows_uploaded > 0)
                          as "accepted!""#,
                entity_id
            )
            .fetch_one(&self.database)
        };
        Ok(self.database.retry(query).await?)
    }

    /// Of these rows of an entity, those that are held, or whose error a person has dismissed: each with the last
    /// transaction that its error can be about, if that is known. `dismissed`: whether the latter count.
    pub async fn held_until(
        &self,
        entity_id: &str,
        ids: &[String],
        dismissed: bool,
    ) -> Result<Vec<(String, Option<String>)>, JournalError> {
        let IdSearch { first, last, hashes } = IdSearch::of(ids.iter());
        let query = || {
            sqlx::query!(
                r#"select e.ledger_ids as "ledger_ids!", e.released_ids, b.last_xid::text as until
                     from elven_sync.sync_errors e left join elven_sync.sync_batches b using (batch_id)
                    where e.error_id = any (array(
                              select elven_sync.errors_holding($1, $2, $3, $4)
                              union all
                              select d.error_id from elven_sync.sync_errors d
                               where $5 and d.entity_id = $1 and d.ledger_ids is not null and d.dismissed))"#,
                entity_id,
                first,
                last,
                &hashes,
                dismissed
            )
            .fetch_all(&self.database)
        };
        let wanted: HashSet<&str> = ids.iter().map(String::as_str).collect();
        let mut found = Vec::new();
        for error in self.database.retry(query).await? {
            let held = still_held(&error.ledger_ids, error.released_ids.as_deref());
            let held = held.iter().map(ToString::to_string).filter(|id| wanted.contains(id.as_str()));
            found.extend(held.map(|id| (id, error.until.clone())));
        }
        Ok(found)
    }

    /// Returns the names because of which rows are held.
    pub async fn held_names(&self) -> Result<Vec<HeldName>, JournalError> {
        let query = || {
            sqlx::query_as!(
                HeldName,
                r#"select e.entity_id, e.kind, e.name as "name!",
                          coalesce(max(e.not_before) > clock_timestamp(), false) as "waits!",
                          array_agg(distinct l.name) as "ledger_names!"
                     from elven_sync.sync_errors e cross join unnest(e.ledger_names) l (name)
                    where e.resolved_at is null and e.ledger_ids is not null
                    group by 1, 2, 3
                    order by 1, 2, 3"#
            )
            .fetch_all(self.database.single_round_trip())
        };
        Ok(self.database.retry(query).await?)
    }

    /// Returns the errors that hold rows because of a name, the oldest first. `ledger_names`: only errors with rows of
    /// one of these names in the ledger.
    pub async fn errors_of_name(
        &self,
        held: &HeldName,
        ledger_names: Option<&[String]>,
    ) -> Result<Vec<i64>, JournalError> {
        let query = || {
            sqlx::query_scalar!(
                "select error_id from elven_sync.sync_errors
                  where entity_id = $1 and kind = $2 and name = $3 and resolved_at is null and ledger_ids is not null
                    and ($4::text[] is null or ledger_names && $4)
                  order by error_id",
                held.entity_id,
                held.kind,
                held.name,
                ledger_names
            )
            .fetch_all(&self.database)
        };
        Ok(self.database.retry(query).await?)
    }

    /// Returns the rows in retries of an entity whose outcome is unknown.
    pub async fn rows_of_unknown_retries(&self, entity_id: &str) -> Result<Vec<String>, JournalError> {
        let query = || {
            sqlx::query_scalar!(
                r#"select i.id as "id!"
                     from elven_sync.sync_batches b cross join elven_sync.batch_row_ids(b.batch_id) i (id)
                    where b.entity_id = $1 and b.pass_id is null and b.backfill_id is null and b.status = 'unknown'
                      and elven_sync.is_open(b.status, b.row_count)"#,
                entity_id
            )
            .fetch_all(&self.database)
        };
        Ok(self.database.retry(query).await?)
    }

    /// Returns those of these errors that hold rows, and the rows.
    pub async fn held_now(&self, error_ids: &[i64]) -> Result<Vec<HeldNow>, JournalError> {
        let query = || {
            sqlx::query!(
                r#"select error_id, kind, name as "name!", ledger_ids as "ledger_ids!", released_ids,
                          ledger_names as "ledger_names!"
                     from elven_sync.sync_errors
                    where error_id = any ($1) and resolved_at is null and ledger_ids is not null
                    order by error_id"#,
                error_ids
            )
            .fetch_all(&self.database)
        };
        let held = self.database.retry(query).await?.into_iter().map(|row| HeldNow {
            error_id: row.error_id,
            kind: row.kind,
            name: row.name,
            ids: still_held(&row.ledger_ids, row.released_ids.as_deref()),
            ledger_names: row.ledger_names,
        });
        Ok(held.collect())
    }
}
