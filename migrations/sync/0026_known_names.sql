-- What the API said it knows. A list belongs to the key with which it was read, so it is kept per credential. It is
-- replaced as a whole, and only by a list that was read to its end.

create table elven_sync.known_accounts (
    credential        text not null,
    entity_account_id text not null,
    name              text,
    fetched_at        timestamptz not null,
    primary key (credential, entity_account_id)
);

create table elven_sync.known_currencies (
    credential text not null,
    currency   text not null,
    name       text,
    fetched_at timestamptz not null,
    primary key (credential, currency)
);

comment on table elven_sync.known_accounts is
    'The accounts that the API listed for each credential when `elven-sync reference pull` last read the list to its '
    'end. A run does not read this table.';
comment on column elven_sync.known_accounts.credential is
    'Name of the credential in the configuration, as in entities.credential.';
comment on column elven_sync.known_accounts.entity_account_id is
    'Id of the account at Elven, as the ledger has to spell it.';
comment on column elven_sync.known_accounts.name is
    'Name of the account at Elven, for people. NULL: the API gave none.';
comment on column elven_sync.known_accounts.fetched_at is
    'When the list was stored. All rows of a credential have the same time, because a list is replaced as a whole.';

comment on table elven_sync.known_currencies is
    'The currencies that the API listed for each credential when `elven-sync reference pull` last read the list to '
    'its end. A run does not read this table.';
comment on column elven_sync.known_currencies.credential is
    'Name of the credential in the configuration, as in entities.credential.';
comment on column elven_sync.known_currencies.currency is
    'The currency as Elven spells it, letter case included, and as the ledger has to spell it.';
comment on column elven_sync.known_currencies.name is
    'Name of the currency at Elven, for people. NULL: the API gave none.';
comment on column elven_sync.known_currencies.fetched_at is
    'When the list was stored. All rows of a credential have the same time, because a list is replaced as a whole.';
