//! The fact whether the configuration of a service can be used: alert `ConfigBroken`.

use super::JournalError;
use super::storable_text::storable_one;
use crate::database::Database;

/// Returns whether a service has recorded a mistake in its configuration, and none has recorded since that it is
/// repaired.
pub async fn is_configuration_broken(database: &Database) -> Result<bool, JournalError> {
    let read = || {
        sqlx::query_scalar(
            "select exists (select from elven_sync.sync_facts
                             where name = 'config' and coalesce(entity_id, '') = ''
                               and value -> 'ok' = 'false'::jsonb)",
        )
        .fetch_one(database.single_round_trip())
    };
    Ok(database.retry(read).await?)
}

/// Records whether the configuration can be used. `problem`: the mistake in it.
pub async fn note_configuration(database: &Database, problem: Option<&str>) -> Result<(), JournalError> {
    let note = || async {
        let mut transaction = database.begin().await?;
        let problem = storable_one(&mut transaction, problem).await?;
        sqlx::query!(
            "insert into elven_sync.sync_facts as f (name, value)
             values ('config', jsonb_build_object('ok', $1::text is null, 'message', $1::text))
             on conflict (name, coalesce(entity_id, '')) do update
                set value = excluded.value, checked_at = clock_timestamp(),
                    since = case when f.value -> 'ok' = excluded.value -> 'ok' then f.since
                                 else clock_timestamp() end",
            problem
        )
        .execute(&mut transaction)
        .await?;
        transaction.commit().await
    };
    Ok(database.retry(note).await?)
}
