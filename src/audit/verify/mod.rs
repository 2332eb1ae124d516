//! The proof that no row was skipped, from the journal and the ledger at one moment.
//!
//! Since the last rewind, each row version belongs to one pass of its entity, and within the pass to the interval of
//! one batch, which lists the row. So the proof has three parts: the passes form a chain up to the watermark
//! ([`chain`]), the intervals of the batches of a pass touch and their counts add up ([`batches`]), and the ledger rows
//! in an interval are in the list of its batch ([`rows`]). The proof changes nothing, and reads one snapshot, without
//! later writes.

mod batches;
pub(crate) mod chain;
mod checker;
mod digests;
mod finding;
mod gap;
mod listener;
mod rows;
mod span;
mod witness;

use std::collections::{BTreeSet, VecDeque};

use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::sync::Mutex;

use self::batches::Walk;
pub use self::chain::Rewound;
pub use self::checker::EntityProof;
pub use self::finding::{Finding, FindingGroup};
pub(crate) use self::gap::check as check_gap;
pub(crate) use self::listener::{BatchListener, Beginning, Body, CheckedLeaf, ReadBatch, XidSpan};
pub(crate) use self::rows::{RulesOfBatch, rules_of};
pub use self::witness::JournalProof;

use self::chain::{Chain, Link};
use self::checker::{Checker, Sample};
use self::digests::Named;
use self::listener::{Nobody, touches};
use self::witness::Witness;
use crate::align::Zones;
use crate::config::{ConfigError, Settings};
use crate::database::{Database, Transaction};
use crate::journal::audit as records;
use crate::journal::{JournalError, Lane, PrintLine, SealState, check_schema};
use crate::ledger::{GuardGap, Ledger, LedgerError};
use crate::sync::worker::warn_of;
use crate::sync::{RunError, watermark_check};
use crate::watermark::Snapshot;

/// The most batches, and the most passes, that are checked together.
const BATCHES_TOGETHER_MAX: usize = 100;
/// The most passes whose batches are counted together.
const COUNTED_MAX: usize = 1000;

/// The result of `verify`.
#[derive(Debug)]
pub struct Verification {
    /// The proof of each entity.
    pub entities: Vec<EntityProof>,
    /// What concerns no entity.
    pub journal: JournalProof,
    /// The trigger of the ledger was broken, is intact again, and each row that was written meanwhile is stamped by now.
    pub gap_without_rows: Option<GuardGap>,
}

impl Verification {
    /// Whether there is no finding.
    pub fn holds(&self) -> bool {
        self.entities.iter().all(EntityProof::holds) && self.journal.findings.is_empty()
    }
}

/// Checks all entities that have a journal, or only those in `only`. `deep`: rebuilds all bodies, not only a sample.
/// `against`: prints that were kept outside the database, which today's journal has to extend.
pub async fn verify(
    settings: &Settings,
    database: &Database,
    only: &[String],
    deep: bool,
    against: &[PrintLine],
) -> Result<Verification, RunError> {
    check_schema(database).await?;
    let ledger = Ledger::open(database.clone(), None, settings).await?;
    warn_of(&ledger.guard().await?);
    let all = database.retry(|| async {
        let mut transaction = database.begin_snapshot().await.map_err(JournalError::from)?;
        records::entities(&mut transaction).await
    });
    let all = all.await?;
    if let Some(missing) = only.iter().find(|id| !all.contains(id)) {
        let known: Vec<&str> = all.iter().map(String::as_str).collect();
        return Err(ConfigError(crate::journal::unknown_entity(missing, &known)).into());
    }
    let (witness, journal) = Witness::read(database, against).await?;
    // A print may name an entity of which the journal has nothing any more.
    let all: BTreeSet<String> = all.into_iter().chain(witness.entities().cloned()).collect();
    let selected = all.into_iter().filter(|id| only.is_empty() || only.contains(id));
    let (database, ledger, witness) = (&database, &ledger, &witness);
    let mut entities: Vec<EntityProof> = stream::iter(selected)
        .map(async |entity_id| {
            let named = witness.of_entity(&entity_id);
            prove(database, ledger, &settings.zones, &entity_id, Asked::Verify { deep, named: &named }).await
        })
        .buffered(settings.sync.entities_at_once.max(1))
        .try_collect()
        .await?;
    let gap_without_rows = gap::check(database, ledger, &mut entities).await?;
    Ok(Verification { entities, journal, gap_without_rows })
}

