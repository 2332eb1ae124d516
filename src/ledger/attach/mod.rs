//! `attach`: prepares an existing table, so that it can carry a watermark.
//!
//! It adds a column with the id of the writing transaction, a trigger that fills it even if the writer sets a value,
//! and the one index that a run needs. The plan is the text of the statements, so that a dry run prints exactly what
//! is executed.

mod facts;
mod names;

use std::time::Duration;

use sqlx::{AssertSqlSafe, PgConnection};

use self::facts::{Facts, Index, Relation};
use self::names::{BACKFILL, NAME_BYTES_MAX, index_called, stamp_called};
pub(super) use self::names::{STAMP_PREFIX, body};
use super::LedgerError;
use super::beneath::BENEATH;
use super::quoting::quote_identifier;
use crate::config::LedgerSettings;
use crate::database::Database;

/// Settings for the preparation of a table.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The longest wait for the exclusive lock on the table. Other sessions that want the table queue behind this
    /// wait.
    pub lock_timeout: Duration,
    /// Create the index for backfills, too.
    pub backfill_index: bool,
}

/// One statement, or several in one transaction.
#[derive(Debug)]
pub struct Step {
    /// What the step does.
    pub why: String,
    /// The SQL text that is executed.
    pub sql: String,
}

impl Step {
    /// Returns whether the step creates, drops or attaches an index.
    pub fn is_of_index(&self) -> bool {
        let words = ["create index", "drop index", "alter index"];
        self.sql.lines().any(|statement| words.iter().any(|words| statement.starts_with(words)))
    }
}

/// The steps that prepare a table, and what to know before.
#[derive(Debug, Default)]
pub struct Plan {
    /// Effects that break something that works now.
    pub breaks: Vec<String>,
    /// Effects that are worth knowing.
    pub notes: Vec<String>,
    /// The steps in order. Empty: everything is done.
    pub steps: Vec<Step>,
}

/// Plans the steps that are still missing.
pub async fn plan(
    database: &Database,
    settings: &LedgerSettings,
    wanted: &Wanted,
) -> Result<Plan, LedgerError> {
    let facts = Facts::gather(database, settings).await?;
    let mut plan = Plan::default();
    stamp(&facts, wanted, &mut plan);
    index(&facts, &facts.run_index, "", wanted, &mut plan);
    if wanted.backfill_index {
        if facts.backfill_index.is_empty() {
            return Err(LedgerError::Shape(format!(
                "{} has no column for captured_at, which the index for backfills needs; hint: set it under \
                 [ledger.columns]",
                settings.table
            )));
        }
        index(&facts, &facts.backfill_index, BACKFILL, wanted, &mut plan);
    }
    if !plan.steps.is_empty() {
        plan.steps.push(Step {
            why: "collect planner statistics for the new column".to_owned(),
            sql: format!("analyze {};", facts.root().name()),
        });
    }
    if plan.steps.iter().any(|step| step.sql.contains("concurrently")) {
        plan.notes.push(
            "an index build can take long: attach uses a separate connection without time limits; in psql, run \
             `set statement_timeout = 0; set lock_timeout = 0;` first"
                .to_owned(),
        );
    }
    Ok(plan)
}

/// Plans the steps that remove everything that `attach` created.
pub async fn plan_undo(
    database: &Database,
    settings: &LedgerSettings,
    wanted: &Wanted,
) -> Result<Plan, LedgerError> {
    let facts = Facts::gather(database, settings).await?;
    let mut plan = Plan::default();
    let table = facts.root().name();
    let mut sql = Vec::new();
    for trigger in facts.triggers.iter().filter(|trigger| trigger.relation == facts.root().oid) {
        sql.push(format!("drop trigger {} on {table}", quote_identifier(&trigger.name)));
        if trigger.function_is_ours_alone {
            sql.push(format!("drop function {}()", trigger.function));
        }
    }
    if facts.stamp.is_some() {
        sql.push(format!("alter table {table} drop column {}", quote_identifier(&facts.stamp_name)));
        plan.notes.push(
            "dropping the column drops its index; after a later attach, all rows count as new and are uploaded again"
                .to_owned(),
        );
    }
    let made = |index: &&Index| {
        let name = index.name.replace('"', "");
        let backfill = index_called(&facts.root().table, BACKFILL);
        index.relation == facts.root().oid
            && (name.ends_with(&backfill)
                || name.ends_with(&format!("elven_sync_{}{BACKFILL}", facts.root().oid)))
    };
    if let Some(index) = facts.indexes.iter().find(made) {
        sql.push(format!("drop index {}", index.name));
    }
    if !sql.is_empty() {
        plan.steps.push(Step {
            why: format!("drop the trigger and column of {table}"),
            sql: transaction(&sql, wanted.lock_timeout),
        });
    }
    Ok(plan)
}

