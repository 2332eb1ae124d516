//! The HTTP client: one connection pool, no redirects, answers of limited size.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use futures_util::future::BoxFuture;
use reqwest::header::{CONTENT_TYPE, DATE, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Method, RequestBuilder};
use secrecy::ExposeSecret;
use tokio::time::Instant;
use url::Url;

use super::body;
use super::connecting::{Late, OpenedLate};
use super::http::{client_builder, date, header, retry_after};
use super::lists::{ListPage, Listing};
use super::response::Answer;
use super::signing::{KEY_HEADER, SIGN_HEADER, TIMESTAMP_HEADER, sign};
use crate::config::{ApiVersion, Credential};
use crate::wall_clock;

/// Path of "Import Account Balances", version 3.
pub const IMPORT_PATH: &str = "/open/v3/account/treasuryBalance";
/// Path of the same call, version 4.
pub const IMPORT_PATH_V4: &str = "/open/v4/account/treasuryBalance";
/// The path of the cheapest signed call that only reads: it verifies a key without sending records.
pub const PROBE_PATH: &str = "/open/v3/entityAccount?page=1&limit=1";

/// Delivers signed requests in place of the network.
pub trait Transport: std::fmt::Debug + Send + Sync {
    /// Delivers a request, and waits for its answer.
    fn send(&self, signed: Signed) -> BoxFuture<'_, Answer>;
}

/// A client for one API address.
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    api_url: Url,
    /// The time limit of a request, including its answer.
    timeout: Duration,
    /// What delivers the requests. `None`: the network.
    transport: Option<Arc<dyn Transport>>,
}

/// A signed request. It is signed directly before it is sent, because a signature expires.
#[derive(Debug)]
pub struct Signed {
    request: RequestBuilder,
    /// How far the clock that signed it is ahead of this machine's clock.
    ahead: TimeDelta,
    /// When it was signed, by this machine's clock.
    at: DateTime<Utc>,
    /// The number of the key pair that signed it, among the pairs read in this run.
    keys: u32,
}

impl Signed {
    /// Returns how far the clock that signed it is ahead of this machine's clock.
    pub fn ahead(&self) -> TimeDelta {
        self.ahead
    }

    /// Returns the request.
    ///
    /// # Errors
    /// It is not valid.
    pub fn into_request(self) -> Result<reqwest::Request, reqwest::Error> {
        self.request.build()
    }

    /// Returns a copy, e.g. for a transport that looks at the request before it sends it. `None`: the body is a stream,
    /// which the body of an import never is.
    pub fn try_clone(&self) -> Option<Self> {
        let Self { request, ahead, at, keys } = self;
        Some(Self { request: request.try_clone()?, ahead: *ahead, at: *at, keys: *keys })
    }

    /// Returns when it was signed, by this machine's clock.
    pub fn at(&self) -> DateTime<Utc> {
        self.at
    }

    /// Returns the number of the key pair that signed it, among the pairs read in this run, counted from 0.
    pub fn keys(&self) -> u32 {
        self.keys
    }

    /// Sets the number of the key pair that signed it.
    #[must_use]
    pub fn with_keys(self, keys: u32) -> Self {
        Self { keys, ..self }
    }
}

/// Returns whether more time than `age` has passed since `at`. A clock that was set back counts, too.
pub fn is_older_than(at: DateTime<Utc>, age: Duration) -> bool {
    (wall_clock::now() - at).abs().to_std().is_ok_and(|since| since > age)
}

impl Client {
    /// Builds a client. It uses the proxies of the environment, except for loopback addresses.
    pub fn new(api_url: &Url, timeout: Duration) -> Result<Self, reqwest::Error> {
        let http = client_builder(api_url, timeout).connector_layer(Late::default());
        Ok(Self { http: http.build()?, api_url: api_url.clone(), timeout, transport: None })
    }

    /// Returns this client with its requests delivered in another way, as a simulation does.
    #[must_use]
    pub fn over(self, transport: Arc<dyn Transport>) -> Self {
        Self { transport: Some(transport), ..self }
    }

