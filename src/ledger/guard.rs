//! The guard check: is the trigger that stamps `change_xid` intact on each table of the ledger? The watermark depends
//! on it, because a row with an old `change_xid` is behind the watermark and is never read.

use std::fmt;

use serde::Serialize;
use sqlx::AssertSqlSafe;

use super::attach::{STAMP_PREFIX, body};
use super::beneath::BENEATH;
use super::{Ledger, LedgerError, quote_literal};

/// A message names at most this many tables.
const TABLES_NAMED_MAX: usize = 3;

/// The result of the guard check.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Guard {
    /// How many tables and partitions were checked. Behind a view, these are the tables from which it takes columns of
    /// type `xid8`; 0: it takes none, so that nothing can be said about its rows.
    pub tables: i64,
    /// The tables and partitions on which the trigger is not intact, by name.
    pub broken: Vec<BrokenGuard>,
    /// No transaction from this one on had begun when the triggers were checked.
    pub next_xid: u64,
}

/// A table on which the trigger is not intact, so that rows may be written without a new `change_xid`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BrokenGuard {
    /// The table or partition, qualified, and quoted where necessary.
    pub table: String,
    /// What is wrong.
    pub fault: GuardFault,
    /// The trigger that is wrong, if there is one.
    pub trigger: Option<String>,
}

/// What is wrong with the trigger of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum GuardFault {
    /// There is no trigger.
    Missing,
    /// It is disabled.
    Disabled,
    /// It is not `ENABLE ALWAYS`, so that it does not fire in sessions of replication.
    NotAlways,
    /// It fires not before each insert and update: it has a condition, a list of columns, or another event or time.
    NotEachWrite,
    /// The body of its function is not the one that elven-sync creates.
    OtherBody,
    /// Another trigger fires after it and names the column.
    SetLater,
}

impl GuardFault {
    fn of(word: &str) -> Option<Self> {
        Some(match word {
            "missing" => Self::Missing,
            "disabled" => Self::Disabled,
            "not_always" => Self::NotAlways,
            "not_each_write" => Self::NotEachWrite,
            "other_body" => Self::OtherBody,
            "set_later" => Self::SetLater,
            _ => return None,
        })
    }
}

impl fmt::Display for BrokenGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { table, fault, trigger } = self;
        let trigger = trigger.as_deref().unwrap_or("change_xid");
        match fault {
            GuardFault::Missing => write!(f, "{table} has no trigger that sets change_xid"),
            GuardFault::Disabled => write!(f, "trigger {trigger} of {table} is disabled"),
            GuardFault::NotAlways => write!(f, "trigger {trigger} of {table} is not enabled ALWAYS"),
            GuardFault::NotEachWrite => {
                write!(f, "trigger {trigger} of {table} does not fire before each insert and update")
            }
            GuardFault::OtherBody => {
                write!(f, "trigger {trigger} of {table} runs a function that is not elven-sync's")
            }
            GuardFault::SetLater => {
                write!(f, "trigger {trigger} of {table} fires after elven-sync's and names the same column")
            }
        }
    }
}

impl Guard {
    /// Returns whether every table that was checked has the trigger.
    pub fn is_intact(&self) -> bool {
        self.broken.is_empty()
    }

    /// Returns what is wrong in one sentence that names the first tables. `None`: nothing is wrong.
    pub fn problem(&self) -> Option<String> {
        if self.broken.is_empty() {
            return None;
        }
        let named: Vec<String> = self.broken.iter().take(TABLES_NAMED_MAX).map(ToString::to_string).collect();
        let more = self.broken.len().saturating_sub(TABLES_NAMED_MAX);
        let more = if more > 0 { format!("; and {more} more tables") } else { String::new() };
        Some(format!("rows of the ledger may be skipped: {}{more}", named.join("; ")))
    }

    /// Returns the next step where something is wrong.
    pub fn hint(&self) -> &'static str {
        if self.broken.iter().any(|broken| broken.fault == GuardFault::SetLater) {
            return "let the other trigger leave change_xid alone, or give it a name that comes first: triggers fire \
                    in the order of their names";
        }
        "elven-sync attach, which also says how to repair rows that were written without it"
    }
}

/// The number of tables, the next transaction, and for a broken table: its name, the fault, and the trigger.
type GuardRow = (i64, String, Option<String>, Option<String>, Option<String>);

impl Ledger {
    /// Checks the trigger on each table of the ledger, partitions included, because their triggers are the ones that
    /// fire: it has to exist, be enabled `ALWAYS`, and run our function. One statement.
    pub async fn guard(&self) -> Result<Guard, LedgerError> {
        let name = quote_literal(self.table.name());
        let column = self.table.stamp_name();
        let sql = guard_sql().replace("$1", &name).replace("$2", &quote_literal(column));
        let query = || sqlx::query_as(AssertSqlSafe(sql.clone())).fetch_all(self.primary.single_round_trip());
        let rows: Vec<GuardRow> = self.primary.retry(query).await?;
        let mut guard = Guard::default();
        for (tables, next_xid, table, fault, trigger) in rows {
            guard.tables = tables;
            guard.next_xid = next_xid.parse().map_err(|_| LedgerError::Decode("not a transaction id"))?;
            if let (Some(table), Some(fault)) = (table, fault) {
                let fault = GuardFault::of(&fault).ok_or(LedgerError::Decode("not a fault of a trigger"))?;
                guard.broken.push(BrokenGuard { table, fault, trigger });
            }
        }
        Ok(guard)
    }
}

