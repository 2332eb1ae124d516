//! What the HTTP server asks the database. It has connections of its own, and no patience.

use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use tokio::sync::Mutex;
use tokio::time::timeout;

use super::connected::{Connected, Target, connect_to};
use super::health::{Checked, Health};
use super::pages::{Pages, Reading};
use crate::config::Settings;
use crate::database::Database;
use crate::journal::metrics::Readings;
use crate::journal::status_page::{EntityPage, StatusPage};
use crate::journal::{self, JournalError};
use crate::sync::ConnectError;
use crate::text::chain;

/// The most connections of the HTTP server.
const CONNECTIONS_MAX: usize = 3;
/// How long the HTTP server waits for a database that is away.
const RECONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// The time limit of a check of the database.
const CHECK_MAX: Duration = Duration::from_secs(2);
/// The time limit of reading the sync tables. A scrape ends after 10 s by default.
const READ_MAX: Duration = Duration::from_secs(5);
/// The longest time that a request for a page waits, also for the readings that others began. The server cuts a request
/// after 10 s.
const WAIT_MAX: Duration = Duration::from_secs(8);
/// The result of a check or of reading the sync tables is used for this long, so that many requests do not cost many
/// statements.
const CHECKED_FOR: Duration = Duration::from_secs(1);

/// The database, as the HTTP server sees it.
#[derive(Debug, Default)]
pub(super) struct Observer {
    connected: Mutex<Option<Connected>>,
    /// When the database was checked last. Held during a check, so that there is one at a time.
    checked_at: Mutex<Option<Instant>>,
    /// What the sync tables said last, and when. Held while they are read, so that there is one reading at a time.
    readings: Mutex<Option<(Instant, Arc<Readings>)>>,
    pages: Pages,
}

impl Observer {
    /// Checks whether the database can be reached and has the right schema, and notes the result.
    pub(super) async fn check(&self, settings: &Settings, health: &Health) {
        let mut checked_at = self.checked_at.lock().await;
        if checked_at.is_some_and(|at| at.elapsed() < CHECKED_FOR) {
            return;
        }
        let checked = timeout(CHECK_MAX, self.checked(settings)).await;
        health.note_database(checked.unwrap_or(Checked::Away));
        *checked_at = Some(Instant::now());
    }

    /// Returns what the sync tables say. `None`: they could not be read in time.
    pub(super) async fn readings(&self, settings: &Settings, health: &Health) -> Option<Arc<Readings>> {
        let mut latest = self.readings.lock().await;
        if let Some((at, readings)) = &*latest
            && at.elapsed() < CHECKED_FOR
        {
            return Some(readings.clone());
        }
        *latest = None;
        let read = async { Readings::read(&self.database(settings).await.ok()?).await.ok() };
        let readings = Arc::new(timeout(READ_MAX, read).await.ok()??);
        health.note_reached();
        *latest = Some((Instant::now(), readings.clone()));
        Some(readings)
    }

    /// Returns what the status page shows.
    pub(super) async fn status_page(&self, settings: &Settings, health: &Health) -> Reading<StatusPage> {
        let read = self.read(settings, health, async |database| StatusPage::read(&database).await.map(Some));
        timeout(WAIT_MAX, self.pages.status(read)).await.unwrap_or(Reading::Failed)
    }

    /// Returns what the page of an entity shows.
    pub(super) async fn entity_page(
        &self,
        settings: &Settings,
        health: &Health,
        entity_id: &str,
    ) -> Reading<EntityPage> {
        let read = self.read(settings, health, async |database| EntityPage::read(&database, entity_id).await);
        timeout(WAIT_MAX, self.pages.entity(entity_id, read)).await.unwrap_or(Reading::Failed)
    }

    /// When the sync tables were read last for a page.
    pub(super) fn last_read(&self) -> Option<DateTime<Utc>> {
        self.pages.last_read()
    }

    /// Reads something from the sync tables.
    async fn read<T>(
        &self,
        settings: &Settings,
        health: &Health,
        what: impl AsyncFnOnce(Database) -> Result<Option<T>, JournalError>,
    ) -> Reading<T> {
        let read = async { Some(what(self.database(settings).await.ok()?).await) };
        match timeout(READ_MAX, read).await.ok().flatten() {
            Some(Ok(page)) => {
                health.note_reached();
                page.map_or(Reading::Unregistered, |page| Reading::Page(Arc::new(page)))
            }
            Some(Err(problem)) => {
                tracing::warn!("the status page could not be read: {}", chain(&problem));
                Reading::Failed
            }
            None => Reading::Failed,
        }
    }

    async fn checked(&self, settings: &Settings) -> Checked {
        let Ok(database) = self.database(settings).await else { return Checked::Away };
        match journal::check_schema(&database).await {
            Ok(()) => Checked::Well,
            Err(JournalError::Schema(why)) => Checked::WrongSchema(why),
            Err(_) => Checked::Away,
        }
    }

    /// Returns a connection with the configuration in use.
    async fn database(&self, settings: &Settings) -> Result<Database, ConnectError> {
        let mut connected = self.connected.lock().await;
        let target = Target::impatient(settings, CONNECTIONS_MAX, RECONNECT_TIMEOUT)?;
        let current = connect_to(target, connected.take()).await?;
        Ok(connected.insert(current).database.clone())
    }
}
