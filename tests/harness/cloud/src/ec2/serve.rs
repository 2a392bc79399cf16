//! A call: which service and action it is, whose, whether it comes through; and how its answer is
//! written. EC2 and STS speak the query protocol, SSM and Pricing JSON 1.1; they are told apart as
//! they are outside, where they share a host name's place: by `X-Amz-Target`, `Version`, and the
//! service in the scope of the signature.

use axum::body::Body;
use axum::http::request::Parts;
use axum::http::{HeaderValue, Response, StatusCode, header};
use serde_json::{Value, json};

use super::error::Error;
use super::form::Form;
use super::keys::Key;
use super::limits::Bucket;
use super::sign::Scope;
use super::world::{Ask, World};
use super::xml::Xml;
use super::{buy, instances, json, places, prices, requests, sts, types, volumes};
use crate::engine::Engine;
use crate::faults::{Fault, Operation};
use crate::shell::{self, Call, Done};

/// Bytes of a body that are read.
const LONGEST_BODY: usize = 256 * 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Service {
    Ec2,
    Sts,
    Ssm,
    Pricing,
}

impl Service {
    /// As the scope of a signature calls it.
    fn name(self) -> &'static str {
        match self {
            Self::Ec2 => "ec2",
            Self::Sts => "sts",
            Self::Ssm => "ssm",
            Self::Pricing => "pricing",
        }
    }
}

/// What is asked, before anything is looked at.
struct Question {
    service: Service,
    action: String,
    form: Form,
    scope: Option<Scope>,
}

impl Question {
    fn read(parts: &Parts, body: &[u8]) -> Self {
        let scope = Scope::read(&parts.headers);
        let target = parts.headers.get("x-amz-target").and_then(|value| value.to_str().ok());
        if let Some((target, action)) = target.and_then(|target| target.split_once('.')) {
            let pricing = target == "AWSPriceListService";
            let service = if pricing { Service::Pricing } else { Service::Ssm };
            return Self { service, action: action.to_owned(), form: Form::parse(b""), scope };
        }
        let form = Form::parse(body);
        let sts = form.text("Version").is_some_and(|version| version == "2011-06-15");
        let service = if sts { Service::Sts } else { Service::Ec2 };
        Self { service, action: form.text("Action").unwrap_or_default(), form, scope }
    }

    fn operation(&self) -> Operation {
        match (self.service, self.action.as_str()) {
            (Service::Ec2, "RunInstances") => Operation::Create,
            (Service::Ec2, "TerminateInstances") => Operation::End,
            (Service::Ec2, "DescribeInstances" | "DescribeInstanceStatus") => {
                let one = !self.form.numbers("InstanceId").is_empty();
                if one { Operation::Read } else { Operation::List }
            }
            (Service::Ec2, "CreateTags" | "DeleteVolume" | "CancelSpotInstanceRequests") => {
                Operation::Change
            }
            (
                Service::Ec2,
                "DescribeSpotPriceHistory"
                | "DescribeInstanceTypes"
                | "DescribeInstanceTypeOfferings"
                | "DescribeAvailabilityZones",
            )
            | (Service::Pricing, _) => Operation::Quote,
            _ => Operation::Other,
        }
    }
}

/// What is said, before it is written in the words of a service.
enum Said {
    Xml(Xml),
    Json(Value),
}

impl shell::World for World {
    const READ: usize = LONGEST_BODY;

    fn engine(&mut self) -> &mut Engine {
        &mut self.engine
    }

    fn calls(&mut self) -> &mut Vec<Call> {
        &mut self.calls
    }

    fn turn(&mut self, parts: &Parts, body: Option<&[u8]>) -> Done {
        let question = Question::read(parts, body.unwrap_or_default());
        let now = self.engine.now();
        let operation = question.operation();
        let faults = self.faults.of_call(operation, now);
        let region = question.scope.as_ref().map_or("", |scope| scope.region.as_str());
        let line = format!("{} {region}", question.action);
        let names = faults.iter().map(|fault| fault.name()).collect();
        self.calls.push(Call { at: now, operation, line, status: None, faults: names });
        let call = self.calls.len() - 1;
        let refused = faults.iter().find_map(|fault| refusal(*fault, &question));
        let said = match (refused, body) {
            (Some(refused), _) => Err(refused),
            (None, None) => Err(Error::new(413, "RequestEntityTooLarge", "the body is too long")),
            (None, Some(body)) => self.answer(parts, body, &question, &faults),
        };
        let lies = faults.contains(&Fault::ErrorButDone);
        let said = if lies { Err(Error::internal()) } else { said };
        let response = written(&question, said, call);
        Done { call, faults, response }
    }
}