/// Checks one entity. Ledger rows that cannot be read are a finding.
async fn prove(
    database: &Database,
    ledger: &Ledger,
    zones: &Zones,
    entity_id: &str,
    asked: Asked<'_>,
) -> Result<EntityProof, RunError> {
    prove_asked(database, ledger, zones, entity_id, asked, &mut Nobody).await
}

/// Checks one entity, and tells a listener of its batches. Ledger rows that cannot be read are a finding.
pub(crate) async fn prove_heard(
    database: &Database,
    ledger: &Ledger,
    zones: &Zones,
    entity_id: &str,
    deep: bool,
    listener: &mut impl BatchListener,
) -> Result<EntityProof, RunError> {
    let named = Named::default();
    prove_asked(database, ledger, zones, entity_id, Asked::Verify { deep, named: &named }, listener).await
}

async fn prove_asked(
    database: &Database,
    ledger: &Ledger,
    zones: &Zones,
    entity_id: &str,
    asked: Asked<'_>,
    listener: &mut impl BatchListener,
) -> Result<EntityProof, RunError> {
    let (mut report, proven) = prove_rows(database, ledger, zones, entity_id, asked, listener).await?;
    if let Err(problem) = proven {
        let message = format!("{}; the checks after this point were not made", problem.in_words_of_entity());
        report.find(Finding::new("ledger", message));
    }
    Ok(report)
}

/// The purpose of a proof.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Asked<'a> {
    /// To verify the journal as it is, with all bodies or a sample of them.
    Verify {
        /// All bodies.
        deep: bool,
        /// What prints have named of the entity.
        named: &'a Named,
    },
    /// To rebind: the journal is checked as if it belonged to this cluster and this mapping, with all bodies. With
    /// `other_values` the bodies may differ, since a person accepts that other values are sent.
    Rebind { other_values: bool },
}

/// A proof, and the further facts that a rebind needs.
#[derive(Debug)]
pub(crate) struct Proof {
    pub report: EntityProof,
    pub proven: Proven,
}

/// The facts about an entity that a rebind needs.
#[derive(Debug)]
pub(crate) struct Proven {
    /// The lane as it was found.
    pub lane: Lane,
    /// Changes of the watermark were pruned.
    pub is_pruned: bool,
    /// The number of ids in the newest batches, and how many of them the ledger has in the intervals of these batches.
    pub newest: (usize, usize),
    /// Every transaction that the watermark may include has ended.
    pub has_ended: bool,
}

/// Checks one entity for a purpose.
pub(crate) async fn prove_as(
    database: &Database,
    ledger: &Ledger,
    zones: &Zones,
    entity_id: &str,
    asked: Asked<'_>,
) -> Result<Proof, RunError> {
    let (report, proven) = prove_rows(database, ledger, zones, entity_id, asked, &mut Nobody).await?;
    Ok(Proof { report, proven: proven? })
}

