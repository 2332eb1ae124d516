//! The options that choose errors.

use clap::builder::{NonEmptyStringValueParser, PossibleValuesParser};
use strum::VariantNames;

use crate::journal::{Kind, Wanted};

/// Which errors a command is about. Without any of these options: all.
#[derive(Debug, clap::Args)]
pub(super) struct Filter {
    /// Only errors of these entities
    #[arg(long = "entity", value_name = "ID")]
    entities: Vec<String>,
    /// Only errors of these kinds, e.g. `rejected_row`
    #[arg(long = "kind", value_name = "KIND", value_parser = PossibleValuesParser::new(Kind::VARIANTS))]
    kinds: Vec<String>,
    /// Only errors of these causes: an id that `errors list` prints, or a part of the text
    #[arg(long = "cause", value_name = "CAUSE", value_parser = NonEmptyStringValueParser::new())]
    causes: Vec<String>,
}

impl Filter {
    /// Returns the errors that match. `resolved`: also those that are not open.
    pub(super) fn wanted(self, resolved: bool) -> Wanted {
        let Self { entities, kinds, causes } = self;
        Wanted { entities, kinds, causes, resolved, ..Wanted::default() }
    }
}
