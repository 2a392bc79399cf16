//! The ComputeProvider's controller: quotes, and what its status says. Its object stays as long as
//! there are claims on it.

use std::sync::Arc;
use std::time::Duration;

use kube::api::PostParams;
use kube::{Api, ResourceExt};
use petaflop_arbiter::reason::Reason;
use petaflop_crds::ComputeProvider;
use petaflop_crds::scalar::Money;
use petaflop_providers::{ProviderError, Retry};

use crate::cluster::error::{Error, is_not_found};
use crate::cluster::queue::Again;
use crate::cluster::status::{Conditions, Is};
use crate::cluster::{Operator, events, finalizer};

/// Between two quotes.
const QUOTE: Duration = Duration::from_secs(30);

/// One pass over one provider.
pub async fn reconcile(operator: &Operator, name: &str) -> Result<Again, Error> {
    let api: Api<ComputeProvider> = Api::all(operator.client.clone());
    let in_use = operator.table.needs_provider(name);
    let Some(object) = operator.provider_object(name) else {
        // A claim that was written while it went needs it to the end.
        if in_use {
            return Ok(Again::After(Duration::from_secs(5)));
        }
        operator.providers.remove(name);
        return Ok(Again::OnChange);
    };
    operator.providers.put(name, object.clone());
    let deleting = object.metadata.deletion_timestamp.is_some();
    // Held only while there are claims: whoever uninstalls us deletes us before our objects.
    if finalizer::is_held(&*object) != in_use {
        let written = finalizer::hold(&api, &object, in_use).await;
        written.map_err(Error::api("writing a provider's finalizer"))?;
    }
    if deleting {
        return Ok(Again::After(Duration::from_secs(5)));
    }
    let now = operator.clock.now();
    if operator.providers.refresh(name, now).await {
        operator.placement.ask();
        operator.handle().offers_changed();
    }
    write(operator, &api, &object).await?;
    let trouble = operator.providers.get(name).and_then(|known| known.trouble);
    Ok(Again::After(match trouble.map(|error| error.retry()) {
        Some(Retry::After(wait)) => wait.min(QUOTE),
        Some(Retry::AfterChange | Retry::ElsewhereFor(_)) | None => QUOTE,
    }))
}

async fn write(
    operator: &Operator,
    api: &Api<ComputeProvider>,
    object: &Arc<ComputeProvider>,
) -> Result<(), Error> {
    let name = object.name_any();
    let Some(known) = operator.providers.get(&name) else { return Ok(()) };
    let mut status = object.status.clone().unwrap_or_default();
    let generation = object.metadata.generation;
    status.observed_generation = generation;
    status.type_ = object.spec.type_();
    let mut claims = operator.table.of_provider(&name);
    claims.retain(|stored| stored.claim.is_unfinished());
    status.machines = claims.len() as u32;
    let hourly = claims.iter().map(|c| c.claim.spec.offer.price.micros()).sum();
    status.hourly_price =
        petaflop_arbiter::money::UsdPerHour::from_micros(hourly).ok().map(Money::from);
    let now = operator.clock.now();
    let mut conditions = Conditions::of(&mut status.conditions, generation, now);
    match &known.trouble {
        None => {
            conditions.ready(Reason::Ok, "");
            conditions.set("CredentialsValid", Is::True, Reason::Ok, "");
            conditions.set("OffersFresh", Is::True, Reason::Ok, "");
        }
        Some(error) => {
            let reason = error.reason();
            let message = error.to_string();
            conditions.set("OffersFresh", Is::False, reason, &message);
            let refused = matches!(error, ProviderError::Unauthorized { .. });
            if refused {
                conditions.set("CredentialsValid", Is::False, reason, &message);
            }
            match error.retry() {
                Retry::AfterChange => conditions.stalled(reason, &message),
                Retry::After(_) | Retry::ElsewhereFor(_) => {
                    conditions.progressing(reason, &message);
                }
            }
        }
    }
    if object.status.as_ref() == Some(&status) {
        return Ok(());
    }
    let told = events::of_provider(object.status.as_ref(), &status);
    let mut new = ComputeProvider::clone(object);
    new.status = Some(status);
    match api.replace_status(&name, &PostParams::default(), &new).await {
        Ok(_) => {
            operator.events.tell(&new, told);
            Ok(())
        }
        Err(error) if is_not_found(&error) => Ok(()),
        Err(error) => Err(Error::api("writing a provider's status")(error)),
    }
}
