-- A run that compared the zone rules records that, so that the runs of the next hour need not compare the same rules.

comment on column elven_sync.sync_facts.name is
    'The subject of the fact. zone_rules: the zone rules in use for an entity, and what was reported when they changed. server_zone_rules: registered time zones for which the rules of the database server differ. zone_rules_compared: a digest of the entities, zones and rules that were compared last; runs repeat the same comparison once an hour.';
