//! A collector that says what a test wants it to, over a real socket with the real codec and real files; and an
//! uploader, made of the library's parts, that listens to it.

use std::{
    fs::File,
    io::Write,
    os::fd::AsFd,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use ipc::{
    Channel, ChannelError, CollectorEnd, ExecutableId, ExecutableKind, FromCollector, FromUploader, Identity,
    KernelSymbols, Process, ProcessId, Receiver, Sample, Sender, UserFrame, Welcome, greet_uploader,
};
use proto::pprof::Profile;
use records::{End, FileOffset};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{sleep, timeout},
};
use tokio_seqpacket::UnixSeqpacketListener;
use uploader::{
    collector_client,
    confine::Confinement,
    flags::HttpAddress,
    http::{self, Access, Hosts, server},
    profile::decode,
    state::Shared,
    store::local::LocalStore,
    targets::TargetMaker,
    windows,
};

/// Length of a window in these tests.
pub(crate) const WINDOW: Duration = Duration::from_millis(400);
/// Nothing in these tests takes this long, even on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// The uploader's parts, running, and the socket that they look for a collector at.
pub(crate) struct Bench {
    folder: TempDir,
    listener: UnixSeqpacketListener,
    port: u16,
}

impl Bench {
    pub(crate) async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("collector.sock");
        let listener = UnixSeqpacketListener::bind(&socket).unwrap();
        let store = Arc::new(LocalStore::open(&folder.path().join("store"), 1 << 20).unwrap());
        let maker = TargetMaker::new("node-1", [("zone".to_owned(), "z".to_owned())]);
        let (shared, requests) = Shared::new(maker, true, 20 << 20, WINDOW, None, Arc::default());
        let page =
            server::listen_on(&HttpAddress::Host("127.0.0.1".into(), 0), "--http-address").await.unwrap();
        let port = page.local_addr().unwrap().port();
        let access = Access { hosts: Hosts::new([]), token: None };
        let router = http::routers(Arc::clone(&shared), WINDOW, access, Confinement::default(), None).page;
        tokio::spawn(server::serve(page, router, WINDOW));
        let sinks = windows::Sinks { local: Some(store), spool: None };
        let (_, stop) = tokio::sync::oneshot::channel();
        tokio::spawn(windows::run(Arc::clone(&shared), WINDOW, sinks, stop));
        tokio::spawn(collector_client::run(shared, socket, requests));
        Bench { folder, listener, port }
    }

    pub(crate) fn store(&self) -> PathBuf {
        self.folder.path().join("store")
    }

    /// The uploader's next connection, before a word was said.
    pub(crate) async fn accept(&mut self) -> CollectorEnd {
        Channel::new(timeout(PATIENCE, self.listener.accept()).await.unwrap().unwrap())
    }

    /// A session: greeted and welcomed.
    pub(crate) async fn session(&mut self, epoch: u64) -> Session {
        let mut channel = self.accept().await;
        greet_uploader(&mut channel).await.unwrap();
        let (sender, receiver) = channel.split();
        let session = Session { sender, receiver };
        session.send(&welcome(epoch)).await;
        session
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.ask(&format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")).await
    }

    pub(crate) async fn ask(&self, request: &str) -> Answer {
        let talk = async {
            let mut stream = TcpStream::connect(("127.0.0.1", self.port)).await.unwrap();
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut bytes = Vec::new();
            // A refused request may end in a reset.
            let _ = stream.read_to_end(&mut bytes).await;
            bytes
        };
        let bytes = timeout(PATIENCE, talk).await.unwrap();
        let head =
            bytes.windows(4).position(|window| window == b"\r\n\r\n").map_or(bytes.len(), |end| end + 4);
        let text = String::from_utf8_lossy(&bytes[..head]).to_ascii_lowercase();
        let status = text.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        Answer { status, head: text, body: bytes[head..].to_vec() }
    }

    /// The profile that `/query` answers; the selector's special characters are encoded here.
    pub(crate) async fn profile(&self, selector: &str, rest: &str) -> Result<Profile, Answer> {
        let answer = self.get(&format!("/query?query={}{rest}", encoded(selector))).await;
        if answer.status == 200 { Ok(decode(&answer.body).unwrap()) } else { Err(answer) }
    }

    /// The value of a line of `/metrics`.
    pub(crate) async fn metric(&self, line: &str) -> u64 {
        let text = self.get("/metrics").await.text();
        let value = text.lines().find_map(|candidate| candidate.strip_prefix(line)?.strip_prefix(' '));
        value.unwrap_or_else(|| panic!("no {line} in:\n{text}")).parse().unwrap()
    }

    /// Waits until something holds.
    pub(crate) async fn until(&self, what: &str, holds: impl AsyncFn() -> bool) {
        let wait = async {
            while !holds().await {
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("never: {what}"));
    }
}

pub(crate) fn encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |encoded, byte| format!("{encoded}%{byte:02x}"))
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }
}

