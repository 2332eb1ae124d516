//! What a refusal says that has a code of `[api] already_imported_codes`: perhaps the API has the records already.
//!
//! An API may refuse a batch with such a code because it has all of its records, or because it has one of them. So the
//! two halves of the batch are sent. Only if both are refused in the same way does the API have the whole batch.

use crate::elven::ResponseClass;

/// What is known of a batch whose import was refused.
#[derive(Clone, Copy, Debug)]
pub(in crate::sync) struct RefusedBatch<'a> {
    /// The class of the refusal.
    pub class: &'a ResponseClass,
    /// An attempt of the batch has an unknown outcome, so the API may have imported it.
    pub is_lost: bool,
    /// The batch cannot be split.
    pub is_single: bool,
}

/// What the refusal says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::sync) enum Claim {
    /// The content is refused.
    Refused,
    /// The API may have the batch: the halves are sent to find out.
    AskHalves,
    /// The API has the single record of the batch.
    Imported,
}

/// Decides what a refusal says. `codes`: `[api] already_imported_codes`.
///
/// Without a lost attempt the records were not sent before, so the refusal is about other records of the same keys.
pub(in crate::sync) fn claim(refused: RefusedBatch<'_>, codes: &[String]) -> Claim {
    let RefusedBatch { class, is_lost, is_single } = refused;
    match (is_lost && has_code(class, codes), is_single) {
        (false, _) => Claim::Refused,
        (true, false) => Claim::AskHalves,
        (true, true) => Claim::Imported,
    }
}

/// Whether an answer is a refusal with one of these codes.
fn has_code(class: &ResponseClass, codes: &[String]) -> bool {
    let ResponseClass::Refused(reason) = class else { return false };
    reason.code.as_ref().is_some_and(|code| codes.contains(code))
}

/// The answer to one of the halves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::sync) enum HalfAnswer {
    /// Refused with a code that says that the API has the records.
    Imported,
    /// An attempt of the half itself has an unknown outcome: the API may have imported the half by that attempt, so
    /// the answer says nothing about the whole batch.
    Nothing,
    /// Any other answer: the API did not have the whole batch.
    Other,
}

/// Returns what the refusal of a half says. `is_lost`: an attempt of the half itself has an unknown outcome.
pub(in crate::sync) fn of_half(class: &ResponseClass, is_lost: bool, codes: &[String]) -> HalfAnswer {
    match (has_code(class, codes), is_lost) {
        (true, false) => HalfAnswer::Imported,
        (true, true) => HalfAnswer::Nothing,
        (false, _) => HalfAnswer::Other,
    }
}

/// What follows from the answers to the halves that were sent so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::sync) enum NextHalf {
    /// The other half is sent, too.
    Ask,
    /// The API has both halves: they are accepted.
    Accept,
    /// Each half is treated like a batch one of whose attempts was lost: it may have been imported with the batch.
    AskEach,
    /// The batch was refused for another reason: each half is treated like the half of any refused batch.
    Bisect,
}

/// Decides what follows from the answers to the halves that were sent so far.
pub(in crate::sync) fn after_halves(answers: &[HalfAnswer]) -> NextHalf {
    match answers {
        answers if answers.contains(&HalfAnswer::Other) => NextHalf::Bisect,
        answers if answers.contains(&HalfAnswer::Nothing) => NextHalf::AskEach,
        [] | [_] => NextHalf::Ask,
        _ => NextHalf::Accept,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::elven::Reason;

    fn codes() -> Vec<String> {
        ["19734", "DUPLICATE"].map(str::to_owned).to_vec()
    }

    fn refused(code: Option<&str>) -> ResponseClass {
        ResponseClass::Refused(Reason { code: code.map(str::to_owned), message: Some("19734".to_owned()) })
    }

    #[test]
    fn only_a_refusal_with_such_a_code_after_a_lost_attempt_may_be_an_import() {
        use Claim::{AskHalves, Imported, Refused};
        for (class, is_lost, is_single, expected) in [
            (refused(Some("19734")), true, false, AskHalves),
            (refused(Some("DUPLICATE")), true, false, AskHalves),
            (refused(Some("19734")), true, true, Imported),
            (refused(Some("19734")), false, false, Refused),
            (refused(Some("19734")), false, true, Refused),
            (refused(Some("197345")), true, true, Refused),
            (refused(Some("duplicate")), true, true, Refused),
            (refused(Some("")), true, true, Refused),
            (refused(None), true, false, Refused),
            (ResponseClass::TooLarge, true, false, Refused),
            (
                ResponseClass::Unauthorized(Reason { code: Some("19734".into()), message: None }, None),
                true,
                true,
                Refused,
            ),
            (ResponseClass::Unknown("19734".to_owned()), true, true, Refused),
        ] {
            let batch = RefusedBatch { class: &class, is_lost, is_single };
            assert_eq!(claim(batch, &codes()), expected, "{batch:?}");
            assert_eq!(claim(batch, &[]), Refused, "no code is configured: {batch:?}");
        }
    }

    #[test]
    fn a_half_counts_only_if_no_attempt_of_it_was_lost() {
        for (class, is_lost, expected) in [
            (refused(Some("19734")), false, HalfAnswer::Imported),
            (refused(Some("19734")), true, HalfAnswer::Nothing),
            (refused(Some("1")), true, HalfAnswer::Other),
            (refused(Some("1")), false, HalfAnswer::Other),
            (ResponseClass::Accepted, false, HalfAnswer::Other),
        ] {
            assert_eq!(of_half(&class, is_lost, &codes()), expected, "{class:?} {is_lost}");
        }
    }

    #[test]
    fn a_batch_is_accepted_only_if_both_halves_are_refused_as_imported() {
        use HalfAnswer::{Imported, Nothing, Other};
        for (answers, expected) in [
            (&[][..], NextHalf::Ask),
            (&[Imported], NextHalf::Ask),
            (&[Other], NextHalf::Bisect),
            (&[Imported, Imported], NextHalf::Accept),
            (&[Imported, Other], NextHalf::Bisect),
            (&[Other, Imported], NextHalf::Bisect),
            (&[Other, Other], NextHalf::Bisect),
            (&[Nothing], NextHalf::AskEach),
            (&[Imported, Nothing], NextHalf::AskEach),
            (&[Other, Nothing], NextHalf::Bisect),
        ] {
            assert_eq!(after_halves(answers), expected, "{answers:?}");
        }
    }
}
