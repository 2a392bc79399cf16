//! The two clouds on the same machines.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use jiff::Timestamp;
use petaflop_agent_api::clock::Clock;
use petaflop_cloud_box::ec2::{self, Ec2};
use petaflop_cloud_box::engine::bill::Rules;
use petaflop_cloud_box::engine::machine::Machine;
use petaflop_cloud_box::engine::product::Product;
use petaflop_cloud_box::engine::series::{Series, Source};
use petaflop_cloud_box::engine::{Engine, Pace};
use petaflop_cloud_box::faults::Faults;
use petaflop_cloud_box::runpod::{self, RunPod};
use petaflop_harness::eventually;

use crate::market::{self, Market};
use crate::script::Place;

/// Of a step that somebody else's machine has to take.
pub(crate) const LONG: Duration = Duration::from_secs(240);
pub(crate) const REGION: &str = "us-east-2";
pub(crate) const KIND: &str = "c7i.large";
/// Key and secret of both accounts; the store's too, which one environment holds for all.
pub(crate) const KEY: (&str, &str) = ("access", "secret-canary");

/// The zones of EC2, the cheapest one first, and micro-dollars an hour there.
pub(crate) const ZONES: [(&str, i64); 3] =
    [("use2-az1", 36_000), ("use2-az2", 79_200), ("use2-az3", 86_400)];
/// What a host at RunPod Community costs, once there is one; all else there is dear.
const COMMUNITY: i64 = 7_200;
const DEAR: i64 = 7_200_000;
const COMMUNITY_KIND: &str = "NVIDIA GeForce RTX 4090";

pub(crate) struct Clouds {
    pub(crate) market: Arc<Market>,
    pub(crate) ec2: Ec2,
    pub(crate) runpod: RunPod,
}

/// Nothing of a chase that failed goes on beside the next one.
impl Drop for Clouds {
    fn drop(&mut self) {
        for machine in self.instances().iter().chain(&self.pods()) {
            if self.market.machines.exit(&machine.id).is_none() {
                self.market.machines.kill(&machine.id);
            }
        }
    }
}

impl Clouds {
    /// `listed_after`: seconds from the purchase of a pod until it is listed. `seed`: for ids, which
    /// differ where machines are shared.
    pub(crate) fn open(
        market: Arc<Market>,
        clock: &Clock,
        seed: u64,
        listed_after: u32,
    ) -> Result<Self> {
        let host = Box::new(market.machines.clone());
        let mut setup = ec2::Setup::new(clock.clone(), KEY.0, KEY.1, host);
        setup.listen = (market.machines.provider(), 0).into();
        setup.market = Some(market::ec2::steady(clock.now()));
        setup.rules = Rules::EC2_LINUX;
        setup.pace = Pace { wind_down: Duration::ZERO, ..ec2::PACE };
        setup.seed = seed;
        let ec2 = Ec2::start(setup)?;
        let appear = Duration::from_secs(u64::from(listed_after));
        let pace = Pace { appear, ..runpod::PACE };
        let runpod = market.runpod_of(clock.clone(), KEY.1, pace, seed)?;
        let clouds = Self { market, ec2, runpod };
        clouds.price()?;
        Ok(clouds)
    }

    /// What a machine costs is whole micro-dollars a second, so that no line of an invoice is rounded
    /// but the one of its disk.
    pub(crate) fn price(&self) -> Result<()> {
        for (zone, price) in ZONES {
            let product = self.ec2.product(KIND, zone, true).with_context(|| zone.to_owned())?;
            self.ec2.engine(|engine| engine.set_spot(product, price));
        }
        self.price_dear(DEAR);
        self.runpod.engine(|engine| {
            for product in
                engine.products().filter(|(_, p)| is_cheap(p)).map(|(id, _)| id).collect::<Vec<_>>()
            {
                let sold = engine.product_mut(product);
                sold.on_demand = COMMUNITY;
                // No discount, as it is these days.
                sold.spot = Some(Series::constant(Source::Made(0), COMMUNITY));
            }
        });
        self.community(0);
        Ok(())
    }

