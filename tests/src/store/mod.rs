//! A Parca store in the hands of a test: it takes what a Parca server takes and refuses what that refuses, speaks TLS or not, asks for
//! a token, and answers as it is told.

mod debuginfo;

use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    io::Read as _,
    net::TcpListener,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use flate2::read::GzDecoder;
use prost::Message as _;
use proto::{
    debuginfo::debuginfo_service_server::DebuginfoServiceServer,
    pprof,
    profilestore::{
        WriteRawRequest, WriteRawResponse,
        profile_store_service_server::{ProfileStoreService, ProfileStoreServiceServer},
    },
};
use tokio::runtime::Runtime;
use tonic::{
    Code, Request, Response, Status,
    metadata::MetadataMap,
    transport::{Certificate, Identity, Server, ServerTlsConfig, server::TcpIncoming},
};

pub use self::debuginfo::Build;
use crate::pprof::Profile;

/// Largest call, in bytes: that of a Parca server.
const MAX_CALL: usize = 64 << 20;

/// How a call is answered.
#[derive(Clone, Debug)]
pub enum Answer {
    /// As a server that is well.
    Well,
    /// By this code.
    Code(Code),
    /// After what was sent has been taken, by this code: the sender does not know.
    Takes(Code),
    /// Well, but so late.
    After(Duration),
    /// Well, without a look at what it is, and without keeping it.
    Forgets,
}

/// A profile that has arrived.
#[derive(Clone, Debug)]
pub struct Arrived {
    /// Its labels, `__name__` among them.
    pub labels: BTreeMap<String, String>,
    /// The profile.
    pub profile: Profile,
}

impl Arrived {
    /// What tells one profile from another: its command name, container or unit, and when it began.
    pub fn key(&self) -> (String, String, i64) {
        let label = |name: &str| self.labels.get(name).cloned().unwrap_or_default();
        (label("comm"), label("containerid") + &label("systemd_unit"), self.profile.time_nanos)
    }
}

/// How a store is started.
#[derive(Clone, Debug, Default)]
pub struct StoreOptions {
    /// Its certificate and key (PEM); without TLS if there is none.
    pub identity: Option<(String, String)>,
    /// The certificate (PEM) of who makes those that clients must show.
    pub client_ca: Option<String>,
    /// The token that each call must have.
    pub token: Option<String>,
    /// Largest call, in bytes; 0: that of a Parca server.
    pub max_call: usize,
}

#[derive(Debug, Default)]
struct Inner {
    arrived: Vec<Arrived>,
    problems: Vec<String>,
    script: VecDeque<Answer>,
    otherwise: Option<Answer>,
    refused_comm: Option<(String, Code)>,
    token: Option<String>,
    calls: u64,
    headers: Vec<BTreeMap<String, String>>,
    builds: debuginfo::Builds,
}

/// What several stores, one after the other, have seen.
#[derive(Clone, Debug, Default)]
pub struct Journal(Arc<Mutex<Inner>>);

impl Journal {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What has arrived, in order.
    pub fn arrived(&self) -> Vec<Arrived> {
        self.lock().arrived.clone()
    }

    /// What a Parca server would have refused: each of them is a fault.
    pub fn problems(&self) -> Vec<String> {
        self.lock().problems.clone()
    }

    /// How often it was called.
    pub fn calls(&self) -> u64 {
        self.lock().calls
    }

    /// The headers of every call.
    pub fn headers(&self) -> Vec<BTreeMap<String, String>> {
        self.lock().headers.clone()
    }

    /// How the next calls are answered, one after the other.
    pub fn script(&self, answers: impl IntoIterator<Item = Answer>) {
        self.lock().script.extend(answers);
    }

    /// Whether every answer of the script was given.
    pub fn script_is_done(&self) -> bool {
        self.lock().script.is_empty()
    }

    /// How calls are answered that the script says nothing of.
    pub fn otherwise(&self, answer: Answer) {
        self.lock().otherwise = Some(answer);
    }

