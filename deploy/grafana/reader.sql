-- A role that may read the sync tables and nothing else, for dashboards and monitoring. Run it as the owner of the
-- schema, and choose the password first:
--
--   psql "$DATABASE_URL" -v ON_ERROR_STOP=1 -v password='...' -f reader.sql
--
-- It may be run again. The role has no right on the ledger, because dashboard and alerts do not read it. It is not
-- elven_sync_read of docs/ledgers.md, which also reads the ledger and has a password of its own.

select not exists (select from pg_roles where rolname = 'elven_sync_dashboard') as is_new \gset
\if :is_new
create role elven_sync_dashboard login;
\endif
alter role elven_sync_dashboard password :'password';
grant usage on schema elven_sync to elven_sync_dashboard;
grant select on all tables in schema elven_sync to elven_sync_dashboard;
grant execute on all functions in schema elven_sync to elven_sync_dashboard;
alter default privileges in schema elven_sync grant select on tables to elven_sync_dashboard;
alter default privileges in schema elven_sync grant execute on functions to elven_sync_dashboard;
