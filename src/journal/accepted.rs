//! Batches that were accepted recently: with one of their records a credential can be verified.

use super::{Journal, JournalError};
use crate::batch::{RecordRules, Source, unpack_ids};
use crate::watermark::{LedgerId, Snapshot};

/// The maximum number of batches that are read.
const BATCHES_MAX: i64 = 10;

/// An accepted batch.
#[derive(Debug)]
pub struct Accepted {
    /// The watermark before its pass.
    pub settled: Option<Snapshot>,
    /// The `change_xid` of its last row.
    pub last_xid: u64,
    /// The ids of its rows, in the order of the pass. Some of them may have been superseded.
    pub ids: Vec<LedgerId>,
    /// The ids of the rows that it set aside.
    pub set_aside: Vec<LedgerId>,
    /// The version of the maps by which its names were made.
    pub map_version: Option<i64>,
}

impl Accepted {
    /// Returns whether a row version was certainly processed in this batch or before it. A lower `change_xid` does not
    /// suffice: its transaction may have committed late, so that a later pass processed it.
    pub fn has_processed(&self, xid: u64, id: &LedgerId) -> bool {
        self.settled.as_ref().is_some_and(|settled| settled.contains(xid))
            || (xid <= self.last_xid && self.ids.contains(id))
    }
}

impl Journal {
    /// Returns the latest accepted batches of an entity in this time zone and of this form, the newest first. Batches
    /// of backfills are left out, because they do not record the versions of their rows.
    pub async fn accepted_lately(
        &self,
        entity_id: &str,
        rules: &RecordRules,
    ) -> Result<Vec<Accepted>, JournalError> {
        let source_id = rules.form.source().map(Source::id);
        let rows = self
            .database
            .retry(|| {
                sqlx::query!(
                    r#"select p.settled::text as "settled?", b.last_xid::text as "last_xid!", b.row_ids, b.rejected_ids,
                              b.map_version
                         from elven_sync.sync_batches b join elven_sync.sync_passes p using (pass_id)
                        where b.entity_id = $1 and b.timezone = $2 and b.status = 'accepted' and b.row_count > 0
                          and b.last_xid is not null and coalesce(b.api_version, 3) = $4
                          and b.source_id is not distinct from $5
                        order by b.batch_id desc limit $3"#,
                    entity_id,
                    rules.zone.name(),
                    BATCHES_MAX,
                    rules.form.version().number(),
                    source_id
                )
                .fetch_all(&self.database)
            })
            .await?;
        let accepted = rows.into_iter().filter_map(|row| {
            Some(Accepted {
                settled: row.settled.map(|settled| settled.parse()).transpose().ok()?,
                last_xid: row.last_xid.parse().ok()?,
                ids: unpack_ids(&row.row_ids)?,
                set_aside: row.rejected_ids.as_deref().and_then(unpack_ids).unwrap_or_default(),
                map_version: row.map_version,
            })
        });
        Ok(accepted.collect())
    }
}
