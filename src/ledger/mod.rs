//! The ledger: every statement about it is here, and all but those of [`attach`] only read.
//!
//! Pages come as binary `COPY ... TO STDOUT`, the cheapest form in which PostgreSQL gives rows away:
//! one message per row, decoded in [`row`] without going through text.

pub mod attach;
mod mapping;
mod pages;
mod pending;
mod proof;
mod range;
mod row;
mod standby;
mod statements;
mod table;
mod unreadable;
mod writers;

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::TryStreamExt;
use sqlx::{AssertSqlSafe, PgConnection};
use tokio::time::Instant;

use self::pages::Page;
use self::unreadable::{Asked, Parts};
pub(crate) use mapping::belongs_to;
pub use mapping::{Changes, Mapping};
pub use pages::{Pages, Pass, Reading};
pub use pending::Pending;
pub use proof::Interval;
pub use range::{Range, RangePages, Uploaded, instant, instant_us};
pub use row::{Decoder, Row};
pub use table::Table;
pub(crate) use table::{quote_array, quote_literal};
pub use unreadable::{Unreadable, Unreadables};
pub use writers::Writer;

use crate::database::{Database, Passing, within};
use crate::watermark::{self, Cursor, Segment, Snapshot};

/// The ledger could not be read.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The table or view is missing or has not the columns that it should have.
    #[error("{0}")]
    Shape(String),
    /// A row came in a form that the reader does not know.
    #[error("a row of the ledger cannot be decoded: {0}")]
    Decode(&'static str),
    /// The standby cannot show the pages that are asked for.
    #[error("{0}")]
    Standby(String),
    /// PostgreSQL could not read the rows of an entity: a failed cast, a timeout, a damaged block.
    #[error(transparent)]
    Unreadable(Unreadable),
    /// PostgreSQL refused or went away.
    #[error("reading the ledger failed")]
    Database(#[from] sqlx::Error),
}

impl Passing for LedgerError {
    fn is_passing(&self) -> bool {
        // What a standby is behind with is waited for elsewhere.
        matches!(self, LedgerError::Database(problem) if problem.is_passing() && !standby::is_behind(self))
    }
}

/// Target, cluster, and for an entity: its id, whether it has news, whether from the future, whether
/// without a stamp.
type LookRow = (String, i64, Option<String>, Option<bool>, Option<bool>, Option<bool>);

/// How PostgreSQL may come to the rows.
#[derive(Clone, Copy, Debug)]
enum Way {
    /// By whatever index the ledger has, or none.
    Any,
    /// By the index that a ledger has to have, whose order they come in.
    InOrder,
}

/// Where a row is looked for there are few like it.
const ROWS_FEW: usize = 1;

/// No row further from the year 2000 can be sent, in microseconds: it lies about 9,500 years from it.
const SENT_US_MAX: u64 = 300_000_000_000_000_000;

/// The ledger of one installation.
#[derive(Clone, Debug)]
pub struct Ledger {
    primary: Database,
    standby: Option<Database>,
    table: Table,
}

/// How far an entity is, as the ledger needs to know it.
#[derive(Clone, Debug)]
pub struct Progress {
    /// The entity.
    pub entity_id: String,
    /// Its watermark.
    pub settled: Option<Snapshot>,
    /// The target of its open pass.
    pub target: Option<Snapshot>,
    /// The cursor in its open pass.
    pub cursor: Option<Cursor>,
}

/// What one look at the ledger told, all of it in a single snapshot.
#[derive(Debug)]
pub struct Look {
    /// The snapshot in which the ledger was looked at.
    pub target: Snapshot,
    /// Identifies the cluster whose transaction ids these are.
    pub system_identifier: i64,
    /// By entity, for those asked for.
    pub entities: BTreeMap<String, News>,
    /// Those whose rows the database cannot read.
    pub unreadable: Unreadables,
}

/// Whether an entity has rows behind its watermark.
#[derive(Clone, Copy, Debug, Default)]
pub struct News {
    /// There are rows that its watermark does not cover.
    pub has_news: bool,
    /// There are rows that claim a transaction which has not been given out yet.
    pub from_the_future: bool,
    /// There are rows that name no transaction at all.
    pub unstamped: bool,
}

impl Look {
    fn of(rows: Vec<LookRow>) -> Result<Self, LedgerError> {
        let (target, system_identifier) = match rows.first() {
            Some((target, system_identifier, ..)) => (parse_snapshot(target)?, *system_identifier),
            None => return Err(LedgerError::Decode("no snapshot")),
        };
        let entities = rows
            .into_iter()
            .filter_map(|(_, _, entity_id, has_news, from_the_future, unstamped)| {
                let (has_news, from_the_future, unstamped) = (has_news?, from_the_future?, unstamped?);
                Some((entity_id?, News { has_news, from_the_future, unstamped }))
            })
            .collect();
        Ok(Look { target, system_identifier, entities, unreadable: Unreadables::new() })
    }

    /// What the look told about an entity.
    pub fn news(&self, entity_id: &str) -> News {
        self.entities.get(entity_id).copied().unwrap_or_default()
    }
}

impl Ledger {
    /// Finds the table and checks its columns against the catalogue. With a `standby`, pages come from
    /// there; it has to be one of that primary.
    pub async fn open(
        primary: Database,
        standby: Option<Database>,
        settings: &crate::config::LedgerSettings,
    ) -> Result<Self, LedgerError> {
        let table = Table::find(&primary, settings).await?;
        if let Some(standby) = &standby {
            standby::check(&primary, standby).await?;
        }
        Ok(Self { primary, standby, table })
    }

    /// The table's qualified name, as the watermark remembers it.
    pub fn name(&self) -> &str {
        self.table.name()
    }

    /// How the ledger is read, as the watermark remembers it.
    pub fn mapping(&self) -> &Mapping {
        &self.table.mapping
    }

    /// The same as the JSON of `sync_state.mapping`.
    pub fn mapping_json(&self) -> &Arc<str> {
        &self.table.mapping_json
    }

    /// Looks which of the entities have rows behind their watermark.
    ///
    /// One statement, so that the snapshot it returns is the very one it looked in: a row that it did not
    /// see belongs to a transaction that is not in that. (A pass takes its target when it is recorded.) When the rows of an
    /// entity cannot be read the statement fails; then the entities are asked for in parts, behind a snapshot.
    pub async fn look(&self, lanes: &[Progress]) -> Result<Look, LedgerError> {
        match self.look_by(self.table.look_sql(lanes)).await {
            Err(problem) if problem.is_about_rows() => {}
            looked => return looked,
        }
        // What fails even when no entity is asked for, such as a missing right on the ledger, concerns all of them.
        let mut look = self.look_by(self.table.look_sql(&[])).await?;
        let mut parts = Parts::of(lanes);
        while let Some(part) = parts.next() {
            let told = self.look_by(self.table.look_sql(part)).await;
            look.entities.extend(parts.took(part, told)?.into_iter().flat_map(|told| told.entities));
        }
        look.unreadable = parts.unreadable();
        Ok(look)
    }

    /// Looks at one entity.
    ///
    /// # Errors
    /// Also when its rows cannot be read.
    pub async fn look_at(&self, lane: &Progress) -> Result<Look, LedgerError> {
        let look = self.look_by(self.table.look_sql(std::slice::from_ref(lane))).await;
        look.map_err(|problem| problem.about(&lane.entity_id))
    }

    async fn look_by(&self, sql: String) -> Result<Look, LedgerError> {
        let look = || sqlx::query_as(AssertSqlSafe(sql.clone())).fetch_all(self.primary.at_once());
        Look::of(self.primary.again(look).await?)
    }

    /// The entities of the ledger that are not in `registered`, one index probe each.
    pub async fn unregistered(&self, registered: &[String]) -> Result<Vec<String>, LedgerError> {
        let sql = self.table.unregistered_sql(registered);
        let look = || sqlx::query_scalar(AssertSqlSafe(sql.clone())).fetch_all(self.primary.at_once());
        Ok(self.primary.again(look).await?)
    }

    /// The oldest transaction that has written to the ledger and not ended, if there is one: later
    /// passes will have its rows, and wait for nothing else.
    pub async fn oldest_writer(&self) -> Result<Option<Writer>, LedgerError> {
        Ok(writers::oldest(&self.primary, self.table.name()).await?)
    }

    /// The tables of the ledger in which no trigger is sure to stamp what is written: what is written to them
    /// may land behind the watermark. None for a view, which may be over other tables as well.
    pub async fn without_trigger(&self) -> Result<Vec<String>, LedgerError> {
        Ok(writers::without_trigger(&self.primary, self.table.name()).await?)
    }

    /// The rows with an id, as they are now; several when the id is no key, none when it is gone.
    pub async fn rows_with_id(&self, entity_id: &str, id: &str) -> Result<Vec<Row>, LedgerError> {
        let sql = |table: &Table| table.row_sql(entity_id, id);
        let rows = self.copy(&self.primary, sql, ROWS_FEW, Way::Any).await;
        rows.map_err(|problem| problem.about(entity_id))
    }

    /// The rows that may have the same account, currency and wall-clock time as this one. On clocks that were
    /// put back a day or less, that is.
    pub async fn rivals(&self, entity_id: &str, row: &Row) -> Result<Vec<Row>, LedgerError> {
        let (Some(account), Some(currency), Some(at)) = (row.account(), row.currency(), row.captured_at_us)
        else {
            return Ok(Vec::new());
        };
        // What lies far outside of the years that can be sent has no wall-clock time in common with anything.
        if at.unsigned_abs() > SENT_US_MAX {
            return Ok(Vec::new());
        }
        let sql = |table: &Table| table.around_sql(entity_id, account, currency, at);
        let rows = self.copy(&self.primary, sql, ROWS_FEW, Way::Any).await;
        rows.map_err(|problem| problem.about(entity_id))
    }

    /// Begins to read a pass, or what is left of one.
    pub async fn pass(&self, reading: Reading<'_>) -> Result<Pass, LedgerError> {
        let Reading { entity_id, pass_id, settled, target, after, until, page_rows } = reading;
        let mut segments = watermark::segments_between(settled, target, after.as_ref(), until.as_ref());
        if segments.len() > 1 {
            let probed = self.without_empty_probes(entity_id, segments).await;
            segments = probed.map_err(|problem| problem.about(entity_id))?;
        }
        Ok(Pass {
            ledger: self.clone(),
            entity_id: entity_id.to_owned(),
            proof_of: pass_id.filter(|_| self.standby.is_some()),
            target: target.clone(),
            segments: segments.into(),
            cursor: after,
            until,
            page_rows,
        })
    }

    /// Drops the segments in which the entity has no rows, in one statement for all of them: most
    /// transactions that stay open for long never write to the ledger.
    async fn without_empty_probes(
        &self,
        entity_id: &str,
        segments: Vec<Segment>,
    ) -> Result<Vec<Segment>, LedgerError> {
        let sql = self.table.probe_sql(entity_id, &segments);
        let probe = || sqlx::query_scalar(AssertSqlSafe(sql.clone())).fetch_all(self.primary.at_once());
        let found: Vec<i64> = self.primary.again(probe).await?;
        Ok(found
            .into_iter()
            .filter_map(|place| {
                usize::try_from(place - 1).ok().and_then(|place| segments.get(place)).copied()
            })
            .collect())
    }

    /// Reads a page: from the standby if there is one, but for a pass that no row proves.
    ///
    /// # Errors
    /// Also when the database cannot read its rows; then with the first of them that fails, if that can be found.
    async fn page(&self, page: &Page<'_>) -> Result<Vec<Row>, LedgerError> {
        match self.read_page(page).await {
            Ok(rows) => Ok(rows),
            Err(problem) => Err(self.unreadable(page.entity_id, Asked::Pass(page), problem).await),
        }
    }

    async fn read_page(&self, page: &Page<'_>) -> Result<Vec<Row>, LedgerError> {
        if let Some(after) = page.after.and_then(Cursor::xid).filter(|xid| *xid >= page.segment.from)
            && self.table.id_may_be_null
        {
            self.check_ids(page.entity_id, after).await?;
        }
        let sql = |table: &Table| table.page_sql(page);
        let (Some(standby), Some(pass_id)) = (&self.standby, page.proof_of) else {
            return self.copy(&self.primary, sql, page.rows_max, Way::InOrder).await;
        };
        let begun = Instant::now();
        loop {
            let behind = match self.copy(standby, sql, page.rows_max, Way::InOrder).await {
                Err(problem) if standby::is_behind(&problem) => problem,
                read => return read,
            };
            standby::replayed(standby, pass_id, page.target, begun, &behind).await?;
        }
    }

    /// Copies rows out, about so many; in the careful way when a value of one of them cannot be converted.
    async fn copy(
        &self,
        from: &Database,
        sql: impl Fn(&Table) -> String,
        expected: usize,
        way: Way,
    ) -> Result<Vec<Row>, LedgerError> {
        match self.copy_by(from, sql(&self.table), expected, way).await {
            Err(problem) if problem.is_about_a_value() => {
                self.copy_by(from, sql(&self.table.careful()), expected, way).await
            }
            copied => copied,
        }
    }

    /// Copies rows out, about so many, again from the beginning when the connection is lost.
    ///
    /// In a task of its own, so that a copy which has begun comes to its end even when nobody waits for it any
    /// more. One that was left halfway, or failed, leaves its connection out of step: the answer to it would be
    /// taken for that to the next statement.
    async fn copy_by(
        &self,
        from: &Database,
        sql: String,
        expected: usize,
        way: Way,
    ) -> Result<Vec<Row>, LedgerError> {
        let id_is_number = self.table.id_is_number();
        let copy = || async {
            let mut transaction = match way {
                Way::Any => from.begin_reading().await?,
                Way::InOrder => from.begin_reading_in_order().await?,
            };
            let sql = sql.clone();
            let copying = async move {
                let limit = transaction.limit();
                let mut rows = Vec::with_capacity(expected);
                let copied = copy_out(transaction.connection()?, &sql, id_is_number, &mut rows);
                within(limit, copied).await?;
                transaction.commit().await?;
                Ok(rows)
            };
            tokio::spawn(copying).await.unwrap_or(Err(LedgerError::Decode("the reader stopped")))
        };
        from.again(copy).await.map_err(|problem| self.name_missing_id(problem))
    }

    /// The same ledger, read in the careful way: no time is out of range, and any bytes are taken for a text.
    #[must_use]
    pub fn careful(&self) -> Self {
        Self { table: self.table.careful(), ..self.clone() }
    }

    fn name_missing_id(&self, problem: LedgerError) -> LedgerError {
        match problem {
            LedgerError::Decode(row::ID_IS_NULL) => self.id_is_null(),
            other => other,
        }
    }

    fn id_is_null(&self) -> LedgerError {
        LedgerError::Shape(format!(
            "the ledger {} has rows whose id is NULL, which no cursor can get past; hint: fill them, and make the column \
             NOT NULL",
            self.table.name()
        ))
    }

    /// Makes sure that no row of the cursor's transaction is without an id, where the catalogue does not.
    async fn check_ids(&self, entity_id: &str, after: watermark::Xid) -> Result<(), LedgerError> {
        let look = || {
            sqlx::query(AssertSqlSafe(self.table.without_id_sql()))
                .bind(entity_id)
                .bind(after.to_string())
                .fetch_optional(&self.primary)
        };
        let found = self.primary.again(look).await?;
        if found.is_some() { Err(self.id_is_null()) } else { Ok(()) }
    }
}

async fn copy_out(
    connection: &mut PgConnection,
    sql: &str,
    id_is_number: bool,
    rows: &mut Vec<Row>,
) -> Result<(), LedgerError> {
    let mut messages = connection.copy_out_raw(sql).await?;
    let mut decoder = Decoder::new(id_is_number);
    while let Some(message) = messages.try_next().await? {
        rows.extend(decoder.row(message)?);
    }
    Ok(())
}

fn parse_snapshot(text: &str) -> Result<Snapshot, LedgerError> {
    text.parse().map_err(|_| LedgerError::Decode("not a snapshot"))
}
