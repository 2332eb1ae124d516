//! The rules by which the rows of an entity become records, from its registration and the configuration.

use crate::align::Zone;
use crate::batch::{RecordForm, RecordRules, Source};
use crate::config::{ApiVersion, Settings};
use crate::journal::Entity;
use crate::text::{quoted_argument, quoted_option};

/// Returns the rules for the records of an entity, apart from its names, or why the configured version of the import has none.
pub(super) fn record_rules(settings: &Settings, entity: &Entity, zone: Zone) -> Result<RecordRules, String> {
    record_form(settings, entity).map(|form| RecordRules { form, ..zone.into() })
}

/// Returns the form of the records of an entity.
///
/// # Errors
/// Version 4 is configured, and the entity has no source that can be sent: each import would create another source.
pub fn record_form(settings: &Settings, entity: &Entity) -> Result<RecordForm, String> {
    let remedy = || {
        let command = setting_source(&entity.entity_id, "ID");
        format!("hint: {command}, with an ID that `elven-sync reference sources` lists")
    };
    match (settings.api.version, entity.source_id.as_deref().filter(|id| !id.trim().is_empty())) {
        (ApiVersion::V3, _) => Ok(RecordForm::V3),
        (ApiVersion::V4, None) => Err(format!(
            "entity `{}` has no source, so version 4 of the API would create a new source with each import; {}",
            entity.entity_id,
            remedy()
        )),
        (ApiVersion::V4, Some(id)) => {
            let source = Source::new(id)
                .map_err(|why| format!("entity `{}`: {why}; {}", entity.entity_id, remedy()))?;
            Ok(RecordForm::V4 { source, currency_kind: settings.ledger.currency_kind })
        }
    }
}

/// Returns the command that sets the time zone of an entity.
pub fn setting_zone(entity_id: &str) -> String {
    format!("elven-sync entity set --timezone ZONE {}", quoted_argument(entity_id))
}

/// Returns the command that sets the credential of an entity.
pub fn setting_credential(entity_id: &str) -> String {
    format!("elven-sync entity set --credential NAME {}", quoted_argument(entity_id))
}

/// Returns the command that sets the source of an entity.
pub fn setting_source(entity_id: &str, source_id: &str) -> String {
    let source = quoted_option("--source-id", source_id);
    format!("elven-sync entity set {source} {}", quoted_argument(entity_id))
}
