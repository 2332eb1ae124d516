//! Held rows: rows that are set aside because the API does not know their account or currency. One row of `sync_errors`
//! has all of a batch and a name.

use std::collections::{BTreeMap, HashSet};

use super::problem::Kind;
use super::storable_text::storable;
use super::{Journal, JournalError, Resolution};
use crate::batch::{pack_ids, unpack_ids};
use crate::database::Transaction;
use crate::watermark::LedgerId;

/// Rows of a batch that are held because of a name.
#[derive(Clone, Debug)]
pub struct HeldRows {
    /// `unknown_account` or `unknown_currency`.
    pub kind: Kind,
    /// The account or the currency that the API does not know.
    pub name: String,
    /// The rows.
    pub ids: Vec<LedgerId>,
    /// What happened, and a hint.
    pub message: String,
    /// The same without what differs between batches.
    pub cause: String,
    /// Error code in the answer that shows that the name is unknown.
    pub api_code: Option<String>,
    /// HTTP status of that answer.
    pub http_status: Option<i32>,
    /// One of the records, as JSON.
    pub record: Option<String>,
    /// The rows were held before, and were refused again: they are not sent again by themselves for a day.
    pub again: bool,
}

/// A name because of which rows of an entity are held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldName {
    /// The entity.
    pub entity_id: String,
    /// `unknown_account` or `unknown_currency`.
    pub kind: String,
    /// The account or the currency.
    pub name: String,
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
}

/// The smallest and the greatest of some ids. `None`: they are no numbers.
fn range(ids: impl Iterator<Item = Option<i64>> + Clone) -> (Option<i64>, Option<i64>) {
    if ids.clone().any(|id| id.is_none()) {
        return (None, None);
    }
    (ids.clone().flatten().min(), ids.flatten().max())
}

fn number(id: &LedgerId) -> Option<i64> {
    match id {
        LedgerId::Number(number) => Some(*number),
        LedgerId::Text(_) => None,
    }
}

/// Records the held rows of a batch. Each row has only one open problem at a time, so its other ones are resolved. Rows
/// that were held for the same name before stay with their errors, which are counted once more.
pub(super) async fn hold(
    transaction: &mut Transaction,
    run_id: i64,
    entity_id: &str,
    batch_id: i64,
    held: &[HeldRows],
) -> Result<(), sqlx::Error> {
    for held in held {
        let mut ids: Vec<&LedgerId> = held.ids.iter().collect();
        if held.again {
            let still = count_again(&mut *transaction, run_id, entity_id, held).await?;
            ids.retain(|id| !still.contains(id));
        }
        let took_place = |id: &&LedgerId| Resolution::new(id, "another problem of the row took its place");
        let others: Vec<Resolution> = ids.iter().map(took_place).collect();
        super::problem::resolve(&mut *transaction, entity_id, None, &others).await?;
        if !ids.is_empty() {
            insert(&mut *transaction, (run_id, entity_id, batch_id), held, &ids).await?;
        }
    }
    Ok(())
}

async fn insert(
    transaction: &mut Transaction,
    (run_id, entity_id, batch_id): (i64, &str, i64),
    held: &HeldRows,
    ids: &[&LedgerId],
) -> Result<(), sqlx::Error> {
    let (mut texts, mut record) = (
        vec![Some(held.name.clone()), Some(held.message.clone()), Some(held.cause.clone())],
        vec![held.api_code.clone(), held.record.clone()],
    );
    storable(&mut *transaction, [&mut texts, &mut record]).await?;
    let (first, last) = range(ids.iter().map(|id| number(id)));
    sqlx::query!(
        "insert into elven_sync.sync_errors
                (run_id, entity_id, kind, batch_id, http_status, api_code, message, cause, record, name, rows,
                 ledger_ids, first_id, last_id, not_before)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9::text::jsonb, $10, $11, $12, $13, $14,
                 case when $15 then clock_timestamp() + interval '1 day' end)",
        run_id,
        entity_id,
        held.kind.as_ref(),
        batch_id,
        held.http_status,
        record[0],
        texts[1].as_deref().unwrap_or_default(),
        texts[2],
        record[1],
        texts[0],
        i32::try_from(ids.len()).unwrap_or(i32::MAX),
        pack_ids(ids.iter().copied()),
        first,
        last,
        held.again
    )
    .execute(&mut *transaction)
    .await?;
    Ok(())
}

/// Counts the open errors once more that hold rows because of the same name. Returns those of the rows that they hold.
async fn count_again(
    transaction: &mut Transaction,
    run_id: i64,
    entity_id: &str,
    held: &HeldRows,
) -> Result<HashSet<LedgerId>, sqlx::Error> {
    let mut name = vec![Some(held.name.clone())];
    storable(&mut *transaction, [&mut name]).await?;
    let (first, last) = range(held.ids.iter().map(number));
    let wanted: HashSet<&LedgerId> = held.ids.iter().collect();
    let errors = sqlx::query!(
        r#"select error_id, ledger_ids as "ledger_ids!", released_ids from elven_sync.sync_errors
            where entity_id = $1 and kind = $2 and name = $3 and ledger_ids is not null and resolved_at is null
              and coalesce(first_id <= $5 and last_id >= $4, true)
            order by error_id for update"#,
        entity_id,
        held.kind.as_ref(),
        name[0],
        first,
        last
    )
    .fetch_all(&mut *transaction)
    .await?;
    let (mut found, mut again) = (HashSet::new(), Vec::new());
    for error in errors {
        let ids = still_held(&error.ledger_ids, error.released_ids.as_deref());
        let before = found.len();
        found.extend(ids.into_iter().filter(|id| wanted.contains(id)));
        if found.len() > before {
            again.push(error.error_id);
        }
    }
    sqlx::query!(
        "update elven_sync.sync_errors
            set occurrences = occurrences + 1, last_seen_at = clock_timestamp(), run_id = $2,
                not_before = clock_timestamp() + interval '1 day'
          where error_id = any ($1)",
        &again,
        run_id
    )
    .execute(&mut *transaction)
    .await?;
    Ok(found)
}

