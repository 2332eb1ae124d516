//! The ledger: all SQL about it. Only [`attach`] writes to it; everything else reads.
//!
//! Pages are read with binary `COPY ... TO STDOUT`, the cheapest output format of PostgreSQL: one message per row,
//! decoded in [`row`] without a conversion to text.

pub mod attach;
mod audit;
mod beneath;
mod copy;
mod error;
mod guard;
mod id_statements;
mod instant;
mod lane_ledger;
mod mapping;
mod named_rows;
mod names_in_use;
mod observation;
mod open_transactions;
mod pages;
mod pending;
mod period;
mod preflight;
mod probe;
mod probe_statements;
mod quoting;
mod range;
mod range_statements;
mod reader;
mod repeated_keys;
mod row;
mod sample;
mod standby;
mod statements;
mod table;
mod unreadable;
mod unstamped;

use std::sync::Arc;

pub use audit::Interval;
pub use error::{LedgerError, Read, Unreadable};
pub use guard::{BrokenGuard, Guard, GuardFault};
pub use instant::{Range, instant, instant_us};
pub use lane_ledger::LaneLedger;
pub(crate) use mapping::belongs_to;
pub use mapping::{Changes, Mapping};
pub use named_rows::NamedRows;
pub use names_in_use::NameInUse;
pub use observation::Observation;
pub use open_transactions::Writer;
pub use pages::{Pages, Pass, PassRead};
pub use pending::Pending;
pub use period::{Population, Unlisted};
pub use preflight::{LedgerFacts, LedgerFile};
pub use probe::{NewRows, ProbeResult};
pub(crate) use quoting::{quote_array, quote_identifier, quote_literal};
pub use range::{AbsentValues, RangePages, Uploaded};
pub use reader::FoundRows;
pub use repeated_keys::LedgerNames;
pub use row::{Decoder, Row};
pub use sample::{SAMPLED_ROWS, Sampled};
pub use standby::check as check_standby;
pub use statements::{DoneInterval, Progress};
pub use table::Table;
pub use unreadable::Unreadables;
pub use unstamped::{GuardGap, Unstamped};

use crate::database::Database;

/// The ledger of one installation.
#[derive(Clone, Debug)]
pub struct Ledger {
    primary: Database,
    standby: Option<Database>,
    table: Table,
}

impl Ledger {
    /// Opens the ledger: finds the table and checks its columns against the catalogue. With a `standby`, pages are
    /// read from it; it must be a standby of `primary`.
    pub async fn open(
        primary: Database,
        standby: Option<Database>,
        settings: &crate::config::Settings,
    ) -> Result<Self, LedgerError> {
        let table = Table::find(&primary, &settings.ledger, settings.api.version).await?;
        if let Some(standby) = &standby {
            standby::check(&primary, standby).await?;
        }
        Ok(Self { primary, standby, table })
    }

    /// Returns the qualified name of the table, as `sync_state.ledger_table` records it.
    pub fn name(&self) -> &str {
        self.table.name()
    }

    /// Returns how the ledger is read, as `sync_state.mapping` records it.
    pub fn mapping(&self) -> &Mapping {
        &self.table.mapping
    }

    /// Returns the mapping as the JSON of `sync_state.mapping`.
    pub fn mapping_json(&self) -> &Arc<str> {
        &self.table.mapping_json
    }

    /// Returns the same ledger with conversions that cannot fail: every time is in range, and text columns are read as
    /// bytes.
    #[must_use]
    pub fn careful(&self) -> Self {
        Self { table: self.table.careful(), ..self.clone() }
    }
}
