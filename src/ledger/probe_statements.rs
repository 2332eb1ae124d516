//! The SQL of probes: whether an entity has rows that a pass has to read.

use super::statements::Progress;
use super::{Table, quote_array, quote_literal};
use crate::watermark::{RUNNING_MAX, Segment};

/// The last `xid8`, which no transaction reaches.
const XID_MAX: u64 = u64::MAX;

impl Table {
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
    /// the watermark was taken and has ended. This takes a few index probes per entity and one for each of the latter,
    /// with `order by ... limit 1` for the reason given above. `between` and not `=`, because with `=` the order would
    /// be the order of the ids alone. Then PostgreSQL may walk the index on the ids, from the first to the last where
    /// the transaction has written nothing for the entity.
    ///
    /// The range is probed in parts between the oldest transactions that are running now: an index scan passes over
    /// each row that a transaction wrote and has not committed, and a bulk load may have written millions. The last
    /// part has no end: where it has no row, no transaction that is yet to come has written one either.
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
        let found = |range: &str| {
            format!(
                "lateral (select from {name} t where {entity} = l.entity_id and {range} order by {xid}, {id} limit 1) \
                 found"
            )
        };
        let in_part = format!("{xid} >= greatest(part.lower, l.settled_xmax) and {xid} < part.upper");
        let new = found(&format!("{in_part} and {xid} < pg_snapshot_xmax(now.target)"));
        let late = found(&format!("{xid} between late.xid and late.xid"));
        let future = found(&format!("{xid} >= pg_snapshot_xmax(now.target)"));
        format!(
            "with now as materialized (
                select pg_current_snapshot() as target, system_identifier from pg_control_system()),
             part as materialized (
                select coalesce((lag(bound) over (order by bound)::text::bigint + 1)::text, '0')::xid8 as lower,
                       bound as upper
                  from (select '{XID_MAX}'::xid8 as bound
                        union select xid from (select pg_snapshot_xip(target) as xid from now
                                                order by xid limit {RUNNING_MAX}) running) bounds)
             select now.target::text, now.system_identifier, l.entity_id,
                    case when next.xid is null then false
                         when next.xid < pg_snapshot_xmax(now.target) then true
                         else exists (select from part cross join {new} where part.upper > l.settled_xmax) end
                    or exists (select from pg_snapshot_xip(l.settled) late (xid) cross join {late}
                                where pg_visible_in_snapshot(late.xid, now.target)),
                    (next.xid is not null or l.settled_xmax > pg_snapshot_xmax(now.target))
                    and exists (select from {future}), {unstamped}
               from now
               left join (select asked.entity_id, asked.settled::pg_snapshot as settled,
                                 coalesce(pg_snapshot_xmax(asked.settled::pg_snapshot), '0'::xid8) as settled_xmax
                            from unnest({ids}, {settled}) asked (entity_id, settled)) l on true
               left join lateral (
                    select found.xid
                      from part cross join lateral (
                           select {xid} as xid from {name} t where {entity} = l.entity_id and {in_part}
                            order by {xid}, {id} limit 1) found
                     where part.upper > l.settled_xmax limit 1) next on true"
        )
    }
}
