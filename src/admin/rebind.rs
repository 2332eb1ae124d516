//! A watermark that stays where it is, and is accepted for another mapping, or for a journal that was copied.

use super::MoveError;
use super::watermark::refused;
use crate::audit::{Asked, Proof, prove_as};
use crate::journal::{Lane, Rebound, SealState};
use crate::ledger::{Changes, LedgerError};
use crate::sync::watermark_check::{
    as_if_bound, changes, check_seal, check_watermark, mapping_changed, start_over,
};
use crate::sync::{RunError, Worker};
use crate::text::{quoted_argument, quoted_option};

/// Of the ids that the newest batches list, this part at least has to be found: rows may have been updated or deleted
/// since.
const FOUND_MIN: (usize, usize) = (9, 10);

/// What a person wants to be accepted.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rebinding {
    /// Another mapping.
    pub mapping: bool,
    /// A journal that this cluster did not write.
    pub journal: bool,
}

/// What a rebind would accept.
#[derive(Debug)]
pub struct Rebind {
    entity_id: String,
    lane: Lane,
    changes: Changes,
    journal: bool,
    system_identifier: i64,
}

impl Rebind {
    /// What differs between the recorded mapping and the present one. Empty: nothing.
    pub fn sentence(&self) -> String {
        if self.changes.is_none() { String::new() } else { mapping_changed(&self.entity_id, &self.changes) }
    }

    /// Other values are sent from then on, which a person has to accept.
    pub fn needs_yes(&self) -> bool {
        self.changes.values
    }

    fn needs_proof(&self) -> bool {
        self.journal || self.changes.identity
    }
}

impl Worker {
    /// Says what a rebind would accept. `None`: everything fits as it is.
    ///
    /// # Errors
    /// It is not possible as things are; the message says why, and the way out.
    pub async fn plan_rebind(&self, entity_id: &str, wanted: Rebinding) -> Result<Option<Rebind>, MoveError> {
        let (lane, look) = self.stand(entity_id).await?;
        let changes = changes(&self.ledger, &lane);
        let journal = wanted.journal && lane.seal == SealState::Broken;
        if !journal && (changes.is_none() || !wanted.mapping) {
            self.check_watermark(entity_id, &lane, &look)?;
            return Ok(None);
        }
        if journal && !wanted.mapping && !changes.is_none() {
            return refused(format!(
                "{}; hint: correct [ledger] if that is a mistake, or accept both with `elven-sync entity rebind \
                 --journal --mapping --reason '...' {}`",
                mapping_changed(entity_id, &changes),
                quoted_argument(entity_id)
            ));
        }
        if !journal {
            check_seal(entity_id, &lane)?;
        }
        // With mapping and journal out of the way, everything else has to fit.
        let mut bound = as_if_bound(&self.ledger, &look, &lane);
        if !journal {
            bound.system_identifier = lane.system_identifier;
        }
        check_watermark(&self.ledger, entity_id, &bound, &look)?;
        if wanted.mapping && !changes.is_rename() {
            self.refuse_open_work(entity_id, &lane, &changes).await?;
        }
        let system_identifier = look.system_identifier;
        Ok(Some(Rebind { entity_id: entity_id.to_owned(), lane, changes, journal, system_identifier }))
    }

    /// Accepts what was planned, after the proof if it takes one.
    pub async fn rebind_as_planned(&self, plan: &Rebind, reason: Option<&str>) -> Result<(), MoveError> {
        let Rebind { entity_id, changes, .. } = plan;
        if plan.needs_proof() {
            let proof = self.proof_of(plan).await?;
            Self::check_proof(plan, &proof)?;
        }
        let (lease, lane) = self.lease(entity_id).await?;
        let done = async {
            if !lane.is_where(&plan.lane) {
                return moved(entity_id);
            }
            if !changes.is_rename() {
                self.refuse_open_work(entity_id, &lane, changes).await?;
            }
            let rebound = Rebound {
                action: if plan.journal { "rebind_journal" } else { "rebind_mapping" },
                // The proof has shown that the watermark is good here, whatever cluster it is from.
                system_identifier: plan.journal.then_some(plan.system_identifier),
                ledger: (!changes.is_none()).then_some((self.ledger.name(), &*self.mapping)),
                values: changes.values,
                reason,
            };
            Ok(self.journal.rebind(&lease, rebound).await?)
        };
        let done = done.await;
        self.journal.release(&lease).await?;
        done
    }

