//! Looking for what is ours: in every region, by what it carries.

use aws_sdk_ec2::types::Filter;
use jiff::SignedDuration;
use petaflop_arbiter::claim::Identity;
use petaflop_arbiter::offer::Offer;

use super::answer::{Failure, Meaning};
use super::api::pages;
use super::instance::{self, Where};
use super::pace::Purpose;
use super::{Aws, filter, is_young, tags};
use crate::error::ProviderError;
use crate::provider::{Instance, InstanceState, Listing};

/// A volume may hang on nothing for this long while its instance comes or goes.
const VOLUME_AGE: SignedDuration = SignedDuration::from_mins(10);

impl Aws {
    pub(super) fn at<'a>(&'a self, region: &'a str) -> Where<'a> {
        Where { provider: &self.config.name, region, address: self.config.address }
    }

    /// Instances of a region that these filters leave.
    async fn instances(
        &self,
        region: &str,
        filters: Vec<Filter>,
    ) -> Result<Vec<Instance>, Failure> {
        let ec2 = self.api.ec2(region).await;
        let call = ec2.describe_instances().set_filters(Some(filters)).max_results(1000);
        let seen = pages!(&self.api, region, Purpose::Look, call, reservations).await?;
        let seen = seen.iter().flat_map(|one| one.instances());
        Ok(seen.filter_map(|one| instance::instance(self.at(region), one)).collect())
    }

    /// What runs is billed at what the same costs whoever asks now: on demand by the list, spot by the
    /// market of its zone.
    fn price(&self, instances: &mut [Instance]) {
        let memory = self.memory();
        let Some((_, offers)) = &memory.last else { return };
        for one in instances.iter_mut().filter(|one| one.state == InstanceState::Running) {
            let same = |offer: &&Offer| one.offer.as_ref().is_some_and(|own| own.id == offer.id);
            one.hourly = offers.iter().find(same).map(|offer| offer.price);
        }
    }

    /// What a claim has in a region. Where nothing is bought any more and we may not look, it has
    /// nothing: or whoever closes a region could buy nowhere else. A list of all says that it is not
    /// whole.
    pub(super) async fn of_claim(
        &self,
        region: &str,
        wanted: &Identity,
    ) -> Result<Vec<Instance>, Failure> {
        match self.of_claim_there(region, wanted).await {
            Err(Failure::Said(said))
                if self.config.is_former(region)
                    && matches!(said.means(), Meaning::NotAllowed | Meaning::BadKeys) =>
            {
                tracing::warn!(?said, region, "was used once, and cannot be looked at");
                Ok(Vec::new())
            }
            found => found,
        }
    }

    async fn of_claim_there(
        &self,
        region: &str,
        wanted: &Identity,
    ) -> Result<Vec<Instance>, Failure> {
        let ours = [
            filter(&tag(tags::INSTALLATION), [wanted.installation.clone()]),
            filter(&tag(tags::CLAIM_UID), [wanted.claim_uid.clone()]),
        ];
        let mut found = self.instances(region, ours.to_vec()).await?;
        if found.iter().any(|one| one.state.may_bill()) {
            return Ok(found);
        }
        // What AWS made of our token is ours, whatever it says of its tags. An endpoint that does
        // not know the filter has said enough above.
        let tokens = (0..=wanted.attempt).map(|attempt| Identity { attempt, ..wanted.clone() });
        let tokens: Vec<String> = tokens.map(|identity| identity.token()).collect();
        match self.instances(region, vec![filter("client-token", tokens)]).await {
            Ok(more) => {
                let new = more.into_iter().filter(|one| found.iter().all(|it| it.id != one.id));
                let new: Vec<Instance> = new
                    .map(|one| Instance {
                        identity: one.identity.clone().or_else(|| Some(wanted.clone())),
                        ..one
                    })
                    .collect();
                found.extend(new);
            }
            Err(failure) => tracing::debug!(?failure, region, "cannot be asked for by token"),
        }
        Ok(found)
    }

    /// What an installation has in a region: instances, and what outlived them.
    pub(super) async fn of_installation(
        &self,
        region: &str,
        installation: &str,
    ) -> Result<Vec<Instance>, Failure> {
        let ours = || vec![filter(&tag(tags::INSTALLATION), [installation.to_owned()])];
        let mut all = self.instances(region, ours()).await?;
        self.price(&mut all);
        let (api, ec2, look) = (&self.api, self.api.ec2(region).await, Purpose::Look);
        let volumes = ec2.describe_volumes().set_filters(Some(ours())).max_results(500);
        let volumes = pages!(api, region, look, volumes, volumes).await?;
        let now = self.api.now();
        let old = |one: &Instance| one.started.is_none_or(|at| !is_young(at, now, VOLUME_AGE));
        all.extend(
            volumes.iter().filter_map(|it| instance::volume(self.at(region), it)).filter(old),
        );
        let requests = ec2.describe_spot_instance_requests().set_filters(Some(ours()));
        let requests =
            pages!(api, region, look, requests.max_results(500), spot_instance_requests).await?;
        all.extend(requests.iter().filter_map(|it| instance::spot_request(self.at(region), it)));
        Ok(all)
    }

    /// What each region answers, together; not all of it where one does not.
    pub(super) async fn everywhere<'a, F>(
        &'a self,
        what: &str,
        ask: impl Fn(&'a str) -> F,
    ) -> Result<Listing, ProviderError>
    where
        F: Future<Output = Result<Vec<Instance>, Failure>>,
    {
        let (mut instances, mut failures) = (Vec::new(), Vec::new());
        for region in self.config.everywhere() {
            match ask(region).await {
                Ok(found) => instances.extend(found),
                Err(failure) => failures.push(self.failed(what, failure)),
            }
        }
        let complete = failures.is_empty();
        if failures.len() == self.config.everywhere().count()
            && let Some(first) = failures.into_iter().next()
        {
            return Err(first);
        }
        Ok(Listing { instances, complete })
    }
}

fn tag(key: &str) -> String {
    format!("tag:{key}")
}
