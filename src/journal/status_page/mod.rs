//! What the status page shows of the sync tables, read in one snapshot.
//!
//! Each statement reads tables whose size is that of the installation, or a bounded part of the history. Texts that may
//! hold an amount are read through [`without_amounts`].

mod alerts;
mod answers;
mod causes;
mod day;
mod entities;
mod entity;
mod runs;
mod verified;

use chrono::{DateTime, Utc};
use serde::Serialize;

pub use self::alerts::{AlertGroup, AlertShown};
pub use self::answers::AnswerTimes;
pub use self::causes::{CauseShown, Causes};
use self::day::read_by_time;
pub use self::day::{Day, Hours, QUARTERS, Quarter};
pub use self::entities::{Entities, EntityShown, StatusCount};
pub use self::entity::{BatchShown, EntityPage, EntityState, PassShown};
pub use self::runs::{BackfillShown, RunShown};
pub use self::verified::VerifyShown;
use super::{JournalError, PrintLine};
use crate::database::{Database, Transaction};
use crate::text::without_amounts;

/// What the status page shows, and `/status.json`.
#[derive(Clone, Debug, Serialize)]
pub struct StatusPage {
    /// When the sync tables were read, by the clock of the database.
    pub as_of: DateTime<Utc>,
    /// The alerts, grouped by name and severity.
    pub alerts: Vec<AlertGroup>,
    /// The entities, worst first.
    pub entities: Entities,
    /// The last day by quarter hours.
    pub day: Day,
    /// Backfills that are running.
    pub backfills: Vec<BackfillShown>,
    /// The last runs, newest first.
    pub runs: Vec<RunShown>,
    /// The causes of open errors, those with the most rows first.
    pub causes: Causes,
    /// The last answers to the batches of the day, by outcome.
    pub answers: Vec<AnswerTimes>,
    /// The last `verify` of all entities. `None`: there was none.
    pub verify: Option<VerifyShown>,
    /// The latest print of the journal. `None`: there is none yet.
    pub print: Option<PrintLine>,
}

impl StatusPage {
    /// Reads the sync tables, in a transaction that only reads. It is not retried: somebody waits for the page.
    pub async fn read(database: &Database) -> Result<Self, JournalError> {
        let mut transaction = database.begin_snapshot().await?;
        let as_of = now(&mut transaction).await?;
        let alerts = AlertGroup::read(&mut transaction, None).await?;
        let mut entities = Entities::read(&mut transaction).await?;
        let backfills = BackfillShown::running(&mut transaction).await?;
        let runs = RunShown::last(&mut transaction).await?;
        let causes = Causes::read(&mut transaction, None).await?;
        let verify = VerifyShown::of_all(&mut transaction).await?;
        let print = PrintLine::latest(&mut transaction).await?;
        read_by_time(&mut transaction).await?;
        let day = Day::read(&mut transaction, as_of, None).await?;
        entities.read_hours(&mut transaction, day.from).await?;
        let answers = AnswerTimes::since(&mut transaction, day.from).await?;
        transaction.commit().await?;
        Ok(Self { as_of, alerts, entities, day, backfills, runs, causes, answers, verify, print })
    }

    /// The number of alerts with a severity.
    pub fn alerts_with(&self, severity: &str) -> i64 {
        self.alerts.iter().filter(|group| group.severity == severity).map(|group| group.alerts).sum()
    }
}

/// Returns the time of the snapshot.
async fn now(transaction: &mut Transaction) -> Result<DateTime<Utc>, JournalError> {
    Ok(sqlx::query_scalar!(r#"select now() as "now!""#).fetch_one(transaction).await?)
}
