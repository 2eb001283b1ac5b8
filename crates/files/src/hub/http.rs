use std::{io::Read, time::Duration};

use serde::Deserialize;
use ureq::{
    Agent, Body,
    http::{HeaderMap, Response, StatusCode},
};

use super::id::Id;
use crate::{Error, Result};

/// A listing of a large repository is some hundred kilobytes.
const LISTING_CAP: u64 = 64 << 20;
/// The hub redirects once, to its storage; a renamed repository once more.
const REDIRECTS: usize = 5;

/// What the hub knows about a repository at a revision.
#[derive(Debug)]
pub(super) struct Listing {
    pub(super) commit: String,
    pub(super) files: Vec<String>,
}

/// What the hub knows about a file: the name of its contents, and their length.
#[derive(Debug)]
pub(super) struct Meta {
    pub(super) etag: String,
    pub(super) size: Option<u64>,
}

/// The hub's HTTP interface.
pub(super) struct Client {
    agent: Agent,
    endpoint: String,
    token: Option<String>,
}

impl Client {
    pub(super) fn new(endpoint: &str, token: Option<&str>) -> Self {
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            // Redirects are followed by hand: the first answer names the contents, and the token
            // is for the hub alone.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("lathe/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(Duration::from_secs(15)))
            .timeout_recv_response(Some(Duration::from_secs(60)))
            // Per request: a stalled download is taken up where it stopped.
            .timeout_recv_body(Some(Duration::from_secs(600)));
        if host(&endpoint).is_some_and(|h| h.starts_with("127.") || h.starts_with("localhost")) {
            config = config.proxy(None);
        }
        Self { agent: config.build().into(), endpoint, token: token.map(str::to_owned) }
    }

    /// The files of a repository.
    pub(super) fn list(&self, id: &Id) -> Result<Listing> {
        #[derive(Deserialize)]
        struct Answer {
            sha: String,
            #[serde(default)]
            siblings: Vec<Sibling>,
        }
        #[derive(Deserialize)]
        struct Sibling {
            rfilename: String,
        }
        let revision = id.revision.replace('/', "%2F");
        let url = format!("{}/api/models/{}/revision/{revision}", self.endpoint, id.repository);
        let mut response = self.follow(&url, None, false)?;
        check(id, response.status())?;
        let body = response.body_mut().with_config().limit(LISTING_CAP).read_to_vec();
        let body = body.map_err(|e| self.unreachable(e))?;
        let answer: Answer = serde_json::from_slice(&body).map_err(|e| Error::Hub {
            id: id.to_string(),
            problem: format!("{url} did not answer with a list of files ({e})"),
        })?;
        if !(answer.sha.len() >= 7 && answer.sha.bytes().all(|b| b.is_ascii_alphanumeric())) {
            let problem = format!("`{}` is no commit", answer.sha.escape_debug());
            return Err(Error::Hub { id: id.to_string(), problem });
        }
        let files = answer.siblings.into_iter().map(|s| s.rfilename).collect();
        Ok(Listing { commit: answer.sha, files })
    }

    /// What a file's contents are called, and how long they are.
    pub(super) fn meta(&self, id: &Id, commit: &str, file: &str) -> Result<Meta> {
        let url = self.file_url(id, commit, file);
        let response = self.head(&url)?;
        if !response.status().is_redirection() {
            check(id, response.status())?;
        }
        let headers = response.headers();
        let etag = text(headers, "x-linked-etag").or_else(|| text(headers, "etag"));
        let etag = etag.map(|e| e.trim_start_matches("W/").trim_matches('"').to_owned());
        let safe = |e: &String| super::id::is_name(e);
        let etag = etag.filter(safe).ok_or_else(|| Error::Hub {
            id: id.to_string(),
            problem: format!("{url} has no usable ETag; is HF_ENDPOINT a Hugging Face hub?"),
        })?;
        let size = text(headers, "x-linked-size").or_else(|| {
            let here = !response.status().is_redirection();
            here.then(|| text(headers, "content-length")).flatten()
        });
        Ok(Meta { etag, size: size.and_then(|s| s.parse().ok()) })
    }