/// Checks one entity. If a row has a value that the database cannot convert, the check is repeated with the careful
/// reading, since a run sets such a row aside. The second result is an error if the rows of the ledger could not be
/// read to the end.
async fn prove_rows(
    database: &Database,
    ledger: &Ledger,
    zones: &Zones,
    entity_id: &str,
    asked: Asked<'_>,
    listener: &mut impl BatchListener,
) -> Result<(EntityProof, Result<Proven, LedgerError>), RunError> {
    // Each attempt has the listener in its turn.
    let listener = &Mutex::new(listener);
    let prove = async |ledger: &Ledger| {
        let proven = || async {
            let listener = &mut **listener.lock().await;
            let mut report = EntityProof { entity_id: entity_id.to_owned(), ..EntityProof::default() };
            let proven = match prove_in_snapshot(database, ledger, zones, asked, &mut report, listener).await
            {
                Err(RunError::Ledger(problem)) if problem.is_about_rows() => Err(problem),
                proven => Ok(proven?),
            };
            Ok::<_, RunError>((report, proven))
        };
        database.retry(proven).await
    };
    match prove(ledger).await? {
        (_, Err(problem)) if problem.is_about_a_value() => prove(&ledger.careful()).await,
        proven => Ok(proven),
    }
}

/// Checks one entity in one snapshot. After an error the report has the findings made before it.
async fn prove_in_snapshot(
    database: &Database,
    ledger: &Ledger,
    zones: &Zones,
    asked: Asked<'_>,
    report: &mut EntityProof,
    listener: &mut impl BatchListener,
) -> Result<Proven, RunError> {
    let entity_id = &report.entity_id.clone()[..];
    let mut transaction = database.begin_snapshot().await.map_err(JournalError::from)?;
    let found = records::lane(&mut transaction, entity_id).await?;
    let progress = found.progress(entity_id);
    let changes = records::changes(&mut transaction, entity_id).await?;
    let zone = records::timezone(&mut transaction, entity_id).await?;
    report.pruned = records::pruned(&mut transaction, entity_id).await?;
    report.rows_set_aside_open = records::set_aside(&mut transaction, entity_id).await?;
    let values_changed = records::values_changed(&mut transaction, entity_id).await?;
    let Chain { mut links, others, rewound, findings, taken_back, .. } =
        chain::follow(entity_id, changes, &found);
    (report.rewound, report.notes) = (rewound, taken_back);
    let is_pruned = report.pruned.is_some() || others.iter().any(|change| change.kind == "pruned");
    report.passes = links.len();
    report.skipped_from_now = others.iter().any(|change| change.kind == "from_now");
    for finding in findings {
        report.find(finding);
    }
    let probed = ledger.probe_in(&mut transaction, &progress).await?;
    // A copied journal is also compared with the ledger, to show the rows that it would skip. The chain has already
    // checked the position of the watermark.
    let lane = match asked {
        Asked::Verify { .. } => sealed(&found, report),
        Asked::Rebind { .. } => watermark_check::as_if_bound(ledger, &probed, &found),
    };
    let misfit = watermark_check::check_watermark(ledger, entity_id, &lane, &probed).err();
    let fits = misfit.is_none();
    match misfit {
        Some(misfit) => report.find(Finding::new("watermark", misfit.to_string())),
        None => report.rows_pending = ledger.pending_in(&mut transaction, &progress).await?,
    }
    let beginning = Beginning { ledger, lane: &found, others: &others, fits };
    listener.begin(&mut transaction, beginning).await?;
    if let Some(span) = listener.span() {
        links.retain(|link| touches(&span, link));
        report.passes = links.len();
    }
    let zone = zone.and_then(|name| zones.get(&name).ok());
    let step = if matches!(asked, Asked::Verify { deep: false, .. }) { None } else { Some(1) };
    let (newest, sample) = (VecDeque::new(), Sample { step, ..Sample::default() });
    let any_values = matches!(asked, Asked::Rebind { other_values: true });
    let other_values_before = if any_values { Some(i64::MAX) } else { values_changed };
    let mut checker = Checker {
        ledger,
        entity_id,
        zones,
        zone,
        fits,
        maps: None,
        report,
        sample,
        newest,
        other_values_before,
        recorded_to: None,
    };
    checker.passes(&mut transaction, &links, listener).await?;
    let newest = checker.found_in_newest();
    let recorded_to = checker.recorded_to.take();
    if let Asked::Verify { named, .. } = asked {
        digests::check(&mut transaction, entity_id, named, report).await?;
    }
    listener.end(&mut transaction, recorded_to).await?;
    transaction.commit().await.map_err(JournalError::from)?;
    let snapshots = [found.settled.as_ref(), found.open.as_ref().map(|(_, target)| target)];
    let until = snapshots.into_iter().flatten().map(Snapshot::xmax).max();
    let has_ended = until.is_none_or(|until| probed.target.xmin() >= until);
    Ok(Proven { lane: found, is_pruned, newest, has_ended })
}

