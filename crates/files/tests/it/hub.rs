//! Fetching from a hub that runs in the test: a listing, redirects to storage, broken connections.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use lathe_base::{Cancelled, Progress, Silent};
use lathe_files::{Checkpoint, Error, Folder, FolderPlan, Hub, Planned, Target, write_folder};
use serde_json::{Map, json};
use sha2::{Digest, Sha256};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A request as the servers see it.
#[derive(Clone, Debug)]
struct Asked {
    line: String,
    headers: String,
}

impl Asked {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.lines().find_map(|l| {
            let (key, value) = l.split_once(": ")?;
            key.eq_ignore_ascii_case(name).then_some(value)
        })
    }
}

type Answer = dyn Fn(&Asked) -> Vec<u8> + Send + Sync;

/// A server on a port of its own, which remembers what it was asked.
struct Server {
    url: String,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Server {
    fn start(answer: Arc<Answer>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = asked.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                serve(stream, &*answer, &log);
            }
        });
        Self { url, asked }
    }

    fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }
}

fn serve(stream: TcpStream, answer: &Answer, log: &Mutex<Vec<Asked>>) {
    let mut reader = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).unwrap_or(0) == 0 {
            return;
        }
    }
    let (line, headers) = head.split_once("\r\n").unwrap();
    let asked = Asked { line: line.to_owned(), headers: headers.to_owned() };
    log.lock().unwrap().push(asked.clone());
    let _ = reader.get_mut().write_all(&answer(&asked));
}

fn reply(status: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let mut out = format!(
        "HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {}\r\n{headers}\r\n",
        body.len()
    )
    .into_bytes();
    out.extend(body);
    out
}

/// A hub with one model: config.json by itself, the weights in storage on another port.
struct World {
    hub: Server,
    storage: Server,
    cache: tempfile::TempDir,
    weights: Vec<u8>,
}

impl World {
    /// Storage breaks the first `breaks` connections after a third of the weights, and answers
    /// range requests if it `resumes`.
    fn new(breaks: usize, resumes: bool) -> Self {
        let weights = model();
        let digest: String = Sha256::digest(&weights).iter().map(|b| format!("{b:02x}")).collect();
        let (body, left) = (weights.clone(), AtomicUsize::new(breaks));
        let storage = Server::start(Arc::new(move |asked: &Asked| {
            let start = asked.header("range").filter(|_| resumes).map_or(0, |r| {
                r.trim_start_matches("bytes=").trim_end_matches('-').parse::<usize>().unwrap()
            });
            let (status, range) = match start {
                0 => ("200 OK", String::new()),
                _ => {
                    let range = format!("content-range: bytes {start}-{0}/{0}\r\n", body.len());
                    ("206 Partial Content", range)
                }
            };
            let mut out = reply(status, &range, &body[start..]);
            let broken =
                left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
            if broken.is_ok() {
                out.truncate(out.len() - body[start..].len() + body.len() / 3);
            }
            out
        }));
        let (url, size) = (storage.url.clone(), weights.len());
        let hub = Server::start(Arc::new(move |asked: &Asked| {
            let path = asked.line.split(' ').nth(1).unwrap();
            let file = format!("/org/tiny/resolve/{COMMIT}/");
            match path.strip_prefix(&file) {
                Some("model.safetensors") => {
                    let headers = format!(
                        "location: {url}/blob\r\nx-linked-etag: \"{digest}\"\r\nx-linked-size: {size}\r\n"
                    );
                    reply("302 Found", &headers, b"")
                }
                Some("config.json") => {
                    let body: &[u8] = b"{\"model_type\":\"llama\"}";
                    let head = asked.line.starts_with("HEAD");
                    let mut out = reply("200 OK", "etag: W/\"abc123\"\r\n", body);
                    out.truncate(out.len() - if head { body.len() } else { 0 });
                    out
                }
                _ if path == "/api/models/org/tiny/revision/main" => {
                    let files = ["README.md", "config.json", "model.safetensors"];
                    let siblings: Vec<_> = files.iter().map(|f| json!({"rfilename": f})).collect();
                    let body = json!({"sha": COMMIT, "siblings": siblings}).to_string();
                    reply("200 OK", "content-type: application/json\r\n", body.as_bytes())
                }
                _ if path.contains("private") => reply("401 Unauthorized", "", b""),
                _ if path.contains("gated") => reply("403 Forbidden", "", b""),
                _ => reply("404 Not Found", "", b""),
            }
        }));
        Self { hub, storage, cache: tempfile::tempdir().unwrap(), weights }
    }

