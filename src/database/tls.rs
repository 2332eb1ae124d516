//! Errors of TLS, with what to do about the certificate of the server.

use rustls::{AlertDescription, CertificateError, Error as TlsError};
use sqlx::postgres::PgSslMode;

/// Adds the remedy to an error of the certificate. It is not transient: the same certificate is refused again.
pub(super) fn explained(problem: sqlx::Error, mode: PgSslMode) -> sqlx::Error {
    let Some(found) = tls_error(&problem) else { return problem };
    let shown = format!("{found:?}");
    let remedy = match found {
        TlsError::AlertReceived(AlertDescription::HandshakeFailure) => {
            "the server accepts none of the algorithms offered, e.g. because the key of its certificate is on the \
             curve P-521 (secp521r1), which is not supported; hint: give the server a certificate with a key on \
             P-256 or P-384, or an RSA key"
        }
        TlsError::InvalidCertificate(_) if shown.contains("CaUsedAsEndEntity") => {
            "the certificate of the server is also that of an authority (self-signed, CA:TRUE), which is not \
             supported with verify-ca and verify-full; hint: make an authority, sign the certificate of the \
             server with it (CA:FALSE), and name the authority's certificate in sslrootcert"
        }
        TlsError::InvalidCertificate(_) if shown.contains("UnsupportedCertVersion") => {
            "the certificate of the server, or one that signed it, is of X.509 version 1, which is not supported; \
             hint: make one of version 3, e.g. with `openssl x509 -req -extfile FILE` and a subjectAltName in \
             FILE"
        }
        TlsError::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => {
            "the certificate of the server is for another name; names are compared with its subjectAltName, not \
             its CN; hint: use the host of the certificate in the address, or sslmode=verify-ca"
        }
        TlsError::InvalidCertificate(CertificateError::UnknownIssuer) => {
            "the certificate of the server was signed by an unknown authority; hint: name the authority's \
             certificate in sslrootcert"
        }
        TlsError::InvalidCertificate(_) => {
            "the certificate of the server is not accepted; hint: let another authority sign it, with an RSA key \
             or a key on P-256 or P-384"
        }
        _ => return problem,
    };
    let mode = match mode {
        PgSslMode::VerifyCa => "verify-ca",
        PgSslMode::VerifyFull => "verify-full",
        _ => "require or prefer",
    };
    sqlx::Error::Tls(format!("{remedy} (sslmode {mode}: {found})").into())
}

/// Finds the error of TLS behind an error of a connection.
fn tls_error(problem: &sqlx::Error) -> Option<TlsError> {
    let found = match problem {
        sqlx::Error::Io(problem) => problem.get_ref().and_then(|inner| inner.downcast_ref::<TlsError>()),
        sqlx::Error::Tls(problem) => problem.downcast_ref::<TlsError>(),
        _ => None,
    };
    found.cloned()
}
