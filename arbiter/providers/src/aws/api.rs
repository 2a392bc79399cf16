//! The one place from which AWS is called: nothing repeated, one connection a call, within our own
//! pace, and no secret in what is said about it.

use std::collections::BTreeMap;
use std::error::Error;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use aws_config::ecs::EcsCredentialsProvider;
use aws_config::imds::credentials::ImdsCredentialsProvider;
use aws_config::meta::credentials::CredentialsProviderChain;
use aws_config::profile::ProfileFileCredentialsProvider;
use aws_config::provider_config::ProviderConfig;
use aws_config::web_identity_token::WebIdentityTokenCredentialsProvider;
use aws_config::{BehaviorVersion, SdkConfig};
use aws_credential_types::Credentials;
use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_ec2::config::http::HttpResponse;
use aws_sdk_ec2::config::retry::RetryConfig;
use aws_sdk_ec2::config::timeout::TimeoutConfig;
use aws_sdk_ec2::config::{Region, StalledStreamProtectionConfig};
use aws_sdk_ec2::error::{DisplayErrorContext, ProvideErrorMetadata, SdkError};
use aws_smithy_http_client::proxy::ProxyConfig;
use aws_smithy_http_client::tls::{Provider, rustls_provider::CryptoMode};
use aws_smithy_http_client::{Builder, Connector};
use jiff::Timestamp;
use tokio::sync::OnceCell;

use super::answer::{Failure, Meaning, Said};
use super::config::{Access, AwsConfig, AwsKeys};
use super::pace::{Pace, Purpose};

/// A connection that is not there by then will not be.
const CONNECT: Duration = Duration::from_secs(10);
/// Who gives up on a call does not know what became of it.
const PATIENCE: Duration = Duration::from_secs(60);
/// The region in which prices are told.
const PRICING: &str = "us-east-1";

/// A clock.
pub(super) type Now = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// Talks to AWS.
pub(super) struct Api {
    access: Access,
    endpoint: Option<String>,
    /// Where it looks first for what has no region.
    home: String,
    sdk: OnceCell<SdkConfig>,
    paces: Mutex<BTreeMap<String, Pace>>,
    now: Now,
}

impl Api {
    pub(super) fn new(config: &AwsConfig) -> Self {
        Self {
            access: config.access.clone(),
            endpoint: config.endpoint.clone(),
            home: config.regions.first().map_or_else(String::new, |region| region.name.clone()),
            sdk: OnceCell::new(),
            paces: Mutex::default(),
            now: Arc::new(Timestamp::now),
        }
    }

    /// The pace runs by this clock.
    pub(super) fn by_clock(self, now: Now) -> Self {
        Self { now, ..self }
    }

    /// What the clock says.
    pub(super) fn now(&self) -> Timestamp {
        (self.now)()
    }

    pub(super) async fn ec2(&self, region: &str) -> aws_sdk_ec2::Client {
        let mut config = aws_sdk_ec2::config::Builder::from(self.sdk().await);
        config.set_endpoint_url(self.at("EC2"));
        aws_sdk_ec2::Client::from_conf(config.region(Region::new(region.to_owned())).build())
    }

    pub(super) async fn ssm(&self, region: &str) -> aws_sdk_ssm::Client {
        let mut config = aws_sdk_ssm::config::Builder::from(self.sdk().await);
        config.set_endpoint_url(self.at("SSM"));
        aws_sdk_ssm::Client::from_conf(config.region(Region::new(region.to_owned())).build())
    }

    pub(super) async fn pricing(&self) -> aws_sdk_pricing::Client {
        let mut config = aws_sdk_pricing::config::Builder::from(self.sdk().await);
        config.set_endpoint_url(self.at("PRICING"));
        aws_sdk_pricing::Client::from_conf(config.region(Region::new(PRICING)).build())
    }

    fn at(&self, service: &str) -> Option<String> {
        address(self.endpoint.as_ref(), service, |name| std::env::var(name).ok())
    }

    async fn sdk(&self) -> &SdkConfig {
        self.sdk.get_or_init(|| self.load()).await
    }

