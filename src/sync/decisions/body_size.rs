//! How large a body may be: what the answers of the API teach about its limit (HTTP 413).

/// The precision of the learned limit: it is known well enough when the largest accepted body is smaller than the
/// smallest refused one by at most 1/20 of that.
const KNOWN_WITHIN: usize = 20;

/// One request in so many may exceed the learned limit, to find out whether the API's limit was raised: 4 %.
pub(in crate::sync) const PROBE_EVERY: u32 = 25;

/// What is known of the API's limit for a body.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::sync) struct BodyLimit {
    /// The size of the largest accepted body, in bytes.
    accepted: usize,
    /// The size of the smallest refused body, in bytes. `None`: larger bodies may be accepted.
    refused: Option<usize>,
    /// A body was too large before, so bodies grow step by step.
    is_careful: bool,
}

impl BodyLimit {
    /// What is known after a body of this size was accepted.
    #[must_use]
    pub(in crate::sync) fn after_accepted(self, bytes: usize) -> Self {
        // The limit was raised, or depends on the records.
        let refused = self.refused.filter(|refused| *refused > bytes);
        Self { accepted: self.accepted.max(bytes), refused, ..self }
    }

    /// What is known after a body of this size was too large.
    #[must_use]
    pub(in crate::sync) fn after_too_large(self, bytes: usize) -> Self {
        let accepted = if self.accepted >= bytes { 0 } else { self.accepted };
        let refused = self.refused.map_or(bytes, |refused| refused.min(bytes));
        Self { accepted, refused: Some(refused), is_careful: true }
    }

    /// The largest body to build, in bytes: below the smallest refused body, and closer to it with each answer. After
    /// the limit was raised, bodies grow to twice the largest accepted one.
    pub(in crate::sync) fn max(self) -> usize {
        match self.refused {
            None if self.is_careful => self.accepted.saturating_mul(2),
            None => usize::MAX,
            Some(refused) if refused - self.accepted <= refused / KNOWN_WITHIN => self.accepted,
            Some(refused) => self.accepted + (refused - self.accepted) / 2,
        }
    }

    /// The largest body of the request with this number, which may exceed the learned limit. Its halves are as large as
    /// bodies that were accepted, so a refusal costs one request.
    pub(in crate::sync) fn max_of_request(self, number: u32) -> usize {
        match self.refused {
            Some(refused) if number.is_multiple_of(PROBE_EVERY) => {
                self.accepted.saturating_mul(2).max(refused.saturating_add(refused / 4))
            }
            _ => self.max(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(accepted: usize, refused: usize) -> BodyLimit {
        BodyLimit { accepted, refused: Some(refused), is_careful: true }
    }

    fn raised(accepted: usize) -> BodyLimit {
        BodyLimit { accepted, refused: None, is_careful: true }
    }

    #[test]
    fn each_answer_teaches_something_about_the_limit() {
        let unknown = BodyLimit::default();
        let accepted = |accepted| BodyLimit { accepted, ..unknown };
        for (before, is_accepted, bytes, after, max) in [
            (unknown, true, 900, accepted(900), usize::MAX),
            (accepted(900), true, 100, accepted(900), usize::MAX),
            (unknown, false, 1000, refused(0, 1000), 500),
            (accepted(400), false, 1000, refused(400, 1000), 700),
            (refused(400, 1000), false, 700, refused(400, 700), 550),
            (refused(400, 1000), false, 2000, refused(400, 1000), 700),
            (refused(400, 1000), true, 700, refused(700, 1000), 850),
            // Known within a twentieth.
            (refused(700, 1000), true, 960, refused(960, 1000), 960),
            // A smaller body than an accepted one is refused: the limit was lowered, or depends on the records.
            (refused(960, 1000), false, 500, refused(0, 500), 250),
            (accepted(960), false, 960, refused(0, 960), 480),
            // A larger body than a refused one is accepted: the limit was raised, or depends on the records.
            (refused(960, 1000), true, 1920, raised(1920), 3840),
            (raised(1920), true, 3840, raised(3840), 7680),
            (raised(3840), true, 50, raised(3840), 7680),
            (raised(3840), false, 7680, refused(3840, 7680), 5760),
        ] {
            let now = if is_accepted { before.after_accepted(bytes) } else { before.after_too_large(bytes) };
            assert_eq!((now, now.max()), (after, max), "{before:?}, {bytes} bytes, accepted: {is_accepted}");
        }
    }

    #[test]
    fn one_request_in_25_probes_above_a_learned_limit() {
        for (known, of_a_probe) in [
            (refused(960, 1000), 1920),
            (refused(410, 510), 820),
            // Always above the smallest refused body.
            (refused(0, 1000), 1250),
            (refused(0, 1), 1),
            (refused(0, usize::MAX), usize::MAX),
            (raised(1920), 3840),
            (BodyLimit::default(), usize::MAX),
        ] {
            let sizes: Vec<usize> = (1..=100).map(|number| known.max_of_request(number)).collect();
            let probes = sizes.iter().filter(|size| **size == of_a_probe).count();
            let expected = if known.refused.is_some() { 4 } else { 100 };
            assert_eq!(probes, expected, "{known:?}");
            assert!(sizes.iter().all(|size| [of_a_probe, known.max()].contains(size)));
        }
    }

    /// One small record was refused once, and the API accepts large bodies.
    #[test]
    fn bodies_reach_their_full_size_again_after_few_requests() {
        let mut known = BodyLimit::default().after_too_large(500);
        let mut number = 0;
        while known.max() < 100_000 {
            number += 1;
            known = known.after_accepted(known.max_of_request(number));
        }
        assert!(number <= 35, "{number} requests");
    }
}
