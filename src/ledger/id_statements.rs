//! The text of the statements that read rows of the ledger by their ids.

use super::{Table, quote_array, quote_literal};

/// Fewer ids are looked up one by one.
const IDS_MIN: usize = 100;

/// How many ids a range may have for each id that is wanted. To read a row that is not wanted costs about a sixteenth of
/// the search for an id in the index.
const IDS_PER_WANTED_MAX: i64 = 16;

impl Table {
    /// Returns the copy of the rows with these ids: several rows of an id if it is not unique.
    pub(super) fn row_sql(&self, entity_id: &str, ids: &[String]) -> String {
        let Self { name, entity, id, id_type, columns, .. } = self;
        let entity_id = quote_literal(entity_id);
        let wanted = quote_array(ids.iter().map(|id| Some(id.as_str())));
        let filter = match self.range_of(ids) {
            // The entity and the wanted ids inside a `case`, so that no plan but the range of the index on the id is
            // possible, and no value of another entity's row is read.
            Some((first, last)) => format!(
                "{id} >= {first} and {id} <= {last}
                   and case when {entity} = {entity_id} then {id} in (select * from unnest({wanted}::{id_type}[])) end"
            ),
            None => format!("{entity} = {entity_id} and {id} = any ({wanted}::{id_type}[])"),
        };
        format!("copy (select {columns} from {name} t where {filter}) to stdout (format binary)")
    }

    /// Returns the first and the last of these ids if the rows between them are read faster than each by itself.
    fn range_of(&self, ids: &[String]) -> Option<(i64, i64)> {
        if ids.len() < IDS_MIN || !self.has_index_on_id || !self.id_is_number() {
            return None;
        }
        let ids: Vec<i64> = ids.iter().map(|id| id.parse().ok()).collect::<Option<_>>()?;
        let (first, last) = (*ids.iter().min()?, *ids.iter().max()?);
        let count = i64::try_from(ids.len()).ok()?;
        (last.checked_sub(first)? / count < IDS_PER_WANTED_MAX).then_some((first, last))
    }
}