/// A connection from the collector's side.
pub(crate) struct Session {
    sender: Sender<FromCollector>,
    receiver: Receiver<FromUploader>,
}

impl Session {
    pub(crate) async fn send(&self, message: &FromCollector) {
        self.sender.send(message, None).await.unwrap();
    }

    pub(crate) async fn send_with(&self, message: &FromCollector, file: &File) {
        self.sender.send(message, Some(file.as_fd())).await.unwrap();
    }

    pub(crate) async fn send_bytes(&self, bytes: &[u8]) -> Result<(), ChannelError> {
        self.sender.send_packet(bytes, None).await
    }

    pub(crate) async fn request(&mut self) -> FromUploader {
        timeout(PATIENCE, self.receiver.receive()).await.unwrap().unwrap().0
    }

    /// Waits for the uploader to hang up.
    pub(crate) async fn hung_up(mut self) {
        let wait = async { while self.receiver.receive().await.is_ok() {} };
        timeout(PATIENCE, wait).await.unwrap();
    }
}

pub(crate) fn welcome(epoch: u64) -> FromCollector {
    FromCollector::Welcome(Welcome {
        epoch,
        sampling_frequency: 100,
        cpus: 2,
        kernel_release: "6.18.0".into(),
        limitations: vec![],
    })
}

pub(crate) fn process(id: u32, comm: &str) -> FromCollector {
    let comm = comm.as_bytes().to_vec();
    FromCollector::Process(Process { id: ProcessId(id), pid: 1000 + id, start_time: 1, comm, cgroup: None })
}

pub(crate) fn executable(id: u32, inode: u64, path: &Path) -> FromCollector {
    let identity = Identity { device: 9, inode, ctime: 1, ctime_nanos: 2, size: 3 };
    FromCollector::Executable(ipc::Executable {
        id: ExecutableId(id),
        kind: ExecutableKind::File(identity),
        path: path.to_str().unwrap().as_bytes().to_vec(),
    })
}

pub(crate) fn samples(process: u32, count: usize, user: &[UserFrame]) -> FromCollector {
    let sample = Sample {
        timestamp: 1,
        process: ProcessId(process),
        tid: 77,
        cpu: 0,
        thread_comm: b"worker".to_vec(),
        end: End::Root as u8,
        guessed: 0,
        kernel: vec![],
        user: user.to_vec(),
    };
    FromCollector::Samples(vec![sample; count])
}

/// The kernel's symbols, and the file that goes with them.
pub(crate) fn kernel_symbols() -> (FromCollector, File) {
    let mut file = tempfile::tempfile().unwrap();
    write!(file, "0 0 _text\n0 1000 do_syscall_64\n0 2000 vfs_read\n1 0 ext4_file_read_iter\n").unwrap();
    (FromCollector::KernelSymbols(KernelSymbols { modules: vec![String::new(), "ext4".into()] }), file)
}

/// Where in this test's own file an address of its code lies, by the system's list of mappings.
pub(crate) fn own_offset(address: usize) -> FileOffset {
    let address = address as u64;
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let offset = maps.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        let (start, end) = words.next()?.split_once('-')?;
        let number = |word| u64::from_str_radix(word, 16).ok();
        let (start, end, offset) = (number(start)?, number(end)?, number(words.nth(1)?)?);
        (start <= address && address < end).then(|| address - start + offset)
    });
    FileOffset(offset.unwrap())
}

/// The names of a profile's stacks, innermost first, each with its count.
pub(crate) fn stacks(profile: &Profile) -> Vec<(Vec<String>, i64)> {
    let string = |index: i64| profile.string_table[usize::try_from(index).unwrap()].clone();
    let index = |id: u64| usize::try_from(id - 1).unwrap();
    let names = |id: &u64| -> Vec<String> {
        let location = &profile.location[index(*id)];
        if location.line.is_empty() {
            let mapping = &profile.mapping[index(location.mapping_id)];
            return vec![format!("{}+{:#x}", string(mapping.filename), location.address)];
        }
        location.line.iter().map(|line| string(profile.function[index(line.function_id)].name)).collect()
    };
    let samples = profile.sample.iter();
    samples.map(|sample| (sample.location_id.iter().flat_map(names).collect(), sample.value[0])).collect()
}

pub(crate) fn total(profile: &Profile) -> i64 {
    profile.sample.iter().map(|sample| sample.value[0]).sum()
}