    /// Answers by this code all calls with a profile of this command name in it.
    pub fn refuse(&self, comm: &str, code: Code) {
        self.lock().refused_comm = Some((comm.to_owned(), code));
    }

    /// Asks for another token from now on.
    pub fn set_token(&self, token: &str) {
        self.lock().token = Some(token.to_owned());
    }
}

/// A store that listens. Its connections are cut when it is dropped.
#[derive(Debug)]
pub struct Store {
    port: u16,
    runtime: Option<Runtime>,
}

impl Store {
    /// Starts one on a port (0: any), which writes into a journal.
    pub fn start(port: u16, options: &StoreOptions, journal: &Journal) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        journal.lock().token.clone_from(&options.token);
        let listener = listen(port);
        let port = listener.local_addr().expect("an address").port();
        let mut server = Server::builder();
        if let Some((certificate, key)) = &options.identity {
            let mut tls = ServerTlsConfig::new().identity(Identity::from_pem(certificate, key));
            if let Some(ca) = &options.client_ca {
                tls = tls.client_ca_root(Certificate::from_pem(ca));
            }
            server = server.tls_config(tls).expect("a certificate");
        }
        let most = if options.max_call == 0 { MAX_CALL } else { options.max_call };
        let service =
            ProfileStoreServiceServer::new(Service(journal.clone())).max_decoding_message_size(most);
        let debuginfo = DebuginfoServiceServer::new(Service(journal.clone()));
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
            server
                .add_service(service)
                .add_service(debuginfo)
                .serve_with_incoming(TcpIncoming::from(listener))
                .await
        });
        Store { port, runtime: Some(runtime) }
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }
}

fn listen(port: u16) -> TcpListener {
    // The one before may take a moment to go.
    let listener =
        crate::wait::wait_for("the store's port is free", 20, || TcpListener::bind(("127.0.0.1", port)).ok());
    listener.set_nonblocking(true).expect("a listener");
    listener
}

