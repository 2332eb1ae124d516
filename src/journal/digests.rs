//! Digests of what is recorded, and the chains of them.

use std::collections::BTreeMap;

use sha2::{Digest as _, Sha256};

use super::Kind;

/// A SHA-256.
pub type Digest = [u8; 32];

/// Stands for a field without a value: no field is as long.
const NONE: [u8; 4] = [0xff; 4];

/// Hashes fields, each with its length before it, so that no two lists of fields give the same bytes.
#[derive(Clone, Debug, Default)]
pub(super) struct Fields(Sha256);

impl Fields {
    /// Adds a field. `None`: it has no value.
    pub(super) fn bytes(&mut self, field: Option<&[u8]>) -> &mut Self {
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
    pub(super) fn text(&mut self, field: Option<impl ToString>) -> &mut Self {
        self.bytes(field.map(|field| field.to_string()).as_deref().map(str::as_bytes))
    }

    /// Adds bytes without a length, at the end.
    pub(super) fn end(mut self, bytes: &[u8]) -> Digest {
        self.0.update(bytes);
        self.0.finalize().into()
    }

    /// Returns the digest.
    pub(super) fn digest(&self) -> Digest {
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

/// Returns the running digest after these batches.
pub(super) fn running_after(
    mut running: Option<Digest>,
    batch_ids: &[i64],
    leaves: &BTreeMap<i64, Digest>,
) -> Option<Digest> {
    for leaf in batch_ids.iter().filter_map(|batch_id| leaves.get(batch_id)) {
        running = Some(chained(running.as_ref(), leaf));
    }
    running
}

/// Describes why the rows of a list are set aside, in the order of the list: the kind of each error, its code after a
/// slash if it has one, and how many rows in a row have them.
pub(super) fn kinds_in_order<'a>(kinds: impl Iterator<Item = (Kind, Option<&'a str>)>) -> Option<String> {
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
