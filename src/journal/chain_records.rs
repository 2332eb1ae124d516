//! The chain of an entity as it is recorded, and what its links cover, for whoever checks it: all in the snapshot of the
//! caller's transaction.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};

use super::JournalError;
use super::digests::{Digest, Fields};
use super::leaves::{RecordedLeaf, recorded};
use crate::database::Transaction;

/// The most rows that one statement reads.
const PAGE: i64 = 500;

/// A link as it is recorded.
#[derive(Clone, Debug)]
pub struct LinkRecord {
    /// Its number in the chain.
    pub link: i64,
    /// What happened.
    pub kind: String,
    /// The row that it refers to.
    pub of: Option<i64>,
    /// When it was added.
    pub at: DateTime<Utc>,
    /// Its digest.
    pub digest: Vec<u8>,
}

impl LinkRecord {
    /// Makes the digest of the link from what it covers.
    pub fn made(&self, before: Option<&[u8]>, contents: &LinkContents) -> Digest {
        let mut fields = Fields::default();
        fields.text(Some("elven-sync link 1")).text(Some(&self.kind)).text(Some(self.link)).bytes(before);
        fields.text(Some(self.at.timestamp_micros())).text(self.of);
        for field in &contents.fields {
            fields.text(field.as_ref());
        }
        fields.bytes(contents.running.as_ref().map(|running| &running[..]));
        fields.digest()
    }
}

/// What a link covers besides its own columns.
#[derive(Clone, Debug, Default)]
pub struct LinkContents {
    /// The fields of the row that it refers to.
    pub fields: Vec<Option<String>>,
    /// The chained leaves of its batches.
    pub running: Option<Digest>,
}

/// The end of a chain, and the running digests of open work, as they are recorded.
#[derive(Clone, Debug, Default)]
pub struct ChainState {
    /// The number of links.
    pub links: i64,
    /// The digest of the last one.
    pub head: Option<Vec<u8>>,
    /// The last link that is folded.
    pub folded: i64,
    /// The open pass, its cursor and its running digest.
    pub pass: Option<OpenDigest>,
    /// The open backfills.
    pub backfills: Vec<OpenDigest>,
}

/// Open work, its cursor and its running digest.
#[derive(Clone, Debug)]
pub struct OpenDigest {
    /// The pass or the backfill.
    pub of: i64,
    /// The cursor: a transaction id or an instant, and an id.
    pub cursor: Option<(String, String)>,
    /// The running digest.
    pub running: Option<Vec<u8>>,
}

/// A change of the watermark, as a link covers it.
#[derive(Clone, Debug)]
pub struct ChangeFields {
    /// What the link covers of it.
    pub fields: Vec<Option<String>>,
    /// The pass that it gave up.
    pub given_up: Option<i64>,
}

/// Reads the state of the chain of an entity.
pub async fn chain_state(transaction: &mut Transaction, entity_id: &str) -> Result<ChainState, JournalError> {
    let state = sqlx::query!(
        "select links, head, folded, pass_id, cursor_xid::text, cursor_id, running
           from elven_sync.sync_state where entity_id = $1",
        entity_id
    )
    .fetch_optional(&mut *transaction)
    .await?;
    let Some(state) = state else { return Ok(ChainState::default()) };
    let backfills = sqlx::query!(
        "select backfill_id, elven_sync.microseconds(cursor_at) as cursor_at, cursor_id, running
           from elven_sync.sync_backfill_lanes where entity_id = $1 and not closed order by backfill_id",
        entity_id
    )
    .fetch_all(transaction)
    .await?;
    let cursor = state.cursor_xid.zip(state.cursor_id);
    Ok(ChainState {
        links: state.links,
        head: state.head,
        folded: state.folded,
        pass: state.pass_id.map(|of| OpenDigest { of, cursor, running: state.running }),
        backfills: backfills
            .into_iter()
            .map(|lane| OpenDigest {
                of: lane.backfill_id,
                cursor: lane.cursor_at.zip(lane.cursor_id),
                running: lane.running,
            })
            .collect(),
    })
}

/// Reads the next links of a chain after this one, a page of them.
pub async fn links_after(
    transaction: &mut Transaction,
    entity_id: &str,
    after: i64,
) -> Result<Vec<LinkRecord>, JournalError> {
    Ok(sqlx::query_as!(
        LinkRecord,
        r#"select link, kind, ref as of, at, digest from elven_sync.sync_links
            where entity_id = $1 and link > $2 order by link limit $3"#,
        entity_id,
        after,
        PAGE
    )
    .fetch_all(transaction)
    .await?)
}

/// Reads changes of the watermark of an entity.
pub async fn change_fields(
    transaction: &mut Transaction,
    entity_id: &str,
    pass_ids: &[i64],
) -> Result<BTreeMap<i64, ChangeFields>, JournalError> {
    let rows = sqlx::query!(
        "select pass_id, settled::text, target::text, last_xid::text, last_id, given_up
           from elven_sync.sync_passes where pass_id = any ($1) and entity_id = $2",
        pass_ids,
        entity_id
    )
    .fetch_all(transaction)
    .await?;
    let fields = rows.into_iter().map(|row| {
        let given_up = row.given_up.map(|pass_id| pass_id.to_string());
        let fields = vec![row.settled, row.target, row.last_xid, row.last_id, given_up];
        (row.pass_id, ChangeFields { fields, given_up: row.given_up })
    });
    Ok(fields.collect())
}

