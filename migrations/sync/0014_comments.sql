-- Comments for operators on every object of the schema, in the words of docs/glossary.md.

comment on schema elven_sync is
    'The journal of elven-sync: registered entities, watermarks, requests and errors. Start with the view sync_health.';

comment on table elven_sync._migrations is
    'One row per applied migration of this schema. Written by elven-sync migrate.';
comment on column elven_sync._migrations.version is 'Number of the migration.';
comment on column elven_sync._migrations.description is 'Name of the migration.';
comment on column elven_sync._migrations.installed_on is 'When the migration was applied.';
comment on column elven_sync._migrations.success is 'True: the migration was applied completely.';
comment on column elven_sync._migrations.checksum is 'SHA-384 of the text of the migration.';
comment on column elven_sync._migrations.execution_time is 'How long the migration took, in nanoseconds. -1: not measured.';

comment on table elven_sync.entities is
    'One row per registered entity. A row inserted by SQL registers an entity as elven-sync entity add does.';
comment on column elven_sync.entities.entity_id is 'The entity, spelled as in the ledger.';
comment on column elven_sync.entities.timezone is
    'IANA time zone of the wall-clock times of the entity, e.g. Europe/Zurich. A change does not correct earlier uploads.';
comment on column elven_sync.entities.credential is
    'Name of the credential in the configuration, never a key or a secret. At Elven an API key belongs to one entity.';
comment on column elven_sync.entities.paused is
    'True: left out by runs and backfills; its rows stay pending.';
comment on column elven_sync.entities.created_at is 'When the entity was registered.';
comment on trigger entity_registered on elven_sync.entities is
    'Calls entity_registered() when an entity is registered.';

comment on table elven_sync.sync_state is
    'One row per entity: watermark, progress and lease. Only elven-sync may write it; a change by hand breaks the proof that no row was skipped.';
comment on column elven_sync.sync_state.entity_id is 'The entity.';
comment on column elven_sync.sync_state.settled is
    'The watermark: the ledger rows of every transaction in this snapshot have been processed. NULL: none yet.';
comment on column elven_sync.sync_state.pass_id is 'The open pass. NULL: none is open.';
comment on column elven_sync.sync_state.target is
    'The snapshot up to which the open pass processes rows. It becomes the watermark when the pass is closed.';
comment on column elven_sync.sync_state.cursor_xid is
    'Cursor of the open pass: change_xid of the last row up to which all rows have been processed. NULL: none yet.';
comment on column elven_sync.sync_state.cursor_id is
    'Cursor of the open pass: id of the last row up to which all rows have been processed, as text.';
comment on column elven_sync.sync_state.system_identifier is
    'The PostgreSQL cluster that the watermark belongs to. Its transaction ids have no meaning in another cluster, so the entity is refused there.';
comment on column elven_sync.sync_state.ledger_table is
    'The ledger table or view that the watermark belongs to. With another one the entity is refused.';
comment on column elven_sync.sync_state.mapping is
    'The mapping when the watermark was last moved: the relation (oid:name), the column in each role (number:type:name), entity, captured_at_zone, balance_scale and the version of the API. Another mapping is refused until entity rebind --mapping or entity rewind. NULL: not recorded yet; the next run records it.';
comment on column elven_sync.sync_state.rows_uploaded is
    'Records of this entity that the API has accepted, in total.';
comment on column elven_sync.sync_state.pending_rows is 'Pending ledger rows, as of checked_at.';
comment on column elven_sync.sync_state.oldest_pending_at is
    'The oldest captured_at among the pending rows, as of checked_at.';
comment on column elven_sync.sync_state.checked_at is
    'When a run last checked the ledger for this entity.';
comment on column elven_sync.sync_state.last_success_at is
    'When the entity was last brought up to date without a failure.';
comment on column elven_sync.sync_state.last_error is
    'Why the last attempt failed. NULL after a success. Details are in sync_errors.';
comment on column elven_sync.sync_state.consecutive_failures is 'Failed attempts since the last success.';
comment on column elven_sync.sync_state.not_before is
    'The API asked not to be called for this entity before this time.';
