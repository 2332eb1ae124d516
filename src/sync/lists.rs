//! The lists of a credential, with which the names of a refused batch are compared.

use std::collections::HashSet;
use std::time::Duration;

use super::api_session::ApiSession;
use super::lane_worker::LaneWorker;
use super::names::ApiLists;
use super::reference::whole_list_of;
use crate::elven::List;
use crate::journal::JournalError;

/// A list that was stored within this time is not requested again.
const LIST_AGE_MAX: Duration = Duration::from_mins(5);

impl ApiSession {
    /// Returns the lists of the credential: those that were stored a moment ago, or else as the API gives them now. A
    /// run requests them once, and stores what it has read.
    ///
    /// # Errors
    /// The journal cannot be read or written. A list that cannot be read is missing in the result.
    pub(super) async fn lists(&self, worker: &LaneWorker) -> Result<&ApiLists, JournalError> {
        let read = async || {
            let mut lists = ApiLists::default();
            for (list, slot) in List::ALL.into_iter().zip(&mut lists.0) {
                *slot = self.recent_or_read(worker, list).await?;
            }
            Ok(lists)
        };
        self.lists.get_or_try_init(read).await
    }

    async fn recent_or_read(
        &self,
        worker: &LaneWorker,
        list: List,
    ) -> Result<Option<HashSet<String>>, JournalError> {
        let credential = &self.credential.name;
        if let Some(recent) = worker.journal.recent_list(credential, list, LIST_AGE_MAX).await? {
            return Ok(Some(recent.into_iter().collect()));
        }
        match whole_list_of(&worker.settings, self, list).await {
            Ok(entries) => {
                worker.journal.keep_list(credential, list, &entries).await?;
                tracing::info!(credential, entries = entries.len(), "list of {} read", list.many());
                Ok(Some(entries.into_iter().map(|entry| entry.id).collect()))
            }
            Err(failure) => {
                tracing::info!(credential, "no list of {} to compare with: {}", list.many(), failure.message);
                Ok(None)
            }
        }
    }
}