impl Drop for Store {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

struct Service(Journal);

impl Service {
    fn authorized(&self, metadata: &MetadataMap) -> Result<(), Status> {
        let Some(token) = self.0.lock().token.clone() else { return Ok(()) };
        let given = metadata.get("authorization").and_then(|value| value.to_str().ok());
        if given == Some(&format!("Bearer {token}")) {
            return Ok(());
        }
        Err(Status::unauthenticated("no token, or another one"))
    }
}

#[tonic::async_trait]
impl ProfileStoreService for Service {
    async fn write_raw(
        &self,
        request: Request<WriteRawRequest>,
    ) -> Result<Response<WriteRawResponse>, Status> {
        let answer = {
            let mut inner = self.0.lock();
            inner.calls += 1;
            let headers = text_headers(request.metadata());
            inner.headers.push(headers);
            let answer = inner.script.pop_front().or_else(|| inner.otherwise.clone());
            answer.unwrap_or(Answer::Well)
        };
        self.authorized(request.metadata())?;
        match answer {
            Answer::Code(code) => return Err(Status::new(code, "as the test wants it")),
            Answer::Forgets => return Ok(Response::new(WriteRawResponse {})),
            Answer::After(pause) => tokio::time::sleep(pause).await,
            Answer::Well | Answer::Takes(_) => {}
        }
        let arrived = check(request.get_ref()).map_err(|problem| {
            self.0.lock().problems.push(problem.clone());
            Status::invalid_argument(problem)
        })?;
        let mut inner = self.0.lock();
        if let Some((refused, code)) = &inner.refused_comm
            && arrived.iter().any(|arrived| arrived.labels.get("comm") == Some(refused))
        {
            return Err(Status::new(*code, format!("{refused} is not wanted")));
        }
        inner.arrived.extend(arrived);
        match answer {
            Answer::Takes(code) => Err(Status::new(code, "as the test wants it")),
            _ => Ok(Response::new(WriteRawResponse {})),
        }
    }
}

fn text_headers(metadata: &MetadataMap) -> BTreeMap<String, String> {
    let headers = metadata.clone().into_headers();
    let text = |(name, value): (&_, &tonic::codegen::http::HeaderValue)| {
        let name: &tonic::codegen::http::HeaderName = name;
        Some((name.to_string(), value.to_str().ok()?.to_owned()))
    };
    headers.iter().filter_map(text).collect()
}

/// What a Parca server checks before it takes profiles.
fn check(request: &WriteRawRequest) -> Result<Vec<Arrived>, String> {
    if request.series.is_empty() {
        return Err("no series".into());
    }
    let mut arrived = Vec::new();
    for series in &request.series {
        let mut labels = BTreeMap::new();
        for label in series.labels.iter().flat_map(|labels| &labels.labels) {
            let mut characters = label.name.chars();
            let is_name = characters.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
                && characters.all(|c| c.is_ascii_alphanumeric() || c == '_');
            if !is_name || label.value.is_empty() {
                return Err(format!("label {:?}={:?}", label.name, label.value));
            }
            if labels.insert(label.name.clone(), label.value.clone()).is_some() {
                return Err(format!("label {} twice", label.name));
            }
        }
        if !labels.contains_key("__name__") {
            return Err("no __name__".into());
        }
        if series.samples.is_empty() {
            return Err("a series without samples".into());
        }
        for sample in &series.samples {
            let message = message(&sample.raw_profile)?;
            if !sample.executable_info.is_empty() && sample.executable_info.len() != message.mapping.len() {
                return Err("executable_info does not fit the mappings".into());
            }
            check_profile(&message)?;
            arrived.push(Arrived { labels: labels.clone(), profile: Profile::read(&sample.raw_profile)? });
        }
    }
    Ok(arrived)
}

fn message(raw: &[u8]) -> Result<pprof::Profile, String> {
    let mut bytes = Vec::new();
    GzDecoder::new(raw).read_to_end(&mut bytes).map_err(|error| format!("not gzip: {error}"))?;
    pprof::Profile::decode(bytes.as_slice()).map_err(|error| format!("not a profile: {error}"))
}

/// The rules that are Parca's own; what every reader of the format asks for is checked by [`Profile::read`].
fn check_profile(profile: &pprof::Profile) -> Result<(), String> {
    let in_order = |what: &str, ids: &mut dyn Iterator<Item = u64>| {
        let all: Vec<u64> = ids.collect();
        let right = all.iter().enumerate().all(|(index, id)| *id == index as u64 + 1);
        if right { Ok(all.len() as u64) } else { Err(format!("ids of {what}s are not 1, 2, 3...: {all:?}")) }
    };
    let mappings = in_order("mapping", &mut profile.mapping.iter().map(|mapping| mapping.id))?;
    let functions = in_order("function", &mut profile.function.iter().map(|function| function.id))?;
    let locations = in_order("location", &mut profile.location.iter().map(|location| location.id))?;
    for location in &profile.location {
        if location.mapping_id > mappings {
            return Err(format!("a location in mapping {}", location.mapping_id));
        }
        if location.line.iter().any(|line| line.function_id == 0 || line.function_id > functions) {
            return Err("a line in a function that there is not".into());
        }
    }
    let strings: HashSet<&String> = profile.string_table.iter().collect();
    if strings.len() != profile.string_table.len() {
        return Err("a string twice".into());
    }
    for sample in &profile.sample {
        if sample.location_id.iter().any(|id| *id == 0 || *id > locations) {
            return Err("a location that there is not".into());
        }
        if sample.value.contains(&0) {
            return Err("a value of zero".into());
        }
        if sample.location_id.is_empty() {
            return Err("a sample without a stack".into());
        }
    }
    if profile.duration_nanos == 0 || profile.time_nanos == 0 || profile.period == 0 {
        return Err("no time, duration or period".into());
    }
    Ok(())
}
