//! The cluster's own certificate authority, and what it issues.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose,
};

use crate::error::{Error, Result};
use crate::state::State;

/// A certificate and its key, as files.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    state: Arc<State>,
    /// The authority's certificate.
    pub(crate) certificate: PathBuf,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

impl Authority {
    pub(crate) fn new(state: &Arc<State>) -> Result<Self> {
        let failed = |source| Error::Certificate { subject: "the authority".into(), source };
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "petaflop test cluster");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().map_err(failed)?;
        let issuer = CertifiedIssuer::self_signed(params, key).map_err(failed)?;
        let certificate = state.write("pki/ca.crt", issuer.pem())?;
        Ok(Self { issuer, state: Arc::clone(state), certificate })
    }

    /// A server's certificate for these names and addresses.
    pub(crate) fn server(
        &self,
        name: &str,
        addresses: &[IpAddr],
        hosts: &[&str],
    ) -> Result<Identity> {
        let names =
            addresses.iter().map(ToString::to_string).chain(hosts.iter().map(ToString::to_string));
        let mut params = CertificateParams::new(names.collect::<Vec<_>>())
            .map_err(|source| Error::Certificate { subject: name.to_owned(), source })?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.issue(name, name, params)
    }

    /// A client's certificate. Kubernetes reads the user from the common name
    /// and the groups from the organisations, of which rcgen writes one a type:
    /// the second is given by its number.
    pub(crate) fn client(&self, file: &str, user: &str, groups: &[&str]) -> Result<Identity> {
        const ORGANISATION: [u64; 4] = [2, 5, 4, 10];
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, user);
        let types = [DnType::OrganizationName, DnType::CustomDnType(Vec::from(ORGANISATION))];
        if groups.len() > types.len() {
            return Err(Error::Unfit(format!(
                "user {user}: a certificate carries two groups here"
            )));
        }
        for (kind, group) in types.into_iter().zip(groups) {
            params.distinguished_name.push(kind, *group);
        }
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.issue(file, user, params)
    }

    /// A key pair to sign ServiceAccount tokens with: (private, public).
    pub(crate) fn signing_keys(&self) -> Result<(PathBuf, PathBuf)> {
        let key = KeyPair::generate()
            .map_err(|source| Error::Certificate { subject: "service accounts".into(), source })?;
        Ok((
            self.state.write("pki/service-accounts.key", key.serialize_pem())?,
            self.state.write("pki/service-accounts.pub", key.public_key_pem())?,
        ))
    }

    fn issue(&self, file: &str, subject: &str, params: CertificateParams) -> Result<Identity> {
        let failed = |source| Error::Certificate { subject: subject.to_owned(), source };
        let key = KeyPair::generate().map_err(failed)?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(failed)?;
        Ok(Identity {
            certificate: self.state.write(format!("pki/{file}.crt"), certificate.pem())?,
            key: self.state.write(format!("pki/{file}.key"), key.serialize_pem())?,
        })
    }
}
