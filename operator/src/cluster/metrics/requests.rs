//! Requests to providers, counted: a provider that is another one, and notes how each call went.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use petaflop_arbiter::claim::{FrozenRequest, Identity};
use petaflop_arbiter::money::Usd;
use petaflop_arbiter::offer::Offer;
use petaflop_arbiter::reason::Reason;
use petaflop_providers::provider::Capabilities;
use petaflop_providers::{
    EnrolmentToken, Instance, InstanceId, LaunchError, Listing, Order, Provider, ProviderError,
    Used,
};

use super::{Metrics, OfOperation, OfRequest};

/// A provider whose requests are counted.
pub(super) struct Counted {
    pub(super) metrics: Metrics,
    pub(super) provider: Arc<dyn Provider>,
}

/// One request; dropped before it has a code it counts as abandoned.
struct Request<'a> {
    counted: &'a Counted,
    operation: &'static str,
    began: Duration,
    code: &'static str,
}

impl Drop for Request<'_> {
    fn drop(&mut self) {
        let Self { counted: Counted { metrics, provider }, operation, began, code } = self;
        let (provider, operation, code) = (provider.name().to_owned(), *operation, *code);
        let took = metrics.clock.boottime().saturating_sub(*began);
        let of = OfOperation { provider: provider.clone(), operation };
        metrics.request_seconds.get_or_create(&of).observe(took.as_secs_f64());
        metrics.requests.get_or_create(&OfRequest { provider, operation, code }).inc();
    }
}

impl Counted {
    async fn count<T, E>(
        &self,
        operation: &'static str,
        reason: fn(&E) -> Reason,
        call: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let began = self.metrics.clock.boottime();
        let mut request = Request { counted: self, operation, began, code: "Abandoned" };
        let answer = call.await;
        request.code = answer.as_ref().map_or_else(|error| reason(error).as_str(), |_| "Ok");
        answer
    }
}

#[async_trait]
impl Provider for Counted {
    fn name(&self) -> &str {
        self.provider.name()
    }

    fn capabilities(&self) -> Capabilities {
        self.provider.capabilities()
    }

    async fn quote(&self) -> Result<Vec<Offer>, ProviderError> {
        self.count("quote", ProviderError::reason, self.provider.quote()).await
    }

    async fn prepare(&self, order: Order<'_>) -> Result<FrozenRequest, LaunchError> {
        self.count("prepare", LaunchError::reason, self.provider.prepare(order)).await
    }

    async fn launch(
        &self,
        request: &FrozenRequest,
        token: &EnrolmentToken,
    ) -> Result<InstanceId, LaunchError> {
        let call = self.provider.launch(request, token);
        let answer = self.count("launch", LaunchError::reason, call).await;
        if let Err(LaunchError::Ambiguous { .. }) = &answer {
            self.metrics.ambiguous.inc();
        }
        answer
    }

    async fn find(&self, identity: &Identity) -> Result<Listing, ProviderError> {
        self.count("find", ProviderError::reason, self.provider.find(identity)).await
    }

    async fn list(&self, installation: &str) -> Result<Listing, ProviderError> {
        self.count("list", ProviderError::reason, self.provider.list(installation)).await
    }

    async fn get(&self, id: &InstanceId) -> Result<Option<Instance>, ProviderError> {
        self.count("get", ProviderError::reason, self.provider.get(id)).await
    }

    async fn terminate(&self, id: &InstanceId) -> Result<(), ProviderError> {
        self.count("terminate", ProviderError::reason, self.provider.terminate(id)).await
    }

    async fn billed(&self, used: Used<'_>) -> Result<Usd, ProviderError> {
        // Most know by themselves.
        self.provider.billed(used).await
    }
}
