//! What PostgreSQL says when it cannot read rows, which of them it is about, and what to do.
//!
//! An error that PostgreSQL raises over the rows of an entity (a failed cast in a view, a statement timeout, a damaged
//! block) concerns that entity alone. A database that is away, or that refuses the connection, concerns all of them.

use std::collections::BTreeMap;

use sqlx::AssertSqlSafe;
use sqlx::error::DatabaseError;
use sqlx::postgres::PgDatabaseError;

use super::copy::PlanHint;
use super::statements::{Page, Probe};
use super::{Ledger, LedgerError, Progress, Range, Unreadable};
use crate::database::Transient;

/// Statements after which the search for a row ends: as many as halve a page of the largest size, and one to be sure.
const PROBES_MAX: usize = 14;

/// Of each message of PostgreSQL so many characters are kept.
const WORDS_CHARS_MAX: usize = 500;

/// When so many statements in a row have failed, what failed is not a single entity's: the rest is not halved any more.
const FAILURES_IN_A_ROW_MAX: usize = 16;

/// Classes of SQLSTATE that are about the server, the connection or the role, and not about rows: connection, invalid
/// transaction state, authorization, database, operator intervention. (57014, a cancelled statement, is about rows.)
const OF_THE_SERVER: [&str; 6] = ["08", "25", "28", "3D", "57P", "53300"];

/// A value that cannot be converted although its row can be read otherwise: a time out of range, a byte sequence that is
/// not text, and a character without an equivalent in UTF-8.
const OF_VALUES: [&str; 3] = ["22008", "22021", "22P05"];

/// Why the rows of some entities cannot be read.
pub type Unreadables = BTreeMap<String, Unreadable>;

/// A page of an entity, as it was asked for.
#[derive(Clone, Copy)]
pub(super) enum Asked<'a> {
    /// A page of a pass.
    Pass(&'a Page<'a>),
    /// A page of a range, of so many rows.
    Range(&'a Range, Option<&'a crate::watermark::Cursor>, Option<&'a crate::watermark::Cursor>, usize),
}

impl LedgerError {
    /// PostgreSQL has raised an error over rows; the database is there.
    pub fn is_about_rows(&self) -> bool {
        matches!(self, LedgerError::Unreadable(_)) || raised(self).is_some()
    }

    /// The same, said of an entity, if it is about rows.
    #[must_use]
    pub fn about(self, entity_id: &str) -> Self {
        if raised(&self).is_none() {
            return self;
        }
        let message = self.in_words_of_entity();
        LedgerError::Unreadable(Unreadable { entity_id: entity_id.to_owned(), message })
    }

    /// What to say of it where the entity is named already.
    pub fn in_words_of_entity(&self) -> String {
        self.in_words_of("this entity's rows")
    }

    /// What to say of it when it concerns the ledger as a whole.
    pub fn in_words(&self) -> String {
        self.in_words_of("the ledger's rows")
    }

    fn in_words_of(&self, what: &str) -> String {
        match (self, raised(self)) {
            (LedgerError::Unreadable(unreadable), _) => unreadable.message.clone(),
            (_, Some(raised)) => message(what, raised, None),
            (_, None) => crate::text::chain(self),
        }
    }

    /// A value could not be converted, for which there is a careful way.
    pub fn is_about_a_value(&self) -> bool {
        code(self).is_some_and(|code| OF_VALUES.contains(&code.as_str()))
    }
}

/// The error that PostgreSQL has raised over rows.
fn raised(problem: &LedgerError) -> Option<&dyn DatabaseError> {
    let LedgerError::Database(problem) = problem else { return None };
    let raised = problem.as_database_error()?;
    let of_the_server =
        raised.code().is_none_or(|code| OF_THE_SERVER.iter().any(|class| code.starts_with(class)));
    (!of_the_server && !problem.is_transient()).then_some(raised)
}

fn code(problem: &LedgerError) -> Option<String> {
    raised(problem)?.code().map(std::borrow::Cow::into_owned)
}

/// The message for a person.
fn message(what: &str, raised: &dyn DatabaseError, row: Option<&str>) -> String {
    let code = raised.code().unwrap_or_default();
    let more = raised.try_downcast_ref::<PgDatabaseError>();
    let more = more.into_iter().flat_map(|raised| [raised.detail(), raised.hint()]).flatten();
    let more = more.fold(String::new(), |text, more| text + "; " + &shown(more));
    let named = row.map(|row| format!("; row {row} is the first that fails")).unwrap_or_default();
    let hint = match row {
        Some(row) if !code.starts_with("XX") && !code.starts_with("58") => {
            format!("correct row {row} in the ledger, then `elven-sync run`")
        }
        _ => remedy(&code).to_owned(),
    };
    format!(
        "the database could not read {what}: {}{more} (SQLSTATE {code}){named}; hint: {hint}",
        shown(raised.message())
    )
}

/// What PostgreSQL says, fit for one line of a log: a value of the ledger that it quotes may be long.
fn shown(text: &str) -> String {
    let mut shown: String =
        text.chars().take(WORDS_CHARS_MAX).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.chars().nth(WORDS_CHARS_MAX).is_some() {
        shown.push_str("...");
    }
    shown
}

