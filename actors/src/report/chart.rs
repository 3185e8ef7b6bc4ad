//! A curve as SVG. Colours are names that the page's style sheet gives a colour in light and in dark.

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

/// Several lines over one axis.
#[derive(Clone, Debug, PartialEq)]
pub struct Chart {
    /// What it shows.
    pub title: String,
    /// What its numbers mean, with their unit.
    pub caption: String,
    /// What runs along the bottom.
    pub x_label: String,
    /// The lines.
    pub series: Vec<Series>,
}

/// One line.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// What it is called where there are several.
    pub name: String,
    /// Its points in order of x. One whose y is not finite is a gap.
    pub points: Vec<(f64, f64)>,
}

/// How many colours the style sheet has.
pub const N_COLORS: usize = 8;
/// Points that a line is drawn with at most, on a drawing that is about as many pixels wide.
const MAX_POINTS: usize = 1000;
const SIZE: (u32, u32) = (560, 260);
/// The style sheet finds axes, grid and series by these colours, and gives them its own.
const AXIS: RGBColor = RGBColor(0, 0, 0xA0);
const GRID: RGBColor = RGBColor(0, 0, 0xB0);

fn series_color(idx: usize) -> RGBColor {
    RGBColor(0, 0, 1 + (idx % N_COLORS) as u8)
}

impl Chart {
    /// Whether there is anything to draw.
    pub fn is_empty(&self) -> bool {
        self.finite_points().next().is_none()
    }

    fn finite_points(&self) -> impl Iterator<Item = (f64, f64)> {
        self.series.iter().flat_map(|series| &series.points).copied().filter(|(_, y)| y.is_finite())
    }

    /// Draws it.
    pub fn to_svg(&self) -> Result<String, String> {
        let mut svg = String::new();
        self.draw(&mut svg).map_err(|error| format!("chart `{}`: {error}", self.title))?;
        // The page scales it: the drawing keeps its proportions, not its pixels.
        let sized = format!("width=\"{}\" height=\"{}\"", SIZE.0, SIZE.1);
        Ok(svg.replacen(&sized, "role=\"img\"", 1))
    }

    fn draw(&self, svg: &mut String) -> Result<(), Box<dyn std::error::Error>> {
        let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
        let x_range = padded(self.finite_points().map(|(x, _)| x), 0.0);
        let y_range = padded(self.finite_points().map(|(_, y)| y), 0.06);
        let mut chart = ChartBuilder::on(&root)
            .margin(6)
            .set_label_area_size(LabelAreaPosition::Left, 58)
            .set_label_area_size(LabelAreaPosition::Bottom, 36)
            .build_cartesian_2d(x_range.0..x_range.1, y_range.0..y_range.1)?;
        let label = ("sans-serif", 12).into_font().color(&AXIS);
        chart
            .configure_mesh()
            .disable_x_mesh()
            .bold_line_style(GRID)
            .light_line_style(TRANSPARENT)
            .axis_style(AXIS)
            .label_style(label.clone())
            .x_desc(&*self.x_label)
            .axis_desc_style(label.pos(Pos::new(HPos::Center, VPos::Center)))
            .x_labels(8)
            .y_labels(6)
            .x_label_formatter(&|number| short(*number))
            .y_label_formatter(&|number| short(*number))
            .draw()?;
        for (idx, series) in self.series.iter().enumerate() {
            let color = series_color(idx);
            let points = thinned(&series.points);
            for run in points.split(|(_, y)| !y.is_finite()).filter(|run| !run.is_empty()) {
                chart.draw_series(LineSeries::new(run.iter().copied(), color.stroke_width(2)))?;
                if let [lone] = run {
                    chart.draw_series([Circle::new(*lone, 3, color.filled())])?;
                }
            }
        }
        root.present()?;
        Ok(())
    }
}

