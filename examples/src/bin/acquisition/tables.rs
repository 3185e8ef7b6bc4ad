//! Tables in Markdown of what came of the settings, and how many labelled tasks reach the same accuracy.

use collimate_models::feedback::acquisition::AcquireBy;
use collimate_protocol::records::Estimate;

/// One setting's accuracies.
pub struct SettingCurves {
    /// Which.
    pub setting: AcquireBy,
    /// For each seed, at each size: `(seeds, sizes)`.
    pub accuracies: Vec<Vec<f64>>,
}

impl SettingCurves {
    /// The mean over seeds, at each size.
    fn mean(&self) -> Vec<f64> {
        let n_sizes = self.accuracies.first().map_or(0, Vec::len);
        (0..n_sizes).map(|idx| Estimate::of(self.accuracies.iter().map(|curve| curve[idx])).mean).collect()
    }
}

/// The setting as an argument names it.
pub fn name(setting: AcquireBy) -> &'static str {
    match setting {
        AcquireBy::Random => "random",
        AcquireBy::Margin => "margin",
        AcquireBy::Disagreement => "disagreement",
    }
}

/// Accuracy at each size, mean ± standard error over seeds. The first curves are those of tasks drawn at random; behind
/// the others stands by how much they are above those, seed by seed.
pub fn of_accuracies(sizes: &[usize], curves: &[SettingCurves]) -> String {
    let mut header = vec!["labelled tasks".to_owned(), name(curves[0].setting).to_owned()];
    header.extend(curves[1..].iter().flat_map(|one| [name(one.setting).to_owned(), "more than random".to_owned()]));
    let row = |(idx, size): (usize, &usize)| {
        let at = |curves: &SettingCurves| curves.accuracies.iter().map(move |curve| curve[idx]).collect::<Vec<f64>>();
        let random = at(&curves[0]);
        let mut row = vec![size.to_string(), estimate(random.iter().copied(), false)];
        for one in &curves[1..] {
            let own = at(one);
            row.push(estimate(own.iter().copied(), false));
            row.push(estimate(own.iter().zip(&random).map(|(own, random)| own - random), true));
        }
        row
    };
    table(&header, sizes.iter().enumerate().map(row))
}

/// How many labelled tasks reach the accuracy that tasks drawn at random reach at the middle and at the last size: of
/// the mean over seeds; and how many times fewer that is, of the mean and as the median of the seeds, each against its
/// own random curve. A seed that does not get there counts as more tasks than any that does, and `-` stands for not
/// getting there.
///
/// A curve gets there where it first does, which noise brings forward for all settings alike.
pub fn of_labels(sizes: &[usize], curves: &[SettingCurves]) -> String {
    let header =
        ["random at", "its accuracy", "setting", "tasks", "times fewer", "median of seeds", "seeds that get there"];
    let targets = [sizes.len() / 2, sizes.len() - 1];
    let random = curves[0].mean();
    let rows = targets.into_iter().flat_map(|target| {
        let random = &random;
        curves[1..].iter().map(move |one| {
            let tasks = tasks_to_reach(sizes, &one.mean(), random[target]);
            let times = |tasks: Option<f64>| tasks.map_or(0.0, |tasks| sizes[target] as f64 / tasks);
            let seeds = curves[0].accuracies.iter().zip(&one.accuracies);
            let of_seeds: Vec<f64> =
                seeds.map(|(random, own)| times(tasks_to_reach(sizes, own, random[target]))).collect();
            let n_there = of_seeds.iter().filter(|times| **times > 0.0).count();
            vec![
                sizes[target].to_string(),
                format!("{:.3}", random[target]),
                name(one.setting).to_owned(),
                tasks.map_or_else(|| "-".to_owned(), |tasks| format!("{tasks:.0}")),
                number_of_times(times(tasks)),
                number_of_times(median(&of_seeds)),
                format!("{n_there} of {}", of_seeds.len()),
            ]
        })
    });
    table(&header, rows)
}