/// Reads what links cover of lanes of backfills.
pub async fn lane_fields(
    transaction: &mut Transaction,
    entity_id: &str,
    backfill_ids: &[i64],
) -> Result<BTreeMap<i64, Vec<Option<String>>>, JournalError> {
    let rows = sqlx::query!(
        "select backfill_id, elven_sync.microseconds(range_from) as range_from,
                elven_sync.microseconds(range_to) as range_to, elven_sync.microseconds(cursor_at) as cursor_at, cursor_id
           from elven_sync.sync_backfill_lanes where backfill_id = any ($1) and entity_id = $2",
        backfill_ids,
        entity_id
    )
    .fetch_all(transaction)
    .await?;
    let fields = rows
        .into_iter()
        .map(|row| (row.backfill_id, vec![row.range_from, row.range_to, row.cursor_at, row.cursor_id]));
    Ok(fields.collect())
}

/// Returns the changes of the watermark after this one that have no link.
pub async fn unlinked_changes(
    transaction: &mut Transaction,
    entity_id: &str,
    after: i64,
) -> Result<Vec<i64>, JournalError> {
    Ok(sqlx::query_scalar!(
        "select pass_id from elven_sync.sync_passes p
          where entity_id = $1 and pass_id > $2 and finished_at is not null and kind <> 'pruned'
            and not exists (select from elven_sync.sync_links l
                             where l.ref = p.pass_id and l.entity_id = p.entity_id
                               and l.kind in ('adopted', 'pass', 'rewind', 'rebind', 'from_now'))
          order by pass_id limit $3",
        entity_id,
        after,
        PAGE
    )
    .fetch_all(transaction)
    .await?)
}

/// Reads the next batches of passes after this batch of this pass, a page of them, parts included, in the order of the
/// passes.
pub async fn batches_of_passes(
    transaction: &mut Transaction,
    pass_ids: &[i64],
    after: (i64, i64),
) -> Result<Vec<RecordedLeaf>, JournalError> {
    let ids = sqlx::query_scalar!(
        "select batch_id from elven_sync.sync_batches
          where pass_id = any ($1) and (pass_id, batch_id) > ($2, $3) order by pass_id, batch_id limit $4",
        pass_ids,
        after.0,
        after.1,
        PAGE
    )
    .fetch_all(&mut *transaction)
    .await?;
    let mut batches = recorded(transaction, &ids).await?;
    batches.sort_by_key(|batch| (batch.pass_id, batch.batch_id));
    Ok(batches)
}

/// Reads the next batches of a backfill of an entity after this batch, a page of them, parts included.
pub async fn batches_of_backfill(
    transaction: &mut Transaction,
    entity_id: &str,
    backfill_id: i64,
    after: i64,
) -> Result<Vec<RecordedLeaf>, JournalError> {
    let ids = sqlx::query_scalar!(
        "select batch_id from elven_sync.sync_batches
          where backfill_id = $1 and entity_id = $2 and batch_id > $3 order by batch_id limit $4",
        backfill_id,
        entity_id,
        after,
        PAGE
    )
    .fetch_all(&mut *transaction)
    .await?;
    Ok(recorded(transaction, &ids).await?)
}

/// Reads the next batches of retries of an entity after this batch and up to another one, a page of them, parts included.
pub async fn batches_of_retries(
    transaction: &mut Transaction,
    entity_id: &str,
    after: i64,
    until: i64,
) -> Result<Vec<RecordedLeaf>, JournalError> {
    let ids = sqlx::query_scalar!(
        "select batch_id from elven_sync.sync_batches
          where entity_id = $1 and pass_id is null and backfill_id is null and batch_id > $2 and batch_id <= $3
          order by batch_id limit $4",
        entity_id,
        after,
        until,
        PAGE
    )
    .fetch_all(&mut *transaction)
    .await?;
    Ok(recorded(transaction, &ids).await?)
}

/// Returns the digests of the actions that links cover, by link, in order.
pub async fn action_digests(
    transaction: &mut Transaction,
    links: &[i64],
) -> Result<BTreeMap<i64, Vec<Digest>>, JournalError> {
    let rows = sqlx::query!(
        r#"select link as "link!", action_id, at, actor, client, action, entity_id, reason, details::text as "details!"
             from elven_sync.sync_actions where link = any ($1) order by action_id"#,
        links
    )
    .fetch_all(transaction)
    .await?;
    let mut digests: BTreeMap<i64, Vec<Digest>> = BTreeMap::new();
    for row in rows {
        let mut fields = Fields::default();
        fields
            .text(Some("elven-sync action 1"))
            .text(Some(row.action_id))
            .text(Some(row.at.timestamp_micros()))
            .text(Some(&row.actor))
            .text(row.client.as_ref())
            .text(Some(&row.action))
            .text(row.entity_id.as_ref())
            .text(row.reason.as_ref())
            .text(Some(&row.details));
        digests.entry(row.link).or_default().push(fields.digest());
    }
    Ok(digests)
}
