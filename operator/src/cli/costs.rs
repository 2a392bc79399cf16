//! `petaflop costs`: what was spent, by the ledger.

use super::cluster::Namespaces;
use super::{Code, Failure, Outcome, print, print_json, show, waiting};
use crate::costs::{By, Costs, period};
use crate::embedded::home::Home;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// From this day or time on (UTC; 2026-11-21 or RFC 3339)
    #[arg(long, value_name = "TIME")]
    pub(super) from: Option<String>,
    /// Before this day or time
    #[arg(long, value_name = "TIME")]
    pub(super) to: Option<String>,
    /// What is added up
    #[arg(long, value_enum, default_value = "job")]
    pub(super) by: By,
    #[command(flatten)]
    pub(super) namespaces: Namespaces,
    /// Print one JSON object, rows included
    #[arg(long)]
    pub(super) json: bool,
}

pub(crate) fn run(home: &Home, args: &Args) -> Outcome {
    let period = period(args.from.as_deref(), args.to.as_deref(), ["--from", "--to"])
        .map_err(Failure::bad_input)?;
    let mut rows = waiting()?.block_on(home.ledger()?.rows_from(period.start))?;
    if let Some(only) = &args.namespaces.namespace {
        rows.retain(|row| row.namespace == *only);
    }
    show_costs(args, &Costs::of(rows, args.by, period)?)
}

/// Prints what was spent.
pub(super) fn show_costs(args: &Args, costs: &Costs) -> Outcome {
    if args.json {
        print_json(costs)?;
        return Ok(Code::Done);
    }
    let mut table = show::table(&[&args.by.as_str().to_uppercase(), "COST $"], &[1]);
    for (group, sum) in &costs.groups {
        table.add_row([group.clone(), sum.to_string()]);
    }
    table.add_row(["total".to_owned(), costs.total.to_string()]);
    print(show::lines(&table))?;
    Ok(Code::Done)
}
