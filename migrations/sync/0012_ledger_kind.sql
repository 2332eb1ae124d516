-- What the database cannot read of the ledger, and what it cannot hold of what others say.

-- Kind `ledger`: the database could not read the rows of an entity. The error concerns the lane, not a single row: the
-- row that is named in the message is not set aside, since nothing is known of it.
alter table elven_sync.sync_errors
    drop constraint sync_errors_kind_check,
    add constraint sync_errors_kind_check check (kind in (
        'invalid_row', 'rejected_row', 'auth', 'config', 'rejected_batch', 'throttled', 'unavailable', 'timezone',
        'unregistered_entity', 'watermark', 'ledger'));

-- A message comes in whatever characters somebody else chose. Sent as a text, a character that the encoding of the
-- database has not is refused, and with it the write that the message belongs to.
create function elven_sync.storable(utf8 bytea) returns text
    language plpgsql stable strict
    set search_path = pg_catalog, pg_temp as
$$
declare
    stored text := '';
    at integer := 0;
    lead integer;
    size integer;
begin
    begin
        return convert_from(utf8, 'UTF8');
    exception when untranslatable_character or character_not_in_repertoire then
        null;
    end;
    while at < length(utf8) loop
        lead := get_byte(utf8, at);
        size := case when lead < 192 then 1 when lead < 224 then 2 when lead < 240 then 3 else 4 end;
        begin
            stored := stored || convert_from(substring(utf8 from at + 1 for size), 'UTF8');
        exception when untranslatable_character or character_not_in_repertoire then
            stored := stored || '?';
        end;
        at := at + size;
    end loop;
    return stored;
end
$$;

-- A text of the ledger whose bytes mean nothing in the encoding of the database, or have no equivalent in UTF-8, cannot
-- be sent to a client: the statement fails, and with it the whole page. The byte ff never occurs in UTF-8.
create function elven_sync.utf8_or_bytes(value text) returns bytea
    language plpgsql stable strict
    set search_path = pg_catalog, pg_temp as
$$
begin
    return convert_to(value, 'UTF8');
exception when untranslatable_character or character_not_in_repertoire then
    begin
        return '\xff'::bytea || case when getdatabaseencoding() = 'UTF8' then textsend(value)
                                     else convert_to(value, getdatabaseencoding()) end;
    exception when untranslatable_character or character_not_in_repertoire then
        return '\xff'::bytea;
    end;
end
$$;

comment on function elven_sync.storable(bytea) is
    'A text, given in UTF-8, with a question mark in place of each character that the encoding of the database does not have.';
comment on function elven_sync.utf8_or_bytes(text) is
    'A text in UTF-8; or, when it has no equivalent in UTF-8, the byte ff and its bytes as they are stored.';
comment on column elven_sync.sync_errors.kind is
    'invalid_row, rejected_row: a row was set aside. auth, config, rejected_batch, throttled, unavailable, timezone, watermark, ledger (the database could not read the entity''s rows): the entity stopped where it is. unregistered_entity: rows wait for an entity to be registered.';
