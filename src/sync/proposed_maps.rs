//! Maps that hints of held rows propose, and that the command `map` would refuse: rows of the ledger have the name at
//! Elven themselves.
//!
//! While a lane sends its batches, it knows only the names that it has read. So the names that it proposes are compared
//! with all rows of the entity after it has ended.

use super::lane_worker::Target;
use super::names::ProposedMap;
use super::{RunError, Worker};
use crate::journal::{MapKind, correct_hint};

impl Worker {
    /// Corrects the hints of held rows whose map would be refused. A run does not fail when that is not possible: the
    /// command `map` then says the same.
    pub(super) async fn correct_proposed_maps(&self, target: &Target) {
        for map in target.names.take_proposed() {
            if let Err(problem) = self.correct_proposed_map(target, &map).await {
                let error = crate::text::chain(&problem);
                tracing::warn!(error, "the hint of an unknown name could not be compared with the ledger");
            }
        }
    }

    async fn correct_proposed_map(&self, target: &Target, map: &ProposedMap) -> Result<(), RunError> {
        let ProposedMap { kind, ledger, elven } = map;
        let (entity_id, rules) = (&target.entity_id, &target.rules.names);
        let names = if *kind == MapKind::Account { &rules.accounts } else { &rules.currencies };
        // A name that is mapped to another one is not sent as itself.
        if names.mapped(elven).is_some_and(|sent| sent != elven) {
            return Ok(());
        }
        let used = match kind {
            MapKind::Account => self.ledger.accounts_among(entity_id, &[elven]).await?,
            MapKind::Currency => self.ledger.currencies_among(entity_id, &[elven]).await?,
        };
        if !used.is_empty() {
            let command = kind.command(entity_id, ledger, Some(elven));
            correct_hint(&self.database, entity_id, &command, &kind.correction(ledger, elven)).await?;
        }
        Ok(())
    }
}
