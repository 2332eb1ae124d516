//! Actions of people: one row of `sync_actions` in the transaction of the action.

use serde_json::Value;

use super::Journal;
use crate::database::Transaction;

/// An action of a person on an entity.
#[derive(Clone, Copy, Debug)]
pub(super) struct Action<'a> {
    /// The action, as in `sync_actions.action`.
    pub what: &'a str,
    /// The entity.
    pub entity_id: &'a str,
    /// The reason, if one was given.
    pub reason: Option<&'a str>,
    /// The changes.
    pub details: &'a Value,
}

impl Journal {
    pub(super) async fn record_action(
        &self,
        transaction: &mut Transaction,
        action: Action<'_>,
    ) -> Result<(), sqlx::Error> {
        sqlx::query!(
            "insert into elven_sync.sync_actions (client, action, entity_id, reason, details)
             values ($1, $2, $3, $4, $5)",
            self.worker,
            action.what,
            action.entity_id,
            action.reason,
            action.details
        )
        .execute(transaction)
        .await?;
        Ok(())
    }
}