/// The number of labelled tasks at which accuracy first is `target`, on straight lines over the number's logarithm
/// between the sizes; `None` where it never is. What the first size reaches may have been reached before.
fn tasks_to_reach(sizes: &[usize], accuracies: &[f64], target: f64) -> Option<f64> {
    let there = accuracies.iter().position(|accuracy| *accuracy >= target)?;
    if there == 0 {
        return Some(sizes[0] as f64);
    }
    let [from, to] = [there - 1, there].map(|idx| (sizes[idx] as f64).ln());
    let [below, above] = [accuracies[there - 1], accuracies[there]];
    Some((from + (to - from) * (target - below) / (above - below)).exp())
}

/// The lower one of the two in the middle of an even number, so that half of them being 0 gives 0.
fn median(numbers: &[f64]) -> f64 {
    let mut sorted = numbers.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get((sorted.len().max(1) - 1) / 2).copied().unwrap_or(0.0)
}

fn number_of_times(times: f64) -> String {
    if times > 0.0 { format!("{times:.2}") } else { "-".to_owned() }
}

fn estimate(numbers: impl IntoIterator<Item = f64>, signed: bool) -> String {
    let Estimate { mean, stderr, .. } = Estimate::of(numbers);
    if signed { format!("{mean:+.3} ± {stderr:.3}") } else { format!("{mean:.3} ± {stderr:.3}") }
}

fn table<S: AsRef<str>>(header: &[S], rows: impl Iterator<Item = Vec<String>>) -> String {
    let header: Vec<&str> = header.iter().map(AsRef::as_ref).collect();
    let line = |cells: &[String]| format!("| {} |", cells.join(" | "));
    let mut lines = vec![format!("| {} |", header.join(" | ")), format!("|{}", "---|".repeat(header.len()))];
    lines.extend(rows.map(|row| line(&row)));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn between_sizes_accuracy_is_a_straight_line_over_the_logarithm() {
        let (sizes, accuracies) = ([100, 400, 1600], [0.5, 0.6, 0.8]);
        let reached = |target| tasks_to_reach(&sizes, &accuracies, target);
        // Halfway between 0.5 and 0.6: √(100 · 400). A quarter of the way from 0.6 to 0.8: 400 · 4^¼.
        assert!((reached(0.55).unwrap() - 200.0).abs() < 1e-9);
        assert!((reached(0.65).unwrap() - 400.0 * 2f64.sqrt()).abs() < 1e-9);
        assert!((reached(0.8).unwrap() - 1600.0).abs() < 1e-9);
        assert_eq!(reached(0.4), Some(100.0), "the first size has it already");
        assert_eq!(reached(0.81), None);
    }

    #[test]
    fn what_falls_again_got_there_where_it_first_did() {
        let reached = tasks_to_reach(&[100, 200, 400, 800], &[0.5, 0.7, 0.6, 0.7], 0.7);
        assert!((reached.unwrap() - 200.0).abs() < 1e-9);
        assert_eq!(tasks_to_reach(&[100, 200], &[0.5, f64::NAN], 0.6), None);
    }

    #[test]
    fn a_seed_that_does_not_get_there_counts_as_more_tasks_than_any_other() {
        let sizes = [100, 200, 400];
        let random = vec![vec![0.5, 0.6, 0.7]; 3];
        let margin = vec![vec![0.5, 0.7, 0.8], vec![0.5, 0.55, 0.6], vec![0.5, 0.6, 0.7]];
        let curves = [
            SettingCurves { setting: AcquireBy::Random, accuracies: random },
            SettingCurves { setting: AcquireBy::Margin, accuracies: margin },
        ];
        let labels = of_labels(&sizes, &curves);
        let rows: Vec<&str> = labels.lines().skip(2).collect();
        // The mean of margin is 0.5, 0.616…, 0.7.
        assert_eq!(rows[0], "| 200 | 0.600 | margin | 181 | 1.10 | 1.00 | 3 of 3 |");
        assert_eq!(rows[1], "| 400 | 0.700 | margin | 400 | 1.00 | 1.00 | 2 of 3 |");
        let accuracies = of_accuracies(&sizes, &curves);
        assert!(accuracies.ends_with("| 400 | 0.700 ± 0.000 | 0.700 ± 0.058 | +0.000 ± 0.058 |"), "{accuracies}");
        assert_eq!((median(&[0.0, 2.0]), median(&[]), number_of_times(0.0)), (0.0, 0.0, "-".to_owned()));
    }
}