    /// A file's contents from byte `start` on, and where the answer really starts.
    pub(super) fn open(
        &self,
        id: &Id,
        commit: &str,
        file: &str,
        start: u64,
    ) -> Result<(u64, impl Read + use<>)> {
        let url = self.file_url(id, commit, file);
        let range = (start > 0).then(|| format!("bytes={start}-"));
        let response = self.follow(&url, range.as_deref(), true)?;
        let status = response.status();
        if status == StatusCode::RANGE_NOT_SATISFIABLE && start > 0 {
            return Ok((start, Body::builder().data("").into_reader()));
        }
        check(id, status)?;
        let begins = (status == StatusCode::PARTIAL_CONTENT)
            .then(|| text(response.headers(), "content-range"))
            .flatten()
            .and_then(|range| range.strip_prefix("bytes ")?.split_once('-')?.0.parse().ok());
        Ok((begins.unwrap_or(0), response.into_body().into_reader()))
    }

    fn file_url(&self, id: &Id, commit: &str, file: &str) -> String {
        format!("{}/{}/resolve/{commit}/{file}", self.endpoint, id.repository)
    }

    /// The first answer that speaks of the file: a redirect to storage, but not one within the hub.
    fn head(&self, url: &str) -> Result<Response<Body>> {
        let mut url = url.to_owned();
        for _ in 0..REDIRECTS {
            let mut request = self.agent.head(&url);
            if let Some(token) = self.token_for(&url) {
                request = request.header("authorization", format!("Bearer {token}"));
            }
            let response = request.call().map_err(|e| self.unreachable(e))?;
            match location(&url, &response) {
                Some(next)
                    if host(&next) == host(&url)
                        && text(response.headers(), "x-linked-etag").is_none() =>
                {
                    url = next;
                }
                _ => return Ok(response),
            }
        }
        Err(self.unreachable("too many redirects"))
    }

    fn follow(&self, url: &str, range: Option<&str>, raw: bool) -> Result<Response<Body>> {
        let mut url = url.to_owned();
        for _ in 0..REDIRECTS {
            let mut request = self.agent.get(&url);
            if let Some(token) = self.token_for(&url) {
                request = request.header("authorization", format!("Bearer {token}"));
            }
            if let Some(range) = range {
                request = request.header("range", range);
            }
            if raw {
                request = request.header("accept-encoding", "identity");
            }
            let response = request.call().map_err(|e| self.unreachable(e))?;
            match location(&url, &response) {
                Some(next) => url = next,
                None => return Ok(response),
            }
        }
        Err(self.unreachable("too many redirects"))
    }

    fn token_for(&self, url: &str) -> Option<&str> {
        self.token.as_deref().filter(|_| host(url) == host(&self.endpoint))
    }

    pub(super) fn unreachable(&self, reason: impl std::fmt::Display) -> Error {
        Error::Unreachable { endpoint: self.endpoint.clone(), reason: reason.to_string() }
    }
}

fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name)?.to_str().ok().map(str::to_owned)
}

/// Scheme, host and port of a URL: what a token may be sent to.
fn host(url: &str) -> Option<&str> {
    let after = url.find("://")? + 3;
    let end = url[after..].find(['/', '?', '#']).map_or(url.len(), |i| after + i);
    Some(&url[after..end])
}

/// Where a redirect leads.
fn location(url: &str, response: &Response<Body>) -> Option<String> {
    if !response.status().is_redirection() {
        return None;
    }
    let to = text(response.headers(), "location")?;
    if to.contains("://") {
        return Some(to);
    }
    let origin = url.find(host(url)?)? + host(url)?.len();
    Some(format!("{}/{}", &url[..origin], to.trim_start_matches('/')))
}

/// The hub's refusals, with what to do about each.
fn check(id: &Id, status: StatusCode) -> Result<()> {
    if status.is_success() {
        return Ok(());
    }
    let problem = match status.as_u16() {
        // The hub does not tell a stranger whether a private model exists.
        401 => "it does not exist, or it is private: check the spelling, or set HF_TOKEN".into(),
        403 => {
            "access has not been granted: ask for it on the model's page, then set HF_TOKEN".into()
        }
        404 => match &id.file {
            Some(_) => "no such model, revision or file".to_owned(),
            None => "no such model or revision; check the spelling".to_owned(),
        },
        429 => "too many requests; wait a few minutes, or set HF_TOKEN".into(),
        500.. => format!("the hub is in trouble (HTTP {status}); try again later"),
        _ => format!("HTTP {status}"),
    };
    Err(Error::Hub { id: id.to_string(), problem })
}
