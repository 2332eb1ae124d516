//! Rows that a registration from now on (`entity add --from-now`) skipped: Elven does not have them, and no run sends
//! them.

use chrono::{DateTime, Utc};

use super::{Journal, JournalError};
use crate::ledger::{Row, instant_us};
use crate::watermark::{LedgerId, Snapshot, Xid};

/// The rows that registrations of an entity from now on skipped, and the part of them that was sent later.
#[derive(Debug, Default)]
pub struct Skipped {
    registrations: Vec<Registration>,
    backfills: Vec<Backfilled>,
}

/// A registration from now on.
#[derive(Debug)]
struct Registration {
    at: DateTime<Utc>,
    /// The transactions that had ended by then.
    target: Snapshot,
    /// The targets of later rewinds: rows outside a target are read by runs. `None`: the start.
    rewinds: Vec<Option<Snapshot>>,
    /// The snapshots between which earlier passes processed rows.
    passes: Vec<(Option<Snapshot>, Snapshot)>,
}

/// The progress of a backfill.
#[derive(Debug)]
struct Backfilled {
    started_at: DateTime<Utc>,
    range_from: DateTime<Utc>,
    range_to: DateTime<Utc>,
    accounts: Vec<String>,
    currencies: Vec<String>,
    /// The last row that it sent or may have sent. `None`: its whole range.
    cursor: Option<(DateTime<Utc>, String)>,
}

impl Registration {
    /// Returns whether it skipped the rows of a transaction, and no run has sent or will send them.
    fn skips(&self, xid: Xid) -> bool {
        let is_taken_back = |to: &Option<Snapshot>| to.as_ref().is_none_or(|to| !to.contains(xid));
        let is_sent_before = |(settled, target): &(Option<Snapshot>, Snapshot)| {
            target.contains(xid) && settled.as_ref().is_none_or(|settled| !settled.contains(xid))
        };
        self.target.contains(xid)
            && !self.rewinds.iter().any(is_taken_back)
            && !self.passes.iter().any(is_sent_before)
    }
}

impl Backfilled {
    /// Returns whether it processed a row.
    fn has(&self, row: &Row) -> bool {
        let Some(at) = row.captured_at_us else { return false };
        let is_wanted = |wanted: &[String], value: Option<&str>| {
            wanted.is_empty() || value.is_some_and(|value| wanted.iter().any(|wanted| wanted == value))
        };
        let is_reached = self.cursor.as_ref().is_none_or(|(cursor_at, cursor_id)| {
            let cursor_at = instant_us(*cursor_at);
            at < cursor_at || (at == cursor_at && is_up_to(&row.id, cursor_id))
        });
        (instant_us(self.range_from)..instant_us(self.range_to)).contains(&at)
            && is_wanted(&self.accounts, row.account())
            && is_wanted(&self.currencies, row.currency())
            && is_reached
    }
}

/// Returns whether an id is not after the id of a cursor.
fn is_up_to(id: &LedgerId, cursor_id: &str) -> bool {
    match id {
        LedgerId::Number(id) => cursor_id.parse().is_ok_and(|cursor: i64| *id <= cursor),
        LedgerId::Text(id) => id.as_str() <= cursor_id,
    }
}

impl Skipped {
    /// Returns whether the current version of a row is skipped: it existed at a registration from now on, and neither
    /// a run nor a backfill has sent it or will send it. (Rows that a backfill set aside are in `sync_errors`.)
    pub fn has(&self, row: &Row) -> bool {
        self.registrations.iter().any(|registration| {
            registration.skips(row.xid)
                // The version at the registration is also the version that a later backfill read.
                && !self.backfills.iter().any(|backfill| backfill.started_at >= registration.at && backfill.has(row))
        })
    }
}

