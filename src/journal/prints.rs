//! Prints: each commits to the chains of all entities at one moment, and to all prints before it.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sqlx::PgExecutor;

use super::JournalError;
use super::digests::{Digest, Fields, chained};
use super::links::{ACTIONS, adopt_in};
use crate::database::{Database, Transaction};

/// A run makes a print when the last one is older.
const AGE_MAX: Duration = Duration::from_hours(1);

/// The advisory lock of a transaction that makes a print, so that prints follow each other. The number is arbitrary, and
/// the same in each elven-sync.
const PRINT_LOCK_ID: i64 = 0x656c_7665_6e5f_7072;

/// A print.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Print {
    /// Its number, from 1.
    pub print_id: i64,
    /// When it was made, by the clock of the database.
    pub at: DateTime<Utc>,
    /// The root of the print before it. `None`: it is the first.
    pub previous: Option<Vec<u8>>,
    /// The PostgreSQL cluster.
    pub system_identifier: i64,
    /// The chains that have changed since the print before it.
    pub heads: Vec<Head>,
    /// The digest of all that.
    pub root: Vec<u8>,
}

/// The end of a chain, as a print has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// The entity; [`ACTIONS`] for the chain of what people did.
    pub entity_id: String,
    /// The number of its links.
    pub links: i64,
    /// The digest of the last link, in hex. `None`: there is none yet.
    pub digest: Option<String>,
    /// The last link about which nothing could be proven any more then. 0: none.
    pub folded: i64,
    /// The work that was open.
    pub open: Vec<OpenHead>,
}

/// How far work had come that was open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenHead {
    /// `pass` or `backfill`.
    pub kind: String,
    /// The pass or the backfill.
    #[serde(rename = "ref")]
    pub of: i64,
    /// The first part of its cursor: a transaction id, or an instant in microseconds from 1970-01-01 UTC.
    pub cursor_at: String,
    /// The second part of its cursor: the id of a row.
    pub cursor_id: String,
    /// Its running digest there, in hex.
    pub running: String,
}

/// What people keep of a print: whoever has it can prove later what the journal was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PrintLine {
    /// The number of the print.
    pub print_id: i64,
    /// Its root, in hex.
    pub root: String,
}

impl std::fmt::Display for PrintLine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.print_id, self.root)
    }
}

/// A chain as `digest` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ChainEnd {
    /// The entity; [`ACTIONS`] for the chain of what people did.
    pub entity_id: String,
    /// The number of its links.
    pub links: i64,
    /// The digest of the last link, in hex.
    pub digest: String,
}

/// A row of `sync_prints`.
struct PrintRow {
    print_id: i64,
    at: DateTime<Utc>,
    previous: Option<Vec<u8>>,
    system_identifier: i64,
    heads: serde_json::Value,
    root: Vec<u8>,
}

impl PrintRow {
    fn print(self) -> Result<Print, sqlx::Error> {
        let Self { print_id, at, previous, system_identifier, heads, root } = self;
        let heads = serde_json::from_value(heads).map_err(|problem| sqlx::Error::Decode(problem.into()))?;
        Ok(Print { print_id, at, previous, system_identifier, heads, root })
    }
}

impl Print {
    /// Makes the root from the rest.
    pub fn made_root(&self) -> Digest {
        let mut fields = Fields::default();
        fields
            .text(Some("elven-sync print 1"))
            .text(Some(self.print_id))
            .text(Some(self.at.timestamp_micros()))
            .bytes(self.previous.as_deref())
            .text(Some(self.system_identifier))
            .text(Some(self.heads.len()));
        for head in &self.heads {
            fields
                .text(Some(&head.entity_id))
                .text(Some(head.links))
                .text(head.digest.as_ref())
                .text(Some(head.folded))
                .text(Some(head.open.len()));
            for open in &head.open {
                fields.text(Some(&open.kind)).text(Some(open.of)).text(Some(&open.cursor_at));
                fields.text(Some(&open.cursor_id)).text(Some(&open.running));
            }
        }
        fields.digest()
    }

    /// Returns what people keep of it.
    pub fn line(&self) -> PrintLine {
        PrintLine { print_id: self.print_id, root: hex::encode(&self.root) }
    }

    /// Makes a print. Returns it with the ends of all chains.
    pub async fn make(database: &Database) -> Result<(Self, Vec<ChainEnd>), JournalError> {
        let make = || async {
            let mut transaction = database.begin().await?;
            let print = insert(&mut transaction).await?;
            let ends = ChainEnd::all(&mut transaction).await?;
            transaction.commit().await?;
            Ok((print, ends))
        };
        let printed = database.retry(make).await;
        database.forget_commits().await;
        printed
    }