/// Releases rows from the errors that hold them, apart from those that `batch_id` has recorded. An error that holds no
/// row any more is resolved.
pub(super) async fn release(
    transaction: &mut Transaction,
    entity_id: &str,
    batch_id: Option<i64>,
    rows: &[Resolution],
) -> Result<(), sqlx::Error> {
    let (first, last) = range(rows.iter().map(|row| row.ledger_id.parse().ok()));
    let errors = sqlx::query!(
        r#"select error_id, ledger_ids as "ledger_ids!", released_ids, rows as "rows!" from elven_sync.sync_errors
            where entity_id = $1 and ledger_ids is not null and resolved_at is null
              and ($2::bigint is null or batch_id is distinct from $2)
              and coalesce(first_id <= $4 and last_id >= $3, true)
            order by error_id for update"#,
        entity_id,
        batch_id,
        first,
        last
    )
    .fetch_all(&mut *transaction)
    .await?;
    if errors.is_empty() {
        return Ok(());
    }
    let why: BTreeMap<&str, &str> = rows.iter().map(|row| (row.ledger_id.as_str(), &*row.why)).collect();
    for error in errors {
        let before = error.released_ids.as_deref().and_then(unpack_ids).unwrap_or_default();
        let held = still_held(&error.ledger_ids, error.released_ids.as_deref());
        let named = held.iter().filter_map(|id| Some((id, *why.get(id.to_string().as_str())?)));
        let (released, reasons): (Vec<&LedgerId>, Vec<&str>) = named.unzip();
        if released.is_empty() {
            continue;
        }
        let left = held.len() - released.len();
        let is_done = left == 0;
        let rows = if is_done { unpack_ids(&error.ledger_ids).map_or(0, |ids| ids.len()) } else { left };
        sqlx::query!(
            "update elven_sync.sync_errors
                set released_ids = $2, rows = $3,
                    resolved_at = case when $4::text is null then null else clock_timestamp() end, resolution = $4
              where error_id = $1",
            error.error_id,
            pack_ids(before.iter().chain(released)),
            i32::try_from(rows).unwrap_or(i32::MAX),
            reasons.last().filter(|_| is_done).copied()
        )
        .execute(&mut *transaction)
        .await?;
    }
    Ok(())
}

/// Returns the rows of an error that are held: those that it was recorded with, without those that were released.
fn still_held(ledger_ids: &[u8], released_ids: Option<&[u8]>) -> Vec<LedgerId> {
    let released: HashSet<LedgerId> =
        released_ids.and_then(unpack_ids).unwrap_or_default().into_iter().collect();
    let mut ids = unpack_ids(ledger_ids).unwrap_or_default();
    ids.retain(|id| !released.contains(id));
    ids
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
        let (first, last) = range(ids.iter().map(|id| id.parse().ok()));
        let query = || {
            sqlx::query!(
                r#"select e.ledger_ids as "ledger_ids!", e.released_ids, b.last_xid::text as until
                     from elven_sync.sync_errors e left join elven_sync.sync_batches b using (batch_id)
                    where e.entity_id = $1 and e.ledger_ids is not null
                      and (e.resolved_at is null or ($4 and e.dismissed))
                      and coalesce(e.first_id <= $3 and e.last_id >= $2, true)"#,
                entity_id,
                first,
                last,
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

    /// Returns the names because of which rows are held, apart from names that were refused again within a day.
    pub async fn held_names(&self) -> Result<Vec<HeldName>, JournalError> {
        let query = || {
            sqlx::query_as!(
                HeldName,
                r#"select entity_id, kind, name as "name!" from elven_sync.sync_errors
                    where resolved_at is null and ledger_ids is not null
                    group by entity_id, kind, name
                   having coalesce(max(not_before) <= clock_timestamp(), true)
                    order by entity_id, kind, name"#
            )
            .fetch_all(self.database.single_round_trip())
        };
        Ok(self.database.retry(query).await?)
    }

    /// Returns the errors that hold rows because of one of these names, the oldest first.
    pub async fn errors_of_names(&self, names: &[HeldName]) -> Result<Vec<i64>, JournalError> {
        let column =
            |of: fn(&HeldName) -> &String| -> Vec<String> { names.iter().map(of).cloned().collect() };
        let (entity_ids, kinds, ids) =
            (column(|name| &name.entity_id), column(|name| &name.kind), column(|name| &name.name));
        let query = || {
            sqlx::query_scalar!(
                "select e.error_id
                   from unnest($1::text[], $2::text[], $3::text[]) n (entity_id, kind, name)
                   join elven_sync.sync_errors e using (entity_id, kind, name)
                  where e.resolved_at is null and e.ledger_ids is not null
                  order by e.error_id",
                &entity_ids,
                &kinds,
                &ids
            )
            .fetch_all(&self.database)
        };
        Ok(self.database.retry(query).await?)
    }

    /// Returns those of these errors that hold rows, and the rows.
    pub async fn held_now(&self, error_ids: &[i64]) -> Result<Vec<HeldNow>, JournalError> {
        let query = || {
            sqlx::query!(
                r#"select error_id, kind, name as "name!", ledger_ids as "ledger_ids!", released_ids
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
        });
        Ok(held.collect())
    }
}
