//! The steps of the cases.

/// A sequence of steps, each with its expected outcome. Each case begins with a pass that worker A has opened.
pub(super) struct Case {
    pub(super) name: &'static str,
    pub(super) steps: &'static [(Step, &'static str)],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Worker {
    A,
    B,
}

/// The lease and the pass that a write names.
#[derive(Clone, Copy, Debug)]
pub(super) enum Under {
    /// Those that the worker took and opened last.
    Own(Worker),
    /// The lease of worker A with another epoch.
    OtherEpoch,
    /// The lease of worker A with another owner.
    OtherOwner,
    /// The lease of worker A, but another pass.
    OtherPass,
}

/// The rows of a batch: those after the first position, up to the second. The cursor has the same positions.
pub(super) type Span = (i64, i64);

#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    Take(Worker),
    Open(Under),
    Announce(Under, Span),
    Repeat(Under, Span),
    /// The same, and the outcome of an earlier attempt is unknown.
    RepeatLost(Under, Span),
    /// The batch is accepted, and the cursor moves from the one position of the second span to the other.
    Accept(Under, Span, Option<Span>),
    /// The same, for a body that was not announced.
    AcceptOtherBody(Under, Span),
    /// The outcome of the batch is unknown.
    Lose(Under, Span),
    /// The API did not accept the batch for now.
    Refuse(Under, Span),
    Withdraw(Under, Span),
    Empty(Under, Span, Option<Span>),
    Split(Under, Span),
    /// All rows of the batch are set aside, unless the entity would have more than this number.
    SetAside(Under, Span, usize),
    CountUnknownRun(Under, Span),
    /// The pass is closed, whose last batch ends at this position.
    Close(Under, i64),
    /// These writes are submitted together, and then awaited.
    Together(&'static [Step]),
    Recover(Under),
    Check(Under),
    Release(Under),
    Fail(Under),
    Succeed(Under),
    Rejections,
    /// The worker notes that the answer to an attempt was lost. Nothing is written.
    NoteLost(Worker, Span),
    /// Time passes until the lease has expired, but signatures that were made under it are still valid.
    LeaseExpires,
    /// Time passes until no signature and no fence is left.
    SignaturesExpire,
    /// A failover loses the answer to a batch.
    AnswerIsLost(Span),
}