/// Plans column and trigger in one transaction, so that neither ever exists without the other.
fn stamp(facts: &Facts, wanted: &Wanted, plan: &mut Plan) {
    let root = facts.root();
    let (table, name, column) = (root.name(), &facts.stamp_name, &facts.stamp);
    let quoted = quote_identifier(name);
    let mut sql = Vec::new();
    match column {
        None => {
            look_before_adding(facts, plan);
            sql.push(format!(
                "alter table {table} add column {quoted} xid8 not null default pg_catalog.pg_current_xact_id()"
            ));
            sql.push(format!(
                "comment on column {table}.{quoted} is 'The transaction that wrote this version of the row. Set by a \
                 trigger for elven-sync; never write it yourself.'"
            ));
        }
        Some(column) if column.may_be_null => plan.notes.push(format!(
            "{quoted} may be NULL; elven-sync refuses an entity with such rows until an update stamps them"
        )),
        Some(_) => {}
    }
    if facts.trigger(root).is_none() {
        if column.is_some() {
            plan.notes.push(format!(
                "{quoted} existed without a trigger that fills it, so rows may have any value, and a run skips rows \
                 with an old one. Stamp all rows: update {table} set {quoted} = default"
            ));
        }
        let called = stamp_called(name);
        let function = format!("{}.{}", quote_identifier(&root.schema), quote_identifier(&called));
        let trigger = quote_identifier(&called);
        sql.push(format!(
            "create or replace function {function}() returns trigger language plpgsql as $elven_sync$\n{}\n$elven_sync$",
            body(name)
        ));
        sql.push(format!("drop trigger if exists {trigger} on {table}"));
        sql.push(format!(
            "create trigger {trigger} before insert or update on {table} for each row execute function {function}()"
        ));
        // ALWAYS: fires in replication sessions too.
        sql.push(format!("alter table {table} enable always trigger {trigger}"));
    }
    for relation in &facts.relations {
        if let Some(trigger) = facts.trigger(relation).filter(|trigger| !trigger.enabled_always) {
            plan.notes.push(format!(
                "the trigger of {} was disabled or not ALWAYS: rows that were written meanwhile were not stamped, so \
                 no run reads them. Next: elven-sync run, then elven-sync verify, which names these rows and the \
                 statement that stamps them",
                relation.name()
            ));
            sql.push(format!(
                "alter table {} enable always trigger {}",
                relation.name(),
                quote_identifier(&trigger.name)
            ));
        }
    }
    if !sql.is_empty() {
        plan.steps.push(Step {
            why: format!(
                "add the stamp to {table}; rows are not rewritten, the table is locked for a moment after a wait of \
                 {:?} at most",
                wanted.lock_timeout
            ),
            sql: transaction(&sql, wanted.lock_timeout),
        });
    }
}

/// Notes what an additional column means for other users of the table.
fn look_before_adding(facts: &Facts, plan: &mut Plan) {
    let root = facts.root();
    let (table, name) = (root.name(), quote_identifier(&facts.stamp_name));
    for publication in &facts.publications {
        plan.breaks.push(format!(
            "publication {} contains the table: its subscribers stop at the first row with {name}, unless \
             their tables have that column before (alter table ... add column {name} xid8)",
            quote_identifier(publication)
        ));
    }
    plan.notes.push(format!(
        "COPY into {table} without a list of columns, INSERT ... SELECT * from it, and SQL functions that return its \
         row type see one more column: list the columns there"
    ));
    if facts.relations.iter().any(|relation| relation.row_security) {
        plan.notes.push(format!(
            "row-level security is on for {table}: the role of elven-sync has to own the table or have BYPASSRLS, \
             because it treats a policy that hides rows as an error"
        ));
    }
    if facts.relations.iter().any(|relation| relation.persistence == "u") {
        plan.notes.push(format!("{table} is unlogged: a crash empties it, and a standby never has it"));
    }
}

