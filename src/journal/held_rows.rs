//! Held rows: rows that are set aside because the API does not know their account or currency. One row of `sync_errors`
//! has all of a batch and a name.

use std::collections::HashSet;

use super::JournalError;
use super::problem::{Kind, Resolution, resolve};
use super::release::{IdSearch, still_held};
use super::storable_text::storable;
use crate::batch::pack_ids;
use crate::database::{Database, Transaction};
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
    /// The API lists the name, although it refuses it.
    pub is_listed: bool,
    /// The names of the rows in the ledger.
    pub ledger_names: Vec<String>,
    /// The command that settles the error.
    pub hint: String,
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
        resolve(&mut *transaction, entity_id, None, &others).await?;
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
        vec![
            Some(held.name.clone()),
            Some(held.message.clone()),
            Some(held.cause.clone()),
            Some(held.hint.clone()),
        ],
        vec![held.api_code.clone(), held.record.clone()],
    );
    let mut ledger_names: Vec<Option<String>> = held.ledger_names.iter().cloned().map(Some).collect();
    storable(&mut *transaction, [&mut texts, &mut record, &mut ledger_names]).await?;
    let IdSearch { first, last, hashes } = IdSearch::of(ids.iter().map(ToString::to_string));
    let hashes = (!hashes.is_empty()).then_some(hashes);
    sqlx::query!(
        "insert into elven_sync.sync_errors
                (run_id, entity_id, kind, batch_id, http_status, api_code, message, cause, record, name, rows,
                 ledger_ids, first_id, last_id, ledger_names, hint, id_hashes)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9::text::jsonb, $10, $11, $12, $13, $14,
                 $15, $16, $17)",
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
        &ledger_names.iter().flatten().cloned().collect::<Vec<_>>(),
        texts[3],
        hashes.as_deref()
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
    let IdSearch { first, last, hashes } = IdSearch::of(held.ids.iter().map(ToString::to_string));
    let wanted: HashSet<&LedgerId> = held.ids.iter().collect();
    let errors = sqlx::query!(
        r#"select error_id, ledger_ids as "ledger_ids!", released_ids from elven_sync.sync_errors
            where error_id = any (array(select elven_sync.errors_holding($1, $4, $5, $6)))
              and kind = $2 and name = $3 and ledger_ids is not null and resolved_at is null
            order by error_id for update"#,
        entity_id,
        held.kind.as_ref(),
        name[0],
        first,
        last,
        &hashes
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
                not_before = case when $3 then clock_timestamp() + interval '1 day' else not_before end
          where error_id = any ($1)",
        &again,
        run_id,
        held.is_listed
    )
    .execute(&mut *transaction)
    .await?;
    Ok(found)
}

/// Replaces the hint of the open errors of held rows that have this one.
pub async fn correct_hint(
    database: &Database,
    entity_id: &str,
    before: &str,
    now: &str,
) -> Result<(), JournalError> {
    let correct = || {
        sqlx::query!(
            "update elven_sync.sync_errors set hint = $3, message = replace(message, $2, $3)
              where entity_id = $1 and resolved_at is null and hint = $2",
            entity_id,
            before,
            now
        )
    };
    database.execute(correct).await?;
    Ok(())
}
