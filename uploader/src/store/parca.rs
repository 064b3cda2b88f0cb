//! A Parca server, as profiles are sent to it: `parca.profilestore.v1alpha1.ProfileStoreService/WriteRaw`.

use std::{error::Error, sync::Arc, time::Duration};

use hyper::Uri;
use proto::{
    debuginfo::debuginfo_service_client::DebuginfoServiceClient,
    profilestore::{
        Label, LabelSet, RawProfileSeries, RawSample, WriteRawRequest,
        profile_store_service_client::ProfileStoreServiceClient,
    },
};
use thiserror::Error;
use tokio::sync::Mutex;
use tonic::{
    Code, Request, Status,
    metadata::{Ascii, AsciiMetadataKey, AsciiMetadataValue, MetadataMap, MetadataValue},
};

use super::connection::{ConnectionError, Connections, HttpClient, Transport};
use crate::{
    causes::with_causes,
    flags::StoreFlags,
    secret::{Secret, SecretError, SecretFile},
    targets::Labels,
};

/// The name of the profiles, as the early agent had it.
const PROFILE_NAME: &str = "parca_agent_cpu";
/// How long a call may take: the largest one, on a slow connection.
const CALL_LIMIT: Duration = Duration::from_mins(2);
/// Codes after which another connection may do better.
const BROKEN: [Code; 3] = [Code::Unavailable, Code::DeadlineExceeded, Code::Unauthenticated];
/// Longest message of a server's that is shown.
const MAX_MESSAGE: usize = 300;