/// Returns the statement. `$1` is the relation, `$2` the name of its stamp column; a view may take the column from
/// tables in which it has another name.
fn guard_sql() -> String {
    // Two sources are equal if their words are. A function of the user's may leave out `pg_catalog.`.
    let words = |sql: &str| {
        let bare = format!("lower(replace(replace({sql}, '\"', ''), 'pg_catalog.', ''))");
        format!("btrim(regexp_replace({bare}, '[[:space:]]+', ' ', 'g'))")
    };
    // `body` of a name that stands for each column.
    let expected = format!("replace({}, '<column>', g.stamp)", quote_literal(&body("<column>")));
    let (source, expected) = (words("p.prosrc"), words(&expected));
    // What sets the column, or the whole row: an assignment, `select ... into`, or the return of the old row, which only
    // a trigger for deletes may do (tgtype: 8).
    let stamp = "regexp_replace(lower(g.stamp), '([^a-z0-9_])', '\\\\\\1', 'g')";
    let sets = format!(
        "({source} ~ replace(
                 '\\m<stamp> ?:=|(^|;|\\m(begin|then|else|loop)) ?<stamp> ?=|'
                 '\\minto (strict )?<stamp>\\M', '<stamp>', 'new ?[.] ?' || {stamp})
             or {source} ~ '\\mnew ?:=|\\minto (strict )?new ?([^. ]|$)'
             or (t.tgtype & 8) = 0 and {source} ~ '\\mreturn old\\M')"
    );
    let called = format!("('{STAMP_PREFIX}' || g.stamp)::pg_catalog.name");
    // tgtype: 1 for each row, 2 before, 4 insert, 16 update (src/include/catalog/pg_trigger.h).
    format!(
        "with recursive {BENEATH},
         guarded (oid, stamp) as (
             (select c.oid, $2::text from pg_catalog.pg_class c
               where c.oid = $1::pg_catalog.regclass and c.relkind in ('r', 'p')
              union
              select a.attrelid, a.attname::text from beneath b
                join pg_catalog.pg_class v on v.oid = b.oid and v.relkind = 'v'
                join pg_catalog.pg_rewrite r on r.ev_class = v.oid
                join pg_catalog.pg_depend d on d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass
                 and d.objid = r.oid and d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass
                join pg_catalog.pg_class c on c.oid = d.refobjid and c.relkind in ('r', 'p')
                join pg_catalog.pg_attribute a on a.attrelid = d.refobjid and a.attnum = d.refobjsubid
                join pg_catalog.pg_type y on y.oid = a.atttypid
               where 'pg_catalog.xid8'::pg_catalog.regtype in (y.oid, y.typbasetype))
             union
             select i.inhrelid, g.stamp from guarded g join pg_catalog.pg_inherits i on i.inhparent = g.oid),
         triggers as (
             select g.oid, t.tgname, t.tgenabled,
                    {source} = {expected} as is_ours,
                    t.tgtype = 23 and t.tgqual is null and t.tgattr::text = '' as fires_always,
                    (t.tgtype & 3) = 3 and (t.tgtype & 20) <> 0 as is_before,
                    t.tgname = {called} or {sets} as names_column
               from guarded g join pg_catalog.pg_trigger t on t.tgrelid = g.oid
               join pg_catalog.pg_proc p on p.oid = t.tgfoid),
         faults (oid, tgname, fault, rank) as (
             select oid, tgname, null, 2 from triggers where is_ours and fires_always and tgenabled = 'A'
             union all
             select later.oid, later.tgname, 'set_later', 1 from triggers later join triggers ours using (oid)
              where ours.is_ours and ours.fires_always and ours.tgenabled = 'A' and later.tgname > ours.tgname
                and not later.is_ours and later.is_before and later.names_column and later.tgenabled <> 'D'
             union all
             select oid, tgname, case tgenabled when 'D' then 'disabled' else 'not_always' end, 3
               from triggers where is_ours and fires_always and tgenabled <> 'A'
             union all
             select oid, tgname, 'not_each_write', 4 from triggers where is_ours and not fires_always
             union all
             select oid, tgname, 'other_body', 5 from triggers where not is_ours and is_before and names_column
             union all
             select oid, null, 'missing', 6 from guarded)
         select (select count(*) from guarded), one.next_xid, broken.name, broken.fault, broken.trigger
           from (select pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot())::text as next_xid) one left join (
                select pg_catalog.format('%I.%I', n.nspname, c.relname) as name, f.fault,
                       pg_catalog.quote_ident(f.tgname::text) as trigger
                  from (select distinct on (oid) * from faults order by oid, rank, tgname) f
                  join pg_catalog.pg_class c on c.oid = f.oid join pg_catalog.pg_namespace n on n.oid = c.relnamespace
                 where f.fault is not null) broken on true
          order by broken.name"
    )
}
