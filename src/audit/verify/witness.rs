//! Prints that somebody has kept outside the database, and what the database has of them.

use std::collections::BTreeMap;

use super::digests::{Named, check};
use super::{EntityProof, Finding};
use crate::database::{Database, Transaction};
use crate::journal::{ACTIONS, JournalError, Print, PrintLine, prints};

/// What prints have named, by entity, and what is wrong with the prints themselves.
#[derive(Debug, Default)]
pub(super) struct Witness {
    named: BTreeMap<String, Named>,
}

/// The result of the check of what concerns no entity: the prints, and the chain of what people did.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct JournalProof {
    /// The prints that were given and that today's journal extends, or would if no entity had a finding.
    pub prints: Vec<i64>,
    /// The links of the chain of actions that are those of what they cover.
    pub links: usize,
    /// The findings.
    pub findings: Vec<Finding>,
}

impl Witness {
    /// Reads the prints of the database, and compares them with those that were given.
    pub(super) async fn read(
        database: &Database,
        given: &[PrintLine],
    ) -> Result<(Self, JournalProof), JournalError> {
        let read = || async {
            let mut transaction = database.begin_snapshot().await?;
            let prints = if given.is_empty() { Vec::new() } else { prints(&mut transaction).await? };
            let mut proof = JournalProof::default();
            let witness = Self::of(&prints, given, &mut proof);
            witness.actions(&mut transaction, &mut proof).await?;
            transaction.commit().await?;
            Ok::<_, JournalError>((witness, proof))
        };
        database.retry(read).await
    }

    fn of(prints: &[Print], given: &[PrintLine], proof: &mut JournalProof) -> Self {
        let mut previous: Option<&Print> = None;
        for print in prints {
            let expected = previous.map_or(1, |previous| previous.print_id + 1);
            let is_next = print.print_id == expected
                && print.previous.as_ref() == previous.map(|previous| &previous.root);
            if !is_next || print.made_root()[..] != print.root[..] {
                proof.findings.push(Finding::new(
                    "print",
                    format!(
                        "print {} in sync_prints is not what was made then: it, or a print before it, was changed or \
                         removed; hint: find out who has changed it, and restore it from a backup",
                        print.print_id
                    ),
                ));
            }
            previous = Some(print);
        }
        for line in given {
            match prints.iter().find(|print| print.print_id == line.print_id) {
                None => proof.findings.push(Finding::new(
                    "print",
                    format!(
                        "print {} is not in sync_prints: it was removed, or it belongs to another installation, or the \
                         database was restored to a time before it",
                        line.print_id
                    ),
                )),
                Some(print) if print.line() != *line => proof.findings.push(Finding::new(
                    "print",
                    format!(
                        "print {} has the root {} in sync_prints, and {} in the file: the journal is not the one of that \
                         time, or the file belongs to another installation",
                        line.print_id,
                        print.line().root,
                        line.root
                    ),
                )),
                Some(_) => proof.prints.push(line.print_id),
            }
        }
        let last = given.iter().map(|line| line.print_id).max().unwrap_or_default();
        let mut named: BTreeMap<String, Named> = BTreeMap::new();
        for print in prints.iter().filter(|print| print.print_id <= last) {
            for head in &print.heads {
                let of_entity = named.entry(head.entity_id.clone()).or_default();
                of_entity.given = last;
                of_entity.heads.push((print.print_id, head.clone()));
            }
        }
        Self { named }
    }

    /// Returns what prints have named of an entity.
    pub(super) fn of_entity(&self, entity_id: &str) -> Named {
        self.named.get(entity_id).cloned().unwrap_or_default()
    }

    /// Returns the entities that prints have named.
    pub(super) fn entities(&self) -> impl Iterator<Item = &String> {
        self.named.keys().filter(|entity_id| *entity_id != ACTIONS)
    }

    /// Checks the chain of what people did.
    async fn actions(
        &self,
        transaction: &mut Transaction,
        proof: &mut JournalProof,
    ) -> Result<(), JournalError> {
        let mut report = EntityProof { entity_id: ACTIONS.to_owned(), ..EntityProof::default() };
        check(transaction, ACTIONS, &self.of_entity(ACTIONS), &mut report).await?;
        proof.links = report.links;
        proof.findings.extend(report.findings);
        Ok(())
    }
}
