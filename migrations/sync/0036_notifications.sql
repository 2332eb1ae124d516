-- What was told of each alert, and the message about it that is not delivered yet. So overlapping runs and several
-- workers tell each change once, and a message whose delivery a crash interrupted is posted again under the same id.
--
-- One row per alert name: an outage of all entities is one message, and there is at most one undelivered message per
-- name, so that its begin and its end arrive in order. What was told changes when a message is delivered, in the same
-- statement. The clock of the database decides about expiries and waits.

create table elven_sync.sync_notifications (
    name             text primary key,
    revision         bigint not null default 1,
    -- The last message that was delivered.
    told_type        text check (told_type in ('alert.began', 'alert.worse', 'alert.ended')),
    told_at          timestamptz,
    severity         text check (severity in ('warning', 'critical')),
    alert_count      bigint,
    since            timestamptz,
    entities         text[],
    subjects         text[],
    -- The message that is not delivered yet.
    message_id       text,
    message_type     text check (message_type in ('alert.began', 'alert.worse', 'alert.ended')),
    message_at       timestamptz,
    message_severity text check (message_severity in ('warning', 'critical')),
    message_count    bigint,
    message_since    timestamptz,
    message_entities text[],
    message_subjects text[],
    message          text,
    attempts         integer not null default 0,
    claimed_until    timestamptz,
    not_before       timestamptz,
    last_error       text,
    check (num_nonnulls(told_type, told_at, severity, alert_count, since, entities, subjects) in (0, 7)),
    check (num_nonnulls(message_id, message_type, message_at, message_severity, message_count, message_since,
                        message_entities, message_subjects, message) in (0, 9)));

comment on table elven_sync.sync_notifications is
    'What the webhook of [notify] was told of each alert, one row per name, and the message that is not delivered yet. '
    'To be told again of all alerts that hold, delete the rows.';
comment on column elven_sync.sync_notifications.name is 'The alert, as in the view alerts.';
comment on column elven_sync.sync_notifications.revision is
    'Grows with each change. A worker whose decision is based on an older row changes nothing.';
comment on column elven_sync.sync_notifications.told_type is
    'The type of the last message that was delivered. NULL: none was.';
comment on column elven_sync.sync_notifications.told_at is
    'When that message was made. An alert that ended then, and begins again within an hour, is told after the hour.';
comment on column elven_sync.sync_notifications.severity is 'The severity that was told.';
comment on column elven_sync.sync_notifications.alert_count is
    'How many rows of the view that message counted; for an end, how many the message before counted.';
comment on column elven_sync.sync_notifications.since is 'Since when the condition held, as it was told.';
comment on column elven_sync.sync_notifications.entities is 'The entities that the message listed, at most 20.';
comment on column elven_sync.sync_notifications.subjects is
    'All entities that were told and for which the alert has held since then; the hint of an alert that concerns no '
    'entity.';
comment on column elven_sync.sync_notifications.message_id is
    'The id of a message that is not delivered yet: the header webhook-id, the same each time it is posted. NULL: there '
    'is none.';
comment on column elven_sync.sync_notifications.message_type is 'Its type.';
comment on column elven_sync.sync_notifications.message_at is 'When it was made.';
comment on column elven_sync.sync_notifications.message_severity is 'Becomes severity when it is delivered.';
comment on column elven_sync.sync_notifications.message_count is 'Becomes alert_count when it is delivered.';
comment on column elven_sync.sync_notifications.message_since is 'Becomes since when it is delivered.';
comment on column elven_sync.sync_notifications.message_entities is 'Becomes entities when it is delivered.';
comment on column elven_sync.sync_notifications.message_subjects is 'Becomes subjects when it is delivered.';
comment on column elven_sync.sync_notifications.message is 'Its JSON, as it is posted.';
comment on column elven_sync.sync_notifications.attempts is 'How often it was claimed.';
comment on column elven_sync.sync_notifications.claimed_until is
    'Until then it belongs to the worker that posts it. After that another worker posts it again, because the worker may '
    'have died.';
comment on column elven_sync.sync_notifications.not_before is
    'The message is not posted before this time. Set to NULL to have the next run post it.';
comment on column elven_sync.sync_notifications.last_error is 'Why it could not be delivered, without the URL.';
