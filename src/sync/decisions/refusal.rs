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
    /// Whether the credential and the endpoint are good. `None`: not asked yet.
    pub proof: Option<Proof>,
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
    /// Keep the record until the credential is proven.
    Park,
}

/// Decides what is done with a refused batch.
///
/// With a revoked key or a changed API everything is refused; then no record may be set aside. A batch whose body is
/// too large is split without a proof, but no record is set aside without one.
pub(in crate::sync) fn after_refusal(refused: Refused) -> AfterRefusal {
    let Refused { is_too_large, is_single, set_aside, set_aside_max, proof } = refused;
    match (is_single, proof) {
        _ if !is_too_large && set_aside >= set_aside_max => AfterRefusal::TooMany,
        (false, _) if is_too_large => AfterRefusal::Split,
        (_, None) => AfterRefusal::Prove,
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
            let refused = Refused { is_too_large, is_single, set_aside, set_aside_max: 3, proof };
            assert_eq!(after_refusal(refused), expected, "{refused:?}");
        }
    }
}
