//! The audit of a period: what became of each ledger row of a range of `captured_at`, with control totals.
//!
//! The rows are those that the ledger has now. Each is judged by the batch of its pass that lists it, as `status --row`
//! does ([`crate::audit::of_row`]), but all of them in the order of the journal, while `verify` reads and checks the same
//! batches ([`listening`]). What no batch lists is read afterwards: pending rows, and rows that a registration from now on
//! or a pruned pass covers ([`rest`]). Nothing is kept but totals and the first of each list. All is read in one snapshot
//! per entity, and nothing is written.

mod batches;
mod collector;
mod later;
mod listening;
mod outcome;
mod report;
mod rest;
mod totals;
mod waiting;

use chrono::Utc;

pub use self::outcome::{AuditedRow, Evidence, Judged, Outcome};
pub use self::report::{
    AuditedBatch, AuditedDigests, EntityAudit, EvidenceSink, FirstOf, MadeWith, NamedRow, NoEvidence,
    PeriodAudit,
};
pub use self::totals::{Names, Total, Totals, summed};

use self::collector::Collector;
use self::report::KEPT_MAX;
use super::verify::{check_gap, prove_heard};
use crate::align::{self, Zone};
use crate::config::{ConfigError, Settings};
use crate::database::Database;
use crate::journal::period as records;
use crate::journal::{ACTIONS, ChainEnd, Entity, JournalError, PrintLine, check_schema, unknown_entity};
use crate::ledger::{Ledger, Range};
use crate::sync::RunError;
use crate::sync::worker::warn_of;

/// Why a period cannot be audited.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// The request makes no sense.
    #[error("{0}")]
    Usage(String),
    /// The ledger, the sync tables or the configuration cannot be used.
    #[error(transparent)]
    Run(#[from] RunError),
}

impl From<JournalError> for AuditError {
    fn from(problem: JournalError) -> Self {
        Self::Run(problem.into())
    }
}

/// The period that is asked for.
#[derive(Clone, Debug)]
pub struct AskedPeriod {
    /// A date, or an instant with its offset from UTC.
    pub from: String,
    /// The end, not included, written in the same way.
    pub to: String,
    /// Only these entities; empty: all that are registered.
    pub entities: Vec<String>,
}

/// Audits a period. Each row, batch, exception and action goes to `evidence`.
pub async fn audit_period(
    settings: &Settings,
    database: &Database,
    asked: &AskedPeriod,
    evidence: &mut dyn EvidenceSink,
) -> Result<PeriodAudit, AuditError> {
    check_schema(database).await?;
    let at = Utc::now();
    let wanted = wanted(settings, database, asked).await?;
    let ledger = Ledger::open(database.clone(), None, settings).await.map_err(RunError::from)?;
    warn_of(&ledger.guard().await.map_err(RunError::from)?);
    let mut entities = Vec::new();
    for (entity, zone, range) in &wanted {
        let mut collector = Collector::new(&settings.zones, zone, range, evidence);
        let proven =
            prove_heard(database, &ledger, &settings.zones, &entity.entity_id, true, &mut collector).await?;
        let mut audit = collector.into_audit();
        audit.timezone.clone_from(&entity.timezone);
        audit.proof = proven;
        entities.push(audit);
    }
    let mut proofs: Vec<_> = entities.iter_mut().map(|entity| std::mem::take(&mut entity.proof)).collect();
    check_gap(database, &ledger, &mut proofs).await?;
    for (entity, proof) in entities.iter_mut().zip(proofs) {
        entity.proof = proof;
    }
    let mut audit = PeriodAudit {
        from: asked.from.clone(),
        to: asked.to.clone(),
        at,
        entities,
        actions: FirstOf::default(),
        digests: AuditedDigests::default(),
    };
    read_actions(database, &mut audit, evidence).await?;
    audit.digests = digests(database, &audit.entities).await?;
    Ok(audit)
}

