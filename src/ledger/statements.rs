//! The text of the statements that read the ledger. It is built at run time, because the names of the table and its
//! columns differ between installations.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::row::{COLUMNS, LISTED_COLUMNS};
use super::table::{in_byte_order, is_text};
use super::{Range, Table, quote_array, quote_literal};
use crate::watermark::{At, Cursor, RUNNING_MAX, Segment, Snapshot, Xid};

/// How far from a row its rivals may lie, in microseconds: 26 hours.
const AROUND_US: u64 = 26 * 60 * 60 * 1_000_000;

/// The Unix time of 2000-01-01 UTC, in seconds.
const POSTGRES_EPOCH_S: i64 = 946_684_800;

/// The progress of an entity, as far as the ledger's statements need it.
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
    /// What of its open pass is done beyond the cursor.
    pub done: Vec<DoneInterval>,
}

/// An interval of an open pass whose rows are done, although the cursor has not passed them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DoneInterval {
    /// The last row before it. `None`: it begins with the pass.
    pub before: Option<Cursor>,
    /// Its last row.
    pub last: Cursor,
    /// The ids of the rows that are done. `None`: all rows of the interval.
    pub ids: Option<Vec<String>>,
}

/// The rows of a page: rows of an entity in a segment and in `target`, after `after`, up to and including `until`; the
/// first `rows_max` of them, and the rows that tie with the last one.
#[derive(Clone, Copy)]
pub(super) struct Page<'a> {
    pub(super) entity_id: &'a str,
    pub(super) target: &'a Snapshot,
    pub(super) segment: Segment,
    pub(super) after: Option<&'a Cursor>,
    pub(super) until: Option<&'a Cursor>,
    pub(super) rows_max: usize,
    /// The pass whose row the statement must see; set only for a standby.
    pub(super) proof_of: Option<i64>,
}