    /// Signs an import, with a clock that is `ahead` of this machine's clock.
    ///
    /// # Errors
    /// The key or the signature is not a valid header value. The message does not repeat it.
    pub fn sign_import(
        &self,
        credential: &Credential,
        ahead: TimeDelta,
        version: ApiVersion,
        body: Bytes,
    ) -> Result<Signed, reqwest::header::InvalidHeaderValue> {
        let path = match version {
            ApiVersion::V3 => IMPORT_PATH,
            ApiVersion::V4 => IMPORT_PATH_V4,
        };
        let mut signed = self.sign(credential, ahead, Method::POST, path)?;
        let json = HeaderValue::from_static("application/json");
        signed.request = signed.request.header(CONTENT_TYPE, json).body(body);
        Ok(signed)
    }

    /// Signs a probe: a call that only reads and verifies the key.
    pub fn sign_probe(
        &self,
        credential: &Credential,
        ahead: TimeDelta,
    ) -> Result<Signed, reqwest::header::InvalidHeaderValue> {
        self.sign(credential, ahead, Method::GET, PROBE_PATH)
    }

    /// Signs a request for a page of a list, counted from 1.
    ///
    /// # Errors
    /// As for an import.
    pub fn sign_list(
        &self,
        credential: &Credential,
        ahead: TimeDelta,
        list: Listing,
        page: u32,
    ) -> Result<Signed, reqwest::header::InvalidHeaderValue> {
        self.sign(credential, ahead, Method::GET, &list.page_path(page))
    }

    fn sign(
        &self,
        credential: &Credential,
        ahead: TimeDelta,
        method: Method,
        path: &str,
    ) -> Result<Signed, reqwest::header::InvalidHeaderValue> {
        let at = wall_clock::now();
        let timestamp_ms = (at + ahead).timestamp_millis();
        let signature = sign(&credential.secret, timestamp_ms, method.as_str(), path);
        let mut headers = HeaderMap::with_capacity(4);
        for (name, value) in [
            (KEY_HEADER, credential.key.expose_secret()),
            (TIMESTAMP_HEADER, timestamp_ms.to_string().as_str()),
            (SIGN_HEADER, signature.as_str()),
        ] {
            let mut value = HeaderValue::from_str(value)?;
            value.set_sensitive(true);
            headers.insert(HeaderName::from_static(name), value);
        }
        let mut url = self.api_url.clone();
        let (path, query) = path.split_once('?').map_or((path, None), |(path, query)| (path, Some(query)));
        url.set_path(path);
        url.set_query(query);
        Ok(Signed { request: self.http.request(method, url).headers(headers), ahead, at, keys: 0 })
    }

    /// Sends a request and waits for its answer. A failure is returned as an answer, too.
    pub async fn send(&self, signed: Signed) -> Answer {
        self.exchange(signed, |_| ()).await.0
    }

    /// Sends a request for a page of a list. Returns the answer, and its page or what is wrong with that. `None`: no
    /// whole body came.
    pub async fn send_list(
        &self,
        signed: Signed,
        list: Listing,
    ) -> (Answer, Option<Result<ListPage, &'static str>>) {
        self.exchange(signed, |body| ListPage::read(body, list)).await
    }

    /// Sends a request. `parse` reads a body that came whole.
    async fn exchange<T>(&self, signed: Signed, parse: impl FnOnce(&[u8]) -> T) -> (Answer, Option<T>) {
        if let Some(transport) = &self.transport {
            return (transport.send(signed).await, None);
        }
        let deadline = Instant::now() + self.timeout;
        let response = match signed.request.send().await {
            Ok(response) => response,
            Err(problem) if OpenedLate::is_behind(&problem) => return (Answer::OpenedLate, None),
            Err(problem) if problem.is_connect() => {
                return (Answer::NotSent(crate::text::chain(&problem.without_url())), None);
            }
            Err(problem) => return (Answer::Lost(crate::text::chain(&problem.without_url())), None),
        };
        let now = wall_clock::now();
        let status = response.status().as_u16();
        let theirs = header(&response, &DATE).and_then(date);
        let retry_after = retry_after(&response, theirs.unwrap_or(now));
        let ahead = theirs.map(|theirs| theirs - (now + signed.ahead));
        // On the heap, because this future is large among the futures of a lane.
        match Box::pin(body::read(response, deadline, parse)).await {
            Ok((envelope, parsed)) => (Answer::Response { status, envelope, retry_after, ahead }, parsed),
            Err(problem) => (Answer::Lost(problem), None),
        }
    }
}