fn remedy(code: &str) -> &'static str {
    match code {
        "42501" => {
            "grant the role of elven-sync what it needs to read all rows of the ledger, then `elven-sync run`"
        }
        "57014" => {
            "if statement_timeout is too short for a page, `alter role current_user set statement_timeout = '5min'`; \
             then `elven-sync run`"
        }
        code if code.starts_with("XX") || code.starts_with("58") => {
            "find the damage with `pg_amcheck`, restore the table from a backup or a standby, then `elven-sync run`"
        }
        code if code.starts_with("53") || code.starts_with("54") || code.starts_with("55") => {
            "the next `elven-sync run` reads again from where the entity stopped"
        }
        _ => "correct the rows, or what the view makes of them, then `elven-sync run`",
    }
}

/// Whether a row can be found that it is about: not when it is the time, a lock, a resource or a right that is missing.
fn is_about_one_row(code: &str) -> bool {
    !(code.starts_with("53") || code.starts_with("55") || matches!(code, "57014" | "42501"))
}

impl Ledger {
    /// Says what is wrong with a page, and which row of it that is about, where a few statements find it.
    pub(super) async fn unreadable(
        &self,
        entity_id: &str,
        asked: Asked<'_>,
        problem: LedgerError,
    ) -> LedgerError {
        let Some(code) = code(&problem) else { return problem };
        let row =
            if is_about_one_row(&code) { self.first_failing(entity_id, asked, &code).await } else { None };
        match raised(&problem) {
            Some(raised) => {
                let message = message("this entity's rows", raised, row.as_deref());
                LedgerError::Unreadable(Unreadable { entity_id: entity_id.to_owned(), message })
            }
            None => problem,
        }
    }

    /// The first row of a page whose values raise an error: the ids of the page are read without the values, and the list
    /// of them is halved. `None` when not even the ids can be read, or when the row was corrected meanwhile.
    async fn first_failing(&self, entity_id: &str, asked: Asked<'_>, code: &str) -> Option<String> {
        let careful = self.table.careful();
        let sql = match asked {
            Asked::Pass(page) => careful.ids_sql(&Page { proof_of: None, ..*page }),
            Asked::Range(range, after, until, rows_max) => {
                careful.range_ids_sql(range, after, until, rows_max)
            }
        };
        let ids: Vec<String> =
            sqlx::query_scalar(AssertSqlSafe(sql)).fetch_all(self.primary.single_round_trip()).await.ok()?;
        let probe = match asked {
            Asked::Pass(page) => Probe::Pass(page.entity_id, page.segment),
            Asked::Range(range, ..) => Probe::Range(range),
        };
        let mut suspects = &ids[..];
        for _ in 0..PROBES_MAX {
            let (first, rest) = suspects.split_at(suspects.len().div_ceil(2));
            let sql = |table: &super::Table| table.probed_sql(probe, first);
            let fails = match self.copy(&self.primary, sql, first.len(), PlanHint::Any).await {
                Ok(_) => false,
                Err(problem) if self::code(&problem).as_deref() == Some(code) => true,
                Err(problem) => {
                    let error = crate::text::chain(&problem);
                    tracing::debug!(entity_id, error, "the row that fails could not be looked for");
                    return None;
                }
            };
            match (fails, first) {
                (true, [id]) => return Some(id.clone()),
                (true, _) => suspects = first,
                (false, _) if rest.is_empty() => return None,
                (false, _) => suspects = rest,
            }
        }
        None
    }
}

/// Entities of which something is asked in parts, since it failed for all of them in one statement: halves, and halves of
/// those that fail, down to the entities whose rows cannot be read.
pub(super) struct Parts<'l, L> {
    unasked: Vec<&'l [L]>,
    failures: usize,
    unreadable: Unreadables,
}

/// What something is asked of.
pub(super) trait OfEntity {
    /// Its entity.
    fn entity_id(&self) -> &str;
}

impl OfEntity for Progress {
    fn entity_id(&self) -> &str {
        &self.entity_id
    }
}

impl OfEntity for &Progress {
    fn entity_id(&self) -> &str {
        &self.entity_id
    }
}

impl OfEntity for Range {
    fn entity_id(&self) -> &str {
        &self.entity_id
    }
}

impl<'l, L: OfEntity> Parts<'l, L> {
    pub(super) fn of(lanes: &'l [L]) -> Self {
        Self { unasked: vec![lanes], failures: 0, unreadable: Unreadables::new() }
    }

    /// The next part to ask about.
    pub(super) fn next(&mut self) -> Option<&'l [L]> {
        self.unasked.pop()
    }

    /// Takes in what came of a part.
    ///
    /// # Errors
    /// What is not about rows, and so about all of them.
    pub(super) fn took<T>(
        &mut self,
        part: &'l [L],
        answer: Result<T, LedgerError>,
    ) -> Result<Option<T>, LedgerError> {
        let problem = match answer {
            Ok(answer) => {
                self.failures = 0;
                return Ok(Some(answer));
            }
            Err(problem) if problem.is_about_rows() => problem,
            Err(problem) => return Err(problem),
        };
        self.failures += 1;
        if part.len() > 1 && self.failures <= FAILURES_IN_A_ROW_MAX {
            let (first, second) = part.split_at(part.len() / 2);
            self.unasked.extend([second, first]);
            return Ok(None);
        }
        let message = problem.in_words_of_entity();
        for lane in part {
            let entity_id = lane.entity_id().to_owned();
            let unreadable = Unreadable { entity_id: entity_id.clone(), message: message.clone() };
            self.unreadable.insert(entity_id, unreadable);
        }
        Ok(None)
    }

    /// Those whose rows cannot be read.
    pub(super) fn unreadable(self) -> Unreadables {
        self.unreadable
    }
}
