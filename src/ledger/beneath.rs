//! The tables that a ledger consists of.

/// SQL for the set of all tables that a table or view consists of: partitions, and the relations that a view is
/// defined over.
pub(super) const BENEATH: &str = "
    beneath (oid) as (
        select $1::pg_catalog.regclass::oid
        union
        select part.oid from beneath b cross join lateral (
            select i.inhrelid as oid from pg_catalog.pg_inherits i where i.inhparent = b.oid
            union all
            select d.refobjid from pg_catalog.pg_rewrite r
              join pg_catalog.pg_depend d on d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass
              and d.objid = r.oid
               and d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass
             where r.ev_class = b.oid) part)";
