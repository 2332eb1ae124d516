//! The ledger: every statement about it is here, and all but those of [`attach`] only read.
//!
//! Pages come as binary `COPY ... TO STDOUT`, the cheapest form in which PostgreSQL gives rows away:
//! one message per row, decoded in [`row`] without going through text.

pub mod attach;
mod audit;
mod copy;
mod error;
mod instant;
mod mapping;
mod open_transactions;
mod pages;
mod pending;
mod probe;
mod range;
mod reader;
mod row;
mod standby;
mod statements;
mod table;
mod unreadable;

use std::sync::Arc;

pub use audit::Interval;
pub use error::{LedgerError, Unreadable};
pub use instant::{Range, instant, instant_us};
pub(crate) use mapping::belongs_to;
pub use mapping::{Changes, Mapping};
pub use open_transactions::Writer;
pub use pages::{Pages, Pass, PassRead};
pub use pending::Pending;
pub use probe::{NewRows, ProbeResult};
pub use range::{AbsentValues, RangePages, Uploaded};
pub use row::{Decoder, Row};
pub use statements::Progress;
pub use table::Table;
pub(crate) use table::{quote_array, quote_literal};
pub use unreadable::Unreadables;

use crate::database::Database;

/// The ledger of one installation.
#[derive(Clone, Debug)]
pub struct Ledger {
    primary: Database,
    standby: Option<Database>,
    table: Table,
}

impl Ledger {
    /// Finds the table and checks its columns against the catalogue. With a `standby`, pages come from
    /// there; it has to be one of that primary.
    pub async fn open(
        primary: Database,
        standby: Option<Database>,
        settings: &crate::config::LedgerSettings,
    ) -> Result<Self, LedgerError> {
        let table = Table::find(&primary, settings).await?;
        if let Some(standby) = &standby {
            standby::check(&primary, standby).await?;
        }
        Ok(Self { primary, standby, table })
    }

    /// The table's qualified name, as the watermark remembers it.
    pub fn name(&self) -> &str {
        self.table.name()
    }

    /// How the ledger is read, as the watermark remembers it.
    pub fn mapping(&self) -> &Mapping {
        &self.table.mapping
    }

    /// The same as the JSON of `sync_state.mapping`.
    pub fn mapping_json(&self) -> &Arc<str> {
        &self.table.mapping_json
    }

    /// The same ledger, read in the careful way: no time is out of range, and any bytes are taken for a text.
    #[must_use]
    pub fn careful(&self) -> Self {
        Self { table: self.table.careful(), ..self.clone() }
    }
}
