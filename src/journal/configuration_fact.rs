//! The fact whether the configuration of a service can be used: alert `ConfigBroken`.

use super::JournalError;
use super::facts::{Fact, Subject, note_facts};
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
    note_facts(database, &[Fact::of_state(Subject::Config, problem)]).await.map(drop)
}