impl World {
    fn answer(
        &mut self,
        parts: &Parts,
        body: &[u8],
        question: &Question,
        faults: &[Fault],
    ) -> Result<Said, Error> {
        let Question { service, action, form, scope } = question;
        // Whoever has nothing to sign with yet.
        if *service == Service::Sts && action == "AssumeRoleWithWebIdentity" {
            return sts::assume_by_token(self, form).map(Said::Xml);
        }
        let scope = scope.as_ref().ok_or_else(Error::auth_failure)?;
        let key = self.key(parts, body, scope).ok_or_else(Error::auth_failure)?;
        if key.expires.is_some_and(|until| until <= self.engine.now()) {
            return Err(Error::client("RequestExpired", "Request has expired."));
        }
        if scope.service != service.name() || parts.method.as_str() != "POST" {
            return Err(Error::auth_failure());
        }
        let Some(region) = self.catalog.region(&scope.region).cloned() else {
            return Err(Error::not_served("this region"));
        };
        let ask = Ask { form, region: &region, key: &key, faults };
        let name = format!("{}:{action}", service.name());
        // Who one is, anybody may ask.
        if name != "sts:GetCallerIdentity" {
            ask.may(&name)?;
        }
        match service {
            Service::Ec2 => self.ec2(&ask, action).map(Said::Xml),
            Service::Sts => sts::answer(self, &ask, action).map(Said::Xml),
            Service::Ssm => json::parameter(&ask, action, body).map(Said::Json),
            Service::Pricing => json::products(self, &ask, action, body).map(Said::Json),
        }
    }

    /// The key of a request that was signed with its secret.
    fn key(&self, parts: &Parts, body: &[u8], scope: &Scope) -> Option<Key> {
        let key = self.keys.get(&scope.key)?;
        let token = parts.headers.get("x-amz-security-token");
        let token = token.and_then(|value| value.to_str().ok());
        (key.token.as_deref() == token && scope.is_signed(parts, body, &key.secret))
            .then(|| key.clone())
    }

    /// Takes tokens from a bucket of a region.
    pub(crate) fn bucket(
        &mut self,
        region: &str,
        name: &'static str,
        bucket: Bucket,
        tokens: u32,
    ) -> bool {
        let now = self.engine.now();
        self.buckets.take((region, name), bucket, tokens, now)
    }

    fn ec2(&mut self, ask: &Ask<'_>, action: &str) -> Result<Xml, Error> {
        ask.form.text("Version");
        let Some(known) = ACTIONS.iter().find(|known| **known == action).copied() else {
            let message = format!("The action {action} is not valid for this web service.");
            return Err(Error::client("InvalidAction", message));
        };
        let limits = self.limits;
        let bucket = match known {
            "RunInstances" => limits.launches,
            "TerminateInstances" => limits.ends,
            known if known.starts_with("Describe") => limits.read,
            _ => limits.change,
        };
        if !self.bucket(&ask.region.name, known, bucket, 1) {
            return Err(Error::throttled());
        }
        match known {
            "RunInstances" => buy::run(self, ask),
            "DescribeInstances" => instances::describe(self, ask),
            "DescribeInstanceStatus" => instances::status(self, ask),
            "TerminateInstances" => instances::terminate(self, ask),
            "DescribeSpotPriceHistory" => prices::describe(self, ask),
            "DescribeInstanceTypes" => types::describe(self, ask),
            "DescribeInstanceTypeOfferings" => types::offerings(self, ask),
            "DescribeAvailabilityZones" => places::zones(self, ask),
            "DescribeSubnets" => places::subnets(self, ask),
            "DescribeSecurityGroups" => places::groups(self, ask),
            "DescribeImages" => places::images(self, ask),
            "DescribeVolumes" => volumes::describe(self, ask),
            "DeleteVolume" => volumes::delete(self, ask),
            "DescribeSpotInstanceRequests" => requests::describe(self, ask),
            "CancelSpotInstanceRequests" => requests::cancel(self, ask),
            _ => requests::tag(self, ask),
        }
    }
}

