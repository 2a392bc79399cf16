//! What an hour of an owned machine costs, and what a seller asked before an owner added to it.
//!
//! Marginal price = (load − idle) watts × PUE × price of electricity, plus an
//! opportunity margin. Capital cost is left out on purpose: it is spent whether
//! or not the machine works, and counting it would make idle owned machines look
//! dearer than rented ones. Integer arithmetic throughout, rounded up.

use petaflop_arbiter::money::{Usd, UsdPerHour};
use serde::{Deserialize, Serialize};

/// What the owner says about electricity and margin. The defaults are a middle
/// of what households pay and what small machines draw; set your own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct PowerPrice {
    /// Dollars for one kilowatt-hour, as a decimal string.
    pub usd_per_kwh: String,
    /// Power of the machine at rest, in watts.
    pub idle_watts: u32,
    /// Power of the machine at full load, in watts, without accelerators.
    pub load_watts: u32,
    /// Power usage effectiveness × 1000: cooling and losses. 1000 is a room without cooling.
    pub pue_milli: u32,
    /// Opportunity margin on top, in per cent.
    pub margin_percent: u32,
}

impl Default for PowerPrice {
    fn default() -> Self {
        Self {
            usd_per_kwh: "0.25".to_owned(),
            idle_watts: 30,
            load_watts: 120,
            pue_milli: 1100,
            margin_percent: 10,
        }
    }
}

impl PowerPrice {
    /// Dollars an hour while `share_milli` thousandths of the processors and
    /// `accelerator_watts` of accelerators work.
    ///
    /// # Errors
    /// When the price of electricity is not a decimal number of dollars, or the
    /// result does not fit.
    pub fn hourly(&self, share_milli: u64, accelerator_watts: u64) -> Result<UsdPerHour, String> {
        let Self { usd_per_kwh, idle_watts, load_watts, pue_milli, margin_percent } = self;
        let kwh: Usd = usd_per_kwh.parse().map_err(|error| format!("usdPerKwh: {error}"))?;
        if load_watts < idle_watts {
            return Err(format!(
                "loadWatts ({load_watts}) must not be below idleWatts ({idle_watts})"
            ));
        }
        let milliwatts = u128::from(load_watts - idle_watts) * u128::from(share_milli)
            + u128::from(accelerator_watts) * 1000;
        let kwh_micros = u128::try_from(kwh.micros())
            .map_err(|_| format!("usdPerKwh: expected dollars ≥ 0, found {usd_per_kwh:?}"))?;
        let scaled = milliwatts
            * u128::from(*pue_milli)
            * kwh_micros
            * u128::from(100 + u64::from(*margin_percent));
        // milliwatts → kilowatts 10⁶, PUE 10³, per cent 10².
        let micros = scaled.div_ceil(100_000_000_000);
        i64::try_from(micros)
            .ok()
            .and_then(|micros| UsdPerHour::from_micros(micros).ok())
            .ok_or_else(|| "the hourly price does not fit".to_owned())
    }
}

/// What a seller quoted, from the price that was decided on: the owner may add a percentage to all
/// prices, which the seller does not know of. Rounded up.
#[cfg(any(feature = "aws", feature = "runpod"))]
pub(crate) fn quoted(price: UsdPerHour, percent: i32) -> UsdPerHour {
    let factor = i128::from(percent.clamp(-99, 1000)) + 100;
    let micros = (i128::from(price.micros()) * 100 + factor - 1) / factor;
    UsdPerHour::from_micros(i64::try_from(micros).unwrap_or(i64::MAX)).unwrap_or(price)
}

/// What a seller's bill is to the owner, with that percentage. To the nearest micro-dollar.
#[cfg(any(feature = "aws", feature = "runpod"))]
pub(crate) fn adjusted(bill: Usd, percent: i32) -> Usd {
    let factor = i128::from(percent.clamp(-99, 1000)) + 100;
    let micros = (i128::from(bill.micros()) * factor + 50).div_euclid(100);
    Usd::from_micros(i64::try_from(micros).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_marginal_price_is_load_minus_idle() {
        let price = PowerPrice {
            usd_per_kwh: "0.16".into(),
            idle_watts: 0,
            load_watts: 450,
            pue_milli: 1100,
            margin_percent: 0,
        };
        // The worked example for a 450 W card: 0.45 kW × 1.1 × 0.16 $ = 0.0792 $.
        assert_eq!(price.hourly(1000, 0).map(UsdPerHour::micros), Ok(79_200));
        assert_eq!(price.hourly(500, 0).map(UsdPerHour::micros), Ok(39_600));
        assert_eq!(price.hourly(0, 450).map(UsdPerHour::micros), Ok(79_200));
    }

    #[test]
    fn the_margin_comes_on_top_and_nothing_rounds_to_free() {
        let price = PowerPrice::default();
        assert_eq!(price.hourly(1000, 0).map(UsdPerHour::micros), Ok(27_225));
        let tiny = PowerPrice { usd_per_kwh: "0.000001".into(), ..PowerPrice::default() };
        assert_eq!(tiny.hourly(1, 0).map(UsdPerHour::micros), Ok(1));
    }

    #[test]
    fn nonsense_is_named() {
        let odd = PowerPrice { usd_per_kwh: "cheap".into(), ..PowerPrice::default() };
        assert!(odd.hourly(1000, 0).is_err_and(|e| e.starts_with("usdPerKwh")));
        let upside_down = PowerPrice { load_watts: 1, ..PowerPrice::default() };
        assert!(upside_down.hourly(1000, 0).is_err());
    }
}