    fn client(&self) -> Hub {
        Hub {
            endpoint: self.hub.url.clone(),
            cache: self.cache.path().to_owned(),
            token: Some("secret".into()),
            offline: false,
        }
    }

    fn ranges(&self) -> Vec<Option<String>> {
        let asked = self.storage.asked();
        asked.iter().map(|a| a.header("range").map(str::to_owned)).collect()
    }
}

/// The bytes of a small model.safetensors.
fn model() -> Vec<u8> {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("m");
    let format = lathe_formats::by_name("f32").unwrap();
    let plan = [Planned { name: "x.weight".into(), shape: vec![30, 100], format }];
    let config = Map::new();
    let folder = FolderPlan::new(&config, &Folder::None, &plan);
    let target = Target { path: &path, replace: false, fingerprint: "" };
    let mut writer = write_folder(target, folder).unwrap();
    let numbers: Vec<f32> = (0..3000).map(|i| i as f32).collect();
    writer.add("x.weight", &[30, 100], &format.encode(30, 100, &numbers, 1).unwrap()).unwrap();
    writer.finish().unwrap();
    fs::read(path.join("model.safetensors")).unwrap()
}

fn problem(error: Error) -> String {
    assert!(matches!(error, Error::Hub { .. }), "{error}");
    error.to_string()
}

#[test]
fn a_model_is_fetched_once_and_opens() {
    let world = World::new(0, true);
    let folder = world.client().fetch("org/tiny", &Silent).unwrap();
    assert!(folder.ends_with(Path::new("models--org--tiny/snapshots").join(COMMIT)));
    assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), world.weights);
    assert!(!folder.join("README.md").exists(), "only what is needed");
    assert_eq!(Checkpoint::open(&folder).unwrap().shape("x.weight"), Some(&[30, 100][..]));
    let reference = world.cache.path().join("models--org--tiny/refs/main");
    assert_eq!(fs::read_to_string(reference).unwrap(), COMMIT);

    let before = world.storage.asked().len();
    assert_eq!(world.client().fetch("org/tiny", &Silent).unwrap(), folder);
    assert_eq!(world.storage.asked().len(), before);
}

#[test]
fn the_token_goes_to_the_hub_and_not_to_its_storage() {
    let world = World::new(0, true);
    world.client().fetch("org/tiny", &Silent).unwrap();
    assert!(world.hub.asked().iter().all(|a| a.header("authorization") == Some("Bearer secret")));
    assert!(!world.storage.asked().is_empty());
    assert!(world.storage.asked().iter().all(|a| a.header("authorization").is_none()));
}

#[test]
fn a_broken_download_is_taken_up_where_it_stopped() {
    let world = World::new(2, true);
    let folder = world.client().fetch("org/tiny", &Silent).unwrap();
    assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), world.weights);
    let third = world.weights.len() / 3;
    let range = |n: usize| Some(format!("bytes={}-", n * third));
    assert_eq!(world.ranges(), [None, range(1), range(2)]);
}

#[test]
fn a_server_that_cannot_resume_is_asked_for_the_whole_file_again() {
    let world = World::new(1, false);
    let folder = world.client().fetch("org/tiny", &Silent).unwrap();
    assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), world.weights);
}

#[test]
fn an_interrupted_run_is_taken_up_by_the_next() {
    struct Stop(AtomicUsize);
    impl Progress for Stop {
        fn at(&self, what: &str, done: u64, _: u64) {
            if what == "model.safetensors" && done > 0 {
                self.0.store(1, Ordering::SeqCst);
            }
        }
        fn note(&self, _: &str) {}
        fn cancelled(&self) -> bool {
            self.0.load(Ordering::SeqCst) > 0
        }
    }
    let world = World::new(1, true);
    let error = world.client().fetch("org/tiny", &Stop(AtomicUsize::new(0))).unwrap_err();
    assert!(matches!(error, Error::Cancelled(Cancelled)));
    assert!(Hub { offline: true, ..world.client() }.fetch("org/tiny", &Silent).is_err());
    world.client().fetch("org/tiny", &Silent).unwrap();
    let resumed = world.ranges().last().cloned().flatten();
    assert_eq!(resumed, Some(format!("bytes={}-", world.weights.len() / 3)));
}