/// Actions of EC2 that are served.
const ACTIONS: &[&str] = &[
    "RunInstances",
    "DescribeInstances",
    "DescribeInstanceStatus",
    "TerminateInstances",
    "DescribeSpotPriceHistory",
    "DescribeInstanceTypes",
    "DescribeInstanceTypeOfferings",
    "DescribeAvailabilityZones",
    "DescribeSubnets",
    "DescribeSecurityGroups",
    "DescribeImages",
    "DescribeVolumes",
    "DeleteVolume",
    "DescribeSpotInstanceRequests",
    "CancelSpotInstanceRequests",
    "CreateTags",
];

/// What is said before anything is done.
fn refusal(fault: Fault, question: &Question) -> Option<Error> {
    Some(match fault {
        // It is not sent: the connection is cut.
        Fault::LostRequest | Fault::ErrorNotDone => Error::internal(),
        Fault::RateLimited(_) => Error::throttled(),
        Fault::Forbidden => {
            Error::unauthorized(&format!("{}:{}", question.service.name(), question.action))
        }
        Fault::Unavailable => Error::unavailable(),
        Fault::Refused(status, code) => Error::new(status, code, "refused on request"),
        _ => return None,
    })
}

/// The answer in the words of its service.
fn written(question: &Question, said: Result<Said, Error>, call: usize) -> Response<Body> {
    // Like a UUID, and the same for the same calls.
    let id = format!("00000000-0000-4000-8000-{call:012}");
    let (status, text) = match said {
        Ok(Said::Json(value)) => (200, value.to_string()),
        Ok(Said::Xml(inside)) => (200, success(question, inside, &id)),
        Err(error) => {
            let error = translated(error, question.service);
            (error.status, failure(question.service, &error, &id))
        }
    };
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_REQUEST);
    let kind = match question.service {
        Service::Ec2 | Service::Sts => "text/xml;charset=UTF-8",
        Service::Ssm | Service::Pricing => "application/x-amz-json-1.1",
    };
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    if let Ok(id) = HeaderValue::from_str(&id) {
        headers.insert("x-amzn-requestid", id);
    }
    response
}

fn success(question: &Question, inside: Xml, id: &str) -> String {
    let action = &question.action;
    let root = format!("{action}Response");
    let mut xml = Xml::default();
    if question.service == Service::Sts {
        xml.within(&format!("{action}Result"), |xml| xml.append(inside)).within(
            "ResponseMetadata",
            |xml| {
                xml.leaf("RequestId", id);
            },
        );
        return xml.document(&root, "https://sts.amazonaws.com/doc/2011-06-15/");
    }
    xml.leaf("requestId", id);
    xml.append(inside);
    xml.document(&root, "http://ec2.amazonaws.com/doc/2016-11-15/")
}

fn failure(service: Service, error: &Error, id: &str) -> String {
    let Error { status, code, message } = error;
    let mut xml = Xml::default();
    match service {
        Service::Ec2 => {
            xml.within("Errors", |xml| {
                xml.within("Error", |xml| {
                    xml.leaf("Code", code).leaf("Message", message);
                });
            });
            xml.leaf("RequestID", id);
            xml.document("Response", "")
        }
        Service::Sts => {
            xml.within("Error", |xml| {
                let whose = if *status < 500 { "Sender" } else { "Receiver" };
                xml.leaf("Type", whose).leaf("Code", code).leaf("Message", message);
            });
            xml.leaf("RequestId", id);
            xml.document("ErrorResponse", "https://sts.amazonaws.com/doc/2011-06-15/")
        }
        Service::Ssm | Service::Pricing => {
            json!({ "__type": code, "message": message }).to_string()
        }
    }
}

/// What EC2 says, in another service's words.
fn translated(error: Error, service: Service) -> Error {
    let json = matches!(service, Service::Ssm | Service::Pricing);
    let (status, code) = match (service, error.code) {
        (Service::Ec2, _) => return error,
        (Service::Sts, "AuthFailure") => (403, "InvalidClientTokenId"),
        (Service::Sts, "RequestExpired") => (403, "ExpiredToken"),
        (Service::Sts, "UnauthorizedOperation") => (403, "AccessDenied"),
        (Service::Sts, "RequestLimitExceeded") => (400, "Throttling"),
        (_, "AuthFailure") if json => (400, "UnrecognizedClientException"),
        (_, "RequestExpired") if json => (400, "ExpiredTokenException"),
        (_, "UnauthorizedOperation") if json => (400, "AccessDeniedException"),
        (_, "RequestLimitExceeded") if json => (400, "ThrottlingException"),
        (_, "InternalError") if json => (500, "InternalServerError"),
        (_, "Unavailable") => (503, "ServiceUnavailable"),
        _ => return error,
    };
    Error::new(status, code, error.message)
}
