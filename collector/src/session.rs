//! The connection to the uploader: what waits to be sent, with a bound, and what the uploader may ask, with a limit.

use std::{
    collections::VecDeque,
    os::fd::{AsFd, OwnedFd},
};

use ipc::{CollectorEnd, FromCollector, FromUploader, Receiver, Sample, Sender};
use records::Loss;
use thiserror::Error;

use crate::counters::Losses;

/// Bytes that wait for the uploader to read. Twenty seconds of two busy CPUs; the oldest samples go first.
const MAX_WAITING: usize = 4 * 1024 * 1024;
/// Bytes of all but samples, which cannot be left out: beyond this the session ends, and the next one begins anew.
const MAX_WAITING_REGISTRY: usize = 1024 * 1024;
/// Whether the two hold: always, but where a test is to fail without them.
const BOUNDED: bool = cfg!(not(feature = "no-queue-bounds"));
/// Files that wait open. An executable beyond this is told of without its file, and the uploader may ask for it.
const MAX_WAITING_FILES: usize = 128;
/// Bytes of samples in a message: below the largest packet by more than the largest sample.
const BATCH_SIZE: usize = 48 * 1024;

/// What the uploader may ask: how many a second it gets an answer to, and how many at once. Whatever else it sends is
/// no [`FromUploader`] and ends the session.
///
/// | message | handler in `profiler` | opens |
/// |---|---|---|
/// | `Reopen` | `reopen` | an executable that this half has told of and that some process has mapped |
/// | `ReopenPerfMap` | `reopen_perf_map` | the perf map of a process that this half has told of |
/// | `Skip` | `skip` | nothing: a mark at a set of cgroups that this half has told of; no answer, and no limit but one message for each turn of the event loop |
/// | `TableBegin`, `TableRules`, `TablePages`, `TableRows`, `TableEnd` | `unwind_tables` | nothing; no answer, and no limit but the store's size and one message for each turn of the event loop |
const REQUESTS_PER_SECOND: u64 = 200;
const REQUESTS_AT_ONCE: u64 = 1000;

