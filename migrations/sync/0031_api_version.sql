-- Version 4 of the import: the source that the records of an entity belong to, and the version and source that a batch
-- was made for. Both decide the bytes of a batch, as its time zone does. Columns without a default rewrite no table.

alter table elven_sync.entities add column source_id text;

alter table elven_sync.sync_batches
    add column api_version integer,
    add column source_id   text;

comment on column elven_sync.entities.source_id is
    'Balance source at Elven under which version 4 of the import stores the records of the entity. NULL: none, and with '
    '[api] version = 4 nothing is sent for the entity, because each import would create a source. Version 3 has no '
    'sources. A change applies to batches that are made from then on; records that were sent before stay under their source.';
comment on column elven_sync.sync_batches.api_version is
    'Version of the import that its body was made for. NULL: made before versions were recorded, for version 3.';
comment on column elven_sync.sync_batches.source_id is
    'Balance source that its records name, as entities.source_id was then. NULL: a record of version 3 names none.';

-- A record of version 4 names its currency by `symbol` or `assetID`. Apart from that, the function is as before.
create or replace function elven_sync.error_cause(message text, record jsonb, ledger_id text) returns text
    language plpgsql immutable parallel safe
    set search_path = pg_catalog, pg_temp as
$$
declare
    -- Texts are compared as bytes, whatever the collation of the database is.
    parts text[] := regexp_match(message collate "C", '^(.*)(; hint: .*)$');
    -- The hint is the connector's own text, which holds no value of the row.
    words text := regexp_replace(coalesce(parts[1], message), '^its body of \d+ bytes', 'its body of <size> bytes');
    -- Stands for a value, so that the patterns are always the same: to compile one takes far longer than to use it.
    mark constant text := chr(1);
    word constant text := '[[:alnum:]_' || chr(1) || ']';
    value text;
    placeholder text;
    pattern text;
begin
    if strpos(words, mark) > 0 then
        return message;
    end if;
    for value, placeholder in
        select v.value, v.placeholder
          -- Instead of a time or an amount that cannot be sent, the record has the reason.
          from (select substring(coalesce(record ->> 'datetime', record ->> 'captured_at')
                                 from '^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d')) t (seconds),
               lateral (values (1, t.seconds, '<datetime>'),
                               (2, replace(t.seconds, ' ', 'T'), '<datetime>'),
                               (3, left(t.seconds, 10), '<datetime>'),
                               (4, record ->> 'entityAccountId', '<account>'),
                               (5, ledger_id, '<id>'),
                               (6, substring(record ->> 'balance' from '^-?[0-9.]+$'), '<amount>'),
                               (7, coalesce(record ->> 'currency', record ->> 'assetID', record ->> 'symbol'),
                                   '<currency>')) v (place, value, placeholder)
         where v.value <> '' and strpos(words, v.value) > 0
           -- The words of the placeholders themselves.
           and v.value not in ('account', 'currency', 'datetime', 'amount', 'id', 'size')
         order by length(v.value) desc, v.place
    loop
        pattern := mark || case
                               when placeholder = '<datetime>' and length(value) > 10
                                   then '(\.\d+)?(Z|[+-]\d\d:?\d\d)?'
                               when placeholder = '<amount>' and strpos(value, '.') > 0 then '0*'
                               when placeholder = '<amount>' then '(\.0+)?'
                               else ''
                           end;
        if length(value) = 1 then
            -- A single character is too often a word or a number of the message itself.
            pattern := '(?<=["''`=(\[])' || pattern || '(?=["''`)\]]|$)';
        else
            -- A value ends where a word ends. What follows HTTP or code is no value of the row.
            pattern := '(?<!' || word || ')(?<!' || word || '[.-])(?<!HTTP )(?<!code )' || pattern
                       || '(?!' || word || ')(?![.-]' || word || ')';
        end if;
        words := regexp_replace(replace(words, value, mark) collate "C", pattern, placeholder, 'g');
        words := replace(words, mark, value);
    end loop;
    return words || coalesce(parts[2], '');
end
$$;
