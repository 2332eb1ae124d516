//! What is told to an audit of a period while the journal is checked.

use super::batches::Leaf;
use super::chain::Link;
use crate::batch::Batch;
use crate::database::Transaction;
use crate::journal::Lane;
use crate::journal::audit::Change;
use crate::ledger::{Ledger, Row};
use crate::sync::RunError;
use crate::watermark::{Cursor, Xid};

/// The transactions that wrote the rows of a period, from the first to the last.
pub(crate) type XidSpan = std::ops::RangeInclusive<Xid>;

/// The state of an entity, before its batches are read.
pub(crate) struct Beginning<'a> {
    pub ledger: &'a Ledger,
    pub lane: &'a Lane,
    /// The changes of its watermark that are no passes: rows skipped at registration, and pruned passes.
    pub others: &'a [Change],
    /// The watermark belongs to this ledger. Otherwise no batch is read.
    pub fits: bool,
}

/// The body of a batch, made again from the ledger.
#[derive(Debug)]
pub(crate) enum Body {
    /// No record was accepted.
    Empty,
    /// It has the recorded hash.
    Proven(Box<Batch>),
    /// Rows of the batch have changed since, or were deleted.
    Changed,
    /// The rules of its time are not known any more, or its zone was not recorded.
    NotProvable,
    /// It has another hash: a finding.
    Other,
}

/// A batch or a part that was not split, and its body.
pub(crate) struct CheckedLeaf {
    pub leaf: Leaf,
    pub body: Body,
}

/// The interval of a whole batch, with the rows that the ledger has there now, in the order of the pass.
pub(crate) struct ReadBatch<'a> {
    pub link: &'a Link,
    /// The batches that list its rows. None: the interval after the last batch of a closed pass.
    pub leaves: Vec<CheckedLeaf>,
    pub rows: Vec<Row>,
}

/// Whoever wants the rows of the batches that are checked, in the transaction of the check.
pub(crate) trait BatchListener {
    /// Only the batches that may have rows of these transactions are read, all their rows and bodies. `None`: all
    /// batches are checked, and nothing is told about them.
    fn span(&self) -> Option<XidSpan>;

    /// The check begins, perhaps once more after the connection was lost.
    async fn begin(
        &mut self,
        transaction: &mut Transaction,
        beginning: Beginning<'_>,
    ) -> Result<(), RunError>;

    /// A batch was read.
    async fn read(&mut self, transaction: &mut Transaction, batch: ReadBatch<'_>) -> Result<(), RunError>;

    /// All batches were read. `recorded_to`: the end of the last batch of the open pass.
    async fn end(
        &mut self,
        transaction: &mut Transaction,
        recorded_to: Option<Cursor>,
    ) -> Result<(), RunError>;
}

/// Nobody listens.
pub(super) struct Nobody;

impl BatchListener for Nobody {
    fn span(&self) -> Option<XidSpan> {
        None
    }

    async fn begin(&mut self, _: &mut Transaction, _: Beginning<'_>) -> Result<(), RunError> {
        Ok(())
    }

    async fn read(&mut self, _: &mut Transaction, _: ReadBatch<'_>) -> Result<(), RunError> {
        Ok(())
    }

    async fn end(&mut self, _: &mut Transaction, _: Option<Cursor>) -> Result<(), RunError> {
        Ok(())
    }
}

/// Whether rows of these transactions may be in a pass.
pub(super) fn touches(span: &XidSpan, link: &Link) -> bool {
    link.target.xmax() > *span.start()
        && link.settled.as_ref().is_none_or(|settled| settled.xmin() <= *span.end())
}