comment on column elven_sync.sync_state.fence_until is
    'The fence: until then a request of this entity whose answer was lost may still arrive at the API. Only the batch of that request is sent, unchanged; other rows stay pending. Written when the lease is released: the time at which the signature of the request is older than [api] signature_window and 3 s. NULL or past: no fence.';
comment on column elven_sync.sync_state.lease_owner is
    'The worker that has the lease. NULL: no worker has it.';
comment on column elven_sync.sync_state.lease_epoch is
    'Number of the newest lease. Every write of a worker names its epoch and its owner, so that a worker that lost its lease cannot move the watermark.';
comment on column elven_sync.sync_state.lease_expires_at is
    'When the lease expires unless it is renewed, by the clock of the database.';
comment on column elven_sync.sync_state.lease_kind is
    'backfill: a backfill has the lease, for a slice of a second or two. NULL: a run, a retry, or no worker.';
comment on column elven_sync.sync_state.lease_wanted_at is
    'When a run last asked a backfill to release the lease. NULL: no run waits for it.';

comment on table elven_sync.sync_runs is
    'One row per run: an execution of elven-sync run, backfill or errors retry.';
comment on column elven_sync.sync_runs.run_id is 'Identifies the run.';
comment on column elven_sync.sync_runs.kind is
    'incremental: new rows; backfill: a range of captured_at; retry: rows that were set aside.';
comment on column elven_sync.sync_runs.status is
    'running; succeeded: everything was processed; incomplete: a person has to act; failed: it could not work; interrupted: stopped by a signal or a crash.';
comment on column elven_sync.sync_runs.worker is 'The process: host, process id and start time.';
comment on column elven_sync.sync_runs.version is 'Version of elven-sync.';
comment on column elven_sync.sync_runs.tzdata is
    'Version and origin of the zone rules in use: "bundled" for the rules in the program, or a folder. A zone that these rules lack was taken from other rules (see sync_batches.zone_rules).';
comment on column elven_sync.sync_runs.started_at is 'When the run began.';
comment on column elven_sync.sync_runs.finished_at is
    'When the run ended, or was found to have died. NULL: still running.';
comment on column elven_sync.sync_runs.alive_until is
    'The heartbeat, renewed while the process runs. In the past: the process died, and the next run marks the run as interrupted.';
comment on column elven_sync.sync_runs.rows_read is 'Ledger rows that were processed.';
comment on column elven_sync.sync_runs.rows_uploaded is 'Records that the API accepted.';
comment on column elven_sync.sync_runs.rows_rejected is 'Rows that were set aside in sync_errors.';
comment on column elven_sync.sync_runs.rows_superseded is
    'Rows that were superseded: a newer row with the same account, currency and second was sent instead.';
comment on column elven_sync.sync_runs.rows_beyond_double is
    'Accepted records whose amount would be rounded by a reader that parses JSON numbers as doubles. They were sent exactly.';
comment on column elven_sync.sync_runs.requests is 'Upload requests, including retries.';
comment on column elven_sync.sync_runs.retries is 'Upload requests that retried an earlier one.';
comment on column elven_sync.sync_runs.bytes_sent is 'Bytes of request bodies, including retries.';
comment on column elven_sync.sync_runs.error is 'Why the run did not succeed, in one sentence.';

comment on table elven_sync.sync_passes is
    'One row per change of an entity''s watermark from settled to target: a pass, which a later run finishes after a crash; or a rewind, a rebind, a registration from now on.';
comment on column elven_sync.sync_passes.pass_id is 'Identifies the pass.';
comment on column elven_sync.sync_passes.entity_id is 'The entity.';
comment on column elven_sync.sync_passes.run_id is
    'The run that opened the pass. NULL: a person changed the watermark.';
comment on column elven_sync.sync_passes.kind is
    'pass; rewind: moved back by a person; rebind: another cluster (pg_upgrade), mapping or journal was accepted without moving the watermark; from_now: rows that existed at the registration are skipped; pruned: folded passes whose batches were removed.';
comment on column elven_sync.sync_passes.settled is 'The watermark before. NULL: none yet.';
comment on column elven_sync.sync_passes.target is
    'The watermark after: the snapshot taken when the pass began. NULL: rewound to the start.';
comment on column elven_sync.sync_passes.started_at is 'When the pass began.';
comment on column elven_sync.sync_passes.finished_at is
    'When the pass was closed. NULL: open, or given up by a rewind.';
