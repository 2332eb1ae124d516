-- Thousands of rows can be set aside for one cause. Their messages differ in the account, the time or the amount of
-- each row. The cause is the message without these, so that operators see and settle each cause once.

-- The connector records the cause together with the message, and this migration fills it for open errors. Both call
-- this function, so that old and new errors of one cause share it.
create function elven_sync.error_cause(message text, record jsonb, ledger_id text) returns text
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
                               (7, record ->> 'currency', '<currency>')) v (place, value, placeholder)
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

-- A number that stands for a cause in a command. A cause is a long text, which nobody can type.
create function elven_sync.cause_id(entity_id text, kind text, api_code text, cause text) returns text
    language sql stable parallel safe
    set search_path = pg_catalog, pg_temp as
$$
    select left(encode(sha256(convert_to(concat_ws(E'\x1f', entity_id, kind, coalesce(api_code, ''), cause),
                                         getdatabaseencoding())), 'hex'), 10)
$$;

alter table elven_sync.sync_errors add column cause text;

update elven_sync.sync_errors
   set cause = elven_sync.error_cause(message, record, ledger_id)
 where resolved_at is null;

create function elven_sync.has_cause(error elven_sync.sync_errors, causes text[]) returns boolean
    language sql stable parallel safe
    set search_path = pg_catalog, pg_temp as
$$
    select exists (
        select from unnest(causes) c (wanted)
         where strpos(coalesce(error.cause, error.message), c.wanted) > 0
            or c.wanted = elven_sync.cause_id(error.entity_id, error.kind, error.api_code,
                                              coalesce(error.cause, error.message)))
$$;

-- The command is printed as it is, and is pasted into a shell. So it names only an entity that needs no escapes; the id
-- of the cause is enough.
create function elven_sync.error_hint(entity_id text, kind text, api_code text, cause text, is_row boolean)
    returns text
    language sql stable parallel safe
    set search_path = pg_catalog, pg_temp as
$$
    select case
               when is_row then
                   'elven-sync errors retry' || o.of_entity || ' --cause '
                   || elven_sync.cause_id(entity_id, kind, api_code, cause)
               when m.hint is not null and length(m.hint) <= 160 then m.hint
               when kind = 'unregistered_entity' then
                   'elven-sync errors list --rows --cause ' || elven_sync.cause_id(entity_id, kind, api_code, cause)
               else 'elven-sync run' || o.of_entity
           end
      from (select case when entity_id collate "C" ~ '^[A-Za-z0-9_.@/:][A-Za-z0-9_.@/:-]{0,39}$'
                        then ' --entity ''' || entity_id || '''' else '' end as of_entity) o,
           (select case when kind in ('unregistered_entity', 'watermark')
                        then substring(cause collate "C" from '^.*; hint: (elven-sync (?:entity|backfill) [^;,]*)')
                   end as hint) m
$$;

create view elven_sync.error_causes as
select g.entity_id, g.kind, g.api_code, g.cause, g.rows, g.first_seen_at, g.last_seen_at, g.example_ledger_id,
       elven_sync.error_hint(g.entity_id, g.kind, g.api_code, g.cause, g.example_ledger_id is not null) as hint
  from (select entity_id, kind, api_code, coalesce(cause, message) as cause, count(*) as rows,
               min(first_seen_at) as first_seen_at, max(last_seen_at) as last_seen_at,
               min(ledger_id) as example_ledger_id
          from elven_sync.sync_errors
         where resolved_at is null
         group by 1, 2, 3, 4) g;

comment on column elven_sync.sync_errors.cause is
    'The message with the account, currency, datetime, amount and ledger id of the row replaced by placeholders, so that the errors of one cause share it. NULL: the message.';
comment on function elven_sync.error_cause(text, jsonb, text) is
    'The cause of an error: its message with the values of its row replaced by placeholders.';
comment on function elven_sync.cause_id(text, text, text, text) is
    'Identifies a cause of an entity, as in elven-sync errors retry --cause ID.';
comment on function elven_sync.has_cause(elven_sync.sync_errors, text[]) is
    'Whether an error has one of these causes, each given by its id or by a part of its text.';
comment on function elven_sync.error_hint(text, text, text, text, boolean) is
    'The command that settles the errors of a cause after the cause was repaired. is_row: they are errors of rows.';
comment on view elven_sync.error_causes is
    'The open errors, one row per cause. The same list as elven-sync errors list.';
comment on column elven_sync.error_causes.entity_id is 'The entity.';
comment on column elven_sync.error_causes.kind is 'The kind of the errors, as in sync_errors.';
comment on column elven_sync.error_causes.api_code is 'Error code in the answer of the API, if any.';
comment on column elven_sync.error_causes.cause is
    'What happened: the message with the values of the row replaced by placeholders.';
comment on column elven_sync.error_causes.rows is 'Open errors of this cause.';
comment on column elven_sync.error_causes.first_seen_at is 'When the cause occurred first.';
comment on column elven_sync.error_causes.last_seen_at is 'When the cause occurred last.';
comment on column elven_sync.error_causes.example_ledger_id is
    'Id of a ledger row with this error. NULL: the error does not concern a single row.';
comment on column elven_sync.error_causes.hint is 'The command that settles the errors, after the cause was repaired.';
