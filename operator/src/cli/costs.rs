//! `petaflop costs`: what was spent, by the ledger.

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use petaflop_arbiter::ledger::{GroupBy, in_period, sums};
use petaflop_arbiter::money::Usd;

use super::{Code, Failure, Outcome, print, print_json, show, waiting};
use crate::embedded::home::Home;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// From this day or time on (UTC; 2026-11-21 or RFC 3339)
    #[arg(long, value_name = "TIME")]
    from: Option<String>,
    /// Before this day or time
    #[arg(long, value_name = "TIME")]
    to: Option<String>,
    /// What is added up
    #[arg(long, value_enum, default_value = "job")]
    by: By,
    /// Print one JSON object, rows included
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum By {
    Namespace,
    Job,
    Provider,
    Budget,
}

pub(crate) fn run(home: &Home, args: &Args) -> Outcome {
    let from = time(args.from.as_deref(), "--from")?.unwrap_or(Timestamp::MIN);
    let to = time(args.to.as_deref(), "--to")?.unwrap_or(Timestamp::MAX);
    let rows = waiting()?.block_on(home.ledger()?.rows())?;
    let by = match args.by {
        By::Namespace => GroupBy::Namespace,
        By::Job => GroupBy::Job,
        By::Provider => GroupBy::Provider,
        By::Budget => GroupBy::Budget,
    };
    let period = from..to;
    let sums = sums(&rows, by, period.clone())?;
    let total: Usd = sums.values().copied().sum();
    if args.json {
        let rows: Vec<_> = rows.iter().filter(|row| in_period(row, &period)).collect();
        print_json(&serde_json::json!({ "groups": sums, "total": total, "rows": rows }))?;
        return Ok(Code::Done);
    }
    let heading = match args.by {
        By::Namespace => "NAMESPACE",
        By::Job => "JOB",
        By::Provider => "PROVIDER",
        By::Budget => "BUDGET",
    };
    let mut table = show::table(&[heading, "COST $"], &[1]);
    for (group, sum) in &sums {
        table.add_row([group.clone(), sum.to_string()]);
    }
    table.add_row(["total".to_owned(), total.to_string()]);
    print(show::lines(&table))?;
    Ok(Code::Done)
}

fn time(text: Option<&str>, flag: &str) -> Result<Option<Timestamp>, Failure> {
    let Some(text) = text else { return Ok(None) };
    if let Ok(time) = text.parse::<Timestamp>() {
        return Ok(Some(time));
    }
    text.parse::<Date>()
        .and_then(|day| day.to_zoned(TimeZone::UTC))
        .map(|day| Some(day.timestamp()))
        .map_err(|_| {
            Failure::bad_input(format!(
                "{flag}: expected 2026-11-21 or 2026-11-21T08:00:00Z, found {text:?}"
            ))
        })
}
