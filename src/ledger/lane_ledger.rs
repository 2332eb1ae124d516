//! What a lane asks of the ledger: its identity, and rows.
//!
//! [`Ledger`] reads them from PostgreSQL. A simulation of lanes reads them from a model.

use std::fmt;
use std::sync::Arc;

use futures_util::FutureExt;

use super::error::Read;
use super::{Ledger, Mapping, Pages, PassRead, ProbeResult, Progress, Row};
use crate::align::Names;

/// What a lane asks of the ledger.
pub trait LaneLedger: fmt::Debug + Send + Sync {
    /// Returns the qualified name of the table, as `sync_state.ledger_table` records it.
    fn name(&self) -> &str;

    /// Returns how the ledger is read, as `sync_state.mapping` records it.
    fn mapping(&self) -> &Mapping;

    /// Returns the mapping as the JSON of `sync_state.mapping`.
    fn mapping_json(&self) -> &Arc<str>;

    /// Finds out whether an entity has rows after its watermark.
    fn probe_entity<'a>(&'a self, lane: &'a Progress) -> Read<'a, ProbeResult>;

    /// Prepares to read a pass, or the rest of a pass, in pages.
    fn pages<'a>(&'a self, reading: PassRead<'a>) -> Read<'a, Box<dyn Pages>>;

    /// Returns the current rows with an id.
    fn rows_with_id<'a>(&'a self, entity_id: &'a str, id: &'a str) -> Read<'a, Vec<Row>>;

    /// Returns the rows that may have the same account, currency and wall-clock time as this row at Elven.
    fn rivals<'a>(&'a self, entity_id: &'a str, row: &'a Row, names: &'a Names) -> Read<'a, Vec<Row>>;

    /// Returns whether rows with different names in the ledger have the same account, currency and second at Elven.
    fn has_shared_key<'a>(&'a self, entity_id: &'a str, names: &'a Names) -> Read<'a, bool>;

    /// Returns the rows that have account and currency at Elven and the UTC second of one of these rows.
    fn same_second<'a>(&'a self, entity_id: &'a str, rows: &'a [Row], names: &'a Names)
    -> Read<'a, Vec<Row>>;
}

impl LaneLedger for Ledger {
    fn name(&self) -> &str {
        Ledger::name(self)
    }

    fn mapping(&self) -> &Mapping {
        Ledger::mapping(self)
    }

    fn mapping_json(&self) -> &Arc<str> {
        Ledger::mapping_json(self)
    }

    fn probe_entity<'a>(&'a self, lane: &'a Progress) -> Read<'a, ProbeResult> {
        Ledger::probe_entity(self, lane).boxed()
    }

    fn pages<'a>(&'a self, reading: PassRead<'a>) -> Read<'a, Box<dyn Pages>> {
        async { Ok(Box::new(self.pass(reading).await?) as Box<dyn Pages>) }.boxed()
    }

    fn rows_with_id<'a>(&'a self, entity_id: &'a str, id: &'a str) -> Read<'a, Vec<Row>> {
        Ledger::rows_with_id(self, entity_id, id).boxed()
    }

    fn rivals<'a>(&'a self, entity_id: &'a str, row: &'a Row, names: &'a Names) -> Read<'a, Vec<Row>> {
        Ledger::rivals(self, entity_id, row, names).boxed()
    }

    fn has_shared_key<'a>(&'a self, entity_id: &'a str, names: &'a Names) -> Read<'a, bool> {
        let has = async move {
            // With the index, a look at the seconds of a batch costs less than one at all rows.
            Ok(self.without_range_index().await?.is_none()
                || Ledger::has_shared_key(self, entity_id, names).await?)
        };
        has.boxed()
    }

    fn same_second<'a>(
        &'a self,
        entity_id: &'a str,
        rows: &'a [Row],
        names: &'a Names,
    ) -> Read<'a, Vec<Row>> {
        async move { Ok(Ledger::same_second(self, entity_id, rows, names).await?.rows) }.boxed()
    }
}