/// The common condition of the rows whose values are read separately to find a failing row.
#[derive(Clone, Copy)]
pub(super) enum Probe<'a> {
    /// Rows of an entity in a segment.
    Pass(&'a str, Segment),
    /// Rows of a range.
    Range(&'a Range),
}

impl Table {
    /// Returns the copy of one page.
    pub(super) fn page_sql(&self, page: &Page<'_>) -> String {
        format!("copy {} to stdout (format binary)", self.rows_sql(page, &self.columns, COLUMNS))
    }

    /// Returns the query for the rows of a page: the number of the page (`place`) and the id of each row.
    pub(super) fn listed_sql(&self, page: &Page<'_>, place: usize) -> String {
        let id_type = if self.id_is_number() { "bigint" } else { "text" };
        self.rows_sql(page, &format!("{place}::integer, {}::{id_type}", self.id), LISTED_COLUMNS)
    }

    /// Returns the query for the ids of the rows of a page, in order.
    pub(super) fn ids_sql(&self, page: &Page<'_>) -> String {
        format!("select p.id from {} p (id)", self.rows_sql(page, &format!("{}::text", self.id), 1))
    }

    /// Returns the copy of rows with given ids.
    pub(super) fn probed_sql(&self, probe: Probe<'_>, ids: &[String]) -> String {
        let Self { name, entity, xid, id, id_type, columns, .. } = self;
        let filter = match probe {
            Probe::Pass(entity_id, Segment { from, until }) => format!(
                "{entity} = {} and {xid} >= '{from}'::xid8 and {xid} < '{until}'::xid8",
                quote_literal(entity_id)
            ),
            Probe::Range(range) => self.range_filter(range),
        };
        let ids = quote_array(ids.iter().map(|id| Some(id.as_str())));
        format!(
            "copy (select {columns} from {name} t where {filter} and {id} = any ({ids}::{id_type}[]))
                to stdout (format binary)"
        )
    }

    /// Returns the query for the rows of a page, as this number of columns.
    ///
    /// `with ties`: a partitioned ledger cannot have a unique id. A page that ended inside a tie would lose the rest
    /// of it, because the next page begins after it.
    ///
    /// Rows after `until` are filtered from the rows that were read, in an outer query: an index scan begins where a
    /// row comparison says, but does not end there (seen on PostgreSQL 15), and would continue over everything that
    /// the transaction wrote. The transaction is not selected with `=` either, because the order would then be the
    /// order of the ids alone, and PostgreSQL might walk the index on the ids. Only columns of the ledger are named,
    /// because the role may lack the privilege to read others.
    pub(super) fn rows_sql(&self, page: &Page<'_>, columns: &str, number: i16) -> String {
        let &Page { entity_id, target, mut segment, after, until, rows_max, proof_of } = page;
        let Self { name, entity, xid, id, id_type, .. } = self;
        let mut end = None;
        if let Some(Cursor { at: At::Xid(until), id: until_id }) = until
            && *until < segment.until
        {
            segment.until = until + 1;
            end = Some(format!("(s.xid, s.id) <= ('{until}'::xid8, {}::{id_type})", quote_literal(until_id)));
        }
        let begin = match after {
            Some(Cursor { at: At::Xid(after), id: after_id }) if *after >= segment.from => {
                format!("({xid}, {id}) > ('{after}'::xid8, {}::{id_type})", quote_literal(after_id))
            }
            _ => format!("{xid} >= '{}'::xid8", segment.from),
        };
        let filter = format!(
            "{entity} = {} and {xid} < '{}'::xid8 and {begin}{}",
            quote_literal(entity_id),
            segment.until,
            self.only_in(target, segment)
        );
        // In the limit and not in the filter: the planner drops a filter when it finds that no row can match, e.g.
        // because the standby does not have the partition of the entity yet.
        let rows_max = match proof_of {
            Some(pass_id) => {
                format!("(case when elven_sync.require_pass({pass_id}, '{target}') then {rows_max} end)")
            }
            None => rows_max.to_string(),
        };
        let read = |columns: &str| {
            format!(
                "(select {columns} from {name} t where {filter} order by {xid}, {id} \
                   fetch first {rows_max} rows with ties)"
            )
        };
        let Some(end) = end else { return read(columns) };
        let names =
            |prefix: &str| (1..=number).map(|n| format!("{prefix}c{n}")).collect::<Vec<_>>().join(", ");
        format!(
            "(select {} from {} s ({}, xid, id) where {end} order by s.xid, s.id)",
            names("s."),
            read(&format!("{columns}, {xid}, {id}")),
            names("")
        )
    }

    /// Returns a filter that excludes the transactions of a segment that had not ended when the target was taken: they
    /// belong to a later pass. Empty when there are none.
    pub(super) fn only_in(&self, target: &Snapshot, segment: Segment) -> String {
        if target.running().iter().any(|running| (segment.from..segment.until).contains(running)) {
            format!(" and pg_catalog.pg_visible_in_snapshot({}, '{target}'::pg_snapshot)", self.xid)
        } else {
            String::new()
        }
    }

    /// Returns the query that converts an id to the form in which PostgreSQL writes it.
    pub(super) fn id_sql(&self, id: &str) -> String {
        format!("select {}::{}::text", quote_literal(id), self.id_type)
    }

    /// Returns the query for the entities that have rows with an id, each with the newest transaction that wrote one
    /// of them.
    pub(super) fn holders_sql(&self, id: &str) -> String {
        let Self { name, entity, xid, id: id_column, id_type, .. } = self;
        format!(
            "select {entity}::text, max({xid}::text::numeric)::text from {name} t
              where {id_column} = {}::{id_type} and {entity} is not null group by 1 order by 1",
            quote_literal(id)
        )
    }

    /// Returns the sort expression for an id. Among rows with the same `captured_at` the one with the greatest id is
    /// the newest; texts are compared by their bytes.
    pub(super) fn id_in_order(&self, id: &str) -> String {
        if is_text(&self.id_type) { in_byte_order(id) } else { id.to_owned() }
    }

    /// Returns the copy of the rows that may have the account, the currency and the wall-clock time of a record.
    /// `keys`: account, currency and instant (in microseconds from 2000-01-01 UTC) of each record.
    ///
    /// The instants are joined to windows, so that each row is read once, however many records are near it.
    pub(super) fn around_sql(&self, entity_id: &str, keys: &[(&str, &str, i64)]) -> String {
        let Self {
            name,
            entity,
            captured_at,
            account: account_column,
            currency: currency_column,
            columns,
            ..
        } = self;
        let mut instants: Vec<i64> = keys.iter().map(|(.., instant)| *instant).collect();
        instants.sort_unstable();
        let windows: Vec<&[i64]> = instants.chunk_by(|a, b| b.abs_diff(*a) <= 2 * AROUND_US).collect();
        let bounds = |bound: fn(&[i64]) -> Option<&i64>| {
            let bounds: Vec<String> = windows.iter().filter_map(|w| bound(w)).map(i64::to_string).collect();
            quote_array(bounds.iter().map(|bound| Some(bound.as_str())))
        };
        let (first, last) = (bounds(<[i64]>::first), bounds(<[i64]>::last));
        let names: BTreeSet<(&str, &str)> =
            keys.iter().map(|(account, currency, _)| (*account, *currency)).collect();
        let accounts = quote_array(names.iter().map(|(account, _)| Some(*account)));
        let currencies = quote_array(names.iter().map(|(_, currency)| Some(*currency)));
        let instant = |at: &str, and: &str| {
            format!(
                "timestamptz '2000-01-01 00:00:00Z' + {at} * interval '1 microsecond' {and} {AROUND_US} * interval \
                 '1 microsecond'"
            )
        };
        format!(
            "copy (select r.* from unnest({first}::bigint[], {last}::bigint[]) w (first, last)
                    cross join lateral (
                          select {columns} from {name} t
                           where {entity} = {} and {captured_at} between {} and {}
                             and ({account_column}::text, {currency_column}::text)
                                 in (select * from unnest({accounts}, {currencies}))) r)
               to stdout (format binary)",
            quote_literal(entity_id),
            instant("w.first", "-"),
            instant("w.last", "+")
        )
    }

    /// Returns the `copy` of the rows with the account, the currency and the second of records. `keys`: account, currency
    /// and instant (in microseconds from 2000-01-01 UTC) of each record.
    ///
    /// The rows between the first and the last instant are read once, however many records there are.
    pub(super) fn same_second_sql(&self, entity_id: &str, keys: &[(&str, &str, i64)]) -> String {
        let Self { name, entity, captured_at, account, currency, columns, .. } = self;
        let second = |us: i64| us.div_euclid(1_000_000) + POSTGRES_EPOCH_S;
        let keys: BTreeSet<(&str, &str, i64)> =
            keys.iter().map(|(account, currency, at)| (*account, *currency, second(*at))).collect();
        let (first, last) = keys.iter().fold((i64::MAX, i64::MIN), |(first, last), (.., second)| {
            (first.min(*second), last.max(*second))
        });
        let accounts = quote_array(keys.iter().map(|(account, ..)| Some(*account)));
        let currencies = quote_array(keys.iter().map(|(_, currency, _)| Some(*currency)));
        let seconds: Vec<String> = keys.iter().map(|(.., second)| second.to_string()).collect();
        let seconds = quote_array(seconds.iter().map(|second| Some(second.as_str())));
        format!(
            "copy (select {columns} from {name} t
                    where {entity} = {} and {captured_at} >= to_timestamp({first}) and {captured_at} < to_timestamp({})
                      and ({account}::text, {currency}::text,
                           case when {captured_at} >= to_timestamp({first}) and {captured_at} < to_timestamp({})
                                then floor(extract(epoch from {captured_at}))::bigint end)
                          in (select * from unnest({accounts}, {currencies}, {seconds}::bigint[])))
               to stdout (format binary)",
            quote_literal(entity_id),
            last + 1,
            last + 1
        )
    }

    /// Returns the query that finds a row without an id. $1: the entity; $2: a transaction of which a page was read.
    /// No comparison with a cursor is true for such a row, so the following pages would miss it.
    pub(super) fn without_id_sql(&self) -> String {
        let Self { name, entity, xid, id, .. } = self;
        format!(
            "select true from {name} t where {entity} = $1 and {xid} = $2::xid8 and {id} is null
              order by {xid}, {id} limit 1"
        )
    }

    /// Returns the query that counts the pending rows per entity. `with_oldest` adds the oldest `captured_at`, for
    /// which the rows themselves are read. `running`: transactions that are running, whose rows are not visible.
    ///
    /// The bounds are literals, so that the planner knows how few rows lie after them; with parameters it assumes a
    /// third of the table and scans it.
    pub(super) fn pending_sql(&self, lanes: &[&Progress], with_oldest: bool, running: &[Xid]) -> String {
        let Self { name, entity, captured_at, .. } = self;
        let oldest = if with_oldest {
            format!(
                "least(extract(epoch from min({captured_at}) filter (where isfinite({captured_at}))) * 1000000, \
                       9223372036854775000)::bigint"
            )
        } else {
            "null::bigint".to_owned()
        };
        let counts = lanes.iter().map(|lane| {
            let entity_id = quote_literal(&lane.entity_id);
            let not_done = self.not_done(lane);
            let parts: Vec<String> = self
                .pending_ranges(lane, running)
                .iter()
                .map(|range| {
                    format!(
                        "select count(*) as rows, {oldest} as oldest from {name} t
                          where {entity} = {entity_id} and ({range}){not_done}"
                    )
                })
                .collect();
            format!(
                "select {entity_id}::text, sum(rows)::bigint, min(oldest) from ({}) parts",
                parts.join(" union all ")
            )
        });
        counts.collect::<Vec<_>>().join(" union all ")
    }

    /// Returns the ranges of transactions in which rows of an entity may be pending: those that were running when the
    /// watermark was taken, and all that began later, in parts between the running ones.
    fn pending_ranges(&self, lane: &Progress, running: &[Xid]) -> Vec<String> {
        let xid = &self.xid;
        let settled = lane.settled.as_ref();
        let mut from = settled.map_or(0, Snapshot::xmax);
        let mut ranges = Vec::new();
        let settled_xmax = from;
        for &running in running.iter().filter(|running| **running >= settled_xmax).take(RUNNING_MAX) {
            ranges.push(format!("{xid} >= '{from}'::xid8 and {xid} < '{running}'::xid8"));
            from = running + 1;
        }
        let mut rest = format!("{xid} >= '{from}'::xid8");
        // Writing to a String cannot fail.
        for late in settled.map_or(&[][..], Snapshot::running).iter().filter(|late| !running.contains(late)) {
            let _ = write!(rest, " or {xid} = '{late}'::xid8");
        }
        ranges.push(rest);
        ranges
    }

    /// Returns a filter that excludes the rows of an open pass that are done: those up to its cursor, and those in
    /// intervals beyond it. Empty if there are none.
    fn not_done(&self, lane: &Progress) -> String {
        let Self { xid, id, id_type, .. } = self;
        let Some(target) = &lane.target else { return String::new() };
        let place = |cursor: &Cursor| {
            let at = cursor.xid().unwrap_or_default();
            format!("('{at}'::xid8, {}::{id_type})", quote_literal(&cursor.id))
        };
        let mut left: Vec<String> =
            lane.cursor.iter().map(|cursor| format!("({xid}, {id}) > {}", place(cursor))).collect();
        left.extend(lane.done.iter().map(|DoneInterval { before, last, ids }| {
            let begin = before
                .as_ref()
                .map(|before| format!("({xid}, {id}) > {} and ", place(before)))
                .unwrap_or_default();
            let ids = ids.as_ref().map(|ids| {
                let ids = quote_array(ids.iter().map(|id| Some(id.as_str())));
                format!(" and {id}::text = any ({ids})")
            });
            format!("not ({begin}({xid}, {id}) <= {}{})", place(last), ids.unwrap_or_default())
        }));
        if left.is_empty() {
            return String::new();
        }
        format!(
            " and (not pg_visible_in_snapshot({xid}, '{target}'::pg_snapshot) or ({}))",
            left.join(" and ")
        )
    }

    /// Returns the query for the entities of the ledger that are not registered, found by stepping through the index.
    /// Rows without an entity are returned as the empty entity, which cannot be registered.
    pub(super) fn unregistered_sql(&self, registered: &[String]) -> String {
        let Self { name, entity, .. } = self;
        let registered = quote_array(registered.iter().map(|id| Some(id.as_str())));
        let nobodys = if self.entity_may_be_null {
            format!("union (select '' from {name} t where {entity} is null order by {entity} limit 1)")
        } else {
            String::new()
        };
        format!(
            "with recursive e as (
                (select {entity}::text as entity_id from {name} t order by {entity} limit 1)
                union all
                select (select {entity}::text from {name} t where {entity} > e.entity_id order by {entity} limit 1)
                  from e where e.entity_id is not null)
             select entity_id from e
              where entity_id is not null
                and not exists (select from unnest({registered}) r (entity_id) where r.entity_id = e.entity_id)
                {nobodys}"
        )
    }
}
