//! Digests of what is recorded: the leaf of a batch, and the chains of leaves and links.
//!
//! The functions `leaf`, `chained` and `link_digest` of the schema make the same digests. A trigger that changes what is
//! written makes the two differ, because the connector makes leaves from what it sends to the database.

use sha2::{Digest as _, Sha256};

use super::Kind;
use super::batch_record::BatchRecord;
use super::cursor_columns::{at, xid};
use crate::watermark::Cursor;

/// A SHA-256.
pub type Digest = [u8; 32];

/// Stands for a field without a value: no field is as long.
const NONE: [u8; 4] = [0xff; 4];

/// Hashes fields, each with its length before it, so that no two lists of fields give the same bytes.
#[derive(Clone, Debug, Default)]
pub struct Fields(Sha256);

impl Fields {
    /// Adds a field. `None`: it has no value.
    pub fn bytes(&mut self, field: Option<&[u8]>) -> &mut Self {
        match field {
            None => self.0.update(NONE),
            Some(field) => {
                self.0.update(u32::try_from(field.len()).unwrap_or(u32::MAX).to_be_bytes());
                self.0.update(field);
            }
        }
        self
    }

    /// Adds a text, or a number as PostgreSQL writes it.
    pub fn text(&mut self, field: Option<impl ToString>) -> &mut Self {
        self.bytes(field.map(|field| field.to_string()).as_deref().map(str::as_bytes))
    }

    /// Adds bytes without a length, at the end.
    fn end(mut self, bytes: &[u8]) -> Digest {
        self.0.update(bytes);
        self.0.finalize().into()
    }

    /// Returns the digest.
    pub fn digest(&self) -> Digest {
        self.clone().end(&[])
    }
}

/// Returns the running digest after one more leaf.
pub fn chained(running: Option<&Digest>, leaf: &Digest) -> Digest {
    let mut hash = Sha256::new();
    hash.update(running.map_or(&[][..], |running| running));
    hash.update(leaf);
    hash.finalize().into()
}

/// What the leaf of a batch covers, besides its contents.
#[derive(Clone, Copy, Debug)]
pub struct LeafState<'a> {
    /// The batch.
    pub batch_id: i64,
    /// Its entity.
    pub entity_id: &'a str,
    /// Its pass.
    pub pass_id: Option<i64>,
    /// Its backfill.
    pub backfill_id: Option<i64>,
    /// The batch of which it is a part.
    pub parent_id: Option<i64>,
    /// `sync_batches.status`.
    pub status: &'a str,
    /// The status of the last answer.
    pub http_status: Option<i32>,
    /// The number of attempts.
    pub attempts: i32,
    /// An attempt had an unknown outcome.
    pub ambiguous: bool,
}

/// Returns the leaf of a batch. `parts`: the leaves of the parts that have taken its place, one after the other.
pub(super) fn leaf(state: LeafState<'_>, contents: &BatchRecord, parts: &[u8]) -> Digest {
    let instant = |cursor: &Cursor| at(cursor).map(|at| at.timestamp_micros());
    let (before, last) = (contents.before.as_ref(), &contents.last);
    let mut fields = Fields::default();
    fields
        .text(Some("elven-sync leaf 1"))
        .text(Some(state.batch_id))
        .text(Some(state.entity_id))
        .text(state.pass_id)
        .text(state.backfill_id)
        .text(state.parent_id)
        .text(before.and_then(xid))
        .text(before.and_then(instant))
        .text(before.map(|before| &before.id))
        .text(xid(last))
        .text(instant(last))
        .text(Some(&last.id))
        .bytes(Some(&contents.row_ids))
        .bytes(contents.rejected_ids.as_deref())
        .text(contents.rejected_kinds.as_ref())
        .text(Some(contents.rows_read))
        .text(Some(contents.row_count))
        .text(Some(contents.rows_rejected))
        .text(Some(contents.rows_superseded))
        .text(Some(contents.rows_beyond_double))
        .text(Some(contents.body_bytes))
        .text(Some(&contents.body_sha256))
        .text(Some(state.status))
        .text(state.http_status)
        .text(Some(state.attempts))
        .text(Some(state.ambiguous))
        .text(contents.timezone.as_ref())
        .text(contents.zone_rules.as_ref())
        .text(contents.map_version)
        .text(contents.api_version)
        .text(contents.source_id.as_ref());
    fields.end(parts)
}

/// Describes why the rows of a list are set aside, in the order of the list: the kind of each error, its code after a
/// slash if it has one, and how many rows in a row have them.
pub fn kinds_in_order<'a>(kinds: impl Iterator<Item = (Kind, Option<&'a str>)>) -> Option<String> {
    let mut groups: Vec<(Kind, Option<&str>, usize)> = Vec::new();
    for (kind, code) in kinds {
        match groups.last_mut() {
            Some((last_kind, last_code, rows)) if (*last_kind, *last_code) == (kind, code) => *rows += 1,
            _ => groups.push((kind, code, 1)),
        }
    }
    let shown = groups.into_iter().map(|(kind, code, rows)| {
        let escaped = |code: &str| code.escape_default().to_string().replace(' ', "\\u{20}");
        let code = code.map(|code| format!("/{}", escaped(code))).unwrap_or_default();
        format!("{}{code}:{rows}", kind.as_ref())
    });
    let shown = shown.collect::<Vec<_>>().join(" ");
    (!shown.is_empty()).then_some(shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest_of(fields: &[Option<&str>]) -> Digest {
        let mut hashed = Fields::default();
        for field in fields {
            hashed.text(*field);
        }
        hashed.digest()
    }

    #[test]
    fn lists_of_fields_that_join_to_the_same_text_differ() {
        let lists: [&[Option<&str>]; 6] = [
            &[Some("ab"), Some("c")],
            &[Some("a"), Some("bc")],
            &[Some("abc")],
            &[Some("abc"), None],
            &[Some("abc"), Some("")],
            &[None, Some("abc")],
        ];
        let digests: std::collections::BTreeSet<Digest> = lists.iter().map(|list| digest_of(list)).collect();
        assert_eq!(digests.len(), lists.len());
    }

    #[test]
    fn a_chain_depends_on_the_order_of_its_leaves() {
        let (one, two) = ([1; 32], [2; 32]);
        let of = |leaves: [Digest; 2]| chained(Some(&chained(None, &leaves[0])), &leaves[1]);
        assert_ne!(of([one, two]), of([two, one]));
        assert_ne!(chained(None, &one), chained(Some(&[0; 32]), &one));
    }

    #[test]
    fn kinds_are_told_in_the_order_of_the_rows() {
        let kinds = [(Kind::InvalidRow, None), (Kind::InvalidRow, None), (Kind::RejectedRow, Some("4001"))];
        assert_eq!(kinds_in_order(kinds.into_iter()).as_deref(), Some("invalid_row:2 rejected_row/4001:1"));
        assert_eq!(kinds_in_order(std::iter::empty()), None);
        let hostile = kinds_in_order([(Kind::RejectedRow, Some("4 x:1"))].into_iter());
        assert_eq!(hostile.as_deref(), Some("rejected_row/4\\u{20}x:1:1"));
    }
}