comment on column elven_sync.sync_passes.written_by is
    'The seal: the transaction that last wrote this row. Equal to its xmin in the cluster where it was written, and after pg_upgrade, but not in a restored dump. NULL: from before version 0002 of the schema.';
comment on column elven_sync.sync_passes.last_xid is
    'change_xid of the last processed row, recorded when the pass was closed. NULL: no row, or from before version 0006 of the schema.';
comment on column elven_sync.sync_passes.last_id is 'Id of the last processed row, as text.';

comment on table elven_sync.sync_batches is
    'One row per batch, written before it is sent. The intervals of the batches of a pass are adjacent. batch_row_ids(batch_id) lists the ledger rows of a batch.';
comment on column elven_sync.sync_batches.batch_id is 'Identifies the batch.';
comment on column elven_sync.sync_batches.parent_id is
    'The batch that was split: it was refused, and its parts, of which this batch is one, were sent instead.';
comment on column elven_sync.sync_batches.run_id is 'The run that last sent the batch.';
comment on column elven_sync.sync_batches.pass_id is
    'The pass of the batch. NULL: the batch belongs to a backfill or a retry.';
comment on column elven_sync.sync_batches.backfill_id is
    'The backfill of the batch. Batches of a backfill have no pass, and their order is (captured_at, id).';
comment on column elven_sync.sync_batches.entity_id is 'The entity.';
comment on column elven_sync.sync_batches.before_xid is
    'The interval begins after the row with this change_xid; a part has the interval of the whole batch. NULL: at the start of the pass, or a batch of a backfill.';
comment on column elven_sync.sync_batches.before_at is
    'In a backfill, the interval begins after the row with this captured_at. NULL: at the start of the range.';
comment on column elven_sync.sync_batches.before_id is
    'The interval begins after the row with this id.';
comment on column elven_sync.sync_batches.last_xid is
    'End of the interval: change_xid of its last row. NULL in a backfill.';
comment on column elven_sync.sync_batches.last_at is
    'In a backfill, end of the interval: captured_at of its last row.';
comment on column elven_sync.sync_batches.last_id is 'End of the interval: id of its last row.';
comment on column elven_sync.sync_batches.row_ids is
    'Packed ids of the ledger rows in the interval; read them with: select elven_sync.batch_row_ids(batch_id).';
comment on column elven_sync.sync_batches.rejected_ids is
    'Packed ids of the rows that the batch set aside, in the form of row_ids. NULL: none, or from before version 0006 of the schema.';
comment on column elven_sync.sync_batches.rows_read is
    'Ledger rows in the interval: sent, set aside or superseded.';
comment on column elven_sync.sync_batches.row_count is
    'Records in the body. 0: there was nothing to send, or the records were set aside.';
comment on column elven_sync.sync_batches.rows_rejected is
    'Rows of the interval that were set aside in sync_errors.';
comment on column elven_sync.sync_batches.rows_superseded is
    'Rows of the interval that were superseded: a newer row with the same account, currency and second was sent instead. In a backfill the newer row may be outside the batch.';
comment on column elven_sync.sync_batches.rows_beyond_double is
    'Records whose amount would be rounded by a reader that parses JSON numbers as doubles (IEEE 754 binary64). They were sent exactly.';
comment on column elven_sync.sync_batches.body_bytes is 'Size of the request body in bytes.';
comment on column elven_sync.sync_batches.body_sha256 is 'SHA-256 of the request body, in hex.';
comment on column elven_sync.sync_batches.timezone is
    'The time zone of the wall-clock times in the body. NULL: from before version 0006 of the schema.';
comment on column elven_sync.sync_batches.zone_rules is
    'The zone rules of the body: version, origin and a fingerprint of the offsets of its zone. Two batches with the same zone and fingerprint have the same wall-clock times. NULL: from before rules were recorded; sync_runs.tzdata has their version.';
comment on column elven_sync.sync_batches.status is
    'sending: no answer is recorded yet; accepted; rejected: refused, not delivered, or set aside; split: its parts were sent instead; unknown: no answer says whether the API imported it.';
comment on column elven_sync.sync_batches.attempts is
    'Attempts that were sent or about to be sent. 0: not sent yet.';