    /// Whether there are rights at all turns out at the first call.
    async fn load(&self) -> SdkConfig {
        // The environment's proxies are for the world outside.
        let outside = self.endpoint.is_none();
        // A connection that was kept may break under a purchase; each call has its own.
        let http = Builder::new().pool_max_idle_per_host(0).build_with_connector_fn(
            move |settings, components| {
                let proxy = match outside {
                    true => ProxyConfig::from_env(),
                    false => ProxyConfig::disabled(),
                };
                let mut connector = Connector::builder().proxy_config(proxy);
                connector.set_connector_settings(settings.cloned());
                connector.set_sleep_impl(components.and_then(|it| it.sleep_impl()));
                connector.tls_provider(Provider::Rustls(CryptoMode::Ring)).build()
            },
        );
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(CONNECT)
            .read_timeout(PATIENCE)
            .operation_timeout(PATIENCE);
        let mut loader = aws_config::defaults(BehaviorVersion::latest())
            .http_client(http.clone())
            .retry_config(RetryConfig::disabled())
            .timeout_config(timeouts.build())
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
            .region(Region::new(self.home.clone()));
        let tools = || {
            let region = Some(Region::new(self.home.clone()));
            ProviderConfig::without_region().with_region(region).with_http_client(http.clone())
        };
        loader = match &self.access {
            Access::Keys(AwsKeys { id, secret, session }) => {
                let keys = Credentials::new(id, secret, session.clone(), None, "petaflop");
                loader.credentials_provider(keys)
            }
            Access::Role => loader.credentials_provider(role(&tools())),
            Access::Usual { profile: None } => loader,
            Access::Usual { profile: Some(name) } => {
                let files = ProfileFileCredentialsProvider::builder().configure(&tools());
                loader.credentials_provider(files.profile_name(name).build())
            }
        };
        let is_set = |name| std::env::var_os(name).is_some();
        if matches!(self.access, Access::Role)
            && is_set("AWS_WEB_IDENTITY_TOKEN_FILE")
            && is_set("AWS_ENDPOINT_URL")
            && !is_set("AWS_ENDPOINT_URL_STS")
        {
            tracing::warn!(
                "AWS_ENDPOINT_URL is the store's, and the role is asked for there too: say \
                 AWS_ENDPOINT_URL_STS=https://sts.{}.amazonaws.com",
                self.home
            );
        }
        loader.load().await
    }

    /// Makes a call, once, if the pace lets it. `pace` names whose it is: a region's, say; `secret`
    /// is in the request and nowhere else.
    pub(super) async fn call<T, E>(
        &self,
        pace: &str,
        purpose: Purpose,
        secret: &str,
        call: impl Future<Output = Result<T, SdkError<E>>>,
    ) -> Result<T, Failure>
    where
        E: ProvideErrorMetadata + Error + Send + Sync + 'static,
    {
        if let Some(wait) = self.paced(pace, |pace, now| pace.call(purpose, now)) {
            return Err(Failure::Wait(wait));
        }
        let failure = match call.await {
            Ok(answer) => {
                self.paced(pace, |pace, _| pace.answered());
                return Ok(answer);
            }
            Err(error) => self.failure(secret, error),
        };
        let Failure::Said(mut said) = failure else { return Err(failure) };
        match said.means() {
            Meaning::TooMany => said.wait = self.paced(pace, Pace::too_many),
            _ => self.paced(pace, |pace, _| pace.answered()),
        }
        Err(Failure::Said(said))
    }

    fn paced<T>(&self, pace: &str, work: impl FnOnce(&mut Pace, Timestamp) -> T) -> T {
        let mut paces = self.paces.lock().unwrap_or_else(PoisonError::into_inner);
        work(paces.entry(pace.to_owned()).or_default(), (self.now)())
    }

