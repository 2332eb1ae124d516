//! What `verify` has proven.

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::super::JournalError;
use crate::database::Transaction;

/// The result of the last `verify`.
#[derive(Clone, Debug, Serialize)]
pub struct VerifyShown {
    /// Nothing was found.
    pub ok: bool,
    /// The number of findings.
    pub findings: i64,
    /// The amounts were compared with the bodies of the batches, too (`--deep`).
    pub deep: bool,
    /// When it ended.
    pub checked_at: DateTime<Utc>,
}

impl VerifyShown {
    /// Returns the last `verify` of all entities.
    pub(super) async fn of_all(transaction: &mut Transaction) -> Result<Option<Self>, JournalError> {
        Self::read(transaction, None).await
    }

    /// Returns the last `verify` of an entity: its own, or that of all entities if that is newer.
    pub(super) async fn of(
        transaction: &mut Transaction,
        entity_id: &str,
    ) -> Result<Option<Self>, JournalError> {
        Self::read(transaction, Some(entity_id)).await
    }

    /// An entity with findings has a fact of its own, which is as old as the `verify` that found them.
    async fn read(
        transaction: &mut Transaction,
        entity_id: Option<&str>,
    ) -> Result<Option<Self>, JournalError> {
        Ok(sqlx::query_as!(
            Self,
            r#"select coalesce(value -> 'ok' = 'true'::jsonb, false) as "ok!",
                      coalesce((value ->> 'findings')::bigint, 0) as "findings!",
                      coalesce(value -> 'deep' = 'true'::jsonb, false) as "deep!", checked_at
                 from elven_sync.sync_facts
                where name = 'verify' and (entity_id is null and $1::text is null or entity_id = $1)"#,
            entity_id
        )
        .fetch_optional(transaction)
        .await?)
    }
}