comment on column elven_sync.sync_batches.ambiguous is
    'True: an attempt had an unknown outcome and the same bytes were sent again, so Elven may have imported them twice.';
comment on column elven_sync.sync_batches.unknown_runs is
    'Runs in which the batch ended with an unknown outcome. After three of them each run makes only one attempt.';
comment on column elven_sync.sync_batches.http_status is
    'HTTP status of the last answer. NULL: no answer came.';
comment on column elven_sync.sync_batches.duration_ms is
    'Time from sending to the last answer, in milliseconds.';
comment on column elven_sync.sync_batches.error is 'Why the last answer was not a success.';
comment on column elven_sync.sync_batches.created_at is
    'When the batch was recorded, directly before its first attempt.';
comment on column elven_sync.sync_batches.finished_at is 'When its answer was recorded.';

comment on table elven_sync.sync_backfills is
    'One row per backfill: a range of captured_at that is uploaded again on request. sync_backfill_lanes has its progress per entity.';
comment on column elven_sync.sync_backfills.backfill_id is 'Identifies the backfill.';
comment on column elven_sync.sync_backfills.range_from is
    'First instant or day of the range, as requested.';
comment on column elven_sync.sync_backfills.range_to is
    'End of the range, not included, as requested.';
comment on column elven_sync.sync_backfills.entities is 'Only these entities. NULL: all.';
comment on column elven_sync.sync_backfills.accounts is 'Only these accounts. NULL: all.';
comment on column elven_sync.sync_backfills.currencies is 'Only these currencies. NULL: all.';
comment on column elven_sync.sync_backfills.status is
    'As in sync_runs: running; succeeded; incomplete: rows were set aside or an entity failed; failed; interrupted. Also cancelled: by a person.';
comment on column elven_sync.sync_backfills.rows_total is
    'Ledger rows in the range when it was requested; rows_read grows to about this number.';
comment on column elven_sync.sync_backfills.rows_read is 'Ledger rows that were processed.';
comment on column elven_sync.sync_backfills.rows_uploaded is 'Records that the API accepted.';
comment on column elven_sync.sync_backfills.rows_rejected is 'Rows that were set aside in sync_errors.';
comment on column elven_sync.sync_backfills.rows_superseded is
    'Rows that were superseded: a newer row with the same account, currency and second was sent instead.';
comment on column elven_sync.sync_backfills.started_at is 'When the backfill was requested.';
comment on column elven_sync.sync_backfills.finished_at is 'When the backfill ended. NULL: unfinished.';
comment on column elven_sync.sync_backfills.error is
    'Why the backfill did not succeed, in one sentence.';
comment on column elven_sync.sync_backfills.run_id is 'The newest run that worked on the backfill.';

comment on table elven_sync.sync_backfill_lanes is
    'One row per entity of a backfill: its range in instants, and its progress.';
comment on column elven_sync.sync_backfill_lanes.backfill_id is 'The backfill.';
comment on column elven_sync.sync_backfill_lanes.entity_id is 'The entity.';
comment on column elven_sync.sync_backfill_lanes.range_from is
    'First instant of the range. A date is the start of that day in the time zone that the entity had at the request.';
comment on column elven_sync.sync_backfill_lanes.range_to is 'End of the range, not included.';
comment on column elven_sync.sync_backfill_lanes.cursor_at is
    'Cursor: captured_at of the last row up to which all rows have been processed. NULL: none yet.';
comment on column elven_sync.sync_backfill_lanes.cursor_id is
    'Cursor: id of the last row up to which all rows have been processed, as text.';
comment on column elven_sync.sync_backfill_lanes.rows_total is
    'Ledger rows in the range when it was requested.';
comment on column elven_sync.sync_backfill_lanes.rows_read is 'Ledger rows that were processed.';
comment on column elven_sync.sync_backfill_lanes.rows_uploaded is 'Records that the API accepted.';
comment on column elven_sync.sync_backfill_lanes.rows_rejected is
    'Rows that were set aside in sync_errors.';
comment on column elven_sync.sync_backfill_lanes.rows_superseded is
    'Rows that were superseded: a newer row with the same account, currency and second was or will be sent instead.';
