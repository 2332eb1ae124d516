//! The release of held rows.

use std::collections::{BTreeMap, HashSet};

use sha2::{Digest, Sha256};

use crate::batch::{pack_ids, unpack_ids};
use crate::database::Transaction;
use crate::watermark::LedgerId;

/// Whole numbers with more digits are searched as texts.
const NUMBER_MAX: u64 = 999_999_999_999_999_999;

/// By what the errors are found that may hold some rows.
#[derive(Debug, Default)]
pub(super) struct IdSearch {
    /// The smallest and the greatest of the ids that are whole numbers.
    pub(super) first: Option<i64>,
    pub(super) last: Option<i64>,
    /// The hash of each of the other ids.
    pub(super) hashes: Vec<i32>,
}

impl IdSearch {
    pub(super) fn of<T: AsRef<str>>(ids: impl Iterator<Item = T>) -> Self {
        let mut search = Self::default();
        for id in ids {
            let id = id.as_ref();
            match whole_number(id) {
                Some(number) => {
                    search.first = Some(search.first.map_or(number, |first| first.min(number)));
                    search.last = search.last.max(Some(number));
                }
                None => search.hashes.push(id_hash(id)),
            }
        }
        search
    }
}

/// Returns the number that an id is, if it is written as numbers are.
fn whole_number(id: &str) -> Option<i64> {
    let number: i64 = id.parse().ok()?;
    (number.unsigned_abs() <= NUMBER_MAX && number.to_string() == id).then_some(number)
}

/// Returns the hash of an id, as the function `id_hash` of the database.
fn id_hash(id: &str) -> i32 {
    let [a, b, c, d, ..]: [u8; 32] = Sha256::digest(id.as_bytes()).into();
    i32::from_be_bytes([a, b, c, d])
}

/// Releases rows, each for a reason, from the errors that hold them, apart from those that `batch_id` has recorded. An
/// error that holds no row any more is resolved.
pub(super) async fn release(
    transaction: &mut Transaction,
    entity_id: &str,
    batch_id: Option<i64>,
    rows: &[(&str, &str)],
) -> Result<(), sqlx::Error> {
    let IdSearch { first, last, hashes } = IdSearch::of(rows.iter().map(|(id, _)| *id));
    let errors = sqlx::query!(
        r#"select error_id, ledger_ids as "ledger_ids!", released_ids, rows as "rows!" from elven_sync.sync_errors
            where error_id = any (array(select elven_sync.errors_holding($1, $3, $4, $5)))
              and ledger_ids is not null and resolved_at is null
              and ($2::bigint is null or batch_id is distinct from $2)
            order by error_id for update"#,
        entity_id,
        batch_id,
        first,
        last,
        &hashes
    )
    .fetch_all(&mut *transaction)
    .await?;
    if errors.is_empty() {
        return Ok(());
    }
    let why: BTreeMap<&str, &str> = rows.iter().copied().collect();
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
                set released_ids = $2, rows = $3, id_hashes = case when $4::text is null then id_hashes end,
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
pub(super) fn still_held(ledger_ids: &[u8], released_ids: Option<&[u8]>) -> Vec<LedgerId> {
    let released: HashSet<LedgerId> =
        released_ids.and_then(unpack_ids).unwrap_or_default().into_iter().collect();
    let mut ids = unpack_ids(ledger_ids).unwrap_or_default();
    ids.retain(|id| !released.contains(id));
    ids
}
