//! The loss over the steps as an SVG picture: grey, every step; blue, a running
//! mean; dots, the validation split.

use std::fmt::Write;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 360.0;
const LEFT: f64 = 56.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 28.0;
const BOTTOM: f64 = 36.0;
/// Points of a line beyond which neighbours are averaged.
const POINTS: usize = 600;

/// Draws it. `losses[i]` is the mean training loss of step `i + 1`, `validation`
/// holds (steps done, loss), both in nats a token and finite.
#[must_use]
pub fn svg(title: &str, losses: &[f64], validation: &[(u64, f64)]) -> String {
    let steps = losses.len().max(1) as f64;
    let all = || {
        losses
            .iter()
            .copied()
            .chain(validation.iter().map(|&(_, loss)| loss))
            .filter(|loss| loss.is_finite())
    };
    let (low, high) = all().fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), loss| {
        (low.min(loss), high.max(loss))
    });
    let (low, high) = if low < high { (low, high) } else { (0.0, 1.0) };
    let tick = nice((high - low) / 5.0);
    let (low, high) = ((low / tick).floor() * tick, (high / tick).ceil() * tick);
    let x = |step: f64| LEFT + step / steps * (WIDTH - LEFT - RIGHT);
    let y = |loss: f64| TOP + (high - loss) / (high - low) * (HEIGHT - TOP - BOTTOM);

    let mut out = String::new();
    let mut draw = |text: std::fmt::Arguments<'_>| {
        out.write_fmt(text)
            .and_then(|()| out.write_char('\n'))
            .expect("writing to a String cannot fail");
    };
    draw(format_args!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12" fill="#444">"##
    ));
    draw(format_args!(r##"<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>"##));
    draw(format_args!(r##"<text x="{LEFT}" y="18" font-size="13">{}</text>"##, escape(title)));
    for i in 0..=((high - low) / tick).round() as u32 {
        let loss = low + f64::from(i) * tick;
        let at = y(loss);
        draw(format_args!(
            r##"<path d="M{LEFT} {at:.1}H{:.1}" stroke="#e4e4e4"/>"##,
            WIDTH - RIGHT
        ));
        draw(format_args!(
            r##"<text x="{:.1}" y="{:.1}" text-anchor="end">{loss:.2}</text>"##,
            LEFT - 8.0,
            at + 4.0
        ));
    }
    let step_tick = nice(steps / 6.0).max(1.0);
    for i in 0..=(steps / step_tick) as u32 {
        let step = f64::from(i) * step_tick;
        draw(format_args!(
            r##"<text x="{:.1}" y="{:.1}" text-anchor="middle">{step}</text>"##,
            x(step),
            HEIGHT - BOTTOM + 18.0
        ));
    }
    draw(format_args!(
        r##"<text x="{:.1}" y="{:.1}" text-anchor="end">steps</text>"##,
        WIDTH - RIGHT,
        HEIGHT - 4.0
    ));

    let per_point = losses.len().div_ceil(POINTS).max(1);
    let points = |values: &mut dyn Iterator<Item = (f64, f64)>| -> String {
        values
            .map(|(step, loss)| format!("{:.1},{:.1}", x(step), y(loss)))
            .collect::<Vec<_>>()
            .join(" ")
    };
    let mut each = losses.chunks(per_point).enumerate().map(|(i, chunk)| {
        (
            (i * per_point) as f64 + chunk.len() as f64,
            chunk.iter().sum::<f64>() / chunk.len() as f64,
        )
    });
    draw(format_args!(
        r##"<polyline fill="none" stroke="#c9c9c9" points="{}"/>"##,
        points(&mut each)
    ));
    // An exponential mean over about a fiftieth of the run, free of the bias towards its start.
    let keep = 1.0 - 1.0 / (steps / 50.0).max(1.0);
    let (mut sum, mut weight) = (0.0, 0.0);
    let smooth: Vec<f64> = losses
        .iter()
        .map(|loss| {
            (sum, weight) = (keep * sum + loss, keep * weight + 1.0);
            sum / weight
        })
        .collect();
    let mut smooth = smooth
        .iter()
        .enumerate()
        .filter(|(i, _)| (i + 1) % per_point == 0)
        .map(|(i, loss)| (i as f64 + 1.0, *loss));
    draw(format_args!(
        r##"<polyline fill="none" stroke="#2563eb" stroke-width="1.8" points="{}"/>"##,
        points(&mut smooth)
    ));
    for &(step, loss) in validation {
        draw(format_args!(
            r##"<circle cx="{:.1}" cy="{:.1}" r="3.2" fill="#dc2626"><title>validation at step {step}: {loss:.4}</title></circle>"##,
            x(step as f64),
            y(loss)
        ));
    }
    draw(format_args!(
        r##"<text x="{:.1}" y="18" text-anchor="end"><tspan fill="#2563eb">training loss</tspan> · <tspan fill="#dc2626">validation</tspan> (nats a token)</text>"##,
        WIDTH - RIGHT
    ));
    draw(format_args!("</svg>"));
    out
}

/// The least of 1, 2, 5 · 10ⁿ that is not below `x`.
fn nice(x: f64) -> f64 {
    let base = 10f64.powf(x.log10().floor());
    [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .map(|m| m * base)
        .find(|&v| v >= x * 0.999_999)
        .unwrap_or(10.0 * base)
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_loss_lies_inside_the_frame() {
        let losses: Vec<f64> = (1..=5000).map(|i| 6.0 / f64::from(i).sqrt() + 1.5).collect();
        let svg = svg("a < b", &losses, &[(0, 6.2), (5000, 1.7)]);
        assert!(svg.contains("a &lt; b") && svg.trim_end().ends_with("</svg>"));
        let mut seen = 0;
        for line in svg.lines().filter(|line| line.starts_with("<polyline")) {
            let points = line.split("points=\"").nth(1).unwrap().trim_end_matches("\"/>");
            for point in points.split(' ') {
                let (x, y) = point.split_once(',').unwrap();
                let (x, y): (f64, f64) = (x.parse().unwrap(), y.parse().unwrap());
                assert!(
                    (LEFT..=WIDTH - RIGHT).contains(&x) && (TOP..=HEIGHT - BOTTOM).contains(&y),
                    "{point}"
                );
                seen += 1;
            }
        }
        assert!(seen > 1000, "{seen}");
    }

    #[test]
    fn no_steps_and_equal_losses_still_draw() {
        for losses in [vec![], vec![2.0], vec![2.0, 2.0]] {
            assert!(svg("t", &losses, &[]).contains("</svg>"));
        }
    }
}