comment on column elven_sync.sync_backfill_lanes.finished_at is
    'When the whole range was processed. NULL: unfinished; the backfill can be resumed.';

comment on table elven_sync.sync_errors is
    'One row per problem: a row that was set aside, or a problem that needs a person. A repeated problem increases occurrences.';
comment on column elven_sync.sync_errors.error_id is 'Identifies the error.';
comment on column elven_sync.sync_errors.run_id is 'The newest run in which the problem occurred.';
comment on column elven_sync.sync_errors.batch_id is
    'The newest batch in which the problem occurred, if any.';
comment on column elven_sync.sync_errors.entity_id is 'The entity.';
comment on column elven_sync.sync_errors.ledger_id is
    'Id of the ledger row, as text. NULL: the problem does not concern a single row.';
comment on column elven_sync.sync_errors.kind is
    'invalid_row, rejected_row: a row was set aside. auth, config, rejected_batch, throttled, unavailable, timezone, watermark, ledger (the database could not read the rows of the entity): the entity stopped. unregistered_entity: rows are pending until the entity is registered.';
comment on column elven_sync.sync_errors.http_status is 'HTTP status of the answer, if one came.';
comment on column elven_sync.sync_errors.api_code is 'Error code in the answer of the API, if any.';
comment on column elven_sync.sync_errors.message is 'What happened, and what to do about it.';
comment on column elven_sync.sync_errors.record is
    'The row as it would have been sent, or as far as it can be shown.';
comment on column elven_sync.sync_errors.occurrences is 'How often the problem occurred.';
comment on column elven_sync.sync_errors.first_seen_at is 'When the problem occurred first.';
comment on column elven_sync.sync_errors.last_seen_at is 'When the problem occurred last.';
comment on column elven_sync.sync_errors.resolved_at is 'When the error was resolved. NULL: open.';
comment on column elven_sync.sync_errors.resolution is 'What resolved the error.';
comment on column elven_sync.sync_errors.dismissed is
    'True: closed by a person; nothing was sent.';

comment on table elven_sync.sync_actions is
    'One row per action of a person with elven-sync: who, when, what and why.';
comment on column elven_sync.sync_actions.action_id is 'Identifies the action.';
comment on column elven_sync.sync_actions.at is 'When the action was performed.';
comment on column elven_sync.sync_actions.actor is
    'The database role that was logged in (session_user).';
comment on column elven_sync.sync_actions.client is
    'The process, as it describes itself: host, process id and start time. A claim, not a proof.';
comment on column elven_sync.sync_actions.action is
    'The action: rewind; rebind (after pg_upgrade); rebind_mapping; rebind_journal.';
comment on column elven_sync.sync_actions.entity_id is
    'The entity. NULL: the action does not concern a single entity.';
comment on column elven_sync.sync_actions.reason is 'The reason, as given by --reason.';
comment on column elven_sync.sync_actions.details is
    'The changes: the row of sync_passes (pass_id), watermarks, the mapping before and after.';

comment on table elven_sync.sync_facts is
    'Facts that only a run can observe, one row per name and entity: the last value, since when it holds, and when it was last written.';
comment on column elven_sync.sync_facts.name is
    'The subject of the fact. zone_rules: the zone rules in use for an entity, and what was reported when they changed. server_zone_rules: registered time zones for which the rules of the database server differ.';
comment on column elven_sync.sync_facts.entity_id is
    'The entity of the fact. NULL: the whole installation.';
comment on column elven_sync.sync_facts.value is 'What was found.';
comment on column elven_sync.sync_facts.since is 'When the value was found first.';
comment on column elven_sync.sync_facts.checked_at is
    'When the value was last written. Facts of entities are written only when they change.';

comment on table elven_sync.sync_zone_rules is
    'The offsets from UTC of each time zone, per version of the zone rules that was in use. With them a later run finds the rows whose wall-clock times change with new rules.';
comment on column elven_sync.sync_zone_rules.timezone is 'IANA name of the time zone.';
comment on column elven_sync.sync_zone_rules.rules is
    'Version, origin and fingerprint, as in sync_batches.zone_rules.';
comment on column elven_sync.sync_zone_rules.changes is
    'First instants of new offsets, in order, up to the year 2500. The changes from 2100 on repeat every 400 years.';