/// Why there is no store with these flags.
#[derive(Debug, Error)]
pub enum ParcaError {
    /// It cannot be reached.
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    /// There is no token.
    #[error(transparent)]
    Token(#[from] SecretError),
    /// The token on the command line is none.
    #[error("--bearer-token: a token is printable ASCII text without blanks")]
    MalformedToken,
}

/// Why a call did not succeed.
#[derive(Debug)]
pub enum Failure {
    /// What was sent will never be taken.
    Refused(String),
    /// It may be taken some other time. The code of gRPC's, in its own spelling, or why there was no answer.
    Later(&'static str, String),
    /// The server itself has failed: perhaps at this very content, and then it will fail again.
    Stumbles(&'static str, String),
    /// It may be taken some other time, or in parts.
    TooMuch(&'static str, String),
}

#[derive(Debug)]
enum Token {
    None,
    Fixed(Secret),
    File(SecretFile),
}

/// The server.
#[derive(Debug)]
pub struct Parca {
    connections: Connections,
    token: Token,
    headers: Vec<(AsciiMetadataKey, MetadataValue<Ascii>)>,
    /// Taken away when something went wrong: the next call then begins with a new connection.
    transport: Mutex<Option<Transport>>,
}

impl Parca {
    /// Reads all that the flags name.
    pub fn open(flags: &StoreFlags) -> Result<Self, ParcaError> {
        let connections = Connections::open(flags)?;
        let token = match &flags.bearer_token_file {
            Some(path) => Token::File(SecretFile::open(path, "--bearer-token-file", 1)?),
            None if flags.bearer_token.0.is_empty() => Token::None,
            None => Token::Fixed(Secret::parse(&flags.bearer_token.0, 1).ok_or(ParcaError::MalformedToken)?),
        };
        let headers = flags.store_header.iter().filter_map(|header| {
            // Checked when the flag was read.
            Some((header.name.parse().ok()?, header.value.parse().ok()?))
        });
        let headers = headers.collect();
        Ok(Parca { connections, token, headers, transport: Mutex::new(None) })
    }

    /// The ports that are connected to.
    pub fn ports(&self) -> &[u16] {
        &self.connections.ports
    }

    /// Sends profiles; returns when the server says that it has them.
    pub async fn write(&self, series: Vec<RawProfileSeries>) -> Result<(), Failure> {
        let request = self.request(WriteRawRequest { series, normalized: true }, CALL_LIMIT);
        let origin = self.connections.origin.clone();
        let mut client = ProfileStoreServiceClient::with_origin(self.transport().await?, origin);
        self.noted(CALL_LIMIT, client.write_raw(request)).await.map(drop)
    }

    /// How debug information is spoken of. The answer of each call goes through [`Parca::noted`].
    pub(crate) async fn debuginfo(&self) -> Result<DebuginfoServiceClient<Transport>, Failure> {
        let origin = self.connections.origin.clone();
        Ok(DebuginfoServiceClient::with_origin(self.transport().await?, origin))
    }

    /// What speaks HTTP to an address that the server names.
    pub(crate) fn http_client<B>(&self, uri: &Uri) -> Result<HttpClient<B>, ConnectionError>
    where
        B: hyper::body::Body + Send,
        B::Data: Send,
    {
        self.connections.http_client(uri)
    }

    /// A request with all that goes with each call; the server is told how long its answer is waited for.
    pub(crate) fn request<T>(&self, message: T, limit: Duration) -> Request<T> {
        let mut request = Request::new(message);
        self.add_headers(request.metadata_mut());
        request.set_timeout(limit);
        request
    }

    /// Waits for an answer, no longer than this, and takes note of it: after a failure the next call begins with a new connection.
    pub(crate) async fn noted<T>(
        &self,
        limit: Duration,
        call: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, Failure> {
        match self.answer(limit, call).await {
            Ok(answer) => Ok(answer),
            Err(status) => Err(failure(&status)),
        }
    }

    /// The same, for those who understand codes otherwise.
    pub(crate) async fn answer<T>(
        &self,
        limit: Duration,
        call: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, Status> {
        let answer = match tokio::time::timeout(limit, call).await {
            Ok(answer) => answer,
            Err(_) => Err(Status::deadline_exceeded(format!("no answer within {} seconds", limit.as_secs()))),
        };
        // An answer of the server's says that the connection works.
        let is_broken = |status: &Status| status.source().is_some() || BROKEN.contains(&status.code());
        if answer.as_ref().is_err_and(is_broken) {
            *self.transport.lock().await = None;
        }
        answer
    }

    async fn transport(&self) -> Result<Transport, Failure> {
        let mut kept = self.transport.lock().await;
        if let Some(transport) = &*kept {
            return Ok(transport.clone());
        }
        let made = self.connections.transport();
        let transport = made.map_err(|error| Failure::Later("none", error.to_string()))?;
        *kept = Some(transport.clone());
        Ok(transport)
    }

    fn add_headers(&self, metadata: &mut MetadataMap) {
        for (name, value) in &self.headers {
            metadata.insert(name.clone(), value.clone());
        }
        let token = match &self.token {
            Token::None => return,
            Token::Fixed(secret) => Arc::new(secret.clone()),
            Token::File(file) => file.current(),
        };
        // A secret is printable ASCII.
        if let Ok(mut value) = format!("Bearer {}", token.reveal()).parse::<AsciiMetadataValue>() {
            value.set_sensitive(true);
            metadata.insert("authorization", value);
        }
    }
}

/// A profile (gzipped pprof) of a target, as it is sent.
pub fn series(labels: &Labels, pprof: Vec<u8>) -> RawProfileSeries {
    let label = |(name, value): (&str, &str)| Label { name: name.into(), value: value.into() };
    // A label without a value is none.
    let own = labels.0.iter().filter(|(_, value)| !value.is_empty());
    let own = own.map(|(name, value)| (name.as_str(), value.as_str()));
    let labels = std::iter::once(("__name__", PROFILE_NAME)).chain(own).map(label).collect();
    let sample = RawSample { raw_profile: pprof, executable_info: Vec::new() };
    RawProfileSeries { labels: Some(LabelSet { labels }), samples: vec![sample] }
}

/// What a status means for what was sent.
pub(crate) fn failure(status: &Status) -> Failure {
    let message = message(status);
    // What a connection failed with has a cause; an answer has none.
    if status.source().is_some() {
        return Failure::Later("none", message);
    }
    match status.code() {
        Code::InvalidArgument => Failure::Refused(message),
        // What gRPC libraries say of a message that is too large for them; the same code stands for a limit of the rate.
        Code::ResourceExhausted | Code::OutOfRange if is_too_large(status.message()) => {
            Failure::Refused(message)
        }
        // Perhaps at what was sent. (A proxy's "413 Payload Too Large" is INTERNAL.)
        code @ (Code::Internal | Code::Unknown | Code::DataLoss | Code::OutOfRange) => {
            Failure::Stumbles(name(code), message)
        }
        // Perhaps for how much was sent.
        code @ (Code::DeadlineExceeded | Code::ResourceExhausted | Code::Cancelled) => {
            Failure::TooMuch(name(code), message)
        }
        code => Failure::Later(name(code), message),
    }
}

fn is_too_large(text: &str) -> bool {
    let text = text.to_ascii_lowercase();
    let is_size = text.contains("exceeds") && (text.contains("size") || text.contains("length"));
    is_size || text.contains("larger than") || text.contains("too large")
}

/// The spelling of `google/rpc/code.proto`.
fn name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

/// What a server or a connection said, with its causes, on one line and not without end.
fn message(status: &Status) -> String {
    let mut text = with_causes(status.message(), status.source());
    if let Some((cut, _)) = text.char_indices().nth(MAX_MESSAGE) {
        text.truncate(cut);
        text.push_str("...");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::targets::TargetMaker;

    #[test]
    fn labels_are_those_of_the_early_agent() {
        let maker = TargetMaker::new("n", [("zone".to_owned(), "z".to_owned())]);
        let series = series(&maker.labels("x", None), vec![1]);
        let labels = series.labels.unwrap().labels;
        let labels: Vec<_> = labels.iter().map(|label| (label.name.as_str(), label.value.as_str())).collect();
        assert_eq!(labels, [("__name__", "parca_agent_cpu"), ("comm", "x"), ("node", "n"), ("zone", "z")]);
    }

    /// A server that takes the connection and then says nothing. The clock is the test's: whatever is waited for is over at once.
    #[tokio::test(start_paused = true)]
    async fn a_server_that_does_not_answer_is_given_up() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("--store-address={}", listener.local_addr().unwrap());
        let line = ["bulkhead-uploader", &address, "--insecure"];
        let parca = Parca::open(&crate::flags::Flags::parse_line(line).unwrap().store).unwrap();
        let begun = tokio::time::Instant::now();
        let result = parca.write(vec![RawProfileSeries::default()]).await;
        assert!(matches!(result, Err(Failure::Later(..))), "{result:?}");
        assert!(begun.elapsed() <= CALL_LIMIT, "{:?}", begun.elapsed());
        assert!(parca.transport.lock().await.is_none(), "the next call begins with another connection");
    }

    #[test]
    fn only_what_will_never_be_taken_is_refused() {
        let is_refused = |code, text: &str| matches!(failure(&Status::new(code, text)), Failure::Refused(_));
        assert!(is_refused(Code::InvalidArgument, "label names"));
        assert!(is_refused(Code::ResourceExhausted, "gRPC message exceeds maximum size 4194304: 5"));
        assert!(is_refused(Code::ResourceExhausted, "grpc: received message larger than max (5 vs. 4)"));
        assert!(is_refused(
            Code::OutOfRange,
            "Error, decoded message length too large: found 5 bytes, the limit is: 4 bytes"
        ));
        for code in (0..17).map(Code::from).filter(|code| *code != Code::InvalidArgument) {
            assert!(!is_refused(code, "rate limit"), "{code:?}");
        }
        let Failure::Later(code, text) = failure(&Status::unavailable("a\nb".repeat(500))) else {
            panic!("not later")
        };
        assert_eq!(code, "UNAVAILABLE");
        assert!(text.len() < 2 * MAX_MESSAGE && !text.contains('\n'));
    }
}
