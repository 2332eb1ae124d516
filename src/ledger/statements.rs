//! The text of the statements that read the ledger. It is built at run time, because the names of the table and its
//! columns differ between installations.

use std::fmt::Write as _;

use super::instant::{instant_literal, instant_of_second};
use super::row::{COLUMNS, LISTED_COLUMNS};
use super::{Range, Table, instant, quote_array, quote_literal};
use crate::watermark::{At, Cursor, Segment, Snapshot};

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
        format!("copy {} to stdout (format binary)", self.rows_sql(page, (&self.columns, COLUMNS)))
    }

    /// Returns the query for the rows of a page: the number of the page (`place`) and the id of each row.
    pub(super) fn listed_sql(&self, page: &Page<'_>, place: usize) -> String {
        let id_type = if self.id_is_number() { "bigint" } else { "text" };
        self.rows_sql(page, (&format!("{place}::integer, {}::{id_type}", self.id), LISTED_COLUMNS))
    }

    /// Returns the query for the ids of the rows of a page, in order.
    pub(super) fn ids_sql(&self, page: &Page<'_>) -> String {
        format!("select p.id from {} p (id)", self.rows_sql(page, (&format!("{}::text", self.id), 1)))
    }

    /// Returns the query for the ids of the rows of a page of a range, in order.
    pub(super) fn range_ids_sql(
        &self,
        range: &Range,
        after: Option<&Cursor>,
        until: Option<&Cursor>,
        rows_max: usize,
    ) -> String {
        self.range_rows_sql(&format!("{}::text", self.id), range, (after, until), rows_max)
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
            "copy (select {columns} from {name} t where {filter} and {id} = any ({ids}::{id_type}[])) to stdout (format binary)"
        )
    }

    /// Returns the query for the rows of a page.
    ///
    /// `with ties`: a partitioned ledger cannot have a unique id. A page that ended inside a tie would lose the rest
    /// of it, because the next page begins after it.
    ///
    /// Rows after `until` are filtered from the rows that were read, in an outer query: an index scan begins where a
    /// row comparison says, but does not end there (seen on PostgreSQL 15), and would continue over everything that
    /// the transaction wrote. The transaction is not selected with `=` either, because the order would then be the
    /// order of the ids alone, and PostgreSQL might walk the index on the ids. Only columns of the ledger are named,
    /// because the role may lack the privilege to read others.
    fn rows_sql(&self, page: &Page<'_>, (columns, number): (&str, i16)) -> String {
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
    fn only_in(&self, target: &Snapshot, segment: Segment) -> String {
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

    /// Returns the copy of a page of a range, with ties as in a page of a pass.
    pub(super) fn range_sql(
        &self,
        range: &Range,
        after: Option<&Cursor>,
        until: Option<&Cursor>,
        rows_max: usize,
    ) -> String {
        let rows = self.range_rows_sql(&self.columns, range, (after, until), rows_max);
        format!("copy ({rows}) to stdout (format binary)")
    }

    fn range_rows_sql(
        &self,
        columns: &str,
        range: &Range,
        (after, until): (Option<&Cursor>, Option<&Cursor>),
        rows_max: usize,
    ) -> String {
        let Self { name, captured_at, id, .. } = self;
        let id_in_order = self.id_in_order(id);
        let mut filter = self.range_filter(range);
        let place = |cursor: &Cursor| {
            let at = instant_literal(instant(cursor.captured_at_us().unwrap_or(i64::MAX)));
            let id = self.id_in_order(&format!("{}::{}", quote_literal(&cursor.id), self.id_type));
            (at, id)
        };
        // Writing to a String cannot fail.
        if let Some((at, after_id)) = after.map(place) {
            // A row without an id is the last of its instant. It is included, so that the reader refuses it.
            let nobodys = if self.id_may_be_null {
                format!(" or ({captured_at} = {at} and {id} is null)")
            } else {
                String::new()
            };
            let _ = write!(
                filter,
                " and {captured_at} >= {at} and (({captured_at}, {id_in_order}) > ({at}, {after_id}){nobodys})"
            );
        }
        if let Some((at, until_id)) = until.map(place) {
            let _ = write!(
                filter,
                " and {captured_at} <= {at} and ({captured_at}, {id_in_order}) <= ({at}, {until_id})"
            );
        }
        format!(
            "select {columns} from {name} t where {filter} order by {captured_at}, {id_in_order} \
             fetch first {rows_max} rows with ties"
        )
    }

    /// Returns the sort expression for an id. Among rows with the same `captured_at` the one with the greatest id is
    /// the newest; texts are compared by their bytes.
    fn id_in_order(&self, id: &str) -> String {
        if matches!(self.id_type.as_str(), "text" | "character varying") {
            format!("{id} collate \"C\"")
        } else {
            id.to_owned()
        }
    }

    /// Returns the common condition of all rows of a range.
    fn range_filter(&self, range: &Range) -> String {
        let Self { entity, captured_at, account, currency, .. } = self;
        let Range { entity_id, from, to, accounts, currencies } = range;
        let mut filter = format!(
            "{entity} = {} and {captured_at} >= {} and {captured_at} < {}",
            quote_literal(entity_id),
            instant_literal(*from),
            instant_literal(*to)
        );
        for (column, wanted) in [(account, accounts), (currency, currencies)] {
            if !wanted.is_empty() {
                let wanted = quote_array(wanted.iter().map(|wanted| Some(wanted.as_str())));
                let _ = write!(filter, " and {column}::text = any ({wanted})");
            }
        }
        filter
    }

    /// Returns the query for the number of rows of each range.
    pub(super) fn range_counts_sql(&self, ranges: &[Range]) -> String {
        let name = &self.name;
        let count = |(place, range)| {
            let filter = self.range_filter(range);
            format!("select {place}::integer as place, count(*) as rows from {name} t where {filter}")
        };
        let counts: Vec<String> = ranges.iter().enumerate().map(count).collect();
        format!("select c.rows from ({}) c order by c.place", counts.join(" union all "))
    }

    /// The queries for the accounts, and for the currencies, that no row of these ranges has.
    pub(super) fn absent_values_sql(
        &self,
        ranges: &[Range],
        accounts: &[String],
        currencies: &[String],
    ) -> [String; 2] {
        let Self { name, account, currency, .. } = self;
        [(account, accounts), (currency, currencies)].map(|(column, values)| {
            let exists = ranges.iter().map(|range| {
                let all = Range { accounts: Vec::new(), currencies: Vec::new(), ..range.clone() };
                let filter = self.range_filter(&all);
                format!("exists (select from {name} t where {filter} and {column}::text = w.value)")
            });
            format!(
                "select w.value from unnest({}) with ordinality w (value, place) where not ({}) order by w.place",
                quote_array(values.iter().map(|value| Some(value.as_str()))),
                exists.collect::<Vec<_>>().join(" or ")
            )
        })
    }

    /// Returns a query that says whether a table has an index for ranges, and the statement that creates one. `None`:
    /// the columns are expressions.
    pub(super) fn range_index_sql(&self) -> Option<(String, String)> {
        let Self { name, entity_column, captured_at_column, id, .. } = self;
        let captured_at = captured_at_column.as_ref()?;
        let leading: Vec<&str> = entity_column.iter().chain([captured_at]).map(String::as_str).collect();
        let number = |column: &str| {
            format!(
                "(select attnum from pg_catalog.pg_attribute where attrelid = c.oid and attname = {})",
                quote_literal(column)
            )
        };
        let keys: Vec<String> = leading
            .iter()
            .enumerate()
            .map(|(place, column)| format!("i.indkey[{place}] = {}", number(column)))
            .collect();
        let sql = format!(
            "select exists (select from pg_catalog.pg_index i
                             where i.indrelid = c.oid and i.indisvalid and i.indpred is null and {})
               from pg_catalog.pg_class c where c.oid = {}::regclass and c.relkind in ('r', 'p')",
            keys.join(" and "),
            quote_literal(name)
        );
        let columns: Vec<String> =
            leading.iter().map(|column| super::table::quote_identifier(column)).collect();
        let id = id.trim_start_matches("t.");
        let remedy = format!("create index concurrently on {name} ({}, {id})", columns.join(", "));
        Some((sql, remedy))
    }

    /// Returns the copy of the rows with an id: several if the id is not unique.
    pub(super) fn row_sql(&self, entity_id: &str, id: &str) -> String {
        let Self { name, entity, id: id_column, id_type, columns, .. } = self;
        format!(
            "copy (select {columns} from {name} t where {entity} = {} and {id_column} = {}::{id_type}) to stdout (format binary)",
            quote_literal(entity_id),
            quote_literal(id)
        )
    }

    /// Returns the copy of the rows of an account and currency around an instant (in microseconds from 2000-01-01
    /// UTC): all rows that may have the same wall-clock time.
    pub(super) fn around_sql(
        &self,
        entity_id: &str,
        account: &str,
        currency: &str,
        instant_us: i64,
    ) -> String {
        let Self {
            name,
            entity,
            captured_at,
            account: account_column,
            currency: currency_column,
            columns,
            ..
        } = self;
        let instant = format!("timestamptz '2000-01-01 00:00:00Z' + {instant_us} * interval '1 microsecond'");
        format!(
            "copy (select {columns} from {name} t
                    where {entity} = {} and {account_column}::text = {} and {currency_column}::text = {}
                      and {captured_at} between {instant} - interval '26 hours' and {instant} + interval '26 hours')
               to stdout (format binary)",
            quote_literal(entity_id),
            quote_literal(account),
            quote_literal(currency)
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

    /// Returns the query for the ordinals of the segments in which an entity has rows, in order.
    ///
    /// `order by ... limit 1` and not `exists`: for `exists` the planner expects to meet a matching row soon and
    /// prefers to scan the table, which is wrong whenever there is none.
    pub(super) fn probe_sql(&self, entity_id: &str, segments: &[Segment]) -> String {
        let Self { name, entity, xid, id, .. } = self;
        let bounds = |bound: fn(&Segment) -> u64| {
            let bounds: Vec<String> = segments.iter().map(|segment| bound(segment).to_string()).collect();
            quote_array(bounds.iter().map(|bound| Some(bound.as_str())))
        };
        let (lower, upper) = (bounds(|segment| segment.from), bounds(|segment| segment.until));
        let entity_id = quote_literal(entity_id);
        format!(
            "select s.place from unnest({lower}, {upper}) with ordinality s (lower, upper, place)
              cross join lateral (select from {name} t where {entity} = {entity_id}
                                     and {xid} >= s.lower::xid8 and {xid} < s.upper::xid8
                                   order by {xid}, {id} limit 1) found
              order by s.place"
        )
    }

    /// Returns the query for the snapshot, the cluster, and per entity whether there are new rows. The outer join
    /// returns a row even when no entity is given.
    ///
    /// A new row belongs to a transaction in the range from the watermark's xmax on, or to one that was running when
    /// the watermark was taken. This takes one index probe per entity and one for each running transaction, with
    /// `order by ... limit 1` for the reason given above. `between` and not `=`, because with `=` the order would be
    /// the order of the ids alone. Then PostgreSQL may walk the index on the ids, from the first to the last where the
    /// transaction has written nothing for the entity.
    pub(super) fn new_rows_sql(&self, lanes: &[Progress]) -> String {
        let Self { name, entity, xid, id, .. } = self;
        let ids = quote_array(lanes.iter().map(|lane| Some(lane.entity_id.as_str())));
        let settled: Vec<Option<String>> =
            lanes.iter().map(|lane| lane.settled.as_ref().map(ToString::to_string)).collect();
        let settled = quote_array(settled.iter().map(Option::as_deref));
        let unstamped = if self.xid_may_be_null {
            format!(
                "coalesce((select true from {name} t where {entity} = l.entity_id and {xid} is null
                            order by {xid}, {id} limit 1), false)"
            )
        } else {
            "false".to_owned()
        };
        format!(
            "select now.target::text, now.system_identifier, l.entity_id,
                    coalesce(newest.xid >= coalesce(pg_snapshot_xmax(l.settled::pg_snapshot), '0'::xid8), false)
                    or exists (select from pg_snapshot_xip(l.settled::pg_snapshot) late (xid)
                                cross join lateral (select from {name} t where {entity} = l.entity_id
                                                       and {xid} between late.xid and late.xid
                                                     order by {xid}, {id} limit 1) found),
                    coalesce(newest.xid >= pg_snapshot_xmax(now.target), false), {unstamped}
               from (select pg_current_snapshot() as target, system_identifier from pg_control_system()) now
               left join unnest({ids}, {settled}) l (entity_id, settled) on true
               left join lateral (select {xid} as xid from {name} t where {entity} = l.entity_id and {xid} is not null
                                   order by {xid} desc, {id} desc limit 1) newest on true"
        )
    }

    /// Returns the query that counts the pending rows per entity. `with_oldest` adds the oldest `captured_at`, for
    /// which the rows themselves are read.
    ///
    /// The bounds are literals, so that the planner knows how few rows lie after them; with parameters it assumes a
    /// third of the table and scans it.
    pub(super) fn pending_sql(&self, lanes: &[&Progress], with_oldest: bool) -> String {
        let Self { name, entity, xid, id, id_type, captured_at, .. } = self;
        let counts = lanes.iter().map(|lane| {
            let entity_id = quote_literal(&lane.entity_id);
            let settled = lane.settled.as_ref();
            let mut filter = format!("{xid} >= '{}'::xid8", settled.map_or(0, Snapshot::xmax));
            // Writing to a String cannot fail.
            for late in settled.map_or(&[][..], Snapshot::running) {
                let _ = write!(filter, " or {xid} = '{late}'::xid8");
            }
            filter = format!("({filter})");
            if let (Some(target), Some(Cursor { at: At::Xid(cursor_xid), id: cursor_id })) =
                (&lane.target, &lane.cursor)
            {
                let _ = write!(
                    filter,
                    " and (not pg_visible_in_snapshot({xid}, '{target}'::pg_snapshot) or ({xid}, {id}) > \
                     ('{cursor_xid}'::xid8, {}::{id_type}))",
                    quote_literal(cursor_id)
                );
            }
            let oldest = if with_oldest {
                format!(
                    "least(extract(epoch from min({captured_at}) filter (where isfinite({captured_at}))) * 1000000, \
                           9223372036854775000)::bigint"
                )
            } else {
                "null::bigint".to_owned()
            };
            format!(
                "select {entity_id}::text, count(*), {oldest} from {name} t where {entity} = {entity_id} and {filter}"
            )
        });
        counts.collect::<Vec<_>>().join(" union all ")
    }

    /// Returns the query that counts the processed rows of an entity that were captured in some periods, with the
    /// earliest and the latest of them. `None`: no row was processed, or there is no period.
    pub(super) fn uploaded_sql(
        &self,
        lane: &Progress,
        skipped: Option<&Snapshot>,
        periods: &[std::ops::Range<i64>],
    ) -> Option<String> {
        let Self { name, entity, xid, id, id_type, captured_at, .. } = self;
        let in_snapshot =
            |snapshot: &Snapshot| format!("pg_visible_in_snapshot({xid}, '{snapshot}'::pg_snapshot)");
        let mut done: Vec<String> = lane.settled.iter().map(in_snapshot).collect();
        if let (Some(target), Some(Cursor { at: At::Xid(cursor_xid), id: cursor_id })) =
            (&lane.target, &lane.cursor)
        {
            done.push(format!(
                "({} and ({xid}, {id}) <= ('{cursor_xid}'::xid8, {}::{id_type}))",
                in_snapshot(target),
                quote_literal(cursor_id)
            ));
        }
        if done.is_empty() || periods.is_empty() {
            return None;
        }
        // Starts and ends alternate, so an instant lies in a period when an odd number of limits is not after it.
        let seconds = periods.iter().flat_map(|period| [period.start, period.end]);
        let limits =
            seconds.map(|unix_s| instant_literal(instant_of_second(unix_s))).collect::<Vec<_>>().join(", ");
        let skipped = skipped.map(|skipped| format!(" and not {}", in_snapshot(skipped))).unwrap_or_default();
        let us = |of: &str| format!("(extract(epoch from {of}({captured_at})) * 1000000)::bigint");
        Some(format!(
            "select count(*), {}, {} from {name} t
              where {entity} = {} and ({}){skipped} and isfinite({captured_at})
                and width_bucket({captured_at}, array[{limits}]) % 2 = 1",
            us("min"),
            us("max"),
            quote_literal(&lane.entity_id),
            done.join(" or ")
        ))
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
                and not exists (select from unnest({registered}) r (entity_id) where r.entity_id = e.entity_id) {nobodys}"
        )
    }
}