comment on column elven_sync.sync_zone_rules.offsets_s is
    'Seconds by which the clock is ahead of UTC: first the offset before the first change, then the offset from each change on.';
comment on column elven_sync.sync_zone_rules.recorded_at is 'When a run first used these rules.';

comment on table elven_sync.sync_pruned is
    'One row per entity with pruned records: the totals of what was removed.';
comment on column elven_sync.sync_pruned.entity_id is 'The entity.';
comment on column elven_sync.sync_pruned.passes is 'Passes that were folded or removed.';
comment on column elven_sync.sync_pruned.batches is
    'Batches that were removed, including parts and retries.';
comment on column elven_sync.sync_pruned.rows_read is 'Ledger rows that these batches processed.';
comment on column elven_sync.sync_pruned.rows_uploaded is
    'Records of these batches that the API accepted.';
comment on column elven_sync.sync_pruned.rows_rejected is 'Rows that these batches set aside.';
comment on column elven_sync.sync_pruned.rows_superseded is
    'Rows of these batches that were superseded: a newer row with the same account, currency and second was sent instead.';
comment on column elven_sync.sync_pruned.requests is
    'Attempts of these batches that were sent or about to be sent.';
comment on column elven_sync.sync_pruned.bytes_sent is 'Bytes of the bodies of these requests.';
comment on column elven_sync.sync_pruned.errors is 'Resolved errors that were removed.';
comment on column elven_sync.sync_pruned.until is 'Records that ended before this time were pruned.';

comment on table elven_sync.sync_commits is
    'One row per recent writing transaction of the connector. A worker that lost its connection during a commit checks here whether it was committed. A run removes its own rows every few seconds, and rows of other processes after three hours.';
comment on column elven_sync.sync_commits.process is
    'The process: a random number that it chose at its start.';
comment on column elven_sync.sync_commits.number is 'Number of the transaction within the process.';
comment on column elven_sync.sync_commits.begun_at is 'When the transaction began.';

comment on view elven_sync.sync_health is
    'One row per entity, for dashboards and alerts. pending_rows and oldest_pending_at are as of checked_at.';
comment on column elven_sync.sync_health.entity_id is 'The entity.';
comment on column elven_sync.sync_health.timezone is 'Time zone of the entity.';
comment on column elven_sync.sync_health.status is
    'The first that holds: paused; failing: the last attempt failed; incomplete: rows are set aside and open in sync_errors; behind: rows are pending, or no run has checked yet; ok.';
comment on column elven_sync.sync_health.pending_rows is 'Pending ledger rows, as of checked_at.';
comment on column elven_sync.sync_health.oldest_pending_at is
    'The oldest captured_at among the pending rows, as of checked_at.';
comment on column elven_sync.sync_health.checked_at is
    'When a run last checked the ledger for this entity. NULL: never. Alert when this time is too old.';
comment on column elven_sync.sync_health.last_success_at is
    'When the entity was last brought up to date.';
comment on column elven_sync.sync_health.last_error is
    'Why the last attempt failed. NULL after a success.';
comment on column elven_sync.sync_health.open_errors is 'Open errors in sync_errors.';

comment on view elven_sync.sync_watermarks is
    'The watermark of each entity with its seal: the proof that this cluster wrote the newest change of the watermark.';
comment on column elven_sync.sync_watermarks.entity_id is 'The entity.';
comment on column elven_sync.sync_watermarks.settled is
    'The watermark: the ledger rows of every transaction in this snapshot have been processed. NULL: none yet.';
comment on column elven_sync.sync_watermarks.pass_id is 'The open pass. NULL: none is open.';
comment on column elven_sync.sync_watermarks.target is
    'The snapshot up to which the open pass processes rows.';
comment on column elven_sync.sync_watermarks.cursor_xid is
    'Cursor of the open pass: change_xid of the last row up to which all rows have been processed.';
comment on column elven_sync.sync_watermarks.cursor_id is 'Cursor of the open pass: id of that row.';
comment on column elven_sync.sync_watermarks.system_identifier is
    'The PostgreSQL cluster that the watermark belongs to.';
comment on column elven_sync.sync_watermarks.ledger_table is
    'The ledger table or view that the watermark belongs to.';
