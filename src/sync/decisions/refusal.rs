//! What becomes of a refused batch.

/// What is known of a refused batch.
#[derive(Clone, Copy, Debug)]
pub(in crate::sync) struct Refused {
    /// The body was too large.
    pub is_too_large: bool,
    /// The batch cannot be split.
    pub is_single: bool,
    /// Rows of the entity that the API refused and that are set aside.
    pub set_aside: usize,
    /// The most such rows.
    pub set_aside_max: usize,
    /// What the names of its records say.
    pub names: Names,
    /// Whether the credential and the endpoint are good. `None`: not asked yet.
    pub proof: Option<Proof>,
}

/// What the names of the records of a refused batch say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::sync) enum Names {
    /// Nothing: the refusal may be about anything.
    Nothing,
    /// The batch is split by names that the API does not list.
    Unlisted,
    /// The refusal shows that a name is unknown.
    Unknown,
}

/// Whether rows may be set aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::sync) enum Proof {
    /// The credential and the endpoint are good.
    Good,
    /// The call that lists gave no list, so parts are sent one at a time to prove the credential.
    ByParts,
}

/// What is done with a refused batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::sync) enum AfterRefusal {
    /// The lane stops: too many rows are set aside.
    TooMany,
    /// Find out whether the credential and the endpoint are good, then decide again.
    Prove,
    /// Send two halves.
    Split,
    /// Send two halves, one at a time, to prove the credential.
    SplitInTurn,
    /// Set the record aside.
    SetAside,
    /// Hold the records until their name is known.
    Hold,
    /// Keep the record until the credential is proven.
    Park,
}

/// Decides what is done with a refused batch.
///
/// With a revoked key or a changed API everything is refused; then no record may be set aside. A batch whose body is
/// too large is split without a proof, but no record is set aside without one. Records that are held because of their
/// name do not count towards the limit.
pub(in crate::sync) fn after_refusal(refused: Refused) -> AfterRefusal {
    let Refused { is_too_large, is_single, set_aside, set_aside_max, names, proof } = refused;
    match (is_single, proof) {
        _ if !is_too_large && names == Names::Nothing && set_aside >= set_aside_max => AfterRefusal::TooMany,
        (false, _) if is_too_large => AfterRefusal::Split,
        (_, None) => AfterRefusal::Prove,
        (_, Some(Proof::Good)) if names == Names::Unknown => AfterRefusal::Hold,
        (false, Some(Proof::Good)) => AfterRefusal::Split,
        (false, Some(Proof::ByParts)) => AfterRefusal::SplitInTurn,
        (true, Some(Proof::Good)) => AfterRefusal::SetAside,
        (true, Some(Proof::ByParts)) => AfterRefusal::Park,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_set_aside_without_a_proof_or_beyond_the_limit() {
        use AfterRefusal::{Park, Prove, SetAside, Split, SplitInTurn, TooMany};
        let (good, parts) = (Some(Proof::Good), Some(Proof::ByParts));
        for (is_too_large, is_single, set_aside, proof, expected) in [
            (false, false, 0, None, Prove),
            (false, true, 0, None, Prove),
            (false, false, 0, good, Split),
            (false, false, 0, parts, SplitInTurn),
            (false, true, 0, good, SetAside),
            (false, true, 0, parts, Park),
            (false, false, 3, good, TooMany),
            (false, true, 3, None, TooMany),
            (true, false, 0, None, Split),
            (true, false, 3, None, Split),
            (true, true, 0, None, Prove),
            (true, true, 3, good, SetAside),
            (true, true, 0, parts, Park),
        ] {
            let names = Names::Nothing;
            let refused = Refused { is_too_large, is_single, set_aside, set_aside_max: 3, names, proof };
            assert_eq!(after_refusal(refused), expected, "{refused:?}");
        }
    }

    #[test]
    fn records_of_an_unknown_name_are_held_after_a_proof_and_beyond_the_limit() {
        use AfterRefusal::{Hold, Park, Prove, Split, SplitInTurn};
        let (good, parts) = (Some(Proof::Good), Some(Proof::ByParts));
        for (names, is_single, proof, expected) in [
            (Names::Unknown, false, None, Prove),
            (Names::Unknown, false, good, Hold),
            (Names::Unknown, true, good, Hold),
            (Names::Unknown, false, parts, SplitInTurn),
            (Names::Unknown, true, parts, Park),
            (Names::Unlisted, false, None, Prove),
            (Names::Unlisted, false, good, Split),
            (Names::Unlisted, false, parts, SplitInTurn),
        ] {
            let (set_aside, set_aside_max) = (3, 3);
            let refused = Refused { is_too_large: false, is_single, set_aside, set_aside_max, names, proof };
            assert_eq!(after_refusal(refused), expected, "{refused:?}");
        }
    }
}
