//! Bars as paths of SVG.

use std::fmt::Write as _;

/// Bars in a box of their number times [`Bars::STEP`] by [`Bars::HEIGHT`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Bars {
    /// The path.
    pub path: String,
    /// The width of the box.
    pub width: usize,
    /// The largest value.
    pub max: i64,
    /// The sum of the values.
    pub sum: i64,
}

impl Bars {
    /// The distance between the left edges of two bars.
    const STEP: usize = 4;
    /// The height of the box.
    pub(super) const HEIGHT: i64 = 60;

    pub(super) fn new(values: impl IntoIterator<Item = i64>) -> Self {
        let values: Vec<i64> = values.into_iter().collect();
        let max = values.iter().copied().max().unwrap_or(0);
        let mut path = String::new();
        for (place, value) in values.iter().enumerate().filter(|(_, value)| **value > 0) {
            // The smallest value is visible.
            let height = (i128::from(*value) * i128::from(Self::HEIGHT) / i128::from(max)).max(2);
            // Writing to a String cannot fail.
            let _ = write!(path, "M{} {}v-{height}h3v{height}z", place * Self::STEP, Self::HEIGHT);
        }
        Self { path, width: values.len() * Self::STEP, max, sum: values.iter().sum() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_as_high_as_their_values() {
        let bars = Bars::new([0, 60, 30, 0, 1]);
        assert_eq!(bars.path, "M4 60v-60h3v60zM8 60v-30h3v30zM16 60v-2h3v2z");
        assert_eq!((bars.width, bars.max, bars.sum), (20, 60, 91));
        assert_eq!(Bars::new([0, 0]).path, "");
        assert_eq!(Bars::new([i64::MAX / 2, 1]).path, "M0 60v-60h3v60zM4 60v-2h3v2z");
    }
}