comment on column elven_sync.sync_watermarks.mapping is
    'The mapping when the watermark was last moved.';
comment on column elven_sync.sync_watermarks.not_before is
    'The API asked not to be called for this entity before this time.';
comment on column elven_sync.sync_watermarks.lease_epoch is 'Number of the newest lease.';
comment on column elven_sync.sync_watermarks.seal is
    'whole: this cluster wrote the newest row of sync_passes, and sync_state matches it. broken: the row was copied or altered. elsewhere: sync_state was altered. missing: there is no such row. none: there is no watermark yet.';

comment on function elven_sync.entity_registered() is
    'Creates the row of sync_state for a registered entity, and resolves its errors of the kind unregistered_entity.';
comment on function elven_sync.batch_row_ids(bigint) is
    'Returns the ids of the ledger rows in the interval of a batch, in order.';
comment on function elven_sync.require_pass(bigint, text) is
    'Raises EL001 unless the calling statement sees the row of the pass: the proof that a standby has replayed everything that the pass covers.';
comment on function elven_sync.passes_through(text, timestamptz) is
    'Returns the passes of an entity that were closed before a time and may be pruned.';
comment on function elven_sync.passes_given_up(text, timestamptz) is
    'Returns the passes of an entity that a rewind gave up before a time and that may be pruned.';
comment on function elven_sync.batches_loose(text, timestamptz) is
    'Returns the batches of retries and ended backfills of an entity that are older than a time and may be pruned.';
comment on function elven_sync.server_clock(text, timestamptz[]) is
    'Returns the wall-clock times of a time zone at some instants, by the zone rules of this server. NULL: the server does not know the time zone.';
comment on function elven_sync.seals(text[]) is
    'Returns for each entity whether this cluster wrote the newest change of its watermark, and whether sync_state matches it. whole: both; broken: the row of sync_passes was copied or altered; elsewhere: sync_state was altered; missing: there is a watermark but no change of it; none: there is no watermark yet. A row without written_by (before version 0002 of the schema) counts as whole.';
comment on function elven_sync.storable(bytea) is
    'Returns a text, given in UTF-8, with a question mark in place of each character that the encoding of the database lacks.';
comment on function elven_sync.utf8_or_bytes(text) is
    'Returns a text in UTF-8. If it has no equivalent in UTF-8: the byte ff and then its bytes as they are stored.';

comment on index elven_sync.sync_runs_running is 'Finds runs that died.';
comment on index elven_sync.sync_passes_entity is 'Finds the newest changes of an entity''s watermark.';
comment on index elven_sync.sync_passes_run is
    'Finds the passes of a run, e.g. before the run is pruned.';
comment on index elven_sync.sync_batches_pass is 'Finds the batches of a pass, in order.';
comment on index elven_sync.sync_batches_run is 'Finds the batches of a run, in order.';
comment on index elven_sync.sync_batches_backfill is
    'Finds the batches of an entity in a backfill, in order.';
comment on index elven_sync.sync_batches_parent is 'Finds the parts of a batch.';
comment on index elven_sync.sync_batches_loose is
    'Finds the batches of an entity outside passes: those of backfills and retries.';
comment on index elven_sync.sync_batches_rejected is 'Finds the batches of an entity that set rows aside.';
comment on index elven_sync.sync_batches_too_large is
    'Finds the bodies of an entity that were too large for the API (HTTP 413).';
comment on index elven_sync.sync_batches_unknown is
    'Finds the batches of an entity with an unknown outcome or an ambiguous one.';
comment on index elven_sync.sync_backfills_unfinished is 'Finds unfinished backfills.';
comment on index elven_sync.sync_errors_open is
    'Allows one open error per entity, kind and row; a repeated problem increases its occurrences.';
comment on index elven_sync.sync_errors_row is
    'Finds the errors of a ledger row, including resolved ones.';
comment on index elven_sync.sync_errors_batch is
    'Finds the errors of a batch, e.g. before the batch is pruned.';
comment on index elven_sync.sync_errors_run is 'Finds the errors of a run, e.g. before the run is pruned.';
comment on index elven_sync.sync_actions_entity is 'Finds the actions on an entity.';
comment on index elven_sync.sync_facts_key is 'Allows one fact per name and entity.';
