//! `petaflop offers`: what can be had, and at what price.

use petaflop_arbiter::money::UsdPerHour;
use petaflop_arbiter::offer::{Capacity, Offer};

use super::cluster::Namespaces;
use super::{Code, Failure, Outcome, print, print_json, say, show};
use crate::embedded::config::Config;
use crate::embedded::home::Home;
use crate::embedded::live;
use crate::embedded::observe::Providers;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only with this accelerator: a catalogue name (H100-SXM) or its family (H100)
    #[arg(long, value_name = "MODEL")]
    gpu: Option<String>,
    /// Only spot
    #[arg(long)]
    spot: bool,
    /// Only up to this price, in dollars an hour
    #[arg(long, value_name = "USD")]
    max_price: Option<UsdPerHour>,
    /// Only of this provider: host, aws, runpod
    #[arg(long)]
    provider: Option<String>,
    /// Only what can be taken
    #[arg(long)]
    buyable: bool,
    #[command(flatten)]
    pub(super) namespaces: Namespaces,
    /// Ask the providers whose keys there are now (RUNPOD_API_KEY; AWS: config.yaml), instead of showing dated prices
    #[arg(long)]
    live: bool,
    /// Show only the first ones
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl Args {
    fn takes(&self, offer: &Offer) -> bool {
        let Self {
            gpu,
            spot,
            max_price,
            provider,
            buyable,
            namespaces: _,
            live: _,
            limit: _,
            json: _,
        } = self;
        gpu.as_ref().is_none_or(|gpu| has_gpu(offer, gpu))
            && (!spot || offer.capacity == Capacity::Spot)
            && max_price.is_none_or(|limit| offer.price <= limit)
            && provider.as_ref().is_none_or(|name| offer.provider == *name)
            && (!buyable || offer.sale.is_buyable())
    }
}

fn has_gpu(offer: &Offer, name: &str) -> bool {
    offer.accelerators.as_ref().is_some_and(|devices| {
        let listed = petaflop_arbiter::catalogue::Catalogue::embedded().get(&devices.model);
        devices.model.eq_ignore_ascii_case(name) || listed.is_some_and(|row| row.answers_to(name))
    })
}

pub(crate) fn run(home: &Home, args: &Args) -> Outcome {
    let config = Config::read(home)?;
    if args.live {
        return live(home, &config, args);
    }
    let runtime = crate::embedded::runtime::find()?;
    let providers = Providers::of(home, &config, runtime)?;
    let (offers, errors) = super::waiting()?.block_on(providers.offers());
    for error in errors {
        say(format_args!("left out: {error}"));
    }
    show_offers(args, offers)
}

/// What providers elsewhere say now. One that fails is named; all of them failing is a failure.
fn live(home: &Home, config: &Config, args: &Args) -> Outcome {
    let providers = live::providers(home.root(), config, |name| std::env::var(name).ok())
        .map_err(Failure::bad_input)?;
    let asked = async {
        let (mut offers, mut failed) = (Vec::new(), 0);
        for provider in &providers {
            match provider.quote().await {
                Ok(quoted) => offers.extend(quoted),
                Err(error) => {
                    failed += 1;
                    say(format_args!("left out: {error}"));
                }
            }
        }
        (offers, failed)
    };
    let (offers, failed) = super::waiting()?.block_on(asked);
    if failed == providers.len() {
        return Err(Failure::failed(
            "no provider said what it offers: mend one of those left out above",
        ));
    }
    show_offers(args, offers)
}

/// Prints those that are asked for.
pub(super) fn show_offers(args: &Args, mut offers: Vec<Offer>) -> Outcome {
    offers.retain(|offer| args.takes(offer));
    offers.sort_by(|a, b| (a.price, &a.id).cmp(&(b.price, &b.id)));
    if let Some(limit) = args.limit {
        offers.truncate(limit);
    }
    if args.json {
        print_json(&serde_json::json!({ "offers": offers }))?;
        return Ok(Code::Done);
    }
    let mut table = show::table(
        &["OFFER", "HARDWARE", "PLACE", "CAPACITY", "MEMORY", "$/H", "PRICE OF", ""],
        &[4, 5],
    );
    for offer in &offers {
        table.add_row([
            offer.id.to_string(),
            show::hardware(offer),
            show::place(offer),
            offer.capacity.to_string(),
            offer.memory.map_or_else(|| "-".to_owned(), show::bytes),
            offer.price.to_string(),
            show::seen(offer),
            if offer.sale.is_buyable() { "" } else { "not for sale" }.to_owned(),
        ]);
    }
    print(show::lines(&table))?;
    Ok(Code::Done)
}
