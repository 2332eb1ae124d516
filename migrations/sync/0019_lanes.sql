-- Rows of entities that are not registered, and two indexes: statements read only the errors that they need, however
-- many are recorded.

alter table elven_sync.sync_runs add column entities_left_out integer not null default 0;

create index sync_errors_unregistered on elven_sync.sync_errors (entity_id)
    where kind = 'unregistered_entity' and resolved_at is null;

create index sync_errors_prunable on elven_sync.sync_errors (entity_id, error_id)
    where resolved_at is not null and not dismissed and batch_id is null;

comment on column elven_sync.sync_runs.entities_left_out is
    'The number of entities of the ledger that are not registered and whose rows this run left out because of [ledger] ignore_unregistered.';
comment on column elven_sync.sync_errors.entity_id is
    'The entity. * : the sum of the entities that are not registered and have no row of their own.';
comment on index elven_sync.sync_errors_unregistered is 'Finds the open errors of entities that are not registered.';
comment on index elven_sync.sync_errors_prunable is
    'Finds the resolved errors of an entity that prune may delete, in order.';