#[test]
fn damaged_contents_are_not_kept() {
    let world = World::new(0, true);
    let blobs = world.cache.path().join("models--org--tiny/blobs");
    fs::create_dir_all(&blobs).unwrap();
    let digest: String =
        Sha256::digest(&world.weights).iter().map(|b| format!("{b:02x}")).collect();
    fs::write(blobs.join(format!("{digest}.incomplete")), [7; 100]).unwrap();
    let error = problem(world.client().fetch("org/tiny", &Silent).unwrap_err());
    assert!(error.contains("model.safetensors arrived damaged"), "{error}");
    world.client().fetch("org/tiny", &Silent).unwrap();
}

#[test]
fn without_a_network_the_cache_serves_or_one_error_says_what_to_do() {
    let world = World::new(0, true);
    let gone = {
        let closed = TcpListener::bind("127.0.0.1:0").unwrap();
        Hub { endpoint: format!("http://{}", closed.local_addr().unwrap()), ..world.client() }
    };
    let error = gone.fetch("org/tiny", &Silent).unwrap_err().to_string();
    assert!(error.contains("cannot reach the hub") && error.contains("folder"), "{error}");
    let folder = world.client().fetch("org/tiny", &Silent).unwrap();
    assert_eq!(gone.fetch("org/tiny", &Silent).unwrap(), folder);
}

#[test]
fn offline_nothing_is_asked_for() {
    let world = World::new(0, true);
    let offline = Hub { offline: true, ..world.client() };
    let error = problem(offline.fetch("org/tiny", &Silent).unwrap_err());
    assert!(error.contains("HF_HUB_OFFLINE"), "{error}");
    assert!(world.hub.asked().is_empty());
    let folder = world.client().fetch("org/tiny", &Silent).unwrap();
    let asked = world.hub.asked().len();
    assert_eq!(offline.fetch("org/tiny", &Silent).unwrap(), folder);
    assert_eq!(world.hub.asked().len(), asked);
}

#[test]
fn refusals_say_what_to_do() {
    let world = World::new(0, true);
    for (id, hint) in [
        ("org/private", "set HF_TOKEN"),
        ("org/gated", "access has not been granted"),
        ("org/nothing", "no such model"),
        ("org/tiny@nowhere", "no such model or revision"),
        ("not an id", "org/name"),
        ("org/tiny:other.gguf", "no file other.gguf"),
    ] {
        let error = problem(world.client().fetch(id, &Silent).unwrap_err());
        assert!(error.contains(hint) && error.contains(id), "{error}");
    }
}

#[test]
fn an_answer_that_is_no_hub_is_an_error_and_not_a_path() {
    let html = Server::start(Arc::new(|_: &Asked| reply("200 OK", "", b"<html>welcome</html>")));
    let evil = Server::start(Arc::new(|_: &Asked| {
        let body = json!({"sha": "../../../etc", "siblings": [{"rfilename": "config.json"}]});
        reply("200 OK", "", body.to_string().as_bytes())
    }));
    let world = World::new(0, true);
    for server in [html, evil] {
        let hub = Hub { endpoint: server.url.clone(), ..world.client() };
        problem(hub.fetch("org/tiny", &Silent).unwrap_err());
    }
    let mut found = Vec::new();
    fs::read_dir(world.cache.path()).unwrap().flatten().for_each(|e| found.push(e.path()));
    assert!(found.is_empty(), "{found:?}");
    // Reading a listing must not depend on its claimed length.
    let long = Server::start(Arc::new(|_: &Asked| {
        b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999999\r\nconnection: close\r\n\r\n{".to_vec()
    }));
    let hub = Hub { endpoint: long.url.clone(), ..world.client() };
    assert!(hub.fetch("org/tiny", &Silent).is_err());
}
