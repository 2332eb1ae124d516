-- The default ledger: one row per balance of an account in a currency at an instant.
--
-- Any other table or view with these roles of columns can be mapped in the configuration; this one
-- is for people who start from nothing, and for the demo.

create schema if not exists ledger;

create table ledger.balance_snapshots (
    id                bigint generated always as identity primary key,
    entity_id         text not null,
    entity_account_id text not null,
    currency          text not null,
    captured_at       timestamptz not null,
    balance           numeric not null,
    change_xid        xid8 not null default pg_current_xact_id()
);

-- The one index that a run needs: rows of an entity, by the transaction that wrote them.
create index balance_snapshots_change on ledger.balance_snapshots (entity_id, change_xid, id);

-- A default alone is not enough: INSERT ... SELECT *, COPY of the column, replicated updates and
-- session_replication_role = replica all go round it, and every such row would land behind the
-- watermark, never to be read. The function names its schema, so that a writer's search_path cannot
-- put another pg_current_xact_id in front of it.
create function ledger.stamp_change_xid() returns trigger
    language plpgsql as
$$
begin
    new.change_xid := pg_catalog.pg_current_xact_id();
    return new;
end
$$;

create trigger stamp_change_xid
    before insert or update on ledger.balance_snapshots
    for each row execute function ledger.stamp_change_xid();

-- ALWAYS: fires in replication sessions too.
alter table ledger.balance_snapshots enable always trigger stamp_change_xid;

comment on schema ledger is
    'The balances that elven-sync uploads to Elven. Written by you, only read by elven-sync.';
comment on table ledger.balance_snapshots is
    'One row per balance of an account in a currency at an instant. New and updated rows are uploaded to Elven by elven-sync.';
comment on column ledger.balance_snapshots.id is
    'Identifies the row; errors and batches name it.';
comment on column ledger.balance_snapshots.entity_id is
    'Whose balance: an entity_id of elven_sync.entities. Rows of an unregistered entity wait.';
comment on column ledger.balance_snapshots.entity_account_id is
    'Elven''s primary key of the account, sent as it stands.';
comment on column ledger.balance_snapshots.currency is
    'The currency as Elven spells it; case matters; sent as it stands.';
comment on column ledger.balance_snapshots.captured_at is
    'The instant of the balance. Sent as wall-clock time of the entity''s time zone, cut to the second.';
comment on column ledger.balance_snapshots.balance is
    'The amount, sent with exactly its digits. NaN and infinity cannot be sent and are set aside.';
comment on column ledger.balance_snapshots.change_xid is
    'The transaction that wrote this version of the row. Set by a trigger; never write it yourself: the watermark rests on it.';
comment on function ledger.stamp_change_xid() is
    'Stamps a written row with its transaction, whatever the writer said; the watermark of elven-sync rests on it.';
