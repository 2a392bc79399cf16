//! A job's places and prices as an SVG picture, by the ledger's rows: above, dollars an hour of all
//! its machines together; below, one line for each place, with a bar for each machine.

use std::collections::BTreeMap;
use std::fmt::Write;

use jiff::Timestamp;
use petaflop_arbiter::ledger::{Row, RowKind};
use petaflop_arbiter::money::Usd;
use petaflop_arbiter::offer::Capacity;

const WIDTH: f64 = 960.0;
const LEFT: f64 = 280.0;
const RIGHT: f64 = 24.0;
const TOP: f64 = 36.0;
const PRICES: f64 = 110.0;
const GAP: f64 = 20.0;
const LANE: f64 = 26.0;
const BOTTOM: f64 = 30.0;

/// Seconds between marks of the time, as many as are needed for eight of them.
const STEPS: [i64; 15] = [
    1, 5, 15, 60, 300, 900, 3_600, 10_800, 21_600, 43_200, 86_400, 172_800, 604_800, 2_592_000,
    31_536_000,
];

/// One machine: what it did where.
struct Bar {
    from: Timestamp,
    to: Timestamp,
    amount: Usd,
    last_rate: i64,
}

/// Draws it; `None` where no row is of any time. `title` is put before the sum.
pub fn svg(title: &str, rows: &[Row]) -> Option<String> {
    let spans = || rows.iter().filter(|row| row.to > row.from && row.kind != RowKind::Correction);
    let (begin, end) = (spans().map(|row| row.from).min()?, spans().map(|row| row.to).max()?);
    let lanes = lanes(rows);
    let seconds = |at: Timestamp| at.duration_since(begin).as_secs_f64();
    let whole = seconds(end);
    let x = |at: Timestamp| LEFT + seconds(at) / whole * (WIDTH - LEFT - RIGHT);
    let floor = TOP + PRICES;
    let bottom = floor + GAP + lanes.len() as f64 * LANE;
    let height = bottom + BOTTOM;
    let total: Usd = rows.iter().map(|row| row.amount).sum();

    let mut out = String::new();
    let mut draw = |text: std::fmt::Arguments<'_>| {
        // Writing to a String cannot fail.
        let _ = out.write_fmt(text).and_then(|()| out.write_char('\n'));
    };
    draw(format_args!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="12" fill="#444">"##
    ));
    draw(format_args!(r##"<rect width="{WIDTH}" height="{height}" fill="#fff"/>"##));
    draw(format_args!(
        r##"<text x="12" y="20" font-size="14">{}: ${total}, {} UTC to {} UTC</text>"##,
        escaped(title),
        begin.strftime("%Y-%m-%d %H:%M:%S"),
        end.strftime("%Y-%m-%d %H:%M:%S")
    ));

    // Marks of the time.
    let step = STEPS.into_iter().find(|step| whole / *step as f64 <= 8.0).unwrap_or(STEPS[14]);
    let form = if step < 60 {
        "%H:%M:%S"
    } else if step < 86_400 {
        "%m-%d %H:%M"
    } else {
        "%Y-%m-%d"
    };
    let first = begin.as_second().div_euclid(step) + 1;
    for mark in
        (first..first + 9).map(|mark| mark * step).take_while(|mark| *mark <= end.as_second())
    {
        let Ok(at) = Timestamp::from_second(mark) else { continue };
        let x = x(at);
        draw(format_args!(r##"<path d="M{x:.1} {TOP}V{bottom:.1}" stroke="#e4e4e4"/>"##));
        draw(format_args!(
            r##"<text x="{x:.1}" y="{:.1}" text-anchor="middle">{}</text>"##,
            bottom + 18.0,
            at.strftime(form)
        ));
    }

    // Dollars an hour, all machines together.
    let steps = hourly(spans());
    let most = steps.iter().map(|(_, micros)| *micros).max().unwrap_or(0).max(1);
    let y = |micros: i64| floor - micros as f64 / most as f64 * (PRICES - 14.0);
    let mut line = format!("M{LEFT:.1} {floor:.1}");
    for (at, micros) in &steps {
        let _ = write!(line, "H{:.1}V{:.1}", x(*at), y(*micros));
    }
    draw(format_args!(r##"<path d="M{LEFT} {floor}H{:.1}" stroke="#999"/>"##, WIDTH - RIGHT));
    draw(format_args!(r##"<path d="{line}" fill="none" stroke="#222" stroke-width="1.5"/>"##));
    draw(format_args!(
        r##"<text x="{:.1}" y="{:.1}" text-anchor="end">{} $/h</text>"##,
        LEFT - 8.0,
        y(most) + 4.0,
        Usd::from_micros(most)
    ));
    draw(format_args!(
        r##"<text x="{:.1}" y="{floor:.1}" text-anchor="end">0</text>"##,
        LEFT - 8.0
    ));

    for (lane, ((place, capacity), bars)) in lanes.iter().enumerate() {
        let top = floor + GAP + lane as f64 * LANE;
        draw(format_args!(
            r##"<text x="{:.1}" y="{:.1}" text-anchor="end">{}</text>"##,
            LEFT - 8.0,
            top + 15.0,
            escaped(&format!("{place} {capacity}"))
        ));
        for Bar { from, to, amount, last_rate } in bars {
            let (left, wide) = (x(*from), (x(*to) - x(*from)).max(1.0));
            draw(format_args!(
                r##"<rect x="{left:.1}" y="{:.1}" width="{wide:.1}" height="{:.1}" fill="{}"><title>{} to {}: ${amount} at {} $/h</title></rect>"##,
                top + 3.0,
                LANE - 8.0,
                colour(*capacity),
                from.strftime("%Y-%m-%d %H:%M:%S"),
                to.strftime("%Y-%m-%d %H:%M:%S"),
                Usd::from_micros(*last_rate)
            ));
        }
    }
    draw(format_args!("</svg>"));
    Some(out)
}

/// What a machine is called, and how it was had.
type Place = (String, Capacity);

/// Places in the order in which they were first used, with their machines in the order of time.
fn lanes(rows: &[Row]) -> Vec<(Place, Vec<Bar>)> {
    let mut machines: BTreeMap<(&str, &str), (Place, Bar)> = BTreeMap::new();
    for row in rows {
        let place = [
            &row.provider,
            if row.zone.is_empty() { &row.region } else { &row.zone },
            &row.instance_type,
        ];
        let place: Vec<&str> =
            place.into_iter().map(String::as_str).filter(|word| !word.is_empty()).collect();
        let place = (place.join(" "), row.capacity);
        let bar = Bar { from: row.from, to: row.to, amount: Usd::ZERO, last_rate: 0 };
        let key = (row.claim_uid.as_str(), row.instance.as_str());
        let (_, bar) = machines.entry(key).or_insert((place, bar));
        bar.amount = bar.amount.saturating_add(row.amount);
        if row.kind != RowKind::Correction {
            bar.from = bar.from.min(row.from);
            if row.to >= bar.to {
                (bar.to, bar.last_rate) = (row.to, row.rate.micros());
            }
        }
    }
    let mut machines: Vec<(Place, Bar)> = machines.into_values().collect();
    machines.sort_by(|(a, x), (b, y)| (x.from, x.to, &a.0).cmp(&(y.from, y.to, &b.0)));
    let mut lanes: Vec<(Place, Vec<Bar>)> = Vec::new();
    for (place, bar) in machines {
        match lanes.iter_mut().find(|(known, _)| *known == place) {
            Some((_, bars)) => bars.push(bar),
            None => lanes.push((place, vec![bar])),
        }
    }
    lanes
}

/// When the sum of the rates becomes another one, and which, in micro-dollars an hour.
fn hourly<'a>(rows: impl Iterator<Item = &'a Row>) -> Vec<(Timestamp, i64)> {
    let mut changes: BTreeMap<Timestamp, i64> = BTreeMap::new();
    for row in rows {
        for (at, micros) in [(row.from, row.rate.micros()), (row.to, -row.rate.micros())] {
            let change = changes.entry(at).or_default();
            *change = change.saturating_add(micros);
        }
    }
    let mut now: i64 = 0;
    let mut steps = Vec::new();
    for (at, change) in changes {
        if change != 0 {
            now = now.saturating_add(change);
            steps.push((at, now));
        }
    }
    steps
}

const fn colour(capacity: Capacity) -> &'static str {
    match capacity {
        Capacity::Spot => "#2e9f6b",
        Capacity::OnDemand => "#c8642b",
        Capacity::Owned => "#3b6fb5",
    }
}

/// As text of XML.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}
