//! How the store takes debug information: by the rules of a Parca server.

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    thread,
};

use proto::debuginfo::{
    BuildIdType, InitiateUploadRequest, InitiateUploadResponse, MarkUploadFinishedRequest,
    MarkUploadFinishedResponse, ShouldInitiateUploadRequest, ShouldInitiateUploadResponse, UploadInfo,
    UploadInstructions, UploadRequest, UploadResponse, debuginfo_service_server::DebuginfoService,
    upload_instructions::UploadStrategy, upload_request::Data,
};
use tonic::{Request, Response, Status, Streaming};

use super::{Journal, Service};

/// Largest content, in bytes.
const MAX_SIZE: i64 = 1_000_000_000;
/// Largest piece of it in one message.
const MAX_CHUNK: usize = 8 << 20;

/// The debug information of a build.
#[derive(Clone, Debug, Default)]
pub struct Build {
    /// What kind of id it is.
    pub kind: i32,
    /// Announced.
    pub size: u64,
    /// Announced.
    pub hash: String,
    /// Of the upload that is going on, or was last.
    pub upload_id: String,
    /// What has come.
    pub content: Vec<u8>,
    /// Whether all of it has come, and was said to.
    pub finished: bool,
    /// How often it was begun to be sent.
    pub begun: u32,
}

/// What is known of builds, and how to behave.
#[derive(Debug, Default)]
pub(super) struct Builds {
    pub(super) by_id: BTreeMap<String, Build>,
    /// How often it was asked whether one is wanted.
    pub(super) asked: u32,
    /// Port of the server that takes content by HTTP; 0: by gRPC.
    pub(super) http_port: u16,
    /// Says that somebody else is sending what is asked for.
    pub(super) is_busy: bool,
    /// Answers nothing but that it is away.
    pub(super) is_away: bool,
}

impl Journal {
    /// The builds of which debug information has arrived as a whole, by id.
    pub fn builds(&self) -> BTreeMap<String, Build> {
        let builds = self.lock().builds.by_id.clone();
        builds.into_iter().filter(|(_, build)| build.finished).collect()
    }

    /// How often it was asked whether debug information is wanted.
    pub fn asked_for_builds(&self) -> u32 {
        self.lock().builds.asked
    }

    /// Takes content by HTTP from now on, on a port of its own.
    pub fn take_by_http(&self) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        self.lock().builds.http_port = port;
        let journal = self.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let answer = match journal.take_put(&stream) {
                    Ok(()) => "200 OK".to_owned(),
                    Err(problem) => {
                        journal.lock().problems.push(problem.clone());
                        format!("403 {problem}")
                    }
                };
                // Who has sent it may be gone.
                let _ =
                    (&stream).write_all(format!("HTTP/1.1 {answer}\r\nContent-Length: 0\r\n\r\n").as_bytes());
            }
        });
        port
    }

    /// Says that somebody else is sending what is asked for, or not any more.
    pub fn set_busy(&self, is_busy: bool) {
        self.lock().builds.is_busy = is_busy;
    }

    /// Takes no debug information, while it takes profiles, or takes it again.
    pub fn set_away(&self, is_away: bool) {
        self.lock().builds.is_away = is_away;
    }

    fn take_put(&self, mut stream: &TcpStream) -> Result<(), String> {
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            stream.read_exact(&mut byte).map_err(|error| error.to_string())?;
            head.push(byte[0]);
        }
        let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
        let path = head.strip_prefix("put /content/").ok_or("no PUT")?;
        let (upload_id, rest) = path.split_once("?signature=secret ").ok_or("no signature")?;
        let length =
            rest.lines().find_map(|line| line.strip_prefix("content-length: ")?.trim().parse::<usize>().ok());
        let mut content = vec![0; length.ok_or("no length")?];
        stream.read_exact(&mut content).map_err(|error| error.to_string())?;
        let mut inner = self.lock();
        let build = inner.builds.by_id.values_mut().find(|build| build.upload_id == upload_id);
        build.ok_or("no such upload")?.content = content;
        Ok(())
    }
}

fn invalid<T>(journal: &Journal, problem: impl Into<String>) -> Result<T, Status> {
    let problem = problem.into();
    journal.lock().problems.push(problem.clone());
    Err(Status::invalid_argument(problem))
}

