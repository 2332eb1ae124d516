//! Actions of people: one row of `sync_actions` in the transaction of the action. Changes of the table `entities` are
//! recorded by its triggers.

use serde_json::Value;

use super::storable_text::storable_one;
use crate::database::Transaction;

/// An action of a person.
#[derive(Clone, Copy, Debug)]
pub(super) struct Action<'a> {
    /// The action, as in `sync_actions.action`.
    pub what: &'a str,
    /// The entity. `None`: all entities, or several.
    pub entity_id: Option<&'a str>,
    /// The reason, if one was given.
    pub reason: Option<&'a str>,
    /// The changes.
    pub details: &'a Value,
}

impl Action<'_> {
    /// Records the action. `client`: the name of the process.
    pub(super) async fn record(self, transaction: &mut Transaction, client: &str) -> Result<(), sqlx::Error> {
        let reason = storable_one(&mut *transaction, self.reason).await?;
        sqlx::query!(
            "insert into elven_sync.sync_actions (client, action, entity_id, reason, details)
             values ($1, $2, $3, $4, $5)",
            client,
            self.what,
            self.entity_id,
            reason,
            self.details
        )
        .execute(transaction)
        .await?;
        Ok(())
    }
}

/// Returns a name for this process: host, process id and the time of the call, so that it is unique.
pub fn client_name() -> String {
    let host = gethostname::gethostname();
    format!("{}/{}/{:x}", host.to_string_lossy(), std::process::id(), chrono::Utc::now().timestamp_micros())
}
