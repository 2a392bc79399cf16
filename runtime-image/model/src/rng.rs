//! Randomness by counter: what a place gets depends on its key and its counter
//! alone, never on what was drawn before, by whom, or on how many threads.
//!
//! Philox4x32-10 (Salmon et al. 2011, *Parallel Random Numbers: As Easy as 1, 2, 3*).

/// A family of random blocks under one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Philox {
    key: [u32; 2],
}

impl Philox {
    /// The family of this seed.
    pub const fn new(seed: u64) -> Self {
        Self { key: [seed as u32, (seed >> 32) as u32] }
    }

    /// 128 random bits for this counter.
    pub const fn block(self, counter: [u32; 4]) -> [u32; 4] {
        let ([mut k0, mut k1], [mut c0, mut c1, mut c2, mut c3]) = (self.key, counter);
        let mut round = 0;
        while round < 10 {
            let p0 = 0xD251_1F53_u64 * c0 as u64;
            let p1 = 0xCD9E_8D57_u64 * c2 as u64;
            (c0, c1, c2, c3) =
                ((p1 >> 32) as u32 ^ c1 ^ k0, p1 as u32, (p0 >> 32) as u32 ^ c3 ^ k1, p0 as u32);
            k0 = k0.wrapping_add(0x9E37_79B9);
            k1 = k1.wrapping_add(0xBB67_AE85);
            round += 1;
        }
        [c0, c1, c2, c3]
    }

    /// Four standard normal numbers for this counter (Box and Muller 1958), by
    /// libm, so that their bits depend on no system.
    pub fn normals(self, counter: [u32; 4]) -> [f64; 4] {
        let [a, b, c, d] = self.block(counter);
        let pair = |x: u32, y: u32| {
            // In (0, 1], so that the logarithm is finite.
            let radius = libm::sqrt(-2.0 * libm::log((f64::from(x) + 1.0) / 4_294_967_296.0));
            let angle = std::f64::consts::TAU * (f64::from(y) / 4_294_967_296.0);
            (radius * libm::cos(angle), radius * libm::sin(angle))
        };
        let ((w, x), (y, z)) = (pair(a, b), pair(c, d));
        [w, x, y, z]
    }
}

#[cfg(test)]
mod tests {
    use super::Philox;

    #[test]
    fn blocks_are_the_published_ones() {
        // The known answers of the Random123 distribution (philox4x32, 10 rounds).
        let cases = [
            ([0; 2], [0; 4], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            ([u32::MAX; 2], [u32::MAX; 4], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (
                [0xa409_3822, 0x299f_31d0],
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ];
        for ([k0, k1], counter, expected) in cases {
            let philox = Philox::new(u64::from(k0) | u64::from(k1) << 32);
            assert_eq!(philox.block(counter), expected);
        }
    }

    #[test]
    fn normals_have_mean_0_and_variance_1() {
        let philox = Philox::new(7);
        let numbers: Vec<f64> = (0..25_000).flat_map(|i| philox.normals([i, 0, 0, 0])).collect();
        let mean = numbers.iter().sum::<f64>() / numbers.len() as f64;
        let variance = numbers.iter().map(|x| x * x).sum::<f64>() / numbers.len() as f64;
        assert!(mean.abs() < 0.01 && (variance - 1.0).abs() < 0.015, "{mean} {variance}");
    }
}