    /// Returns the latest print, after making one if it is older than an hour.
    pub async fn latest(database: &Database) -> Result<Option<PrintLine>, JournalError> {
        let latest = || {
            sqlx::query!(
                r#"select print_id, root, at < clock_timestamp() - make_interval(secs => $1) as "is_old!"
                     from elven_sync.sync_prints order by print_id desc limit 1"#,
                AGE_MAX.as_secs_f64()
            )
            .fetch_optional(database)
        };
        let latest = database.retry(latest).await?;
        let is_due = latest.as_ref().is_none_or(|latest| latest.is_old);
        if !is_due {
            return Ok(
                latest.map(|latest| PrintLine { print_id: latest.print_id, root: hex::encode(latest.root) })
            );
        }
        let make = || async {
            let mut transaction = database.begin().await?;
            // Another worker may just have made one.
            let print = match newest(&mut transaction).await? {
                Some(print) if print.at > now(&mut transaction).await? - AGE_MAX => print,
                _ => insert(&mut transaction).await?,
            };
            transaction.commit().await?;
            Ok::<_, JournalError>(Some(print.line()))
        };
        let printed = database.retry(make).await;
        database.forget_commits().await;
        printed
    }
}

impl PrintLine {
    /// Returns the latest print, if there is one.
    pub async fn latest(executor: impl PgExecutor<'_>) -> Result<Option<Self>, sqlx::Error> {
        sqlx::query_as!(
            Self,
            r#"select print_id, encode(root, 'hex') as "root!" from elven_sync.sync_prints order by print_id desc limit 1"#
        )
        .fetch_optional(executor)
        .await
    }
}