/// Reads the latest print, and the ends of the chains of the entities and of what people did.
async fn digests(database: &Database, entities: &[EntityAudit]) -> Result<AuditedDigests, JournalError> {
    let read = || async {
        let mut transaction = database.begin_snapshot().await?;
        let print = PrintLine::latest(&mut transaction).await?;
        let mut chains = ChainEnd::all(&mut transaction).await?;
        transaction.commit().await?;
        let is_audited = |id: &String| id == ACTIONS || entities.iter().any(|entity| entity.entity_id == *id);
        chains.retain(|chain| is_audited(&chain.entity_id));
        Ok(AuditedDigests { print, chains })
    };
    database.retry(read).await
}

/// Returns the entities that are asked for, each with its zone and its range.
async fn wanted(
    settings: &Settings,
    database: &Database,
    asked: &AskedPeriod,
) -> Result<Vec<(Entity, Zone, Range)>, AuditError> {
    // A mistake in a date is reported without an entity, too.
    instants(asked, &Zone::utc(), None)?;
    let all = Entity::list(database).await?;
    let known: Vec<&str> = all.iter().map(|entity| entity.entity_id.as_str()).collect();
    if let Some(missing) = asked.entities.iter().find(|id| !known.contains(&id.as_str())) {
        return Err(AuditError::Usage(unknown_entity(missing, &known)));
    }
    if all.is_empty() {
        let none = "no entity is registered, so there is nothing to audit; hint: elven-sync entity add ID --timezone \
                    ZONE";
        return Err(AuditError::Run(ConfigError(none.to_owned()).into()));
    }
    let mut wanted = Vec::new();
    for entity in all {
        if !asked.entities.is_empty() && !asked.entities.contains(&entity.entity_id) {
            continue;
        }
        let zone = settings.zones.get(&entity.timezone).map_err(|problem| {
            let problem = format!("entity `{}`: {problem}", entity.entity_id);
            RunError::from(ConfigError(problem))
        })?;
        let (from, to) = instants(asked, &zone, Some(&entity))?;
        let entity_id = entity.entity_id.clone();
        let range = Range { entity_id, from, to, accounts: Vec::new(), currencies: Vec::new() };
        wanted.push((entity, zone, range));
    }
    Ok(wanted)
}

type Instants = (chrono::DateTime<Utc>, chrono::DateTime<Utc>);

/// Returns the period in a zone. A date means the first instant of that day, as for `backfill`.
fn instants(asked: &AskedPeriod, zone: &Zone, entity: Option<&Entity>) -> Result<Instants, AuditError> {
    let instant =
        |text: &str| align::instant(text, zone).map_err(|problem| AuditError::Usage(problem.to_string()));
    let (from, to) = (instant(&asked.from)?, instant(&asked.to)?);
    if from < to {
        return Ok((from, to));
    }
    // Without an entity, only what is wrong in each zone is refused.
    let Some(entity) = entity else { return Ok((from, to)) };
    Err(AuditError::Usage(format!(
        "--from {} is not before --to {} for entity `{}` in {}; hint: the end is not included, so March is --from \
         2024-03-01 --to 2024-04-01",
        asked.from, asked.to, entity.entity_id, entity.timezone
    )))
}

/// Reads what people did from the begin of the period on: what they did after its end may have changed its rows, too.
async fn read_actions(
    database: &Database,
    audit: &mut PeriodAudit,
    evidence: &mut dyn EvidenceSink,
) -> Result<(), AuditError> {
    let Some(since) = audit.entities.iter().map(|entity| entity.from).min() else { return Ok(()) };
    let ids: Vec<String> = audit.entities.iter().map(|entity| entity.entity_id.clone()).collect();
    let mut behind = 0;
    loop {
        let page = || async {
            let mut transaction = database.begin_reading().await?;
            let page = records::actions_since(&mut transaction, &ids, since, behind).await?;
            transaction.commit().await?;
            Ok::<_, JournalError>(page)
        };
        let page = database.retry(page).await?;
        let Some(last) = page.last() else { return Ok(()) };
        behind = last.action_id;
        for action in page {
            evidence.action(&action);
            audit.actions.push(action, KEPT_MAX);
        }
    }
}