    /// What all else at RunPod costs.
    pub(crate) fn price_dear(&self, price: i64) {
        self.runpod.engine(|engine| {
            let dear = engine.products().filter(|(_, product)| !is_cheap(product));
            for product in dear.map(|(id, _)| id).collect::<Vec<_>>() {
                let sold = engine.product_mut(product);
                sold.on_demand = price;
                sold.spot = Some(Series::constant(Source::Made(0), price));
            }
        });
    }

    /// They cost again what they did.
    pub(crate) fn price_dear_again(&self) {
        self.price_dear(DEAR);
    }

    /// From now on Community has so many hosts in each country.
    pub(crate) fn community(&self, hosts: u32) {
        self.runpod.engine(|engine| {
            let all = engine.products().filter(|(_, product)| is_cheap(product));
            for id in all.map(|(id, _)| id).collect::<Vec<_>>() {
                engine.product_mut(id).capacity = hosts;
            }
        });
    }

    /// From now on it is cheapest there.
    pub(crate) fn favour(&self, place: Place) {
        self.community(if place == Place::RunPod { 9 } else { 0 });
    }

    pub(crate) fn instances(&self) -> Vec<Machine> {
        self.ec2.engine(|engine| engine.machines().to_vec())
    }

    pub(crate) fn pods(&self) -> Vec<Machine> {
        self.runpod.engine(|engine| engine.machines().to_vec())
    }

    /// Machines that were bought.
    pub(crate) fn bought(&self) -> usize {
        self.instances().len() + self.pods().len()
    }

    /// The machine that the job has: the newest that bills.
    pub(crate) fn alive(&self) -> Option<(Place, Machine)> {
        let of = |place, machines: Vec<Machine>| {
            machines.into_iter().filter(Machine::holds_units).map(move |machine| (place, machine))
        };
        let all = of(Place::Aws, self.instances()).chain(of(Place::RunPod, self.pods()));
        all.max_by_key(|(_, machine)| machine.created)
    }

    pub(crate) fn engine<T>(&self, place: Place, look: impl FnOnce(&mut Engine) -> T) -> T {
        match place {
            Place::Aws => self.ec2.engine(look),
            Place::RunPod => self.runpod.engine(look),
        }
    }

    pub(crate) fn faults<T>(&self, place: Place, switch: impl FnOnce(&mut Faults) -> T) -> T {
        match place {
            Place::Aws => self.ec2.faults(switch),
            Place::RunPod => self.runpod.faults(switch),
        }
    }

    /// Time of the clouds, which have clocks of their own.
    pub(crate) fn now(&self) -> Timestamp {
        self.ec2.now()
    }

    /// Ids of what still bills.
    pub(crate) fn open_lines(&self) -> Vec<String> {
        let open = |engine: &mut Engine| {
            engine.invoice().open().into_iter().map(str::to_owned).collect::<Vec<_>>()
        };
        [self.ec2.engine(open), self.runpod.engine(open)].concat()
    }

    /// Nothing runs on any machine: one that is given back has its grace to end in.
    pub(crate) async fn all_are_gone(&self) -> Result<()> {
        for machine in self.instances().iter().chain(&self.pods()) {
            // One that never ran has nothing to end.
            if machine.started.is_none() || machine.stuck {
                continue;
            }
            eventually("nothing runs on a machine", LONG, || async {
                let log = || self.market.machines.log(&machine.id);
                self.market.machines.exit(&machine.id).ok_or_else(log)
            })
            .await?;
        }
        Ok(())
    }
}

fn is_cheap(product: &Product) -> bool {
    product.kind == COMMUNITY_KIND && product.pool == "COMMUNITY"
}

/// Of each machine, what its lines and those of its disk come to. Machines are in order of purchase,
/// and so are disks, of which each has one.
pub(crate) fn lines(engine: &Engine, machines: &[Machine]) -> Vec<i64> {
    let sums = engine.invoice().by_machine();
    let sum = |id: &str| sums.get(id).copied().unwrap_or_default();
    let disks = engine.disks();
    let disk = |place: usize| disks.get(place).map_or(0, |disk| sum(&disk.id));
    machines.iter().enumerate().map(|(place, one)| sum(&one.id) + disk(place)).collect()
}
