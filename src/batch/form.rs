//! The form of a record: its fields, by the version of the import.

use std::fmt;
use std::sync::Arc;

use crate::align::{CurrencyKind, Invalid, Text};
use crate::config::ApiVersion;

/// What decides the fields of a record; cheap to clone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum RecordForm {
    /// Version 3: the record names its `currency`.
    #[default]
    V3,
    /// Version 4: the record names its source, and its currency by `symbol` or `assetID`.
    V4 {
        /// The source.
        source: Source,
        /// What the ledger's currencies are, unless a map says otherwise.
        currency_kind: CurrencyKind,
    },
}

impl RecordForm {
    /// Returns the form of a batch as it was recorded. `None`: this program makes no such batch. `currency_kind`: what
    /// the ledger's currencies are, which is not recorded with a batch.
    pub fn recorded(
        api_version: Option<i32>,
        source_id: Option<&str>,
        currency_kind: CurrencyKind,
    ) -> Option<Self> {
        let is = |version: ApiVersion| api_version.is_none_or(|number| number == version.number());
        match source_id {
            None if is(ApiVersion::V3) => Some(Self::V3),
            Some(id) if api_version.is_some() && is(ApiVersion::V4) => {
                Some(Self::V4 { source: Source::new(id).ok()?, currency_kind })
            }
            _ => None,
        }
    }

    /// Returns the version of the import.
    pub fn version(&self) -> ApiVersion {
        match self {
            Self::V3 => ApiVersion::V3,
            Self::V4 { .. } => ApiVersion::V4,
        }
    }

    /// Returns the source that records name.
    pub fn source(&self) -> Option<&Source> {
        match self {
            Self::V3 => None,
            Self::V4 { source, .. } => Some(source),
        }
    }

    /// Returns what the ledger's currencies are.
    pub fn currency_kind(&self) -> CurrencyKind {
        match self {
            Self::V3 => CurrencyKind::default(),
            Self::V4 { currency_kind, .. } => *currency_kind,
        }
    }

    /// Returns the field that names a currency. `mapped`: what its map says that it is.
    pub(super) fn currency_field(&self, mapped: Option<CurrencyKind>) -> CurrencyField {
        match self {
            Self::V3 => CurrencyField::Currency,
            Self::V4 { currency_kind, .. } => match mapped.unwrap_or(*currency_kind) {
                CurrencyKind::Symbol => CurrencyField::Symbol,
                CurrencyKind::AssetId => CurrencyField::AssetId,
            },
        }
    }
}

impl fmt::Display for RecordForm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.source() {
            None => f.write_str("version 3"),
            Some(source) => write!(f, "version 4 with source `{}`", source.id()),
        }
    }
}

/// A source at Elven, to which the balances of an entity belong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    id: Arc<str>,
    /// The id as JSON, since each record of a body has it.
    json: Arc<[u8]>,
}

impl Source {
    /// Returns the source with an id.
    ///
    /// # Errors
    /// The id is blank, or has a control character.
    pub fn new(id: &str) -> Result<Self, Invalid> {
        let mut json = Vec::new();
        Text::read("the id of the source", Some(id))?.write(&mut json);
        Ok(Self { id: id.into(), json: json.into() })
    }

    /// Returns its id.
    pub fn id(&self) -> &str {
        &self.id
    }

    pub(super) fn write(&self, body: &mut Vec<u8>) {
        body.extend_from_slice(&self.json);
    }
}

/// The field of a record that names its currency.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CurrencyField {
    Currency,
    Symbol,
    AssetId,
}

impl CurrencyField {
    /// Returns the beginning of the field, up to its value.
    pub(super) fn json(self) -> &'static [u8] {
        match self {
            Self::Currency => br#","currency":"#,
            Self::Symbol => br#","symbol":"#,
            Self::AssetId => br#","assetID":"#,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_of_a_recorded_batch_is_known_or_none() {
        let of = |version, source| RecordForm::recorded(version, source, CurrencyKind::Symbol);
        assert_eq!([of(None, None), of(Some(3), None)], [Some(RecordForm::V3), Some(RecordForm::V3)]);
        let form = of(Some(4), Some("s-1")).unwrap();
        assert_eq!((form.version(), form.source().map(Source::id)), (ApiVersion::V4, Some("s-1")));
        assert_eq!(form.to_string(), "version 4 with source `s-1`");
        for (version, source) in
            [(Some(4), None), (Some(3), Some("s")), (None, Some("s")), (Some(5), Some("s"))]
        {
            assert_eq!(of(version, source), None, "{version:?} {source:?}");
        }
        assert_eq!(of(Some(4), Some(" ")), None);
    }
}
