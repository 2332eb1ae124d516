//! The SQL of ranges of `captured_at`: backfills, their counts, and the index that they need.

use super::Progress;
use super::instant::{instant_literal, instant_of_second};
use super::table::is_text;
use super::{Range, Table, instant, quote_array, quote_literal};
use crate::watermark::{At, Cursor, Snapshot};
use std::fmt::Write as _;

/// The most rows of a range that are looked at for the values that it has.
const SAMPLED_ROWS_MAX: usize = 10_000;

impl Table {
    /// Returns the query for the ids of the rows of a page of a range, in order.
    pub(super) fn range_ids_sql(
        &self,
        range: &Range,
        after: Option<&Cursor>,
        until: Option<&Cursor>,
        rows_max: usize,
    ) -> String {
        self.range_rows_sql(&format!("{}::text", self.id), range, after, until, rows_max)
    }

    /// Returns the copy of a page of a range, with ties as in a page of a pass.
    pub(super) fn range_sql(
        &self,
        range: &Range,
        after: Option<&Cursor>,
        until: Option<&Cursor>,
        rows_max: usize,
    ) -> String {
        let rows = self.range_rows_sql(&self.columns, range, after, until, rows_max);
        format!("copy ({rows}) to stdout (format binary)")
    }

    fn range_rows_sql(
        &self,
        columns: &str,
        range: &Range,
        after: Option<&Cursor>,
        until: Option<&Cursor>,
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

    /// Returns the common condition of all rows of a range.
    pub(super) fn range_filter(&self, range: &Range) -> String {
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

    /// The queries for accounts, and for currencies, that rows of these ranges have. They look at a sample, so that
    /// they take no longer for a long range.
    pub(super) fn present_values_sql(&self, ranges: &[Range]) -> [String; 2] {
        let Self { name, account, currency, .. } = self;
        [account, currency].map(|column| {
            let samples = ranges.iter().map(|range| {
                let all = Range { accounts: Vec::new(), currencies: Vec::new(), ..range.clone() };
                let filter = self.range_filter(&all);
                format!(
                    "(select {column}::text as value from {name} t where {filter} limit {SAMPLED_ROWS_MAX})"
                )
            });
            format!(
                "select distinct s.value from ({}) s where s.value is not null order by s.value",
                samples.collect::<Vec<_>>().join(" union all ")
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
        let mut keys: Vec<String> = leading
            .iter()
            .enumerate()
            .map(|(place, column)| format!("i.indkey[{place}] = {}", number(column)))
            .collect();
        if is_text(&self.id_type) {
            // Without the order of bytes, the rows of each instant are sorted for each page.
            let place = leading.len();
            keys.push(format!("i.indcollation[{place}] = 'pg_catalog.\"C\"'::regcollation"));
        }
        let sql = format!(
            "select exists (select from pg_catalog.pg_index i
                             where i.indrelid = c.oid and i.indisvalid and i.indpred is null and {})
               from pg_catalog.pg_class c where c.oid = {}::regclass and c.relkind in ('r', 'p')",
            keys.join(" and "),
            quote_literal(name)
        );
        let columns: Vec<String> =
            leading.iter().map(|column| super::quoting::quote_identifier(column)).collect();
        let id = self.id_in_order(id.trim_start_matches("t."));
        let remedy = format!("create index concurrently on {name} ({}, {id})", columns.join(", "));
        Some((sql, remedy))
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
}