impl Journal {
    /// Returns the rows that registrations of an entity from now on skipped.
    pub async fn skipped(&self, entity_id: &str) -> Result<Skipped, JournalError> {
        let changes = || {
            sqlx::query!(
                "select pass_id, kind, target::text, started_at from elven_sync.sync_passes
                  where entity_id = $1 and kind in ('from_now', 'rewind') order by pass_id",
                entity_id
            )
            .fetch_all(&self.database)
        };
        let changes = self.database.retry(changes).await?;
        let mut registrations = Vec::new();
        for change in changes.iter().filter(|change| change.kind == "from_now") {
            let Some(target) = parsed(change.target.as_deref())? else { continue };
            let rewinds = changes
                .iter()
                .filter(|other| other.kind == "rewind" && other.pass_id > change.pass_id)
                .map(|rewind| parsed(rewind.target.as_deref()))
                .collect::<Result<_, _>>()?;
            let passes = self.passes_before(entity_id, change.pass_id).await?;
            registrations.push(Registration { at: change.started_at, target, rewinds, passes });
        }
        if registrations.is_empty() {
            return Ok(Skipped::default());
        }
        Ok(Skipped { registrations, backfills: self.backfilled(entity_id).await? })
    }

    /// Returns the snapshots between which passes processed rows before a change of the watermark, including pruned
    /// passes. For most registrations there are none.
    async fn passes_before(
        &self,
        entity_id: &str,
        pass_id: i64,
    ) -> Result<Vec<(Option<Snapshot>, Snapshot)>, JournalError> {
        let passes = || {
            sqlx::query!(
                r#"select settled::text, target::text as "target!" from elven_sync.sync_passes
                    where entity_id = $1 and pass_id < $2 and kind in ('pass', 'pruned') and finished_at is not null
                      and target is not null"#,
                entity_id,
                pass_id
            )
            .fetch_all(&self.database)
        };
        let mut found = Vec::new();
        for pass in self.database.retry(passes).await? {
            if let Some(target) = parsed(Some(&pass.target))? {
                found.push((parsed(pass.settled.as_deref())?, target));
            }
        }
        Ok(found)
    }

    /// Returns the progress of the backfills of an entity. Batches are announced in the order of the range, so the
    /// progress ends at the last batch that was not withdrawn: that batch may have been imported, and the batches
    /// before the cursor were.
    async fn backfilled(&self, entity_id: &str) -> Result<Vec<Backfilled>, JournalError> {
        let lanes = || {
            sqlx::query!(
                r#"select b.started_at, l.range_from, l.range_to, l.finished_at is not null as "is_finished!",
                          coalesce(sent.last_at, l.cursor_at) as last_at,
                          coalesce(sent.last_id, l.cursor_id) as last_id,
                          coalesce(b.accounts, '{}') as "accounts!", coalesce(b.currencies, '{}') as "currencies!"
                     from elven_sync.sync_backfill_lanes l join elven_sync.sync_backfills b using (backfill_id)
                     left join lateral (select s.last_at, s.last_id from elven_sync.sync_batches s
                                         where s.backfill_id = l.backfill_id and s.entity_id = l.entity_id
                                           and s.parent_id is null and (s.status <> 'rejected' or s.row_count = 0)
                                         order by s.batch_id desc limit 1) sent on true
                    where l.entity_id = $1"#,
                entity_id
            )
            .fetch_all(&self.database)
        };
        let lanes = self.database.retry(lanes).await?;
        Ok(lanes
            .into_iter()
            .filter_map(|lane| {
                let reached = lane.last_at.zip(lane.last_id);
                Some(Backfilled {
                    started_at: lane.started_at,
                    range_from: lane.range_from,
                    range_to: lane.range_to,
                    accounts: lane.accounts,
                    currencies: lane.currencies,
                    cursor: if lane.is_finished { None } else { Some(reached?) },
                })
            })
            .collect())
    }
}

fn parsed(snapshot: Option<&str>) -> Result<Option<Snapshot>, sqlx::Error> {
    let snapshot = snapshot.map(str::parse).transpose();
    snapshot.map_err(|problem: crate::watermark::NotASnapshot| sqlx::Error::Decode(problem.into()))
}