    /// Rows of what is under way were read by the old mapping, and are read again.
    async fn refuse_open_work(
        &self,
        entity_id: &str,
        lane: &Lane,
        changes: &Changes,
    ) -> Result<(), MoveError> {
        let open = self.journal.open_work(entity_id).await?;
        let (what, remedy) = if let Some((pass_id, _)) = lane.open {
            (
                format!("pass {pass_id} is open"),
                format!(
                    "finish it with `elven-sync run {}` under the old mapping, or {}",
                    quoted_option("--entity", entity_id),
                    start_over(entity_id)
                ),
            )
        } else if let Some(backfill_id) = open.backfill_id {
            (
                format!("backfill {backfill_id} is open"),
                format!(
                    "finish it with `elven-sync backfill --resume {backfill_id}` under the old mapping, or \
                     `elven-sync backfill cancel {backfill_id}`"
                ),
            )
        } else if let Some(batch_id) = open.batch_id {
            (
                format!("the outcome of batch {batch_id} is unknown"),
                "`elven-sync errors retry` under the old mapping sends its rows again".to_owned(),
            )
        } else {
            return Ok(());
        };
        refused(format!(
            "{}; this cannot be accepted while {what}; hint: {remedy}",
            mapping_changed(entity_id, changes)
        ))
    }

    async fn proof_of(&self, plan: &Rebind) -> Result<Proof, MoveError> {
        let asked = Asked::Rebind { other_values: plan.changes.values };
        let (database, ledger, zones) = (&self.database, &self.ledger, &self.settings.zones);
        match prove_as(database, ledger, zones, &plan.entity_id, asked).await {
            // An id of one column that is none of the other: PostgreSQL says so.
            Err(RunError::Ledger(problem @ (LedgerError::Database(_) | LedgerError::Unreadable(_)))) => {
                not_proven(
                    &plan.entity_id,
                    &format!(
                        "the ledger cannot be read by what the journal lists: {}",
                        crate::text::chain(&problem)
                    ),
                )
            }
            proof => Ok(proof?),
        }
    }

    /// The proof that the journal is that of this ledger, read as it is now.
    fn check_proof(plan: &Rebind, proof: &Proof) -> Result<(), MoveError> {
        let entity_id = &plan.entity_id;
        if !proof.proven.lane.is_where(&plan.lane) {
            return moved(entity_id);
        }
        if proof.proven.is_pruned {
            return not_proven(entity_id, "a part of its journal was pruned, of which nothing can be proven");
        }
        if let Some(finding) = proof.report.findings.first() {
            let more = proof.report.findings.len() + proof.report.more_findings - 1;
            let more = if more > 0 { format!(" (and {more} more findings)") } else { String::new() };
            let message = finding.message.split("; hint:").next().unwrap_or_default();
            return not_proven(entity_id, &format!("`verify` does not hold: {message}{more}"));
        }
        let (listed, found) = proof.proven.newest;
        if listed == 0 || found * FOUND_MIN.1 < listed * FOUND_MIN.0 {
            return not_proven(
                entity_id,
                &format!(
                    "of the {listed} ids in its newest batches {found} are found in the ledger where the batches read them; \
                     nine in ten are needed"
                ),
            );
        }
        if !proof.proven.has_ended {
            return not_proven(
                entity_id,
                "transactions older than its watermark are still open in this cluster; try again when they have ended",
            );
        }
        Ok(())
    }
}

fn moved<T>(entity_id: &str) -> Result<T, MoveError> {
    refused(format!(
        "the watermark of `{entity_id}` was moved meanwhile; nothing was accepted; hint: try again"
    ))
}

fn not_proven<T>(entity_id: &str, why: &str) -> Result<T, MoveError> {
    refused(format!(
        "the ledger as it is read now is not proven to be that of the journal of `{entity_id}`: {why}; nothing was accepted; \
         hint: {}",
        start_over(entity_id)
    ))
}
