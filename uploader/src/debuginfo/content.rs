//! The content of a copy on its way to the server: a piece at a time, no faster than is allowed, and given up when nobody takes it.

use std::{
    os::unix::fs::FileExt as _,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{sync::mpsc, task::spawn_blocking, time::sleep};
use tokio_stream::wrappers::ReceiverStream;

use super::copy::Copy;

/// Most bytes of a piece; a server takes 8 MiB in a message.
const PIECE: u64 = 1 << 20;
/// Pieces that wait to be taken.
const WAITING: usize = 2;
/// When nothing was taken for so long, nothing will be.
const STALLED: Duration = Duration::from_mins(1);
/// How long a server may take to answer once it has all of it: it may bring a GB to a store of its own.
const ANSWER: Duration = Duration::from_mins(5);
/// How long the content may take beside what its rate says.
const BESIDE: Duration = Duration::from_mins(20);

/// Bytes a second that content is sent with, at most.
#[derive(Clone, Copy, Debug)]
pub struct Rate(pub u64);

impl Rate {
    /// How long so many bytes may take to be sent.
    pub(super) fn limit(self, bytes: u64) -> Duration {
        BESIDE + Duration::from_secs(bytes / self.0.max(1))
    }

    /// How long so many bytes are to take at least.
    fn time(self, bytes: u64) -> Duration {
        Duration::from_secs(1).mul_f64(bytes as f64 / self.0.max(1) as f64)
    }
}

/// How much of the content was taken.
#[derive(Clone, Default, Debug)]
pub(super) struct Progress {
    taken: Arc<AtomicU64>,
    all: u64,
}

impl Progress {
    /// Ends when nothing was taken for a minute; the words say so. Once all was taken it is the answer that is waited for.
    pub(super) async fn stalled(&self) -> String {
        let mut before = self.taken.load(Ordering::Relaxed);
        loop {
            sleep(STALLED).await;
            let now = self.taken.load(Ordering::Relaxed);
            if now >= self.all {
                sleep(ANSWER).await;
                return format!("no answer for {} seconds after all was sent", ANSWER.as_secs());
            }
            if now == before {
                return format!("nothing was taken for {} seconds, after {now} bytes", STALLED.as_secs());
            }
            before = now;
        }
    }
}

/// The content, in pieces; ends early where it cannot be read, and is then too short.
pub(super) fn pieces<T: Send + 'static>(
    copy: &Copy,
    rate: Rate,
    wrap: impl Fn(Vec<u8>) -> T + Send + 'static,
) -> (ReceiverStream<T>, Progress) {
    let (sender, receiver) = mpsc::channel(WAITING);
    let (file, size) = (Arc::clone(&copy.file), copy.size);
    let progress = Progress { taken: Arc::default(), all: size };
    let taken = progress.clone();
    // No piece takes much longer than a second.
    let most = PIECE.min(rate.0).max(1);
    spawn_blocking(move || {
        let mut at = 0;
        while at < size {
            let length = (size - at).min(most);
            let mut piece = vec![0; usize::try_from(length).unwrap_or_default()];
            if file.read_exact_at(&mut piece, at).is_err() || sender.blocking_send(wrap(piece)).is_err() {
                return;
            }
            at += length;
            taken.taken.store(at, Ordering::Relaxed);
            std::thread::sleep(rate.time(length));
        }
    });
    (ReceiverStream::new(receiver), progress)
}

#[cfg(test)]
mod tests {
    use std::{io::Write as _, time::Instant};

    use tokio_stream::StreamExt as _;

    use super::*;

    fn copy(size: usize) -> Copy {
        let mut file = tempfile::tempfile().unwrap();
        let bytes: Vec<u8> = (0..size).map(|at| at.to_le_bytes()[1]).collect();
        file.write_all(&bytes).unwrap();
        Copy { file: Arc::new(file), size: size as u64, hash: String::new() }
    }

    #[tokio::test]
    async fn all_of_it_and_no_faster() {
        const SIZE: usize = 300_000;
        let begun = Instant::now();
        let (mut pieces, _) = pieces(&copy(SIZE), Rate(SIZE as u64 * 5), |piece| piece);
        let mut all = Vec::new();
        while let Some(piece) = pieces.next().await {
            all.extend(piece);
        }
        assert!(all.len() == SIZE && all[256] == 1 && all[255] == 0);
        assert!(begun.elapsed() >= Duration::from_millis(200), "{:?}", begun.elapsed());
        assert_eq!(Rate(1000).limit(60_000), BESIDE + Duration::from_mins(1));
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_takes_is_given_up() {
        let progress = Progress { taken: Arc::default(), all: 100 };
        let going = progress.clone();
        tokio::spawn(async move {
            for bytes in 1..=10 {
                sleep(STALLED / 2).await;
                going.taken.store(bytes, Ordering::Relaxed);
            }
        });
        let begun = tokio::time::Instant::now();
        let text = progress.stalled().await;
        assert!(text.contains("after 10 bytes"), "{text}");
        assert!((STALLED * 5..=STALLED * 7).contains(&begun.elapsed()), "{:?}", begun.elapsed());
    }
}
