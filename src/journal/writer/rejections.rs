//! The limit of rows of an entity that the API refused.

use std::collections::{BTreeMap, BTreeSet};

use super::super::JournalError;
use super::super::problem::rejections_with;
use super::write::{Answer, Consequence, WriteRequest};
use crate::database::Transaction;

/// Rows that the requests of one transaction set aside so far, by entity.
#[derive(Debug, Default)]
pub(super) struct Rejections(BTreeMap<String, BTreeSet<String>>);

impl Rejections {
    /// Says whether a request may be written: the entity stays within its limit of refused rows that are set aside.
    pub(super) async fn allow(
        &mut self,
        transaction: &mut Transaction,
        request: &WriteRequest,
    ) -> Result<bool, JournalError> {
        let Some(Answer { consequence: Consequence::SetAside { refused, rejections_max, .. }, .. }) =
            request.answer()
        else {
            return Ok(true);
        };
        let before = self.0.get(request.entity_id());
        let rows: Vec<String> = before.into_iter().flatten().chain(refused).cloned().collect();
        if rejections_with(transaction, request.entity_id(), &rows).await? > *rejections_max {
            return Ok(false);
        }
        self.0.entry(request.entity_id().to_owned()).or_default().extend(refused.iter().cloned());
        Ok(true)
    }
}
