-- A role that may read the sync tables and nothing else, for dashboards and monitoring. Run it as the owner of the
-- schema, and choose the password first:
--
--   psql "$DATABASE_URL" -v ON_ERROR_STOP=1 -v password='...' -f reader.sql
--
-- It may be run again. It has no right on the ledger: dashboard and alerts do not read it.

select not exists (select from pg_roles where rolname = 'elven_sync_read') as is_new \gset
\if :is_new
create role elven_sync_read login;
\endif
alter role elven_sync_read password :'password';
grant usage on schema elven_sync to elven_sync_read;
grant select on all tables in schema elven_sync to elven_sync_read;
grant execute on all functions in schema elven_sync to elven_sync_read;
alter default privileges in schema elven_sync grant select on tables to elven_sync_read;
alter default privileges in schema elven_sync grant execute on functions to elven_sync_read;
