//! Vector arithmetic: one dispatch on the CPU's vector width, and loops that the compiler turns into vectors
//! under it.
//!
//! Sums run in a fixed number of interleaved lanes and multiply-adds are fused explicitly, so a result is the same
//! bits whether the CPU has vectors of 4, 8 or 16 numbers.

/// Runs `f` compiled for the widest vectors of this CPU. The closure must be `#[inline(always)]`, and so must what
/// it calls, or it stays compiled for the baseline, where [`f32::mul_add`] is a library call.
#[inline(always)]
pub fn dispatch<R>(f: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(f)
}

/// Lanes of a sum.
const LANES: usize = 32;

/// Sums lanes pairwise, in one fixed order.
#[inline(always)]
fn fold(mut lanes: [f32; LANES]) -> f32 {
    let mut width = LANES;
    while width > 1 {
        width /= 2;
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
    }
    lanes[0]
}

/// Σ x.
#[inline(always)]
pub fn sum(x: &[f32]) -> f32 {
    let (chunks, tail) = x.as_chunks::<LANES>();
    let mut lanes = [0.0; LANES];
    for chunk in chunks {
        for i in 0..LANES {
            lanes[i] += chunk[i];
        }
    }
    for i in 0..tail.len() {
        lanes[i] += tail[i];
    }
    fold(lanes)
}

/// softmax(scale · x), in place of x.
#[inline(always)]
pub fn softmax(x: &mut [f32], scale: f32) {
    let largest = max(x);
    for x in x.iter_mut() {
        *x = exp((*x - largest) * scale);
    }
    let inverse = 1.0 / sum(x);
    for x in x {
        *x *= inverse;
    }
}

/// Σ (x + shift)².
#[inline(always)]
pub fn sum_of_squares(x: &[f32], shift: f32) -> f32 {
    let (chunks, tail) = x.as_chunks::<LANES>();
    let mut lanes = [0.0; LANES];
    for chunk in chunks {
        for i in 0..LANES {
            let x = chunk[i] + shift;
            lanes[i] = x.mul_add(x, lanes[i]);
        }
    }
    for i in 0..tail.len() {
        let x = tail[i] + shift;
        lanes[i] = x.mul_add(x, lanes[i]);
    }
    fold(lanes)
}

/// Σ x y; both of one length.
#[inline(always)]
pub fn dot(x: &[f32], y: &[f32]) -> f32 {
    let ((x, x_tail), (y, y_tail)) = (x.as_chunks::<LANES>(), y.as_chunks::<LANES>());
    let mut lanes = [0.0; LANES];
    for (x, y) in x.iter().zip(y) {
        for i in 0..LANES {
            lanes[i] = x[i].mul_add(y[i], lanes[i]);
        }
    }
    for (lane, (x, y)) in lanes.iter_mut().zip(x_tail.iter().zip(y_tail)) {
        *lane = x.mul_add(*y, *lane);
    }
    fold(lanes)
}

/// The largest of x, −∞ for none. A NaN is passed over.
#[inline(always)]
pub fn max(x: &[f32]) -> f32 {
    let (chunks, tail) = x.as_chunks::<LANES>();
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for chunk in chunks {
        for i in 0..LANES {
            lanes[i] = if chunk[i] > lanes[i] { chunk[i] } else { lanes[i] };
        }
    }
    for i in 0..tail.len() {
        lanes[i] = if tail[i] > lanes[i] { tail[i] } else { lanes[i] };
    }
    lanes.iter().fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a })
}

/// Σ e and Σ e d over e = exp(d), d = scale · (x − shift).
#[inline(always)]
pub fn exp_sums(x: &[f32], scale: f32, shift: f32) -> (f64, f64) {
    /// So many numbers are summed in f32 before f64 takes over: in long rows the rounding would add up.
    const BLOCK: usize = 32 * LANES;
    let (mut total, mut weighted_total) = (0.0, 0.0);
    for block in x.chunks(BLOCK) {
        let (mut sums, mut weighted) = ([0.0; LANES], [0.0; LANES]);
        let (chunks, tail) = block.as_chunks::<LANES>();
        for chunk in chunks {
            for i in 0..LANES {
                let d = scale * (chunk[i] - shift);
                let e = exp(d);
                sums[i] += e;
                weighted[i] = e.mul_add(d, weighted[i]);
            }
        }
        for i in 0..tail.len() {
            let d = scale * (tail[i] - shift);
            let e = exp(d);
            sums[i] += e;
            weighted[i] = e.mul_add(d, weighted[i]);
        }
        total += f64::from(fold(sums));
        weighted_total += f64::from(fold(weighted));
    }
    (total, weighted_total)
}

/// eˣ to about 1 unit in the last place (Cephes' polynomial on ±ln 2 / 2). Under −87.3 it is 0, over 88.7 it is ∞,
/// NaN stays NaN.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const MIN: f32 = -87.3;
    const MAX: f32 = 88.7;
    // ln 2 in two parts, so that n · ln 2 is subtracted without rounding.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Adding and subtracting 1.5 · 2²³ rounds to the nearest integer.
    const ROUND: f32 = 12_582_912.0;
    let bounded = if x < MIN { MIN } else { x };
    let bounded = if bounded > MAX { MAX } else { bounded };
    let shifted = bounded.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-LN2_LOW, n.mul_add(-LN2_HIGH, bounded));
    let p = 1.987_569_1e-4_f32;
    let p = p.mul_add(r, 1.398_199_9e-3);
    let p = p.mul_add(r, 8.333_452e-3);
    let p = p.mul_add(r, 4.166_579_6e-2);
    let p = p.mul_add(r, 0.166_666_65);
    let p = p.mul_add(r, 0.5);
    let p = p.mul_add(r * r, r) + 1.0;
    // 2ⁿ, n in −126..=128, in two factors since 2¹²⁸ is no f32. The low bits of `shifted` are n.
    let n = (shifted.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
    let half = n >> 1;
    let power = |n: i32| f32::from_bits((n.wrapping_add(127) as u32) << 23);
    let y = p * power(half) * power(n.wrapping_sub(half));
    let y = if x < MIN { 0.0 } else { y };
    let y = if x > MAX { f32::INFINITY } else { y };
    if x.is_nan() { x } else { y }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        let mut worst = 0.0_f64;
        for i in -87_000..=88_600 {
            let x = i as f32 * 1e-3;
            let exact = f64::from(x).exp();
            worst = worst.max((f64::from(dispatch(|| exp(x))) - exact).abs() / exact);
        }
        assert!(worst < 2.0 * f64::from(f32::EPSILON), "{worst}");
    }

    #[test]
    fn exp_keeps_its_limits() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-0.0), 1.0);
        assert_eq!(exp(-88.0), 0.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(89.0), f32::INFINITY);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert!(exp(f32::NAN).is_nan());
        assert!(exp(88.7).is_finite());
    }

    #[test]
    fn reductions_take_every_length() {
        for n in [0, 1, 31, 32, 33, 100] {
            let x: Vec<f32> = (0..n).map(|i| i as f32 - 7.0).collect();
            let exact: f32 = x.iter().sum();
            assert_eq!(dispatch(|| sum(&x)), exact);
            assert_eq!(dispatch(|| sum_of_squares(&x, 1.0)), x.iter().map(|v| (v + 1.0) * (v + 1.0)).sum::<f32>());
            assert_eq!(dispatch(|| dot(&x, &x)), x.iter().map(|v| v * v).sum::<f32>());
            assert_eq!(dispatch(|| max(&x)), x.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        }
    }
}
