//! Rebind: accepts another mapping, or a journal that was copied, for a watermark that stays where it is.

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

/// The part of the ids in the newest batches that the ledger must have. It is less than all, since rows may have been
/// updated or deleted since.
const FOUND_MIN: (usize, usize) = (9, 10);

/// The changes that a rebind is asked to accept.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rebinding {
    /// Accept another mapping.
    pub mapping: bool,
    /// Accept a journal that this cluster did not write.
    pub journal: bool,
}

/// The changes that a rebind would accept.
#[derive(Debug)]
pub struct Rebind {
    entity_id: String,
    lane: Lane,
    changes: Changes,
    journal: bool,
    system_identifier: i64,
}

impl Rebind {
    /// Describes the differences between the recorded mapping and the present one. Empty: there are none.
    pub fn sentence(&self) -> String {
        if self.changes.is_none() { String::new() } else { mapping_changed(&self.entity_id, &self.changes) }
    }

    /// Whether other values are sent after the rebind, which a person has to confirm.
    pub fn needs_yes(&self) -> bool {
        self.changes.values
    }

    fn needs_proof(&self) -> bool {
        self.journal || self.changes.identity
    }
}

impl Worker {
    /// Plans a rebind. `None`: nothing has to be accepted.
    ///
    /// # Errors
    /// The rebind is not possible; the message says why, and what to do.
    pub async fn plan_rebind(&self, entity_id: &str, wanted: Rebinding) -> Result<Option<Rebind>, MoveError> {
        let (lane, probed) = self.probed_lane(entity_id).await?;
        let changes = changes(&self.ledger, &lane);
        let journal = wanted.journal && lane.seal == SealState::Broken;
        if !journal && (changes.is_none() || !wanted.mapping) {
            self.check_watermark(entity_id, &lane, &probed)?;
            return Ok(None);
        }
        if journal && !wanted.mapping && !changes.is_none() {
            return refused(format!(
                "{}; hint: correct [ledger] if that is a mistake, or accept both with `elven-sync entity rebind \
                 --journal --mapping --reason 'journal copied, mapping changed' {}`",
                mapping_changed(entity_id, &changes),
                quoted_argument(entity_id)
            ));
        }
        if !journal {
            check_seal(entity_id, &lane)?;
        }
        // Apart from mapping and journal, everything has to fit.
        let mut bound = as_if_bound(&self.ledger, &probed, &lane);
        if !journal {
            bound.system_identifier = lane.system_identifier;
        }
        check_watermark(&self.ledger, entity_id, &bound, &probed)?;
        if wanted.mapping && !changes.is_rename() {
            self.refuse_open_work(entity_id, &lane, &changes).await?;
        }
        let system_identifier = probed.system_identifier;
        Ok(Some(Rebind { entity_id: entity_id.to_owned(), lane, changes, journal, system_identifier }))
    }

    /// Carries out a planned rebind, after its proof if it needs one.
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
                // The proof has shown that the watermark is valid in this cluster, wherever it was recorded.
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

    /// Refuses a rebind while there is unfinished work: its rows were read by the old mapping, and would be read again.
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
            "{}; the change cannot be accepted while {what}; hint: {remedy}",
            mapping_changed(entity_id, changes)
        ))
    }

    async fn proof_of(&self, plan: &Rebind) -> Result<Proof, MoveError> {
        let asked = Asked::Rebind { other_values: plan.changes.values };
        let (database, ledger, zones) = (&self.database, &self.ledger, &self.settings.zones);
        match prove_as(database, ledger, zones, &plan.entity_id, asked).await {
            // PostgreSQL refuses an id of the old column that is no value of the new column's type.
            Err(RunError::Ledger(problem @ (LedgerError::Database(_) | LedgerError::Unreadable(_)))) => {
                not_proven(
                    &plan.entity_id,
                    &format!(
                        "the rows that the journal lists cannot be read from the ledger: {}",
                        crate::text::chain(&problem)
                    ),
                )
            }
            proof => Ok(proof?),
        }
    }

    /// Checks the proof that the journal belongs to this ledger as it is read now.
    fn check_proof(plan: &Rebind, proof: &Proof) -> Result<(), MoveError> {
        let entity_id = &plan.entity_id;
        if !proof.proven.lane.is_where(&plan.lane) {
            return moved(entity_id);
        }
        if proof.proven.is_pruned {
            return not_proven(
                entity_id,
                "a part of its journal was pruned, and nothing can be proven about it",
            );
        }
        if let Some(finding) = proof.report.findings.first() {
            let more = proof.report.findings.len() + proof.report.more_findings - 1;
            let more = if more > 0 { format!(" (and {more} more findings)") } else { String::new() };
            let message = finding.message.split("; hint:").next().unwrap_or_default();
            return not_proven(entity_id, &format!("`verify` does not hold: {message}{more}"));
        }
        let (listed, found) = proof.proven.newest;
        if listed == 0 {
            return refused(format!(
                "no batch of `{entity_id}` lists a row, so nothing shows that its journal belongs to the ledger as it \
                 is read now; nothing was accepted; hint: remove the entity and register it again (`elven-sync entity \
                 add --help`; with --from-now the present rows stay skipped), or {}",
                start_over(entity_id)
            ));
        }
        if found * FOUND_MIN.1 < listed * FOUND_MIN.0 {
            return not_proven(
                entity_id,
                &format!(
                    "the ledger has only {found} of the {listed} ids in its newest batches where the batches read \
                     them; 90 % are needed"
                ),
            );
        }
        if !proof.proven.has_ended {
            return not_proven(
                entity_id,
                "transactions older than its watermark are still open in this cluster; repeat the rebind after \
                 they end",
            );
        }
        Ok(())
    }
}

fn moved<T>(entity_id: &str) -> Result<T, MoveError> {
    refused(format!(
        "the watermark of `{entity_id}` was moved meanwhile; nothing was accepted; hint: repeat the rebind"
    ))
}

fn not_proven<T>(entity_id: &str, why: &str) -> Result<T, MoveError> {
    refused(format!(
        "the journal of `{entity_id}` is not proven to belong to the ledger as it is read now: {why}; nothing was \
         accepted; hint: {}",
        start_over(entity_id)
    ))
}