async fn now(transaction: &mut Transaction) -> Result<DateTime<Utc>, sqlx::Error> {
    sqlx::query_scalar!(r#"select clock_timestamp() as "now!""#).fetch_one(transaction).await
}

/// Waits until no other transaction makes a print, and returns the newest one.
async fn newest(transaction: &mut Transaction) -> Result<Option<Print>, sqlx::Error> {
    sqlx::query!("select pg_advisory_xact_lock($1)", PRINT_LOCK_ID).fetch_one(&mut *transaction).await?;
    let newest = sqlx::query_as!(
        PrintRow,
        "select print_id, at, previous, system_identifier, heads, root from elven_sync.sync_prints
          order by print_id desc limit 1"
    );
    newest.fetch_optional(transaction).await?.map(PrintRow::print).transpose()
}

async fn insert(transaction: &mut Transaction) -> Result<Print, JournalError> {
    let newest = newest(transaction).await?;
    adopt_in(transaction).await?;
    let actions = chain_actions(transaction).await?;
    let mut heads = changed(transaction).await?;
    heads.extend(actions);
    let moment = sqlx::query!(
        r#"select clock_timestamp() as "at!", system_identifier as "system_identifier!" from pg_control_system()"#
    )
    .fetch_one(&mut *transaction)
    .await?;
    let print_id = newest.as_ref().map_or(0, |newest| newest.print_id) + 1;
    let previous = newest.map(|newest| newest.root);
    let (at, system_identifier) = (moment.at, moment.system_identifier);
    let mut print = Print { print_id, at, previous, system_identifier, heads, root: Vec::new() };
    print.root = print.made_root().to_vec();
    let heads = serde_json::to_value(&print.heads).map_err(|problem| sqlx::Error::Encode(problem.into()))?;
    sqlx::query!(
        "insert into elven_sync.sync_prints (print_id, at, previous, system_identifier, heads, root)
         values ($1, $2, $3, $4, $5, $6)",
        print.print_id,
        print.at,
        print.previous,
        print.system_identifier,
        heads,
        print.root
    )
    .execute(&mut *transaction)
    .await?;
    let (entity_ids, links): (Vec<String>, Vec<i64>) =
        print.heads.iter().map(|head| (head.entity_id.clone(), head.links)).unzip();
    sqlx::query!(
        "update elven_sync.sync_state s set printed = p.links
           from unnest($1::text[], $2::bigint[]) p (entity_id, links)
          where s.entity_id = p.entity_id and s.printed <> p.links",
        &entity_ids,
        &links
    )
    .execute(&mut *transaction)
    .await?;
    sqlx::query!(
        "update elven_sync.sync_links l set printed = true
           from unnest($1::text[], $2::bigint[]) p (entity_id, links)
          where l.entity_id = p.entity_id and l.link = p.links and not l.printed",
        &entity_ids,
        &links
    )
    .execute(transaction)
    .await?;
    Ok(print)
}

/// Returns the chains of entities that have changed since the last print, or have open work.
async fn changed(transaction: &mut Transaction) -> Result<Vec<Head>, sqlx::Error> {
    // In the order in which the writer locks lanes. Work that moves meanwhile waits until the print is made.
    let entities = sqlx::query!(
        r#"select s.entity_id, s.links, encode(s.head, 'hex') as digest, s.folded, s.pass_id,
                  s.cursor_xid::text, s.cursor_id, encode(s.running, 'hex') as running
             from elven_sync.sync_state s
            where s.links <> s.printed or s.running is not null
               or exists (select from elven_sync.sync_backfill_lanes l
                           where l.entity_id = s.entity_id and not l.closed and l.running is not null)
            order by s.entity_id for update of s"#
    )
    .fetch_all(&mut *transaction)
    .await?;
    let entity_ids: Vec<String> = entities.iter().map(|entity| entity.entity_id.clone()).collect();
    let backfills = sqlx::query!(
        r#"select entity_id, backfill_id, elven_sync.microseconds(cursor_at) as "cursor_at!", cursor_id as "cursor_id!",
                  encode(running, 'hex') as "running!"
             from elven_sync.sync_backfill_lanes
            where entity_id = any ($1) and not closed and running is not null and cursor_id is not null
            order by entity_id, backfill_id"#,
        &entity_ids
    )
    .fetch_all(transaction)
    .await?;
    let mut heads = Vec::with_capacity(entities.len());
    for entity in entities {
        let cursor = entity.cursor_xid.zip(entity.cursor_id);
        let pass = entity.pass_id.zip(cursor).zip(entity.running);
        let pass = pass.map(|((of, (cursor_at, cursor_id)), running)| OpenHead {
            kind: "pass".to_owned(),
            of,
            cursor_at,
            cursor_id,
            running,
        });
        let of_entity = backfills.iter().filter(|lane| lane.entity_id == entity.entity_id);
        let lanes = of_entity.map(|lane| OpenHead {
            kind: "backfill".to_owned(),
            of: lane.backfill_id,
            cursor_at: lane.cursor_at.clone(),
            cursor_id: lane.cursor_id.clone(),
            running: lane.running.clone(),
        });
        heads.push(Head {
            open: pass.into_iter().chain(lanes).collect(),
            entity_id: entity.entity_id,
            links: entity.links,
            digest: entity.digest,
            folded: entity.folded,
        });
    }
    Ok(heads)
}

/// Adds a link for the actions that have none yet. Returns the end of their chain, if it has one.
async fn chain_actions(transaction: &mut Transaction) -> Result<Option<Head>, sqlx::Error> {
    let last = sqlx::query!(
        "select link, digest from elven_sync.sync_links where entity_id = $1 order by link desc limit 1",
        ACTIONS
    )
    .fetch_optional(&mut *transaction)
    .await?;
    let (links, digest) = last.map_or((0, None), |last| (last.link, Some(last.digest)));
    let actions = sqlx::query!(
        r#"update elven_sync.sync_actions a set link = $1
             from (select action_id from elven_sync.sync_actions where link is null
                    order by action_id for update skip locked) unlinked
            where a.action_id = unlinked.action_id
        returning a.action_id, elven_sync.action_digest(a) as "digest!""#,
        links + 1
    )
    .fetch_all(&mut *transaction)
    .await?;
    let mut actions: Vec<(i64, Vec<u8>)> =
        actions.into_iter().map(|row| (row.action_id, row.digest)).collect();
    actions.sort_unstable();
    let Some(newest) = actions.last().map(|(action_id, _)| *action_id) else {
        let digest = digest.map(hex::encode);
        return Ok((links > 0).then(|| Head { links, digest, ..Head::of_actions() }));
    };
    let mut running: Option<Digest> = None;
    for (_, digest) in actions {
        let leaf =
            Digest::try_from(digest).map_err(|_| sqlx::Error::Decode("a digest has 32 bytes".into()))?;
        running = Some(chained(running.as_ref(), &leaf));
    }
    let link = sqlx::query!(
        r#"insert into elven_sync.sync_links (entity_id, link, kind, ref, at, digest)
           select $1, $2, 'actions', $3, at,
                  elven_sync.link_digest('actions', $2, $4, at, $3, '{}', $5)
             from (select clock_timestamp() as at) now
        returning link, encode(digest, 'hex') as "digest!""#,
        ACTIONS,
        links + 1,
        newest,
        digest,
        running.map(Vec::from)
    )
    .fetch_one(transaction)
    .await?;
    Ok(Some(Head { links: link.link, digest: Some(link.digest), ..Head::of_actions() }))
}

impl Head {
    fn of_actions() -> Self {
        Self { entity_id: ACTIONS.to_owned(), links: 0, digest: None, folded: 0, open: Vec::new() }
    }
}

impl ChainEnd {
    /// Returns the ends of all chains.
    pub async fn all(transaction: &mut Transaction) -> Result<Vec<Self>, sqlx::Error> {
        sqlx::query_as!(
            Self,
            r#"select entity_id as "entity_id!", links as "links!", encode(head, 'hex') as "digest!"
                 from elven_sync.sync_state where head is not null
                union all
               (select entity_id, link, encode(digest, 'hex') from elven_sync.sync_links where entity_id = $1
                 order by link desc limit 1)
                order by 1"#,
            ACTIONS
        )
        .fetch_all(transaction)
        .await
    }
}

/// Returns all prints, in order.
pub async fn prints(transaction: &mut Transaction) -> Result<Vec<Print>, sqlx::Error> {
    let rows = sqlx::query_as!(
        PrintRow,
        "select print_id, at, previous, system_identifier, heads, root from elven_sync.sync_prints order by print_id"
    )
    .fetch_all(transaction)
    .await?;
    rows.into_iter().map(PrintRow::print).collect()
}
