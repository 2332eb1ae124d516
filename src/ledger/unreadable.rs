//! Explains errors that PostgreSQL raises when it reads rows: which row failed, and what to do.
//!
//! An error over the rows of an entity (a failed cast in a view, a statement timeout, a damaged block) concerns that
//! entity alone. A database that is unreachable or refuses the connection concerns all entities.

use std::collections::BTreeMap;

use sqlx::AssertSqlSafe;
use sqlx::error::DatabaseError;
use sqlx::postgres::PgDatabaseError;

use super::copy::PlanHint;
use super::statements::{Page, Probe};
use super::{Ledger, LedgerError, Progress, Range, Unreadable};
use crate::database::Transient;

/// The maximum number of statements that search for a row: enough to bisect the largest page, and one more.
const PROBES_MAX: usize = 14;

/// The maximum number of characters that are kept of each message of PostgreSQL.
const WORDS_CHARS_MAX: usize = 500;

/// After this many consecutive failures the cause is not a single entity, and the remaining parts are not halved any
/// more.
const FAILURES_IN_A_ROW_MAX: usize = 16;

/// Classes of SQLSTATE about the server, the connection or the role, and not about rows: connection, invalid
/// transaction state, authorization, database, operator intervention. (57014, a cancelled statement, is about rows.)
const OF_THE_SERVER: [&str; 6] = ["08", "25", "28", "3D", "57P", "53300"];

/// SQLSTATEs of a value that cannot be converted although the rest of its row can be read: a time out of range, a byte
/// sequence that is not text, a character without an equivalent in UTF-8.
const OF_VALUES: [&str; 3] = ["22008", "22021", "22P05"];

/// The entities whose rows cannot be read, with the reason.
pub type Unreadables = BTreeMap<String, Unreadable>;

/// The page that was requested when an error occurred.
#[derive(Clone, Copy)]
pub(super) enum Asked<'a> {
    /// A page of a pass.
    Pass(&'a Page<'a>),
    /// A page of a range: its cursors `after` and `until`, and its maximum number of rows.
    Range(&'a Range, Option<&'a crate::watermark::Cursor>, Option<&'a crate::watermark::Cursor>, usize),
}

impl LedgerError {
    /// Returns whether PostgreSQL raised an error over rows; then the database can be reached.
    pub fn is_about_rows(&self) -> bool {
        matches!(self, LedgerError::Unreadable(_)) || raised(self).is_some()
    }

    /// Turns an error over rows into an error of the entity; returns other errors unchanged.
    #[must_use]
    pub fn about(self, entity_id: &str) -> Self {
        if raised(&self).is_none() {
            return self;
        }
        let message = self.in_words_of_entity();
        LedgerError::Unreadable(Unreadable { entity_id: entity_id.to_owned(), message })
    }

    /// Returns the message for a place where the entity is already named.
    pub fn in_words_of_entity(&self) -> String {
        self.in_words_of("this entity's rows")
    }

    /// Returns the message for an error that concerns the whole ledger.
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

    /// Returns whether a value could not be converted, so that a careful read ([`Ledger::careful`]) may succeed.
    pub fn is_about_a_value(&self) -> bool {
        code(self).is_some_and(|code| OF_VALUES.contains(&code.as_str()))
    }
}

/// Returns the error that PostgreSQL raised over rows, if it is one.
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

/// Returns the message for the operator.
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

/// Returns a message of PostgreSQL as one line of a log: cut, because it may quote a long value of the ledger.
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
            "grant the role of elven-sync the privileges to read all rows of the ledger, then `elven-sync run`"
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
        _ => "correct the rows or the view, then `elven-sync run`",
    }
}

/// Returns whether an error is about one row, and not about a time limit, a lock, a resource or a missing privilege.
fn is_about_one_row(code: &str) -> bool {
    !(code.starts_with("53") || code.starts_with("55") || matches!(code, "57014" | "42501"))
}

impl Ledger {
    /// Explains why a page cannot be read, and names the first failing row where a few statements find it.
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

    /// Returns the id of the first row of a page whose values raise an error: reads the ids of the page without the
    /// values, then bisects the list. `None` when the ids cannot be read either, or when the row was corrected in the
    /// meantime.
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
                    tracing::debug!(entity_id, error, "the search for the failing row failed");
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

/// Items, such as entities, for which one statement failed, so that they are queried in parts: halves, and halves of
/// failed halves, down to the items whose rows cannot be read.
pub(super) struct Parts<'l, L> {
    unasked: Vec<&'l [L]>,
    failures: usize,
    failed: Vec<(&'l L, String)>,
}

/// Something that belongs to an entity.
pub(super) trait OfEntity {
    /// Returns the entity.
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

impl<'l, L> Parts<'l, L> {
    pub(super) fn of(items: &'l [L]) -> Self {
        Self { unasked: vec![items], failures: 0, failed: Vec::new() }
    }

    /// Returns the next part to query.
    pub(super) fn next(&mut self) -> Option<&'l [L]> {
        self.unasked.pop()
    }

    /// Records the result of a part, and halves the part if it failed.
    ///
    /// # Errors
    /// Errors that are not about rows, and so concern all items.
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
        self.failed.extend(part.iter().map(|item| (item, message.clone())));
        Ok(None)
    }

    /// Returns the items whose rows cannot be read, with the reason.
    pub(super) fn failed(self) -> Vec<(&'l L, String)> {
        self.failed
    }
}

impl<L: OfEntity> Parts<'_, L> {
    /// Returns the entities whose rows cannot be read.
    pub(super) fn unreadable(self) -> Unreadables {
        let unreadable = self.failed.into_iter().map(|(lane, message)| {
            let entity_id = lane.entity_id().to_owned();
            (entity_id.clone(), Unreadable { entity_id, message })
        });
        unreadable.collect()
    }
}
