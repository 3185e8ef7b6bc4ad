//! Curves for people to look at: fewer points than were recorded, and a smooth line over them. Pure.
//!
//! A number that is not finite is a gap: no line crosses it, and nothing is made up for it.

/// A point of a curve; one whose `y` is not finite is a gap.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// Where.
    pub x: f64,
    /// How high.
    pub y: f64,
}

impl Point {
    fn is_gap(self) -> bool {
        !self.y.is_finite()
    }
}

/// Points that a bucket may become: a gap, an extreme, a gap, an extreme, a gap.
pub const MOST_PER_BUCKET: usize = 5;

/// At most [`MOST_PER_BUCKET`]` * n_buckets` of the points, cut into buckets of as many points each. A bucket keeps its
/// lowest and its highest point, so that no spike is lost; and a gap wherever one lies before, between or after those
/// two, so that no line crosses it. Few points stay as they are. (The min-max aggregation of Jugel et al. 2014, "M4",
/// without the first and the last point, and with gaps.)
pub fn downsample(points: &[Point], n_buckets: usize) -> Vec<Point> {
    let n_buckets = n_buckets.max(1);
    if points.len() <= 2 * n_buckets {
        return points.to_vec();
    }
    let bound = |bucket: usize| bucket * points.len() / n_buckets;
    (0..n_buckets).flat_map(|bucket| extremes(&points[bound(bucket)..bound(bucket + 1)])).collect()
}

/// The lowest and the highest point in their order, and the gaps around them.
fn extremes(bucket: &[Point]) -> Vec<Point> {
    let finite = || bucket.iter().enumerate().filter(|(_, point)| !point.is_gap());
    let by_height = |a: &(usize, &Point), b: &(usize, &Point)| a.1.y.total_cmp(&b.1.y);
    let (Some((lowest, _)), Some((highest, _))) = (finite().min_by(by_height), finite().max_by(by_height)) else {
        return bucket.first().copied().into_iter().collect();
    };
    let (first, second) = (lowest.min(highest), lowest.max(highest));
    let gap = |part: &[Point]| part.iter().copied().find(|point| point.is_gap());
    let mut kept = Vec::with_capacity(MOST_PER_BUCKET);
    kept.extend(gap(&bucket[..first]));
    kept.push(bucket[first]);
    if second > first {
        kept.extend(gap(&bucket[first..second]));
        kept.push(bucket[second]);
    }
    kept.extend(gap(&bucket[second..]));
    kept
}

/// The exponential moving average of each point and those before it, without a bias towards 0 at the start (as Adam
/// corrects its moments: Kingma and Ba 2015, algorithm 1). `weight`, from 0 (no smoothing) to below 1, is that of the past.
/// A gap stays one, and the average begins anew after it.
pub fn smooth(points: &[Point], weight: f64) -> Vec<Point> {
    let weight = weight.clamp(0.0, 0.9999);
    let (mut average, mut share) = (0.0, 0.0);
    let smoothed = points.iter().map(|point| {
        if point.is_gap() {
            (average, share) = (0.0, 0.0);
            return *point;
        }
        average = weight * average + (1.0 - weight) * point.y;
        share = weight * share + (1.0 - weight);
        Point { x: point.x, y: average / share }
    });
    smoothed.collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn curve(ys: &[f64]) -> Vec<Point> {
        ys.iter().enumerate().map(|(x, &y)| Point { x: x as f64, y }).collect()
    }

    fn ys(points: &[Point]) -> Vec<f64> {
        points.iter().map(|point| point.y).collect()
    }

    #[test]
    fn a_spike_of_one_update_in_a_million_points_is_seen_at_every_zoom() {
        let mut points = curve(&vec![1.0; 1_000_000]);
        points[654_321].y = 50.0;
        let mut range = 0..points.len();
        while range.len() > 1 {
            let kept = downsample(&points[range.clone()], 300);
            assert!(kept.len() <= 300 * MOST_PER_BUCKET);
            assert!(kept.contains(&Point { x: 654_321.0, y: 50.0 }), "lost within {range:?}");
            let half = range.start + range.len() / 2;
            range = if half > 654_321 { range.start..half } else { half..range.end };
        }
    }

    #[test]
    fn a_lone_finite_point_stays_and_stands_alone() {
        let points = curve(&[f64::NAN, 2.0, f64::NAN, f64::NAN, f64::NAN, f64::NAN]);
        let kept = downsample(&points, 2);
        assert!(kept[0].is_gap() && kept[1].y == 2.0 && kept[2].is_gap(), "{kept:?}");
    }

    #[test]
    fn the_average_is_of_what_was_seen_and_begins_anew_after_a_gap() {
        let smoothed = ys(&smooth(&curve(&[4.0, 0.0, f64::NAN, 8.0]), 0.5));
        // 4; then (0.5 * 2 + 0.5 * 0) / 0.75.
        assert_eq!(smoothed[0], 4.0);
        assert!((smoothed[1] - 4.0 / 3.0).abs() < 1e-12);
        assert!(smoothed[2].is_nan());
        assert_eq!(smoothed[3], 8.0);
        assert_eq!(ys(&smooth(&curve(&[1.0, 5.0, 2.0]), 0.0)), [1.0, 5.0, 2.0]);
    }

    /// Numbers, some of them none.
    fn numbers() -> impl Strategy<Value = Vec<f64>> {
        let number = prop_oneof![8 => -1e3f64..1e3, 1 => Just(f64::NAN), 1 => Just(f64::INFINITY)];
        proptest::collection::vec(number, 0..400)
    }

    proptest! {
        #[test]
        fn what_is_kept_was_there_in_that_order_and_no_extreme_is_lost(ys in numbers(), n_buckets in 1usize..60) {
            let points = curve(&ys);
            let kept = downsample(&points, n_buckets);
            prop_assert!(kept.len() <= (2 * n_buckets).max(n_buckets * MOST_PER_BUCKET));
            prop_assert!(kept.is_sorted_by(|a, b| a.x < b.x));
            for point in &kept {
                prop_assert_eq!(point.y.to_bits(), points[point.x as usize].y.to_bits());
            }
            let finite = |points: &[Point]| -> Vec<f64> {
                points.iter().filter(|point| !point.is_gap()).map(|point| point.y).collect()
            };
            let ends = |ys: Vec<f64>| (ys.iter().copied().reduce(f64::min), ys.iter().copied().reduce(f64::max));
            prop_assert_eq!(ends(finite(&kept)), ends(finite(&points)));
        }

        #[test]
        fn no_line_crosses_a_gap(ys in numbers(), n_buckets in 1usize..60) {
            let points = curve(&ys);
            for pair in downsample(&points, n_buckets).windows(2).filter(|pair| !pair[0].is_gap() && !pair[1].is_gap()) {
                let between = &points[pair[0].x as usize..=pair[1].x as usize];
                prop_assert!(between.iter().all(|point| !point.is_gap()), "{pair:?}");
            }
        }

        #[test]
        fn an_average_lies_within_what_it_is_of(ys in numbers(), weight in 0.0f64..0.999) {
            let points = curve(&ys);
            for (idx, point) in smooth(&points, weight).iter().enumerate().filter(|(_, point)| !point.is_gap()) {
                let since = points[..=idx].iter().rposition(|point| point.is_gap()).map_or(0, |gap| gap + 1);
                let own = points[since..=idx].iter().map(|point| point.y);
                let (low, high) = (own.clone().fold(f64::INFINITY, f64::min), own.fold(f64::NEG_INFINITY, f64::max));
                prop_assert!(low - 1e-9 <= point.y && point.y <= high + 1e-9);
            }
        }
    }
}
