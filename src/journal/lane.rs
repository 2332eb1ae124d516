//! The state of an entity: its watermark, its open pass, and the cluster and ledger that they belong to.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};

use super::JournalError;
use crate::ledger::Progress;
use crate::watermark::{Cursor, Snapshot, Xid};

/// The mapping of a ledger, as the JSON of `sync_state.mapping`. Two texts of the same JSON are equal.
#[derive(Clone, Debug)]
pub struct RecordedMapping(Arc<str>);

impl<T: Into<Arc<str>>> From<T> for RecordedMapping {
    fn from(json: T) -> Self {
        Self(json.into())
    }
}

impl Deref for RecordedMapping {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl PartialEq for RecordedMapping {
    fn eq(&self, other: &Self) -> bool {
        let parsed = |mapping: &Self| serde_json::from_str::<serde_json::Value>(mapping).ok();
        self.0 == other.0 || parsed(self).is_some_and(|this| Some(this) == parsed(other))
    }
}

/// The state of an entity.
#[derive(Clone, Debug, Default)]
pub struct Lane {
    /// The watermark.
    pub settled: Option<Snapshot>,
    /// The open pass and its target.
    pub open: Option<(i64, Snapshot)>,
    /// The cursor of the open pass.
    pub cursor: Option<Cursor>,
    /// The cluster that the watermark belongs to.
    pub system_identifier: Option<i64>,
    /// The table that the watermark belongs to.
    pub ledger_table: Option<String>,
    /// The mapping when the watermark was last moved. `None`: not recorded yet.
    pub mapping: Option<RecordedMapping>,
    /// Whether this cluster wrote the newest change of the watermark.
    pub seal: SealState,
    /// The number of the last lease. Whoever changes the state afterwards, has a later one.
    pub lease_epoch: i64,
    /// When the state was read, by the clock of the database.
    pub read_at: Option<DateTime<Utc>>,
    /// How long the API asked not to be called.
    pub not_before: Option<Duration>,
    /// It has rows that are set aside, whose errors an upload may resolve. Needed only under the lease, so it is read
    /// only with the lease.
    pub has_rows_set_aside: bool,
}

/// A row of `sync_state` as it is read.
pub(super) struct StateRow {
    pub(super) entity_id: String,
    pub(super) lease_epoch: i64,
    pub(super) settled: Option<String>,
    pub(super) pass_id: Option<i64>,
    pub(super) target: Option<String>,
    pub(super) cursor_xid: Option<String>,
    pub(super) cursor_id: Option<String>,
    pub(super) system_identifier: Option<i64>,
    pub(super) ledger_table: Option<String>,
    pub(super) mapping: Option<String>,
    pub(super) seal: Option<String>,
    pub(super) read_at: DateTime<Utc>,
    pub(super) not_before_s: Option<f64>,
    pub(super) fence_s: Option<f64>,
    pub(super) has_rows_set_aside: bool,
    /// The pass was opened by this statement.
    pub(super) is_opened: bool,
}

impl StateRow {
    pub(super) fn into_lane(self) -> Result<Lane, JournalError> {
        let snapshot = |text: Option<String>| text.map(|text| text.parse::<Snapshot>()).transpose();
        let decode = |problem: Box<dyn std::error::Error + Send + Sync>| sqlx::Error::Decode(problem);
        let settled = snapshot(self.settled).map_err(|problem| decode(problem.into()))?;
        let target = snapshot(self.target).map_err(|problem| decode(problem.into()))?;
        let cursor = Cursor::from_columns(self.cursor_xid, self.cursor_id)
            .map_err(|problem| decode(problem.into()))?;
        Ok(Lane {
            settled,
            open: self.pass_id.zip(target),
            cursor,
            system_identifier: self.system_identifier,
            ledger_table: self.ledger_table,
            mapping: self.mapping.map(RecordedMapping::from),
            seal: SealState::from_column(self.seal.as_deref()),
            lease_epoch: self.lease_epoch,
            read_at: Some(self.read_at),
            not_before: self.not_before_s.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()),
            has_rows_set_aside: self.has_rows_set_aside,
        })
    }
}

impl Lane {
    /// Returns whether the watermark, its pass and what it belongs to are the same as in an earlier read.
    pub fn is_where(&self, seen: &Lane) -> bool {
        (&self.settled, &self.open, &self.cursor) == (&seen.settled, &seen.open, &seen.cursor)
            && (self.system_identifier, &self.ledger_table, &self.mapping, self.seal)
                == (seen.system_identifier, &seen.ledger_table, &seen.mapping, seen.seal)
    }

    /// Returns whether the watermark or the open pass is past all rows of a transaction.
    pub fn is_past(&self, xid: Xid) -> bool {
        let by_pass = || {
            let (_, target) = self.open.as_ref()?;
            let reached = self.cursor.as_ref()?.xid()?;
            Some(target.contains(xid) && xid < reached)
        };
        self.settled.as_ref().is_some_and(|settled| settled.contains(xid)) || by_pass().unwrap_or(false)
    }

    /// Returns the progress of the entity, for the ledger.
    pub fn progress(&self, entity_id: &str) -> Progress {
        Progress {
            entity_id: entity_id.to_owned(),
            settled: self.settled.clone(),
            target: self.open.as_ref().map(|(_, target)| target.clone()),
            cursor: self.cursor.clone(),
            done: Vec::new(),
        }
    }
}

/// The result of `elven_sync.seals` for the newest change of an entity's watermark.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SealState {
    /// This cluster wrote it, or the cluster from which this one was upgraded; or it is too old to tell; or there is
    /// neither a change nor a watermark.
    #[default]
    Whole,
    /// It was copied, as a restored dump is, or altered.
    Broken,
    /// `sync_state` does not match it.
    Elsewhere,
    /// There is a watermark, but no change of it.
    Missing,
}

impl SealState {
    pub(super) fn from_column(seal: Option<&str>) -> Self {
        match seal {
            Some("broken") => Self::Broken,
            Some("elsewhere") => Self::Elsewhere,
            Some("missing") => Self::Missing,
            _ => Self::Whole,
        }
    }
}
