//! The warning about an API key that several entities use: at Elven a key belongs to one entity.

use std::collections::{BTreeMap, BTreeSet};

use secrecy::ExposeSecret;

use super::Worker;
use super::lane_worker::Target;
use crate::journal::JournalError;
use crate::text::and_more;

/// The most entities that the warning names.
const NAMED_MAX: usize = 5;

impl Worker {
    /// Warns of keys that several entities use. The warning is for a new entity and a wrong credential: it comes only
    /// if an entity with work has no accepted record yet, or has rows set aside that the API refused. So an
    /// installation that is right, because its entities are one entity at Elven, is silent after its first upload.
    pub(super) async fn warn_of_shared_keys(
        &self,
        targets: &[Target],
        busy: &[&Target],
    ) -> Result<(), JournalError> {
        let shared: Vec<Vec<&Target>> = by_key(targets).into_values().filter(|same| same.len() > 1).collect();
        let is_shared =
            |target: &&&Target| shared.iter().flatten().any(|sharing| sharing.entity_id == target.entity_id);
        let busy: Vec<String> =
            busy.iter().filter(is_shared).map(|target| target.entity_id.clone()).collect();
        if busy.is_empty() {
            return Ok(());
        }
        let doubtful: BTreeSet<String> = self.journal.without_good_upload(&busy).await?.into_iter().collect();
        for same in shared {
            if same.iter().any(|target| doubtful.contains(&target.entity_id)) {
                tracing::warn!("{}", message(&same));
            }
        }
        Ok(())
    }
}

/// Returns the entities by their keys. Two credentials may have the same key.
fn by_key(targets: &[Target]) -> BTreeMap<&str, Vec<&Target>> {
    let mut by_key: BTreeMap<&str, Vec<&Target>> = BTreeMap::new();
    for target in targets {
        by_key.entry(target.session.credential.key.expose_secret()).or_default().push(target);
    }
    by_key
}

fn message(same: &[&Target]) -> String {
    let listed = |names: BTreeSet<&str>| {
        let count = names.len();
        let first: Vec<String> = names.into_iter().take(NAMED_MAX).map(|name| format!("`{name}`")).collect();
        and_more(&first, count)
    };
    let credentials: BTreeSet<&str> =
        same.iter().map(|target| target.session.credential.name.as_str()).collect();
    let of = if credentials.len() == 1 { "credential" } else { "credentials" };
    format!(
        "entities {} use one API key ({of} {}), but a key belongs to one entity at Elven, which refuses the accounts \
         of others; hint: give each entity a credential of its own: [credentials.NAME] in the configuration, then \
         elven-sync entity set ID --credential NAME",
        listed(same.iter().map(|target| target.entity_id.as_str()).collect()),
        listed(credentials)
    )
}
