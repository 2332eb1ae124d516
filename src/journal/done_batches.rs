//! What of the open passes is done beyond their cursors: batches that were accepted or set aside behind one that was
//! not.

use std::collections::BTreeMap;

use super::{Journal, JournalError, Lane};
use crate::ledger::{DoneInterval, Progress};
use crate::watermark::Cursor;

/// A batch that is done, as the query returns it.
struct DoneRow {
    entity_id: String,
    before_xid: Option<String>,
    before_id: Option<String>,
    last_xid: Option<String>,
    last_id: String,
    ids: Option<Vec<String>>,
}

impl DoneRow {
    fn into_interval(self) -> Result<(String, Option<DoneInterval>), sqlx::Error> {
        let cursor =
            |xid, id| Cursor::from_columns(xid, id).map_err(|problem| sqlx::Error::Decode(problem.into()));
        let before = cursor(self.before_xid, self.before_id)?;
        let last = cursor(self.last_xid, Some(self.last_id))?;
        Ok((self.entity_id, last.map(|last| DoneInterval { before, last, ids: self.ids })))
    }
}

impl Journal {
    /// Returns the progress of these lanes, with the intervals of open passes that are done beyond the cursor: their
    /// rows are not pending.
    pub async fn progress(&self, lanes: &BTreeMap<String, Lane>) -> Result<Vec<Progress>, JournalError> {
        let (entity_ids, pass_ids): (Vec<String>, Vec<i64>) = lanes
            .iter()
            .filter_map(|(entity_id, lane)| Some((entity_id.clone(), lane.open.as_ref()?.0)))
            .unzip();
        let mut done: BTreeMap<String, Vec<DoneInterval>> = BTreeMap::new();
        if !pass_ids.is_empty() {
            for row in self.done_beyond(&entity_ids, &pass_ids).await? {
                let (entity_id, interval) = row.into_interval()?;
                done.entry(entity_id).or_default().extend(interval);
            }
        }
        let progress = |(entity_id, lane): (&String, &Lane)| Progress {
            done: joined(done.remove(entity_id).unwrap_or_default()),
            ..lane.progress(entity_id)
        };
        Ok(lanes.iter().map(progress).collect())
    }

    /// Reads the batches of open passes that are done beyond the cursor. A part has the interval of the whole batch, so
    /// its rows are listed.
    async fn done_beyond(
        &self,
        entity_ids: &[String],
        pass_ids: &[i64],
    ) -> Result<Vec<DoneRow>, sqlx::Error> {
        let done = || {
            sqlx::query_as!(
                DoneRow,
                r#"select s.entity_id as "entity_id!", b.before_xid::text, b.before_id, b.last_xid::text,
                          b.last_id as "last_id!",
                          case when b.parent_id is not null
                               then array(select elven_sync.batch_row_ids(b.batch_id)) end as "ids?"
                     from unnest($1::text[], $2::bigint[]) open (entity_id, pass_id)
                     join elven_sync.sync_state s on s.entity_id = open.entity_id and s.pass_id = open.pass_id
                    cross join lateral (
                          select coalesce((
                              select d.batch_id from elven_sync.sync_batches d
                               where d.pass_id between s.pass_id and s.pass_id and d.parent_id is null
                                 and d.last_xid = s.cursor_xid and d.last_id = s.cursor_id
                               order by d.pass_id desc, d.batch_id desc limit 1), 0) as batch_id) passed
                    cross join lateral (
                          select * from elven_sync.sync_batches beyond
                           where beyond.pass_id = s.pass_id and beyond.batch_id > passed.batch_id) b
                    where b.status <> 'split' and not elven_sync.is_open(b.status, b.row_count)
                    order by s.entity_id, b.batch_id"#,
                entity_ids,
                pass_ids
            )
            .fetch_all(&self.database)
        };
        self.database.retry(done).await
    }
}

/// Joins whole intervals that touch, so that a statement names few of them.
fn joined(intervals: Vec<DoneInterval>) -> Vec<DoneInterval> {
    let mut joined: Vec<DoneInterval> = Vec::with_capacity(intervals.len());
    for interval in intervals {
        match joined.last_mut() {
            Some(last)
                if last.ids.is_none()
                    && interval.ids.is_none()
                    && interval.before.as_ref() == Some(&last.last) =>
            {
                last.last = interval.last;
            }
            _ => joined.push(interval),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::watermark::At;

    fn at(id: &str) -> Cursor {
        Cursor { at: At::Xid(5), id: id.to_owned() }
    }

    fn interval(before: &str, last: &str, ids: Option<Vec<String>>) -> DoneInterval {
        DoneInterval { before: Some(at(before)), last: at(last), ids }
    }

    #[test]
    fn whole_intervals_that_touch_are_joined() {
        let part = || interval("6", "8", Some(vec!["7".to_owned()]));
        let all = vec![interval("2", "4", None), interval("4", "6", None), part(), interval("8", "9", None)];
        assert_eq!(joined(all), [interval("2", "6", None), part(), interval("8", "9", None)]);
    }
}
