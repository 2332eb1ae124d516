//! What the pages show, read from the database at most once per some seconds, however many ask.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use tokio::sync::Mutex;

use crate::journal::status_page::{EntityPage, StatusPage};

/// What was read is shown for this long. The page says as of when it is.
const SHOWN_FOR: Duration = Duration::from_secs(5);
/// After a failure, the database is not asked again for this long.
const FAILED_FOR: Duration = Duration::from_secs(1);
/// The most pages of entities that are kept.
const KEPT_MAX: usize = 64;

/// What was read for a page.
#[derive(Debug)]
pub(super) enum Reading<T> {
    /// What it shows.
    Page(Arc<T>),
    /// The entity is not registered.
    Unregistered,
    /// The sync tables could not be read in time.
    Failed,
}

impl<T> Clone for Reading<T> {
    fn clone(&self) -> Self {
        match self {
            Self::Page(page) => Self::Page(page.clone()),
            Self::Unregistered => Self::Unregistered,
            Self::Failed => Self::Failed,
        }
    }
}

/// A reading, and when it ended.
#[derive(Debug)]
struct Kept<T> {
    reading: Reading<T>,
    at: Instant,
}

impl<T> Kept<T> {
    fn new(reading: &Reading<T>) -> Self {
        Self { reading: reading.clone(), at: Instant::now() }
    }

    /// Whether it is shown to those who ask now.
    fn is_fresh(&self) -> bool {
        let shown_for = if matches!(self.reading, Reading::Failed) { FAILED_FOR } else { SHOWN_FOR };
        self.at.elapsed() < shown_for
    }
}

/// What the pages show.
#[derive(Debug, Default)]
pub(super) struct Pages {
    /// Held while it is read, so that many requests at the same time cost one reading.
    status: Mutex<Option<Kept<StatusPage>>>,
    /// The same for the pages of entities, by id, the oldest first.
    entities: Mutex<Vec<(String, Kept<EntityPage>)>>,
    /// When the sync tables were read last for a page.
    last_read: RwLock<Option<DateTime<Utc>>>,
}

impl Pages {
    /// Returns what the status page shows. `read` reads it, if what was read last is too old.
    pub(super) async fn status(
        &self,
        read: impl Future<Output = Reading<StatusPage>>,
    ) -> Reading<StatusPage> {
        let mut kept = self.status.lock().await;
        if let Some(kept) = kept.as_ref().filter(|kept| kept.is_fresh()) {
            return kept.reading.clone();
        }
        let reading = read.await;
        if let Reading::Page(page) = &reading {
            self.note_read(page.as_of);
        }
        *kept = Some(Kept::new(&reading));
        reading
    }

    /// Returns what the page of an entity shows.
    pub(super) async fn entity(
        &self,
        entity_id: &str,
        read: impl Future<Output = Reading<EntityPage>>,
    ) -> Reading<EntityPage> {
        let mut kept = self.entities.lock().await;
        kept.retain(|(_, kept)| kept.is_fresh());
        if let Some((_, kept)) = kept.iter().find(|(known, _)| known == entity_id) {
            return kept.reading.clone();
        }
        let reading = read.await;
        if let Reading::Page(page) = &reading {
            self.note_read(page.as_of);
        }
        if kept.len() >= KEPT_MAX {
            kept.remove(0);
        }
        kept.push((entity_id.to_owned(), Kept::new(&reading)));
        reading
    }

    /// When the sync tables were read last for a page, by the clock of the database.
    pub(super) fn last_read(&self) -> Option<DateTime<Utc>> {
        *self.last_read.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn note_read(&self, at: DateTime<Utc>) {
        *self.last_read.write().unwrap_or_else(PoisonError::into_inner) = Some(at);
    }
}
