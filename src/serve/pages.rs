//! What the pages show, read from the database at most once per some seconds, however many ask.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use tokio::sync::Mutex;

use crate::journal::JournalError;
use crate::journal::status_page::{EntityPage, StatusPage};

/// What was read is shown for this long. The page says as of when it is.
const SHOWN_FOR: Duration = Duration::from_secs(5);
/// After a failure, the database is not asked again for this long.
const FAILED_FOR: Duration = Duration::from_secs(1);
/// The most pages of entities that are kept.
const KEPT_MAX: usize = 64;

/// What was read for a page, and when; `None`: it could not be read.
type Kept<T> = Option<(Instant, Option<T>)>;

/// What the pages show.
#[derive(Debug, Default)]
pub(super) struct Pages {
    /// Held while it is read, so that many requests at the same time cost one reading.
    status: Mutex<Kept<Arc<StatusPage>>>,
    /// The same for the pages of entities, by id. An entity that is not registered has no page.
    entities: Mutex<Vec<(String, Kept<Option<Arc<EntityPage>>>)>>,
    /// When the sync tables were read last for a page.
    last_read: RwLock<Option<DateTime<Utc>>>,
}

impl Pages {
    /// Returns what the status page shows. `read` reads it, if what was read last is too old.
    pub(super) async fn status(
        &self,
        read: impl Future<Output = Option<Result<StatusPage, JournalError>>>,
    ) -> Option<Arc<StatusPage>> {
        let mut kept = self.status.lock().await;
        if let Some(page) = fresh(&kept) {
            return page;
        }
        let page = read.await.and_then(Result::ok).map(Arc::new);
        self.note_read(page.as_ref().map(|page| page.as_of));
        *kept = Some((Instant::now(), page.clone()));
        page
    }

    /// Returns what the page of an entity shows.
    pub(super) async fn entity(
        &self,
        entity_id: &str,
        read: impl Future<Output = Option<Result<Option<EntityPage>, JournalError>>>,
    ) -> Option<Option<Arc<EntityPage>>> {
        let mut kept = self.entities.lock().await;
        kept.retain(|(_, page)| fresh(page).is_some());
        if let Some((_, page)) = kept.iter().find(|(known, _)| known == entity_id) {
            return fresh(page).flatten();
        }
        let page = read.await.and_then(Result::ok).map(|page| page.map(Arc::new));
        self.note_read(page.as_ref().and_then(|page| page.as_ref()).map(|page| page.as_of));
        if kept.len() >= KEPT_MAX {
            kept.remove(0);
        }
        kept.push((entity_id.to_owned(), Some((Instant::now(), page.clone()))));
        page
    }

    /// When the sync tables were read last for a page, by the clock of the database.
    pub(super) fn last_read(&self) -> Option<DateTime<Utc>> {
        *self.last_read.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn note_read(&self, at: Option<DateTime<Utc>>) {
        if at.is_some() {
            *self.last_read.write().unwrap_or_else(PoisonError::into_inner) = at;
        }
    }
}

/// Returns what was read, unless it is too old. `Some(None)`: it could not be read just now.
fn fresh<T: Clone>(kept: &Kept<T>) -> Option<Option<T>> {
    let (at, page) = kept.as_ref()?;
    let for_ = if page.is_some() { SHOWN_FOR } else { FAILED_FOR };
    (at.elapsed() < for_).then(|| page.clone())
}