    fn failure<E>(&self, secret: &str, error: SdkError<E, HttpResponse>) -> Failure
    where
        E: ProvideErrorMetadata + Error + Send + Sync + 'static,
    {
        let words = |text: String| self.without_secrets(secret, text);
        if let Some(keys) = credentials_error(&error) {
            return Failure::NoKeys(words(DisplayErrorContext(keys).to_string()));
        }
        let status = error.raw_response().map(|answer| answer.status().as_u16());
        match &error {
            SdkError::ConstructionFailure(_) => {
                Failure::NotSent(words(DisplayErrorContext(&error).to_string()))
            }
            SdkError::ServiceError(said) => {
                let meta = said.err().meta();
                Failure::Said(Said {
                    status: status.unwrap_or_default(),
                    code: meta.code().unwrap_or_default().to_owned(),
                    words: words(meta.message().unwrap_or_default().to_owned()),
                    wait: Duration::ZERO,
                })
            }
            // Time-outs, broken connections, answers that are none of AWS's.
            _ => Failure::Lost(words(DisplayErrorContext(&error).to_string())),
        }
    }

    /// The same text with each of the secrets struck out.
    fn without_secrets(&self, secret: &str, text: String) -> String {
        let keys = match &self.access {
            Access::Keys(keys) => Some(keys),
            Access::Role | Access::Usual { .. } => None,
        };
        let ours = keys.into_iter().flat_map(|keys| [Some(&keys.secret), keys.session.as_ref()]);
        let ours = ours.flatten();
        let all = ours.map(String::as_str).chain([secret]);
        all.filter(|secret| !secret.is_empty()).fold(text, |text, secret| text.replace(secret, "…"))
    }
}

/// Where a service is; `None`: at AWS's own address. Its own variable counts. The one for all services,
/// which the SDK would follow too, is the store's.
fn address(
    configured: Option<&String>,
    service: &str,
    variable: impl Fn(&str) -> Option<String>,
) -> Option<String> {
    configured.cloned().or_else(|| variable(&format!("AWS_ENDPOINT_URL_{service}")))
}

/// The role of this Pod or machine, as AWS's own tools look for it, but for keys of the environment
/// and of files.
fn role(tools: &ProviderConfig) -> CredentialsProviderChain {
    let token = WebIdentityTokenCredentialsProvider::builder().configure(tools).build();
    let agent = EcsCredentialsProvider::builder().configure(tools).build();
    let profile = ImdsCredentialsProvider::builder().configure(tools).build();
    CredentialsProviderChain::first_try("WebIdentityToken", token)
        .or_else("EcsContainer", agent)
        .or_else("Ec2InstanceMetadata", profile)
}

/// That there are no keys, or none that can be used, among an error's causes.
fn credentials_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a CredentialsError> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(keys) = error.downcast_ref::<CredentialsError>() {
            return Some(keys);
        }
        cause = error.source();
    }
    None
}

/// Pages after which a list is taken for endless.
pub(super) const MOST_PAGES: usize = 1_000;

/// All pages of a list: `pages!(api, region, purpose, call, field)`. What cannot be had whole is
/// not had.
macro_rules! pages {
    ($api:expr, $pace:expr, $purpose:expr, $call:expr, $field:ident) => {
        async {
            let (api, call) = ($api, $call);
            let (mut all, mut tokens) = (Vec::new(), std::collections::BTreeSet::new());
            let mut token: Option<String> = None;
            loop {
                let page = call.clone().set_next_token(token.take()).send();
                let page = api.call($pace, $purpose, "", page).await?;
                all.extend_from_slice(page.$field());
                match page.next_token().filter(|next| !next.is_empty()) {
                    None => break Ok(all),
                    // A token that repeats leads round and round.
                    Some(next)
                        if tokens.insert(next.to_owned())
                            && tokens.len() < $crate::aws::api::MOST_PAGES =>
                    {
                        token = Some(next.to_owned());
                    }
                    Some(_) => {
                        let words = "a list whose pages lead round and round".to_owned();
                        break Err($crate::aws::answer::Failure::Lost(words));
                    }
                }
            }
        }
    };
}
pub(super) use pages;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_of_the_store_is_no_address_of_ec2s() {
        let said = |name: &str| match name {
            "AWS_ENDPOINT_URL" => Some("http://store".to_owned()),
            "AWS_ENDPOINT_URL_SSM" => Some("http://ssm".to_owned()),
            _ => None,
        };
        assert_eq!(address(None, "EC2", said), None);
        assert_eq!(address(None, "SSM", said).as_deref(), Some("http://ssm"));
        let configured = "http://proxy".to_owned();
        assert_eq!(address(Some(&configured), "SSM", said), Some(configured.clone()));
    }
}
