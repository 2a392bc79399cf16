//! Passes for a while: `GetFederationToken` and `AssumeRole`, within the bounds that STS documents.

use axum::http::StatusCode;
use jiff::{SignedDuration, Timestamp};

use super::policy::Policy;
use super::{Holder, Refused, World};
use crate::ec2::form::Form;

/// Characters of a session policy.
const LONGEST_POLICY: usize = 2048;
/// Seconds that one is good for.
const LONGEST: i64 = 129_600;
const LONGEST_ROLE: i64 = 43_200;

pub(super) fn answer(world: &mut World, holder: &Holder, body: &[u8]) -> Result<String, Refused> {
    let form = Form::parse(body);
    let text = |name: &str| form.text(name);
    let action = text("Action").unwrap_or_default();
    let invalid =
        |message: &str| Refused(StatusCode::BAD_REQUEST, "ValidationError", message.to_owned());
    let federation = match action.as_str() {
        "GetFederationToken" => true,
        "AssumeRole" => false,
        _ => return Err(Refused(StatusCode::BAD_REQUEST, "InvalidAction", action)),
    };
    let denied = |message: String| Refused(StatusCode::FORBIDDEN, "AccessDenied", message);
    if federation && holder.is_session() {
        let message = "Cannot call GetFederationToken with session credentials";
        return Err(denied(message.to_owned()));
    }
    if !world.has_sts || holder.is_session() {
        return Err(denied(format!("is not authorized to perform: sts:{action}")));
    }
    let (name, most) = match federation {
        true => (text("Name"), 32),
        false => (text("RoleSessionName"), 64),
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || "_+=,.@-".contains(c);
    let name = name.filter(|name| (2..=most).contains(&name.len()) && name.chars().all(plain));
    let name = name.ok_or_else(|| invalid("the name is too short, too long, or not plain"))?;
    if !federation && text("RoleArn").is_none_or(|arn| !arn.starts_with("arn:aws:iam::")) {
        return Err(invalid("RoleArn is no ARN of a role"));
    }
    let (usual, longest) = if federation { (43_200, LONGEST) } else { (3600, LONGEST_ROLE) };
    let seconds = text("DurationSeconds").map_or(Some(usual), |seconds| seconds.parse().ok());
    let seconds = seconds.filter(|seconds| (world.shortest..=longest).contains(seconds));
    let seconds = seconds.ok_or_else(|| invalid("DurationSeconds is out of range"))?;
    let policy = match text("Policy") {
        Some(policy) if policy.len() > LONGEST_POLICY => {
            return Err(Refused(StatusCode::BAD_REQUEST, "PackedPolicyTooLarge", String::new()));
        }
        Some(policy) => Policy::read(&policy).ok_or_else(|| {
            Refused(StatusCode::BAD_REQUEST, "MalformedPolicyDocument", policy.clone())
        })?,
        // A federated user without a policy may do nothing, a role all that it may.
        None if federation => Policy::default(),
        None => return Err(invalid("a role without a policy is not served here")),
    };
    let expires = Timestamp::now()
        .checked_add(SignedDuration::from_secs(seconds))
        .map_err(|_| invalid("DurationSeconds"))?;
    let given = world.give(policy, expires);
    Ok(format!(
        "<{action}Response xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><{action}Result><Credentials>\
         <AccessKeyId>{}</AccessKeyId><SecretAccessKey>{}</SecretAccessKey><SessionToken>{}</SessionToken>\
         <Expiration>{expires}</Expiration></Credentials><FederatedUser><Arn>arn:aws:sts::123456789012:federated-user/{name}</Arn>\
         </FederatedUser></{action}Result></{action}Response>",
        given.id, given.secret, given.token
    ))
}
