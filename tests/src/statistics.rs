//! Whether a profile differs from the truth by more than chance.

/// One false alarm in 10,000: the quantile of the standard normal distribution.
const QUANTILE: f64 = 3.719;

/// The outcome of a comparison.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Comparison {
    /// Total-variation distance: half the sum of the differences of the shares.
    pub distance: f64,
    /// The distance that chance alone gives on average with so many samples (each share's mean deviation is that of a
    /// normal distribution).
    pub expected_distance: f64,
    /// Pearson's chi-squared.
    pub chi_squared: f64,
    /// Chance alone is above this once in 10,000 times.
    pub limit: f64,
}

impl Comparison {
    /// Whether chance explains the difference.
    pub fn agrees(&self) -> bool {
        self.chi_squared <= self.limit
    }
}

/// Compares counts with the shares that they should have.
pub fn compare(counts: &[i64], shares: &[f64]) -> Comparison {
    assert_eq!(counts.len(), shares.len());
    let total: f64 = counts.iter().map(|count| *count as f64).sum();
    let mut comparison = Comparison { distance: 0.0, expected_distance: 0.0, chi_squared: 0.0, limit: 0.0 };
    for (count, share) in counts.iter().zip(shares) {
        let expected = total * share;
        assert!(expected >= 5.0, "{total} samples are too few to tell anything of a share of {share}");
        let difference = *count as f64 - expected;
        comparison.distance += difference.abs() / total / 2.0;
        comparison.expected_distance +=
            (2.0 / std::f64::consts::PI * share * (1.0 - share) / total).sqrt() / 2.0;
        comparison.chi_squared += difference * difference / expected;
    }
    // Wilson and Hilferty's approximation of the quantile.
    let freedom = (counts.len() - 1) as f64;
    let ninth = 2.0 / (9.0 * freedom);
    comparison.limit = freedom * (1.0 - ninth + QUANTILE * ninth.sqrt()).powi(3);
    comparison
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHARES: [f64; 8] = [0.31, 0.22, 0.05, 0.17, 0.08, 0.11, 0.03, 0.03];

    struct Random(u64);

    impl Random {
        fn uniform(&mut self) -> f64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            (self.0 >> 11) as f64 / (1u64 << 53) as f64
        }

        fn draw(&mut self, samples: usize, shares: &[f64]) -> Vec<i64> {
            let mut counts = vec![0; shares.len()];
            for _ in 0..samples {
                let mut rest = self.uniform();
                let class = shares.iter().position(|share| {
                    rest -= share;
                    rest < 0.0
                });
                counts[class.unwrap_or(shares.len() - 1)] += 1;
            }
            counts
        }
    }

    #[test]
    fn chance_alone_is_accepted() {
        let mut random = Random(88_172_645_463_325_252);
        let mut distance = 0.0;
        let mut expected = 0.0;
        let alarms = (0..5000)
            .filter(|_| {
                let comparison = compare(&random.draw(1000, &SHARES), &SHARES);
                distance += comparison.distance;
                expected += comparison.expected_distance;
                !comparison.agrees()
            })
            .count();
        assert!(alarms <= 5, "{alarms} of 5000");
        assert!((distance / expected - 1.0).abs() < 0.05, "{distance} and {expected}");
    }

    #[test]
    fn a_shift_is_found() {
        let mut random = Random(88_172_645_463_325_252);
        let shifted = [0.26, 0.27, 0.05, 0.17, 0.08, 0.11, 0.03, 0.03];
        let missed = (0..200).filter(|_| compare(&random.draw(3000, &shifted), &SHARES).agrees()).count();
        assert!(missed <= 2, "{missed} of 200 shifts by five percent were missed");
    }
}
