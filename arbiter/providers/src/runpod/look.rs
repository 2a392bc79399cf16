//! One look at what there is and what it costs.

use std::sync::atomic::Ordering;

use super::offers::Seen;
use super::quota::Purpose;
use super::thing::Cloud;
use super::{RunPod, catalogue, spot};
use crate::error::ProviderError;

impl RunPod {
    /// One look at the whole catalogue: a request for each cloud and size.
    pub(super) async fn look(&self) -> Result<Seen, ProviderError> {
        let mut seen = Seen::default();
        let kind = [("include", "AVAILABILITY"), ("product", "POD")];
        let price = Purpose::Price;
        for cloud in Cloud::ALL {
            // Community machines are in no data centre that could be named.
            if cloud == Cloud::Community && !self.config.data_centers.is_empty() {
                continue;
            }
            for count in &self.config.counts {
                let what = format!("prices of {count} accelerators ({})", cloud.as_str());
                let size = count.to_string();
                let mut query =
                    vec![kind[0], kind[1], ("count", size.as_str()), ("cloud", cloud.as_str())];
                query.extend(self.config.min_cuda.as_deref().map(|v| ("minCudaVersion", v)));
                let answer = self.api.get(&["catalog", "gpus"], &query, price).await;
                let answer = self.good(&what, answer)?;
                let gpus = catalogue::gpus(&answer.body, cloud, *count);
                let gpus = gpus.map_err(|detail| self.unreachable(&what, detail))?;
                seen.gpus.push((cloud, *count, gpus));
            }
        }
        for count in &self.config.vcpu_counts {
            let what = format!("prices of {count} processors");
            let size = count.to_string();
            let query = [kind[0], kind[1], ("vcpuCount", size.as_str())];
            let answer = self.api.get(&["catalog", "cpus"], &query, price).await;
            let answer = self.good(&what, answer)?;
            let cpus = catalogue::cpus(&answer.body);
            seen.cpus.push((*count, cpus.map_err(|detail| self.unreachable(&what, detail))?));
        }
        if self.config.sells_spot() && !self.no_spot.load(Ordering::Relaxed) {
            seen.spot = self.spot_prices().await;
        }
        Ok(seen)
    }

    /// Spot prices; none where they cannot be had, which takes nothing from the other offers.
    async fn spot_prices(&self) -> spot::Prices {
        let what = "spot prices";
        let counts = &self.config.counts;
        let question =
            serde_json::json!({ "query": spot::question(counts, self.config.min_cuda.as_deref()) });
        let answer = self.api.ask(&question, Purpose::Price).await;
        let prices = self.good(what, answer).and_then(|answer| {
            spot::prices(&answer.body, counts).map_err(|detail| self.unreachable(what, detail))
        });
        prices.unwrap_or_else(|error| {
            let over =
                matches!(error, ProviderError::Retired { .. } | ProviderError::Unauthorized { .. });
            if over {
                self.no_spot.store(true, Ordering::Relaxed);
            }
            tracing::warn!(%error, for_good = over, "no spot offers");
            spot::Prices::new()
        })
    }
}