/// Returns the lane as if this cluster had written its journal. If it has not, that is a finding.
fn sealed(found: &Lane, report: &mut EntityProof) -> Lane {
    if let Err(misfit) = watermark_check::check_seal(&report.entity_id, found) {
        report.find(Finding::new("watermark", misfit.to_string()));
    }
    Lane { seal: SealState::Whole, ..found.clone() }
}

impl Checker<'_> {
    /// Checks passes: small ones together, a large one in pages.
    async fn passes(
        &mut self,
        transaction: &mut Transaction,
        links: &[Link],
        listener: &mut impl BatchListener,
    ) -> Result<(), RunError> {
        let mut counts = Vec::with_capacity(links.len());
        for links in links.chunks(COUNTED_MAX) {
            let pass_ids: Vec<i64> = links.iter().map(|link| link.pass_id).collect();
            let counted = records::count_roots(transaction, &pass_ids).await?;
            counts.extend(pass_ids.iter().map(|pass_id| counted.get(pass_id).copied().unwrap_or(0)));
        }
        self.report.batches = counts.iter().sum();
        self.sample.of(self.report.batches);
        let mut from = 0;
        while from < links.len() {
            let mut until = from + 1;
            let mut batches = counts[from];
            while until < links.len()
                && until - from < BATCHES_TOGETHER_MAX
                && batches + counts[until] <= BATCHES_TOGETHER_MAX
            {
                batches += counts[until];
                until += 1;
            }
            if batches > BATCHES_TOGETHER_MAX {
                self.large(transaction, &links[from], listener).await?;
            } else {
                self.small(transaction, &links[from..until], listener).await?;
            }
            from = until;
        }
        Ok(())
    }

    /// Checks passes with few batches together.
    async fn small(
        &mut self,
        transaction: &mut Transaction,
        links: &[Link],
        listener: &mut impl BatchListener,
    ) -> Result<(), RunError> {
        let pass_ids: Vec<i64> = links.iter().map(|link| link.pass_id).collect();
        let roots = records::roots_of_all(transaction, &pass_ids).await?;
        let parts = batches::parts(transaction, &roots).await?;
        let mut roots = roots.into_iter().peekable();
        let mut claims = Vec::new();
        for link in links {
            let mut walk = Walk::of(link);
            let mut of_pass = Vec::new();
            while let Some(root) = roots.next_if(|root| root.pass_id == link.pass_id) {
                of_pass.push(root);
            }
            self.go_over(&mut walk, of_pass, &parts, &mut claims);
            self.end(walk, &mut claims);
        }
        self.check_rows(transaction, claims, listener).await
    }

    /// Checks a pass with many batches in pages.
    async fn large(
        &mut self,
        transaction: &mut Transaction,
        link: &Link,
        listener: &mut impl BatchListener,
    ) -> Result<(), RunError> {
        let mut walk = Walk::of(link);
        let mut behind = 0;
        loop {
            let page = i64::try_from(BATCHES_TOGETHER_MAX).unwrap_or(i64::MAX);
            let roots = records::roots_of(transaction, link.pass_id, behind, page).await?;
            let Some(last) = roots.last() else { break };
            behind = last.batch_id;
            let parts = batches::parts(transaction, &roots).await?;
            let mut claims = Vec::new();
            self.go_over(&mut walk, roots, &parts, &mut claims);
            self.check_rows(transaction, claims, listener).await?;
        }
        let mut claims = Vec::new();
        self.end(walk, &mut claims);
        self.check_rows(transaction, claims, listener).await
    }
}