/// The range of some numbers with a share of it added on both sides; never empty.
fn padded(numbers: impl Iterator<Item = f64>, share: f64) -> (f64, f64) {
    let (min, max) = numbers.fold((f64::INFINITY, f64::NEG_INFINITY), |(min, max), x| (min.min(x), max.max(x)));
    if min > max {
        return (0.0, 1.0);
    }
    // A flat line stands in the middle of a range that its labels can tell apart.
    let pad = if max > min { share * (max - min) } else { 0.5_f64.max(0.1 * max.abs()) };
    (min - pad, max + pad)
}

/// At most [`MAX_POINTS`] points: of each stretch its lowest and its highest, so that no spike is lost.
fn thinned(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    if points.len() <= MAX_POINTS {
        return points.to_vec();
    }
    let stretch_len = points.len().div_ceil(MAX_POINTS / 2);
    let mut kept = Vec::with_capacity(MAX_POINTS);
    for stretch in points.chunks(stretch_len) {
        let finite = || stretch.iter().enumerate().filter(|(_, (_, y))| y.is_finite());
        let lowest = finite().min_by(|a, b| a.1.1.total_cmp(&b.1.1));
        let highest = finite().max_by(|a, b| a.1.1.total_cmp(&b.1.1));
        let (Some(lowest), Some(highest)) = (lowest, highest) else {
            kept.extend(stretch.first());
            continue;
        };
        let (first, last) = if lowest.0 <= highest.0 { (lowest, highest) } else { (highest, lowest) };
        kept.push(*first.1);
        if last.0 != first.0 {
            kept.push(*last.1);
        }
    }
    kept
}

/// A number as an axis shows it.
fn short(number: f64) -> String {
    let size = number.abs();
    match size {
        _ if size < 1e-12 => "0".into(),
        _ if size >= 1e6 => format!("{}M", trimmed(format!("{:.2}", number / 1e6))),
        _ if size >= 1e4 => format!("{}k", trimmed(format!("{:.1}", number / 1e3))),
        _ if size < 1e-3 => format!("{number:.1e}"),
        _ => trimmed(format!("{number:.3}")),
    }
}

fn trimmed(text: String) -> String {
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(points: Vec<(f64, f64)>) -> Chart {
        let series = vec![Series { name: "s".into(), points }];
        Chart { title: "t".into(), caption: String::new(), x_label: "update".into(), series }
    }

    #[test]
    fn gaps_are_not_bridged_and_lone_points_are_drawn() {
        let svg = chart(vec![(1.0, 1.0), (2.0, 2.0), (3.0, f64::NAN), (4.0, 1.5), (5.0, f64::NAN)]).to_svg().unwrap();
        let lines = svg.lines().filter(|line| line.contains("<polyline") && line.contains("#000001")).count();
        assert_eq!(lines, 2, "{svg}");
        assert_eq!(svg.matches("<circle").count(), 1, "the point between two gaps");
    }

    #[test]
    fn nothing_and_a_flat_line_can_be_drawn() {
        assert!(chart(vec![]).is_empty());
        assert!(chart(vec![(1.0, f64::NAN)]).is_empty());
        chart(vec![]).to_svg().unwrap();
        chart(vec![(1.0, 5.0)]).to_svg().unwrap();
        chart(vec![(1.0, -1e30), (2.0, 1e30)]).to_svg().unwrap();
    }

    #[test]
    fn thinning_keeps_a_spike() {
        let points: Vec<(f64, f64)> = (0..100_000).map(|x| (x as f64, if x == 54_321 { 9.0 } else { 1.0 })).collect();
        let kept = thinned(&points);
        assert!(kept.len() <= MAX_POINTS);
        assert!(kept.contains(&(54_321.0, 9.0)));
        assert!(kept.windows(2).all(|pair| pair[0].0 < pair[1].0));
    }

    #[test]
    fn axis_numbers_are_short() {
        let shown: Vec<String> = [0.0, 0.5, 12.0, 1234.0, 25_000.0, 3.2e6, 2e-5, -0.25].map(short).into();
        assert_eq!(shown, ["0", "0.5", "12", "1234", "25k", "3.2M", "2.0e-5", "-0.25"]);
    }
}
