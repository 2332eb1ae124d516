//! The cases: what is written, and what comes of each write.

use super::step::Step::{
    Accept, AcceptOtherBody, Announce, AnswerIsLost, Check, Close, CountUnknownRun, Empty, Fail,
    LeaseExpires, Lose, NoteLost, Open, Recover, Refuse, Rejections, Release, Repeat, RepeatLost, SetAside,
    SignaturesExpire, Split, Succeed, Take, Together, Withdraw,
};
use super::step::Under::{OtherEpoch, OtherOwner, OtherPass, Own};
use super::step::{Case, Under, Worker};

const A: Under = Own(Worker::A);
const B: Under = Own(Worker::B);

pub(super) const CASES: &[Case] = &[
    Case {
        name: "an announcement is written under the lease of the pass only",
        steps: &[
            (Announce(OtherEpoch, (0, 2)), "lost"),
            (Announce(OtherOwner, (0, 2)), "lost"),
            (Announce(OtherPass, (0, 2)), "lost"),
            (Announce(A, (0, 2)), "done"),
        ],
    },
    Case {
        name: "an announcement begins where the last one ends",
        steps: &[(Announce(A, (0, 2)), "done"), (Announce(A, (2, 4)), "done"), (Announce(A, (5, 6)), "lost")],
    },
    Case { name: "the first announcement begins without a cursor", steps: &[(Announce(A, (1, 2)), "lost")] },
    Case {
        name: "no announcement is written after one that failed",
        steps: &[
            (Announce(A, (0, 2)), "done"),
            (Announce(A, (3, 4)), "lost"),
            (Announce(A, (2, 4)), "lost"),
            (Accept(A, (0, 2), Some((0, 2))), "done"),
            (Recover(A), "nothing"),
        ],
    },
    Case {
        name: "of announcements that are submitted together none is written after one that failed",
        steps: &[
            (Together(&[Announce(A, (0, 2)), Announce(A, (3, 4)), Announce(A, (2, 4))]), "done, lost, lost"),
            (Recover(A), "0-2 Unknown Beyond"),
        ],
    },
    Case {
        name: "an answer moves the cursor from where it is",
        steps: &[
            (Announce(A, (0, 2)), "done"),
            (Announce(A, (2, 4)), "done"),
            (Accept(A, (0, 2), Some((0, 2))), "done"),
            (Accept(A, (2, 4), Some((2, 4))), "done"),
            (Recover(A), "nothing"),
        ],
    },
    Case {
        name: "an answer does not move the cursor from elsewhere",
        steps: &[
            (Announce(A, (0, 2)), "done"),
            (Announce(A, (2, 4)), "done"),
            (Accept(A, (2, 4), Some((2, 4))), "lost"),
            (Recover(A), "0-2 Unknown Beyond, 2-4 Unknown Beyond"),
        ],
    },
    Case {
        name: "an answer without a move leaves the cursor, and a later one moves it over both",
        steps: &[
            (Announce(A, (0, 2)), "done"),
            (Announce(A, (2, 4)), "done"),
            (Accept(A, (2, 4), None), "done"),
            (Recover(A), "0-2 Unknown Beyond, 2-4 Accepted Beyond"),
            (Accept(A, (0, 2), Some((0, 4))), "done"),
            (Recover(A), "nothing"),
            (Close(A, 4), "done"),
        ],
    },
    Case {
        name: "an answer to another body is not written, and the cursor stays after it",
        steps: &[
            (Announce(A, (0, 2)), "done"),
            (AcceptOtherBody(A, (0, 2)), "lost"),
            (Accept(A, (0, 2), Some((0, 2))), "done"),
            (Recover(A), "0-2 Accepted Beyond"),
            (Close(A, 2), "lost"),
        ],
    },
    Case {
        name: "an answer to a batch that does not exist is not written",
        steps: &[(Accept(A, (0, 2), None), "lost"), (Lose(A, (0, 2)), "lost"), (Split(A, (0, 2)), "lost")],
    },
    Case {
        name: "a batch that does not exist is not repeated",
        steps: &[
            (Repeat(A, (0, 2)), "lost"),
            (Announce(A, (0, 2)), "done"),
            (Repeat(A, (0, 2)), "done"),
            (Repeat(OtherEpoch, (0, 2)), "lost"),
        ],
    },
    Case {
        name: "a batch that does not exist is not emptied, and its unknown run is not counted",
        steps: &[(CountUnknownRun(A, (0, 2)), "done"), (Empty(A, (0, 2), None), "lost")],
    },
    Case {
        name: "a pass is closed where its last batch ends, when all batches have an answer",
        steps: &[
            (Close(OtherEpoch, 0), "lost"),
            (Announce(A, (0, 2)), "done"),
            (Close(A, 0), "unfinished"),
            (Accept(A, (0, 2), Some((0, 2))), "done"),
            (Close(A, 0), "lost"),
            (Close(A, 4), "lost"),
            (Close(A, 2), "done"),
            (Close(A, 2), "lost"),
            (Announce(A, (2, 4)), "lost"),
        ],
    },
    Case {
        name: "a pass without batches is closed",
        steps: &[(Close(A, 2), "lost"), (Close(A, 0), "done"), (Take(Worker::B), "taken")],
    },
    Case {
        name: "a pass with a batch that is to be sent again is not closed",
        steps: &[
            (Announce(A, (0, 2)), "done"),
            (Refuse(A, (0, 2)), "done"),
            (Close(A, 0), "unfinished"),
            (Lose(A, (0, 2)), "done"),
            (Close(A, 0), "unfinished"),
        ],
    },
    Case {
        name: "the last answer and the closing may be submitted together",
        steps: &[
            (Announce(A, (0, 2)), "done"),
            (Together(&[Accept(A, (0, 2), Some((0, 2))), Close(A, 2)]), "done, done"),
        ],
    },
    Case {
        name: "no pass is closed after an answer that failed",
        steps: &[
            (Announce(A, (0, 2)), "done"),
            (Together(&[Accept(A, (0, 2), Some((2, 2))), Close(A, 2)]), "lost, lost"),
            (Close(A, 0), "lost"),
        ],
    },
    Case {
        name: "after an answer that failed, nothing moves the cursor",
        steps: &[
            (Announce(A, (0, 2)), "done"),
            (Announce(A, (2, 4)), "done"),
            (Accept(A, (0, 2), Some((1, 2))), "lost"),
            (Accept(A, (0, 2), Some((0, 2))), "done"),
            (SetAside(A, (2, 4), 9), "lost"),
            (Empty(A, (2, 4), Some((0, 4))), "lost"),
            (Empty(A, (2, 4), None), "done"),
            (Recover(A), "0-2 Accepted Beyond, 2-4 Accepted Beyond"),
            (Close(A, 0), "lost"),
        ],
    },
    Case {
        name: "nothing is written after the release",
        steps: &[
            (Announce(A, (0, 2)), "done"),
            (Release(A), "done"),
            (Accept(A, (0, 2), Some((0, 2))), "lost"),
            (Repeat(A, (0, 2)), "lost"),
            (CountUnknownRun(A, (0, 2)), "lost"),
            (Recover(A), "lost"),
            (Announce(A, (2, 4)), "lost"),
            (Close(A, 2), "lost"),
            (Check(A), "lost"),
            (Fail(A), "lost"),
            (Succeed(A), "lost"),
            (Open(A), "lost"),
            (Release(A), "done"),
            (Take(Worker::B), "taken"),
            (Recover(B), "0-2 Unknown Beyond"),
        ],
    },
    Case {
        name: "nothing is written after a failure or a success of the lane",
        steps: &[
            (Fail(A), "done"),
            (Announce(A, (0, 2)), "lost"),
            (Take(Worker::B), "taken"),
            (Succeed(B), "done"),
            (Announce(B, (0, 2)), "lost"),
            (Take(Worker::A), "taken"),
            (Announce(A, (0, 2)), "done"),
        ],
    },
    Case {
        name: "a lease is taken after it has expired and no signature is valid",
        steps: &[
            (Take(Worker::B), "held"),
            (LeaseExpires, "passed"),
            (Take(Worker::B), "held"),
            (SignaturesExpire, "passed"),
            (Take(Worker::B), "taken"),
            (Take(Worker::A), "held"),
        ],
    },
    Case {
        name: "the earlier holder writes nothing after a takeover",
        steps: &[
            (Announce(A, (0, 2)), "done"),
            (LeaseExpires, "passed"),
            (SignaturesExpire, "passed"),
            (Take(Worker::B), "taken"),
            (Accept(A, (0, 2), Some((0, 2))), "lost"),
            (SetAside(A, (0, 2), 0), "lost"),
            (Close(A, 0), "lost"),
            (Check(A), "lost"),
            (Release(A), "done"),
            (Check(B), "sure"),
            (Recover(B), "0-2 Unknown Beyond"),
            (Repeat(B, (0, 2)), "done"),
            (Accept(B, (0, 2), Some((0, 2))), "done"),
            (Close(B, 2), "done"),
        ],
    },
    Case {
        name: "a worker that takes its own lease again has another epoch",
        steps: &[
            (Release(A), "done"),
            (Take(Worker::A), "taken"),
            (Announce(A, (0, 2)), "done"),
            (Announce(OtherEpoch, (2, 4)), "lost"),
        ],
    },
    Case {
        name: "an expired lease that nobody took is renewed by a check",
        steps: &[
            (LeaseExpires, "passed"),
            (SignaturesExpire, "passed"),
            (Check(OtherOwner), "lost"),
            (Check(A), "sure"),
            (Take(Worker::B), "held"),
        ],
    },
    Case {
        name: "an expired lease that nobody took is renewed by a write",
        steps: &[
            (LeaseExpires, "passed"),
            (SignaturesExpire, "passed"),
            (Announce(OtherEpoch, (0, 2)), "lost"),
            (Announce(A, (0, 2)), "done"),
            (Take(Worker::B), "held"),
        ],
    },
    Case {
        name: "a released lease leaves the fence of its lost attempts",
        steps: &[
            (Announce(A, (0, 2)), "done"),
            (NoteLost(Worker::A, (0, 2)), "noted"),
            (Lose(A, (0, 2)), "done"),
            (Release(A), "done"),
            (Take(Worker::B), "taken with a fence"),
            (Release(B), "done"),
            (Take(Worker::A), "taken with a fence"),
            (Fail(A), "done"),
            (SignaturesExpire, "passed"),
            (Take(Worker::B), "taken"),
        ],
    },
    Case {
        name: "a failed lane leaves the fence of its lost attempts",
        steps: &[
            (NoteLost(Worker::A, (0, 2)), "noted"),
            (Fail(A), "done"),
            (Take(Worker::B), "taken with a fence"),
        ],
    },
    Case {
        name: "a closed pass leaves the fence of its lost attempts",
        steps: &[
            (Announce(A, (0, 2)), "done"),
            (NoteLost(Worker::A, (0, 2)), "noted"),
            (Accept(A, (0, 2), Some((0, 2))), "done"),
            (Close(A, 2), "done"),
            (Take(Worker::B), "taken with a fence"),
        ],
    },
    Case {
        name: "rows are set aside up to the limit of the entity",
        steps: &[
            (Announce(A, (0, 2)), "done"),
            (SetAside(A, (0, 2), 1), "too many"),
            (Rejections, "0"),
            (SetAside(OtherOwner, (0, 2), 1), "lost"),
            (SetAside(A, (0, 2), 2), "done"),
            (Rejections, "2"),
            (Announce(A, (2, 3)), "done"),
            (SetAside(A, (2, 3), 2), "too many"),
            (SetAside(A, (2, 3), 3), "done"),
            (Recover(A), "nothing"),
            (Close(A, 3), "done"),
            (Rejections, "3"),
        ],
    },
    Case {
        name: "rows of a batch that does not exist are not set aside",
        steps: &[(SetAside(A, (0, 2), 9), "lost"), (Rejections, "0")],
    },
    Case {
        name: "nothing relies on an answer that has been lost",
        steps: &[
            (Announce(A, (0, 2)), "done"),
            (Announce(A, (2, 4)), "done"),
            (Accept(A, (0, 2), Some((0, 2))), "done"),
            (AnswerIsLost((0, 2)), "changed"),
            (Repeat(A, (2, 4)), "lost"),
            (Accept(A, (2, 4), Some((2, 4))), "lost"),
            (Announce(A, (4, 6)), "lost"),
            (Close(A, 2), "lost"),
        ],
    },
    Case {
        name: "a pass is not closed over an answer that has been lost",
        steps: &[
            (Announce(A, (0, 2)), "done"),
            (Accept(A, (0, 2), Some((0, 2))), "done"),
            (AnswerIsLost((0, 2)), "changed"),
            (Close(A, 2), "unfinished"),
            (Release(A), "done"),
            (Take(Worker::B), "taken"),
            (Recover(B), "0-2 Unknown Passed"),
        ],
    },
    Case {
        name: "recovery makes batches unknown that were being sent",
        steps: &[
            (Announce(A, (0, 2)), "done"),
            (Announce(A, (2, 4)), "done"),
            (Announce(A, (4, 6)), "done"),
            (Announce(A, (6, 8)), "done"),
            (Accept(A, (0, 2), Some((0, 2))), "done"),
            (Accept(A, (4, 6), None), "done"),
            (Withdraw(A, (6, 8)), "done"),
            (Recover(OtherPass), "lost"),
            (Recover(A), "2-4 Unknown Beyond, 4-6 Accepted Beyond, 6-8 Retryable Beyond"),
        ],
    },
    Case {
        name: "recovery returns the parts of a batch after it, and leaves those alone that were never sent",
        steps: &[
            (Announce(A, (0, 2)), "done"),
            (Split(A, (0, 2)), "done"),
            (Recover(A), "0-2 Split Beyond, 0-2 Queued Beyond, 0-2 Queued Beyond"),
            (Announce(A, (2, 4)), "done"),
        ],
    },
    Case {
        name: "a batch that was ever unknown stays unknown when it is refused for now",
        steps: &[
            (Announce(A, (0, 2)), "done"),
            (Lose(A, (0, 2)), "done"),
            (RepeatLost(A, (0, 2)), "done"),
            (Refuse(A, (0, 2)), "done"),
            (Recover(A), "0-2 Unknown Beyond"),
            (SetAside(A, (0, 2), 2), "done"),
            (Recover(A), "nothing"),
        ],
    },
    Case {
        name: "an unknown batch of which no row is left is emptied, and the cursor moves over it",
        steps: &[
            (Announce(A, (0, 2)), "done"),
            (Lose(A, (0, 2)), "done"),
            (CountUnknownRun(A, (0, 2)), "done"),
            (Empty(A, (0, 2), Some((2, 4))), "lost"),
            (Release(A), "done"),
            (Take(Worker::B), "taken"),
            (Empty(B, (0, 2), Some((0, 2))), "done"),
            (Recover(B), "nothing"),
            (Close(B, 2), "done"),
        ],
    },
    Case {
        name: "a pass is opened under the lease only, and once",
        steps: &[
            (Open(A), "lost"),
            (Close(A, 0), "done"),
            (Open(A), "lost"),
            (Take(Worker::B), "taken"),
            (Open(OtherOwner), "lost"),
            (Open(B), "opened"),
            (Open(B), "lost"),
            (Announce(A, (0, 2)), "lost"),
            (Announce(B, (0, 2)), "done"),
        ],
    },
];
