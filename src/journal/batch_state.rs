//! The state of a batch: the one place that knows how the columns of `sync_batches` spell it.

/// The state of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BatchState {
    /// A part of a split batch that has not been sent.
    Queued,
    /// A request is in flight, or was when its worker stopped.
    Sending,
    /// The API accepted all records, or no record was left to send.
    Accepted,
    /// Two parts have taken its place.
    Split,
    /// Its records are set aside.
    SetAside,
    /// The API did not accept it now: it is sent again.
    Retryable,
    /// The outcome of an attempt is unknown, so the API may have imported it.
    Unknown,
    /// The outcome of an attempt is unknown, and no row of the batch is left to send.
    UnknownWithoutRows,
}

impl BatchState {
    /// Decodes `status`, `row_count` and `attempts`.
    ///
    /// # Errors
    /// The status is not one of the schema.
    pub fn decode(status: &str, row_count: i32, attempts: i32) -> Result<Self, sqlx::Error> {
        Ok(match (status, row_count) {
            ("sending", _) if attempts == 0 => Self::Queued,
            ("sending", _) => Self::Sending,
            ("accepted", _) => Self::Accepted,
            ("split", _) => Self::Split,
            ("rejected", 0) => Self::SetAside,
            ("rejected", _) => Self::Retryable,
            ("unknown", 0) => Self::UnknownWithoutRows,
            ("unknown", _) => Self::Unknown,
            _ => return Err(sqlx::Error::Decode(format!("`{status}` is no status of a batch").into())),
        })
    }

    /// All its rows have a final outcome.
    pub fn is_done(self) -> bool {
        matches!(self, Self::Accepted | Self::SetAside)
    }

    /// Some of its rows have no final outcome yet, and no part has taken its place. In SQL: `elven_sync.is_open`.
    pub fn is_open(self) -> bool {
        !self.is_done() && self != Self::Split
    }

    /// An attempt may have been imported by the API.
    pub fn may_have_arrived(self) -> bool {
        self == Self::Unknown
    }
}