/// Why a session ended.
#[derive(Debug, Error)]
pub(crate) enum SessionError {
    #[error(transparent)]
    Channel(#[from] ipc::ChannelError),
    #[error(transparent)]
    Codec(#[from] ipc::CodecError),
    #[error("it does not read: {MAX_WAITING_REGISTRY} bytes of what may not be left out wait for it")]
    Stalled,
}

struct Packet {
    bytes: Vec<u8>,
    file: Option<OwnedFd>,
    /// Samples in it, if that is what it holds.
    samples: u64,
}

/// One uploader, from its greeting to its end.
pub(crate) struct Session {
    /// Counts up, so that "was this session told?" is one comparison.
    pub(crate) number: u32,
    sender: Sender<FromCollector>,
    receiver: Receiver<FromUploader>,
    waiting: VecDeque<Packet>,
    waiting_bytes: usize,
    waiting_registry: usize,
    waiting_files: usize,
    batch: Vec<Sample>,
    batch_size: usize,
    allowance: Allowance,
}

impl Session {
    pub(crate) fn new(number: u32, channel: CollectorEnd) -> Self {
        let (sender, receiver) = channel.split();
        Session {
            number,
            sender,
            receiver,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            waiting_registry: 0,
            waiting_files: 0,
            batch: Vec::new(),
            batch_size: 0,
            allowance: Allowance { left: REQUESTS_AT_ONCE, filled: 0 },
        }
    }

    /// Whether there is room for what the uploader need not know yet, and its file. More would end the session when who maps one file after
    /// the other is faster than the uploader reads.
    pub(crate) fn has_room_to_spare(&self) -> bool {
        self.waiting_files < MAX_WAITING_FILES && self.waiting_registry < MAX_WAITING_REGISTRY / 2
    }

    /// Puts a message behind all that waits, samples included.
    pub(crate) fn push(
        &mut self,
        message: &FromCollector,
        file: Option<OwnedFd>,
        losses: &mut Losses,
    ) -> Result<(), SessionError> {
        self.flush_batch(losses)?;
        let file = file.filter(|_| self.waiting_files < MAX_WAITING_FILES);
        self.enqueue(Packet { bytes: ipc::encode(message)?, file, samples: 0 }, losses);
        if self.waiting_registry > MAX_WAITING_REGISTRY && BOUNDED {
            return Err(SessionError::Stalled);
        }
        Ok(())
    }

    /// Adds a sample to the batch.
    pub(crate) fn push_sample(&mut self, sample: Sample, losses: &mut Losses) -> Result<(), SessionError> {
        // Upper bounds of the encoded lengths: 9 bytes a number, a frame two numbers and a variant.
        let size = 80 + sample.thread_comm.len() + 12 * (sample.kernel.len() + sample.user.len());
        if self.batch_size + size > BATCH_SIZE {
            self.flush_batch(losses)?;
        }
        self.batch_size += size;
        self.batch.push(sample);
        Ok(())
    }

    /// Makes a message of the samples so far.
    pub(crate) fn flush_batch(&mut self, losses: &mut Losses) -> Result<(), SessionError> {
        if self.batch.is_empty() {
            return Ok(());
        }
        let samples = self.batch.len() as u64;
        let bytes = ipc::encode(&FromCollector::Samples(std::mem::take(&mut self.batch)))?;
        self.batch_size = 0;
        self.enqueue(Packet { bytes, file: None, samples }, losses);
        Ok(())
    }

    fn enqueue(&mut self, packet: Packet, losses: &mut Losses) {
        self.waiting_bytes += packet.bytes.len();
        self.waiting_files += usize::from(packet.file.is_some());
        if packet.samples == 0 {
            self.waiting_registry += packet.bytes.len();
        }
        self.waiting.push_back(packet);
        while self.waiting_bytes > MAX_WAITING && BOUNDED {
            let Some(oldest) = self.waiting.iter().position(|packet| packet.samples > 0) else { break };
            if let Some(dropped) = self.waiting.remove(oldest) {
                self.waiting_bytes -= dropped.bytes.len();
                losses.add(Loss::QueueFull, dropped.samples);
            }
        }
    }

    /// Sends what waits until the uploader asks for something, and returns that. Cancel-safe.
    pub(crate) async fn next_request(&mut self) -> Result<FromUploader, SessionError> {
        loop {
            let Session { sender, receiver, waiting, .. } = self;
            let front = waiting.front();
            let sending = async {
                match front {
                    Some(packet) => {
                        sender.send_packet(&packet.bytes, packet.file.as_ref().map(AsFd::as_fd)).await
                    }
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                sent = sending => {
                    sent?;
                    self.sent();
                }
                received = receiver.receive() => return Ok(received?.0),
            }
        }
    }

    fn sent(&mut self) {
        if let Some(packet) = self.waiting.pop_front() {
            self.waiting_bytes -= packet.bytes.len();
            self.waiting_files -= usize::from(packet.file.is_some());
            if packet.samples == 0 {
                self.waiting_registry -= packet.bytes.len();
            }
        }
    }

    /// Samples that wait or are in the batch: lost if the session ends now.
    pub(crate) fn unsent_samples(&self) -> u64 {
        self.batch.len() as u64 + self.waiting.iter().map(|packet| packet.samples).sum::<u64>()
    }

    /// Whether one more request gets an answer; `now` in nanoseconds.
    pub(crate) fn may_ask(&mut self, now: u64) -> bool {
        self.allowance.take(now)
    }
}

/// So many at once, so many a second.
struct Allowance {
    left: u64,
    /// When it was last filled, in nanoseconds.
    filled: u64,
}

impl Allowance {
    fn take(&mut self, now: u64) -> bool {
        const NANOSECONDS: u64 = 1_000_000_000;
        let earned =
            now.saturating_sub(self.filled).min(NANOSECONDS * 10) * REQUESTS_PER_SECOND / NANOSECONDS;
        if earned > 0 {
            self.left = (self.left + earned).min(REQUESTS_AT_ONCE);
            self.filled = now;
        }
        let granted = self.left > 0;
        self.left = self.left.saturating_sub(1);
        granted
    }
}

#[cfg(test)]
mod tests {
    use ipc::{Channel, ProcessId, UploaderEnd};
    use tokio_seqpacket::UnixSeqpacket;

    use super::*;
    use crate::counters::KernelTotals;

    fn session() -> (Session, UploaderEnd) {
        let (a, b) = UnixSeqpacket::pair().unwrap();
        (Session::new(1, Channel::new(a)), Channel::new(b))
    }

    fn sample(timestamp: u64, frames: usize) -> Sample {
        Sample {
            timestamp,
            process: ProcessId(1),
            tid: 1,
            cpu: 0,
            thread_comm: vec![b'x'; 15],
            end: 1,
            guessed: 0,
            kernel: vec![],
            user: vec![ipc::UserFrame::Anonymous(records::ProcessAddress(u64::MAX)); frames],
        }
    }

    #[tokio::test]
    async fn messages_keep_their_order_and_batches_fit_a_packet() {
        let (mut session, uploader) = session();
        let mut losses = Losses::new();
        for i in 0..500 {
            session.push_sample(sample(i, 640), &mut losses).unwrap();
        }
        session.push(&FromCollector::Exit(ProcessId(9)), None, &mut losses).unwrap();
        let (sender, mut receiver) = uploader.split();
        let mut heard = 0;
        let hearing = async {
            loop {
                match receiver.receive().await.unwrap().0 {
                    FromCollector::Samples(samples) => {
                        for sample in samples {
                            assert_eq!(sample.timestamp, heard);
                            heard += 1;
                        }
                    }
                    FromCollector::Exit(_) => break,
                    other => panic!("{other:?}"),
                }
            }
            sender.send(&FromUploader::ReopenPerfMap(ProcessId(9)), None).await.unwrap();
        };
        let (request, ()) = tokio::join!(session.next_request(), hearing);
        assert_eq!(request.unwrap(), FromUploader::ReopenPerfMap(ProcessId(9)));
        assert_eq!(heard, 500);
        assert_eq!((session.waiting_bytes, session.waiting_registry, session.unsent_samples()), (0, 0, 0));
    }

    #[tokio::test]
    async fn who_does_not_read_loses_the_oldest_samples() {
        let (mut session, _uploader) = session();
        let mut losses = Losses::new();
        for i in 0..2000 {
            session.push_sample(sample(i, 640), &mut losses).unwrap();
        }
        assert!(session.waiting_bytes <= MAX_WAITING);
        let lost = losses.with(&KernelTotals::default())[Loss::QueueFull as usize];
        assert!(lost > 0 && lost + session.unsent_samples() == 2000);
        // What is left are the newest.
        let first: FromCollector = ipc::decode(&session.waiting[0].bytes).unwrap();
        assert!(matches!(first, FromCollector::Samples(samples) if samples[0].timestamp == lost));
    }

    #[tokio::test]
    async fn what_may_not_be_left_out_ends_the_session() {
        let (mut session, _uploader) = session();
        let mut losses = Losses::new();
        let message = FromCollector::Comm(ipc::Comm { process: ProcessId(1), comm: vec![0; 60_000] });
        let result = (0..30).try_for_each(|_| session.push(&message, None, &mut losses));
        assert!(matches!(result, Err(SessionError::Stalled)));
    }

    #[tokio::test]
    async fn what_need_not_be_told_yet_leaves_room_for_the_rest() {
        let message = FromCollector::Comm(ipc::Comm { process: ProcessId(1), comm: vec![0; 60_000] });
        let mut losses = Losses::new();
        let (mut first, _uploader) = session();
        let told = (0..30)
            .take_while(|_| first.has_room_to_spare() && first.push(&message, None, &mut losses).is_ok());
        assert_eq!(told.count(), MAX_WAITING_REGISTRY / 2 / 60_000 + 1);
        let (mut second, _uploader) = session();
        let file = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        let short = FromCollector::Exit(ProcessId(1));
        let told = (0..1000).take_while(|_| {
            second.has_room_to_spare() && second.push(&short, Some(file()), &mut losses).is_ok()
        });
        assert_eq!(told.count(), MAX_WAITING_FILES);
    }

    #[test]
    fn requests_have_a_limit() {
        let mut allowance = Allowance { left: REQUESTS_AT_ONCE, filled: 0 };
        let granted = (0..5000).filter(|_| allowance.take(1)).count() as u64;
        assert_eq!(granted, REQUESTS_AT_ONCE);
        let granted = (0..5000).filter(|_| allowance.take(1_000_000_001)).count() as u64;
        assert_eq!(granted, REQUESTS_PER_SECOND);
    }
}
