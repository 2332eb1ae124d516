//! `entity rebind`: accepts another cluster, another mapping or a copied journal, and moves no watermark.

use anyhow::bail;

use super::connect::{connect_migrated, registered, worker};
use super::exit_code::SUCCEEDED;
use crate::admin::{Rebind, Rebinding};
use crate::config::Settings;
use crate::journal::{self, Entity};
use crate::output;
use crate::sync::Worker;

#[derive(Debug, clap::Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
#[command(group(clap::ArgGroup::new("which").required(true).args(["ids", "all"])))]
pub(super) struct Options {
    /// Entities
    #[arg(value_name = "ID")]
    ids: Vec<String>,
    /// All registered entities
    #[arg(long)]
    all: bool,
    /// Accept another mapping of the ledger: another table or column, `entity`, `captured_at_zone` or `balance_scale`
    #[arg(long, requires = "reason")]
    mapping: bool,
    /// Accept a journal that another cluster wrote, after it is proven against the ledger
    #[arg(long)]
    journal: bool,
    /// Reason, recorded in `sync_actions`
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Do not ask for confirmation
    #[arg(long)]
    yes: bool,
}

pub(super) async fn run(settings: &Settings, options: Options) -> anyhow::Result<u8> {
    let Options { ids, all, mapping, journal, reason, yes } = options;
    check_reason(reason.as_deref())?;
    let database = connect_migrated(settings).await?;
    journal::refuse_standby(&database).await?;
    let ids: Vec<String> = if all {
        Entity::list(&database).await?.into_iter().map(|entity| entity.entity_id).collect()
    } else {
        for id in &ids {
            registered(&database, id).await?;
        }
        ids
    };
    let worker = worker(settings, &database).await?;
    let wanted = Rebinding { mapping, journal };
    let rebinding = Rebinder { worker: &worker, reason: reason.as_deref(), yes };
    let mut failed = Vec::new();
    for id in &ids {
        let done =
            if mapping || journal { rebinding.accept(id, wanted).await } else { rebinding.upgrade(id).await };
        match done {
            Ok(said) => output::line(said),
            Err(problem) if ids.len() == 1 => return Err(problem),
            Err(problem) => {
                output::error(&problem);
                failed.push(id.as_str());
            }
        }
    }
    if !failed.is_empty() {
        bail!("{} of {} entities were not rebound: {}", failed.len(), ids.len(), failed.join(", "));
    }
    Ok(SUCCEEDED)
}

/// Refuses a blank reason.
pub(super) fn check_reason(reason: Option<&str>) -> anyhow::Result<()> {
    if reason.is_some_and(|reason| reason.trim().is_empty()) {
        bail!("--reason is blank; hint: give the reason, which is recorded in sync_actions");
    }
    Ok(())
}

struct Rebinder<'a> {
    worker: &'a Worker,
    reason: Option<&'a str>,
    yes: bool,
}

impl Rebinder<'_> {
    async fn upgrade(&self, id: &str) -> anyhow::Result<String> {
        Ok(if self.worker.rebind(id, self.reason).await? {
            format!("`{id}` is bound to this cluster; the next run continues from its watermark")
        } else {
            format!("`{id}` needs no rebind: its watermark is of this cluster, or it has none yet")
        })
    }

    async fn accept(&self, id: &str, wanted: Rebinding) -> anyhow::Result<String> {
        let Some(plan) = self.worker.plan_rebind(id, wanted).await? else {
            return Ok(format!("`{id}` needs no rebind: its journal is of this cluster and of this mapping"));
        };
        self.confirm(&plan)?;
        self.worker.rebind_as_planned(&plan, self.reason).await?;
        Ok(format!("`{id}` is rebound; the next run continues from its watermark"))
    }

    fn confirm(&self, plan: &Rebind) -> anyhow::Result<()> {
        let sentence = plan.sentence();
        if !sentence.is_empty() {
            output::line(&sentence);
        }
        if !plan.needs_yes() {
            return Ok(());
        }
        output::line(
            "records that were sent stay at Elven unchanged; `elven-sync backfill` sends a range of them again",
        );
        if !self.yes && !output::confirm("Accept the new mapping?")? {
            bail!("nothing was accepted; hint: answer y, or add --yes");
        }
        Ok(())
    }
}
