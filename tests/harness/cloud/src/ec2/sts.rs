//! STS: who one is, and another's credentials for a while.

use jiff::SignedDuration;

use super::buy::credentials;
use super::error::Error;
use super::form::Form;
use super::keys::Policy;
use super::world::{Ask, World, iso};
use super::xml::Xml;

pub(crate) fn answer(world: &mut World, ask: &Ask<'_>, action: &str) -> Result<Xml, Error> {
    ask.form.text("Version");
    match action {
        "GetCallerIdentity" => {
            ask.form.finish()?;
            let account = &world.account;
            let service = if ask.key.token.is_some() { "sts" } else { "iam" };
            let mut xml = Xml::default();
            xml.leaf("Arn", format!("arn:aws:{service}::{account}:{}", ask.key.principal))
                .leaf("UserId", format!("AIDA{}", ask.key.principal.len()))
                .leaf("Account", account);
            Ok(xml)
        }
        "AssumeRole" => assume(world, ask),
        other => {
            let message = format!("Could not find operation {other} for version 2011-06-15");
            Err(Error::client("InvalidAction", message))
        }
    }
}

fn assume(world: &mut World, ask: &Ask<'_>) -> Result<Xml, Error> {
    let arn = ask.form.need("RoleArn")?;
    let session = ask.form.need("RoleSessionName")?;
    let seconds: i64 = ask.form.read("DurationSeconds")?.unwrap_or(3600);
    ask.form.finish()?;
    let role = role_of(world, &arn);
    // A role that is not there is refused in the same words as one that one may not take.
    let Some(policy) = world.roles.get(&role).cloned() else {
        return Err(Error::unauthorized("sts:AssumeRole"));
    };
    Ok(given(world, &role, &session, policy, seconds))
}

/// A role for a token that somebody else gave, who is trusted: unsigned.
pub(crate) fn assume_by_token(world: &mut World, form: &Form) -> Result<Xml, Error> {
    form.text("Version");
    let (arn, session) = (form.need("RoleArn")?, form.need("RoleSessionName")?);
    let token = form.need("WebIdentityToken")?;
    let seconds: i64 = form.read("DurationSeconds")?.unwrap_or(3600);
    form.finish()?;
    let Some(allowed) = world.identities.get(&token).cloned() else {
        let message = "No OpenIDConnect provider found in your account for this token";
        return Err(Error::client("InvalidIdentityToken", message));
    };
    let role = role_of(world, &arn);
    match world.roles.get(&role).cloned().filter(|_| role == allowed) {
        Some(policy) => Ok(given(world, &role, &session, policy, seconds)),
        None => Err(Error::unauthorized("sts:AssumeRoleWithWebIdentity")),
    }
}

fn role_of(world: &World, arn: &str) -> String {
    let prefix = format!("arn:aws:iam::{}:role/", world.account);
    arn.strip_prefix(&prefix).unwrap_or_default().to_owned()
}

/// A role's credentials for a while.
fn given(world: &mut World, role: &str, session: &str, policy: Policy, seconds: i64) -> Xml {
    let principal = format!("assumed-role/{role}/{session}");
    let until = world.engine.now().saturating_add(SignedDuration::from_secs(seconds));
    let until = until.unwrap_or_else(|_| world.engine.now());
    let given = credentials(world, &principal, policy, Some(until));
    let account = world.account.clone();
    let mut xml = Xml::default();
    xml.within("Credentials", |xml| {
        xml.leaf("AccessKeyId", given.id)
            .leaf("SecretAccessKey", given.secret)
            .leaf("SessionToken", given.token)
            .leaf("Expiration", iso(until));
    })
    .within("AssumedRoleUser", |xml| {
        xml.leaf("AssumedRoleId", format!("AROA{}:{session}", role.to_uppercase()))
            .leaf("Arn", format!("arn:aws:sts::{account}:{principal}"));
    });
    xml
}
