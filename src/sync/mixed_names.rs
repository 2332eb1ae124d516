//! Maps that would mix balances: the ledger itself has the name at Elven to which another name is mapped.
//!
//! The command `map` refuses such a map, but one that is inserted by SQL is not compared with the ledger. So a run does
//! that once for each version of the maps. Rows that the ledger gets later are refused when they are aligned.

use super::lane_worker::Target;
use super::worker::Unusable;
use super::{EntityReport, RunError, Worker};
use crate::align::NameMap;
use crate::journal::{Kind, MapHistory, MapKind, Problem};

impl Worker {
    /// Returns targets with their present names. Records the failure of those whose maps would mix balances.
    pub(super) async fn with_right_names(
        &self,
        run_id: i64,
        targets: &[&Target],
        reports: &mut Vec<EntityReport>,
    ) -> Result<Vec<Target>, RunError> {
        let (targets, mixed) = self.without_mixed_names(self.with_names(targets).await?).await?;
        if !mixed.is_empty() {
            reports.extend(self.fail_lanes(run_id, mixed).await?);
        }
        Ok(targets)
    }

    /// Separates the targets whose maps would mix balances.
    pub(super) async fn without_mixed_names(
        &self,
        targets: Vec<Target>,
    ) -> Result<(Vec<Target>, Vec<Unusable>), RunError> {
        let has_maps = |target: &&Target| !target.rules.names.is_empty();
        let ids: Vec<String> =
            targets.iter().filter(has_maps).map(|target| target.entity_id.clone()).collect();
        if ids.is_empty() {
            return Ok((targets, Vec::new()));
        }
        let compared = MapHistory::compared(&self.database, &ids).await?;
        let (mut right, mut mixed) = (Vec::with_capacity(targets.len()), Vec::new());
        for target in targets {
            let version = target.rules.names.version;
            if target.rules.names.is_empty() || version <= compared.get(&target.entity_id).copied() {
                right.push(target);
                continue;
            }
            if let Some(problem) = self.mixed_names(&target).await? {
                mixed.push((target.entity_id, problem));
                continue;
            }
            let version = version.unwrap_or_default();
            MapHistory::note_compared(&self.database, &target.entity_id, version).await?;
            right.push(target);
        }
        Ok((right, mixed))
    }

    /// Returns the problem if rows of an entity have the name at Elven to which another name is mapped.
    async fn mixed_names(&self, target: &Target) -> Result<Option<Problem>, RunError> {
        let (entity_id, names) = (&target.entity_id, &target.rules.names);
        let accounts = self.ledger.accounts_among(entity_id, &names.accounts.exclusive()).await;
        let currencies = self.ledger.currencies_among(entity_id, &names.currencies.exclusive()).await;
        let found = [
            (MapKind::Account, &names.accounts, accounts),
            (MapKind::Currency, &names.currencies, currencies),
        ];
        for (kind, map, found) in found {
            let found = match found {
                // The rows cannot be read: the lane finds that out, too.
                Err(problem) if problem.is_about_rows() => continue,
                found => found?,
            };
            if let Some(elven) = found.first() {
                return Ok(Some(mixed(kind, map, entity_id, elven)));
            }
        }
        Ok(None)
    }
}

fn mixed(kind: MapKind, map: &NameMap, entity_id: &str, elven: &str) -> Problem {
    let of = kind.word();
    let ledger = map.mapped_to(elven).first().map_or_else(String::new, |name| (*name).to_owned());
    Problem::of_lane(
        Kind::Config,
        format!(
            "{of} `{ledger}` is mapped to `{elven}`, but the ledger has rows with {of} `{elven}` itself: balances of two \
             names would replace each other at Elven; hint: delete the row of elven_sync.{of}_map, or, if both mean the \
             same: {} --shared",
            kind.command(entity_id, &ledger, Some(elven))
        ),
    )
}
