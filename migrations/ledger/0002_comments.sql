-- Comments on the table of applied migrations of the default ledger.

comment on table elven_sync._ledger_migrations is
    'One row per applied migration of the default ledger. Written by elven-sync migrate --with-ledger.';
comment on column elven_sync._ledger_migrations.version is 'Number of the migration.';
comment on column elven_sync._ledger_migrations.description is 'Name of the migration.';
comment on column elven_sync._ledger_migrations.installed_on is 'When the migration was applied.';
comment on column elven_sync._ledger_migrations.success is 'True: the migration was applied completely.';
comment on column elven_sync._ledger_migrations.checksum is 'SHA-384 of the text of the migration.';
comment on column elven_sync._ledger_migrations.execution_time is 'How long the migration took, in nanoseconds. -1: not measured.';
