//! Decisions, statuses and money, for people.

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use jiff::Timestamp;
use petaflop_arbiter::decision::{Advice, Advised, Decision, Miss, Outcome, Ranked};
use petaflop_arbiter::money::Usd;
use petaflop_arbiter::offer::{Offer, Sale};
use petaflop_arbiter::own_or_rent::OwnOrRent;

/// A table in this house's style: headings, no lines.
pub(crate) fn table(headings: &[&str], right: &[usize]) -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(headings.iter().copied());
    for column in right {
        if let Some(column) = table.column_mut(*column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// The lines of a table without blanks at their ends.
pub(crate) fn lines(table: &Table) -> String {
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

/// `H100-SXM ×8`, `cpu ×2`.
pub(crate) fn hardware(offer: &Offer) -> String {
    match &offer.accelerators {
        Some(devices) => format!("{} ×{}", devices.model, devices.count),
        None => match offer.vcpu_milli {
            Some(milli) => format!("cpu ×{}", thousandths(milli)),
            None => "cpu".to_owned(),
        },
    }
}

/// `2`, `1.5`.
pub(crate) fn thousandths(milli: u32) -> String {
    let text = format!("{}.{:03}", milli / 1000, milli % 1000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Where an offer is.
pub(crate) fn place(offer: &Offer) -> String {
    match (offer.region.as_str(), offer.zone.as_str()) {
        ("", "") => "-".to_owned(),
        (region, "") => region.to_owned(),
        (_, zone) => zone.to_owned(),
    }
}

/// How old a price is: `now`, a day, or that nobody wrote the day down.
pub(crate) fn seen(offer: &Offer) -> String {
    match offer.sale {
        Sale::Buyable => "now".to_owned(),
        Sale::Snapshot { observed_on: Some(day) } => day.to_string(),
        Sale::Snapshot { observed_on: None } => "undated".to_owned(),
    }
}

/// A span for people.
pub(crate) fn span(millis: i64) -> String {
    let seconds = millis.max(0) / 1000;
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m{:02}s", seconds % 60),
        (0, _, _) => format!("{hours}h{minutes:02}m"),
        (_, _, _) => format!("{days}d{hours:02}h"),
    }
}

/// How long ago something was.
pub(crate) fn age(since: Timestamp, now: Timestamp) -> String {
    span(now.as_millisecond().saturating_sub(since.as_millisecond()))
}

/// Bytes for people.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [(&str, u64); 4] =
        [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match UNITS.iter().find(|(_, size)| count >= *size) {
        // Exact enough for a tenth, at any size.
        Some((unit, size)) => format!("{:.1} {unit}", count as f64 / *size as f64),
        None => format!("{count} B"),
    }
}

/// `12,345`.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A decision: the offers that were considered, what was taken, and why not the others.
pub(crate) fn decision(decision: &Decision) -> String {
    let mut text = format!("{} offers considered", grouped(decision.considered.into()));
    let stopped: Vec<String> =
        decision.stopped.iter().map(|s| format!("{} {}", s.offers, s.constraint)).collect();
    if !stopped.is_empty() {
        text.push_str(&format!("; stopped by: {}", stopped.join(", ")));
    }
    text.push('\n');
    if !decision.ranked.is_empty() {
        text.push_str(&ranked(&decision.ranked));
        text.push('\n');
    }
    match &decision.outcome {
        Outcome::Placed { claims, lacking } => {
            if let Some(Ranked { offer, cost, .. }) = decision.ranked.first() {
                let (low, high) = cost.millis_range;
                text.push_str(&format!(
                    "→ {}: {} $ expected{}, {} (between {} and {}) at {} $/h",
                    offer.id,
                    cost.total,
                    between(cost.usd_range),
                    span(cost.millis),
                    span(low),
                    span(high),
                    offer.price,
                ));
            } else {
                text.push_str(&format!("→ {}", claims.join(", ")));
            }
            if *lacking > 0 {
                text.push_str(&format!("; {lacking} machines are still lacking"));
            }
        }
        Outcome::Settled { machines } => {
            text.push_str(&format!("→ has what it wants ({machines} machines)"));
        }
        Outcome::Moves { claim, to, reason, stays, goes, moves } => {
            let saves = stays.saturating_sub(*goes);
            text.push_str(&format!(
                "→ {reason}: leaves {claim} for {to}: {goes} $ to the end there, the move included, {stays} $ here; saves {saves} $; move {moves} of this job"
            ));
        }
        Outcome::Waiting { reason, message } => text.push_str(&format!("→ {reason}: {message}")),
    }
    if let Some(warning) = decision.warning {
        text.push_str(&format!("\nwarning: {warning}"));
    }
    if let Some(advice) = &decision.advice {
        text.push_str(&format!("\nspot policy: {}", advised(advice)));
    }
    if let Some(saving) = &decision.saving {
        let note = saving.note.as_deref().map(|n| format!(" ({n})")).unwrap_or_default();
        text.push_str(&format!(
            "\nsaves {} $ against {}, the cheapest on-demand offer that meets the same constraints: {} $ there{note}",
            saving.saved, saving.against, saving.would_cost,
        ));
    }
    text
}

/// The dollars between which about nine runs in ten lie, to follow those that are expected.
pub(crate) fn between(range: Option<(Usd, Usd)>) -> String {
    range.map(|(low, high)| format!(" (between {low} and {high} $)")).unwrap_or_default()
}

/// Whether buying a machine pays.
pub(crate) fn own_or_rent(both: Option<&OwnOrRent>) -> String {
    let Some(both) = both else {
        return "buy or rent: there is nothing to compare: it takes one machine of one's own and one for rent that would do".to_owned();
    };
    let OwnOrRent {
        own,
        rented,
        own_millis,
        marginal,
        full,
        rent,
        pays_after_hours,
        lifetime_hours,
    } = both;
    let pays = match pays_after_hours {
        None => "buying never pays".to_owned(),
        Some(hours) => {
            let share = *hours as f64 / *lifetime_hours as f64 * 100.0;
            let within = if hours <= lifetime_hours { "" } else { ", which it does not have" };
            format!(
                "buying pays from {hours} hours of such work on, {share:.1} % of its years{within}"
            )
        }
    };
    format!(
        "buy or rent: {marginal} $ on {own} in {}, at least {full} $ with its share of the purchase; {rent} $ rented on {rented}; {pays}",
        span(*own_millis)
    )
}

/// What the spot policy said, with the numbers that it stood on.
fn advised(advice: &Advice) -> String {
    let Advice {
        says,
        policy,
        zones,
        slack_seconds,
        restart_seconds,
        refused,
        line,
        on_demand,
        short_of_money,
    } = advice;
    let says = match says {
        Advised::Wait => "wait",
        Advised::Spot => "spot",
        Advised::OnDemand => "on-demand",
        Advised::Stay => "stay",
    };
    let refusals = match refused {
        0 => String::new(),
        1 => ", an on-demand offer refused lately".to_owned(),
        many => format!(", {many} on-demand offers refused lately"),
    };
    let money = match short_of_money {
        true => "; after another try on spot the money would not do for on-demand",
        false => "",
    };
    format!(
        "{says} ({policy}; {zones} places for spot, {} to spare, a start takes up to {}{refusals}{money}); without progress, {on_demand} from {line}",
        span(slack_seconds.saturating_mul(1_000)),
        span(restart_seconds.saturating_mul(1_000)),
    )
}

fn ranked(places: &[Ranked]) -> String {
    let mut shown = table(
        &["", "OFFER", "HARDWARE", "$/H", "$ TO FINISH", "TIME", "TOKENS/S", "PRICE OF", "WHY NOT"],
        &[3, 4, 5, 6],
    );
    for Ranked { offer, device: _, cost, obstacle } in places {
        let rate = cost.tokens_per_second.map(|r| grouped(r.expected.max(0.0) as u64));
        shown.add_row([
            if obstacle.is_none() { "→".to_owned() } else { String::new() },
            offer.id.to_string(),
            hardware(offer),
            offer.price.to_string(),
            cost.total.to_string(),
            span(cost.millis),
            rate.unwrap_or_else(|| "-".to_owned()),
            seen(offer),
            obstacle.as_ref().map(ToString::to_string).unwrap_or_default(),
        ]);
    }
    lines(&shown)
}

/// The nearest misses: what stands in the way, and what would have to give.
pub(crate) fn misses(misses: &[Miss]) -> String {
    let mut shown =
        table(&["NEAREST OFFERS", "HARDWARE", "$/H", "IN THE WAY", "WOULD HAVE TO GIVE"], &[2]);
    for Miss { offer, obstacles, total: _ } in misses {
        let join = |texts: Vec<String>| texts.join("; ");
        let give: Vec<String> = obstacles
            .iter()
            .map(|o| {
                o.would_have_to_give()
                    .unwrap_or_else(|| "cannot be changed by the manifest".to_owned())
            })
            .collect();
        shown.add_row([
            offer.id.to_string(),
            hardware(offer),
            offer.price.to_string(),
            join(obstacles.iter().map(ToString::to_string).collect()),
            join(give),
        ]);
    }
    lines(&shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_read_well() {
        let table = [
            (0, "0s"),
            (59_999, "59s"),
            (61_000, "1m01s"),
            (3_600_000, "1h00m"),
            (90_000_000, "1d01h"),
            (-5, "0s"),
        ];
        for (millis, text) in table {
            assert_eq!(span(millis), text);
        }
    }

    #[test]
    fn numbers_are_grouped_by_thousands() {
        for (number, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(grouped(number), text);
        }
    }

    #[test]
    fn thousandths_show_no_needless_zeros() {
        for (milli, text) in [(2000, "2"), (1500, "1.5"), (250, "0.25")] {
            assert_eq!(thousandths(milli), text);
        }
    }

    #[test]
    fn bytes_take_the_largest_unit_that_fits() {
        for (count, text) in [(17, "17 B"), (1024, "1.0 KiB"), (3 << 30, "3.0 GiB")] {
            assert_eq!(bytes(count), text);
        }
    }

    #[test]
    fn tables_have_no_blanks_at_line_ends() {
        let mut shown = table(&["A", "B"], &[1]);
        shown.add_row(["x", ""]);
        assert!(lines(&shown).lines().all(|line| !line.ends_with(' ')));
    }
}
