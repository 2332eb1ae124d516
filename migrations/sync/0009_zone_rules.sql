-- Time zone rules: which ones a batch was made with and what these say, and facts that only a run can observe.

-- Other rules make another body of the same rows, as another zone does.
alter table elven_sync.sync_batches add column zone_rules text;

-- What rules say, so that a later run can tell where the rules of that time differ, and bodies can be made again.
create table elven_sync.sync_zone_rules (
    timezone    text not null,
    rules       text not null,
    changes     timestamptz[] not null,
    offsets_s   integer[] not null,
    recorded_at timestamptz not null default clock_timestamp(),
    primary key (timezone, rules),
    check (cardinality(offsets_s) = cardinality(changes) + 1)
);

create table elven_sync.sync_facts (
    name       text not null,
    entity_id  text,
    since      timestamptz not null default clock_timestamp(),
    value      jsonb not null,
    checked_at timestamptz not null default clock_timestamp()
);
create unique index sync_facts_key on elven_sync.sync_facts (name, coalesce(entity_id, ''));

-- Wall-clock times by the rules of this server. A function, since an unknown zone is an error that would end the statement.
create function elven_sync.server_clock(zone text, instants timestamptz[]) returns timestamp[]
    language plpgsql stable
    set search_path = pg_catalog, pg_temp as
$$
begin
    return array(select i.at at time zone zone from unnest(instants) with ordinality i (at, n) order by i.n);
exception when invalid_parameter_value then
    return null;
end
$$;

comment on column elven_sync.sync_batches.zone_rules is
    'Time zone rules that its body was made with: version, origin and a fingerprint of the offsets of its zone. Two batches '
    'with the same zone and fingerprint have the same wall-clock times. NULL: made before rules were recorded; '
    'sync_runs.tzdata has their version.';
comment on column elven_sync.sync_runs.tzdata is
    'Version and origin of the IANA time zone rules in use: "bundled" for those in the program, or a folder. A zone that '
    'these lack was taken from other rules (sync_batches.zone_rules).';

comment on table elven_sync.sync_zone_rules is
    'The offsets from UTC of each time zone, by each version of the rules that was in use: by these a later run tells which '
    'rows have other wall-clock times after a change of the rules.';
comment on column elven_sync.sync_zone_rules.timezone is 'IANA name of the zone.';
comment on column elven_sync.sync_zone_rules.rules is 'Version, origin and fingerprint, as in sync_batches.zone_rules.';
comment on column elven_sync.sync_zone_rules.changes is
    'First instants of new offsets, in order, up to the year 2500. The changes from 2100 on repeat every 400 years.';
comment on column elven_sync.sync_zone_rules.offsets_s is
    'Seconds by which the clock is ahead of UTC: before the first change, and from each change on.';
comment on column elven_sync.sync_zone_rules.recorded_at is 'When a run used these rules first.';

comment on table elven_sync.sync_facts is
    'Facts that only a run can observe, one row for each name and entity: what was last found, since when, and when it was '
    'last checked.';
comment on column elven_sync.sync_facts.name is
    'What the fact is about. zone_rules: the time zone rules in use for an entity, and what was reported when they changed. '
    'server_zone_rules: registered time zones for which the rules of the database server differ.';
comment on column elven_sync.sync_facts.entity_id is 'The entity that the fact is about. NULL: the installation.';
comment on column elven_sync.sync_facts.since is 'When the value was found first.';
comment on column elven_sync.sync_facts.value is 'What was found.';
comment on column elven_sync.sync_facts.checked_at is
    'When the value was last written. Facts of entities are written only when they change.';

comment on function elven_sync.server_clock(text, timestamptz[]) is
    'Wall-clock times of a zone at some instants by the rules of this server. NULL: the server does not know the zone.';