/// Plans the index, built without blocking writers: on a partitioned table partition by partition, because PostgreSQL
/// refuses `CONCURRENTLY` on the whole (manual, "CREATE INDEX").
fn index(facts: &Facts, keys: &[String], suffix: &str, wanted: &Wanted, plan: &mut Plan) {
    let in_parts = facts.root().is_partitioned();
    let list = keys.join(", ");
    // The parts of a partitioned index must be alike; elsewhere an index that begins with these columns is enough.
    let serves = |index: &&Index| {
        if in_parts { index.is_plain && index.keys == keys } else { index.keys.starts_with(keys) }
    };
    let find = |relation: &Relation| {
        let mut found = facts.indexes.iter().filter(|index| index.relation == relation.oid).filter(serves);
        found.clone().find(|index| index.is_valid).or_else(|| found.next())
    };
    if find(facts.root()).is_some_and(|index| index.is_valid) {
        return;
    }
    let new_name = |relation: &Relation| quote_identifier(&index_name(facts, relation, suffix));
    let mut attach = Vec::new();
    for relation in &facts.relations {
        let found = find(relation);
        let name = match found {
            Some(index) if relation.is_partitioned() || index.is_valid => index.name.clone(),
            _ => format!("{}.{}", quote_identifier(&relation.schema), new_name(relation)),
        };
        match found {
            Some(_) if relation.is_partitioned() => {}
            Some(index) if index.is_valid => {}
            None if relation.is_partitioned() => plan.steps.push(Step {
                why: format!("create the parent of the partition indexes of {}", relation.name()),
                sql: transaction(
                    &[format!("create index {} on only {} ({list})", new_name(relation), relation.name())],
                    wanted.lock_timeout,
                ),
            }),
            _ => {
                if let Some(broken) = found {
                    plan.steps.push(Step {
                        why: "drop the broken index of a failed attempt".to_owned(),
                        sql: format!("drop index concurrently {};", broken.name),
                    });
                }
                plan.steps.push(Step {
                    why: format!("create the index of {}; writers are not blocked", relation.name()),
                    sql: format!(
                        "create index concurrently {} on {} ({list});",
                        new_name(relation),
                        relation.name()
                    ),
                });
            }
        }
        let parent = relation.parent.and_then(|parent| facts.relations.iter().find(|r| r.oid == parent));
        if let Some(parent) = parent.filter(|_| relation.is_partition && relation.oid != facts.root().oid) {
            let (within, is_attached) = match find(parent) {
                Some(index) => (index.name.clone(), found.is_some_and(|part| part.parent == Some(index.oid))),
                None => (format!("{}.{}", quote_identifier(&parent.schema), new_name(parent)), false),
            };
            if !is_attached {
                attach.push(format!("alter index {within} attach partition {name}"));
            }
        }
    }
    if !attach.is_empty() {
        plan.steps.push(Step {
            why: format!("attach the partition indexes to the index of {}", facts.root().name()),
            sql: transaction(&attach, wanted.lock_timeout),
        });
    }
}

/// Returns `<table>_elven_sync`, or a name with the table's oid where that is too long or taken.
fn index_name(facts: &Facts, relation: &Relation, suffix: &str) -> String {
    let name = index_called(&relation.table, suffix);
    let is_taken = facts.taken.iter().any(|(schema, taken)| *schema == relation.schema && *taken == name);
    if name.len() <= NAME_BYTES_MAX && !is_taken {
        name
    } else {
        format!("elven_sync_{}{suffix}", relation.oid)
    }
}

/// Returns the text of a transaction that fails after the lock timeout instead of blocking other sessions.
fn transaction(statements: &[String], lock_timeout: Duration) -> String {
    let mut sql = format!("begin;\nset local lock_timeout = '{}ms';\n", lock_timeout.as_millis());
    for statement in statements {
        sql.push_str(statement);
        sql.push_str(";\n");
    }
    sql.push_str("commit;");
    sql
}

/// Executes one step. A transaction that fails leaves nothing behind. An index build that fails leaves a broken index,
/// which is dropped when the step is repeated.
pub async fn take(connection: &mut PgConnection, step: &Step) -> Result<(), LedgerError> {
    let taken = sqlx::raw_sql(AssertSqlSafe(step.sql.clone())).execute(&mut *connection).await;
    let Err(problem) = taken else { return Ok(()) };
    // The result does not matter: the connection is not used any more.
    let _ = sqlx::raw_sql("rollback").execute(&mut *connection).await;
    Err(problem.into())
}

/// Returns the sessions that hold locks on the table, so that it could not be locked.
pub async fn holders(database: &Database, settings: &LedgerSettings) -> Result<Vec<String>, LedgerError> {
    let (schema, table) =
        settings.schema_and_table().map_err(|problem| LedgerError::Shape(problem.to_string()))?;
    let name = format!("{}.{}", quote_identifier(&schema), quote_identifier(&table));
    let sql = format!(
        "with recursive {BENEATH}
         select coalesce('pid ' || l.pid, 'a prepared transaction')
                || coalesce(', user ' || a.usename, '') || coalesce(', ' || nullif(a.application_name, ''), '')
                || coalesce(', ' || a.state, '') || coalesce(', since ' || date_trunc('second', a.xact_start), '')
           from pg_catalog.pg_locks l left join pg_catalog.pg_stat_activity a on a.pid = l.pid
          where l.relation in (select oid from beneath) and l.granted and l.pid is distinct from pg_backend_pid()
            and l.database = (select oid from pg_catalog.pg_database where datname = current_database())
          group by l.pid, a.usename, a.application_name, a.state, a.xact_start order by a.xact_start limit 5"
    );
    Ok(sqlx::query_scalar(AssertSqlSafe(sql)).bind(name).fetch_all(database).await?)
}