#[tonic::async_trait]
impl DebuginfoService for Service {
    async fn should_initiate_upload(
        &self,
        request: Request<ShouldInitiateUploadRequest>,
    ) -> Result<Response<ShouldInitiateUploadResponse>, Status> {
        self.authorized(request.metadata())?;
        let request = request.into_inner();
        let is_hexadecimal =
            !request.build_id.is_empty() && request.build_id.bytes().all(|byte| byte.is_ascii_hexdigit());
        if !is_hexadecimal || request.build_id_type == BuildIdType::UnknownUnspecified as i32 {
            return invalid(&self.0, format!("build id {:?}", request.build_id));
        }
        let mut inner = self.0.lock();
        inner.builds.asked += 1;
        if inner.builds.is_away {
            return Err(Status::unavailable("no debug information is taken now"));
        }
        let has_it = inner.builds.by_id.get(&request.build_id).is_some_and(|build| build.finished);
        let reason = if has_it && !request.force {
            "Debuginfo already exists and is not marked as invalid, therefore no new upload is needed."
        } else if inner.builds.is_busy {
            "A previous upload is still in progress and not stale yet (only stale uploads can be retried)."
        } else {
            "First time we see this Build ID, therefore please upload!"
        };
        let should_initiate_upload = reason.starts_with("First");
        Ok(Response::new(ShouldInitiateUploadResponse { should_initiate_upload, reason: reason.into() }))
    }

    async fn initiate_upload(
        &self,
        request: Request<InitiateUploadRequest>,
    ) -> Result<Response<InitiateUploadResponse>, Status> {
        self.authorized(request.metadata())?;
        let request = request.into_inner();
        if request.hash.is_empty() || request.size <= 0 || request.size > MAX_SIZE {
            return invalid(&self.0, format!("hash {:?}, size {}", request.hash, request.size));
        }
        let mut inner = self.0.lock();
        let http_port = inner.builds.http_port;
        let count = inner.builds.by_id.len();
        let build = inner.builds.by_id.entry(request.build_id.clone()).or_default();
        if build.finished && !request.force {
            return Err(Status::already_exists("Debuginfo already exists."));
        }
        let upload_id = format!("upload-{count}-{}", build.begun);
        *build = Build {
            kind: request.build_id_type,
            size: request.size.cast_unsigned(),
            hash: request.hash,
            upload_id: upload_id.clone(),
            begun: build.begun + 1,
            ..Build::default()
        };
        let (upload_strategy, signed_url) = match http_port {
            0 => (UploadStrategy::Grpc, String::new()),
            port => {
                let url = format!("http://127.0.0.1:{port}/content/{upload_id}?signature=secret");
                (UploadStrategy::SignedUrl, url)
            }
        };
        let upload_instructions = Some(UploadInstructions {
            build_id: request.build_id,
            upload_id,
            upload_strategy: upload_strategy.into(),
            signed_url,
            r#type: request.r#type,
        });
        Ok(Response::new(InitiateUploadResponse { upload_instructions }))
    }

    async fn upload(
        &self,
        request: Request<Streaming<UploadRequest>>,
    ) -> Result<Response<UploadResponse>, Status> {
        self.authorized(request.metadata())?;
        let mut stream = request.into_inner();
        let first = stream.message().await?.and_then(|message| message.data);
        let Some(Data::Info(UploadInfo { build_id, upload_id, .. })) = first else {
            return invalid(&self.0, "the first message of an upload is not info");
        };
        let mut content = Vec::new();
        while let Some(message) = stream.message().await? {
            match message.data {
                Some(Data::ChunkData(chunk)) if chunk.len() <= MAX_CHUNK => content.extend(chunk),
                other => return invalid(&self.0, format!("a message of an upload: {}", other.is_some())),
            }
        }
        let size = content.len() as u64;
        let mut inner = self.0.lock();
        match inner.builds.by_id.get_mut(&build_id) {
            Some(build) if build.upload_id == upload_id => build.content = content,
            _ => {
                drop(inner);
                return invalid(&self.0, "an upload that was not begun");
            }
        }
        Ok(Response::new(UploadResponse { build_id, size }))
    }

    async fn mark_upload_finished(
        &self,
        request: Request<MarkUploadFinishedRequest>,
    ) -> Result<Response<MarkUploadFinishedResponse>, Status> {
        self.authorized(request.metadata())?;
        let request = request.into_inner();
        let mut inner = self.0.lock();
        let build = inner.builds.by_id.get_mut(&request.build_id);
        let problem = match build {
            None => Some("a build that was not begun".to_owned()),
            Some(build) if build.upload_id != request.upload_id => Some("another upload".to_owned()),
            Some(build) if build.content.len() as u64 != build.size => {
                Some(format!("{} bytes of {}", build.content.len(), build.size))
            }
            Some(build) if !build.content.starts_with(b"\x7fELF") => Some("no ELF file".to_owned()),
            Some(build) => {
                build.finished = true;
                None
            }
        };
        drop(inner);
        match problem {
            Some(problem) => invalid(&self.0, problem),
            None => Ok(Response::new(MarkUploadFinishedResponse {})),
        }
    }
}
