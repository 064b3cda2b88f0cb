//! Work on files that other people own, off the main thread and with a time limit: a file system can hang for ever
//! (FUSE, a network), a parser can meet a file that makes it panic, and neither may stop anything else.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI32, AtomicUsize, Ordering},
    },
    time::Duration,
};

use thiserror::Error;
use tokio::{sync::Semaphore, task::spawn_blocking, time::timeout};

/// Most threads that may be stuck in a read at one time, over all workers; beyond, files are refused. The runtime has
/// room for these and for the ones that work.
pub const MAX_STUCK: usize = 48;

static STUCK: AtomicUsize = AtomicUsize::new(0);

/// Why a job gave no answer.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum JobError {
    /// It took longer than its limit, and was at work; its thread is given up until it comes back by itself.
    #[error("no answer within {} ms", .0.as_millis())]
    TimedOut(Duration),
    /// The same, but its thread waits: for a file that is read, since nothing else can be waited for there.
    #[error("its file has not been read within {} ms", .0.as_millis())]
    Hung(Duration),
    /// It panicked: a fault of ours, which cost this one answer.
    #[error("the parser failed")]
    Panicked,
    /// Too many threads are stuck already.
    #[error("too many files are stuck already")]
    Refused,
    /// Too many jobs wait already.
    #[error("too many files wait already")]
    Busy,
}

/// Runs a few jobs at a time.
#[derive(Clone, Debug)]
pub struct Worker {
    slots: Arc<Semaphore>,
}

impl Worker {
    /// A worker that runs `slots` jobs at a time; more wait.
    pub fn new(slots: usize) -> Self {
        Worker { slots: Arc::new(Semaphore::new(slots)) }
    }

    /// Threads that are stuck now.
    pub fn stuck() -> usize {
        STUCK.load(Ordering::Relaxed)
    }

    /// Runs a job; its time counts from when it begins.
    pub async fn run<T: Send + 'static>(
        &self,
        limit: Duration,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, JobError> {
        // The semaphore is never closed.
        let _slot = self.slots.acquire().await.map_err(|_| JobError::Refused)?;
        if Self::stuck() >= MAX_STUCK {
            return Err(JobError::Refused);
        }
        let thread = Arc::new(AtomicI32::new(0));
        let of_job = Arc::clone(&thread);
        let mut handle = spawn_blocking(move || {
            of_job.store(rustix::thread::gettid().as_raw_nonzero().get(), Ordering::Relaxed);
            job()
        });
        if let Ok(result) = timeout(limit, &mut handle).await {
            return result.map_err(|_| JobError::Panicked);
        }
        let waits = waits(thread.load(Ordering::Relaxed));
        STUCK.fetch_add(1, Ordering::Relaxed);
        tokio::spawn(async move {
            // Whether it comes back with an answer or a panic, nobody waits for it any more.
            drop(handle.await);
            STUCK.fetch_sub(1, Ordering::Relaxed);
        });
        Err(if waits { JobError::Hung(limit) } else { JobError::TimedOut(limit) })
    }
}

/// Whether a thread of this process is neither on a CPU nor waiting for one (`proc_pid_stat(5)`: the state behind the name, which may hold
/// anything). One that has not begun is not.
fn waits(thread: i32) -> bool {
    let stat = std::fs::read(format!("/proc/self/task/{thread}/stat")).unwrap_or_default();
    let end_of_name = stat.iter().rposition(|byte| *byte == b')');
    end_of_name.and_then(|end| stat.get(end + 2)).is_some_and(|state| *state != b'R')
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn a_stuck_job_is_given_up_and_does_not_stop_others() {
        let worker = Worker::new(1);
        let (release, wait) = mpsc::channel::<()>();
        // A thread that has not begun by then does not wait.
        let limit = Duration::from_secs(2);
        let stuck = worker.run(limit, move || wait.recv().is_ok()).await;
        assert_eq!(stuck, Err(JobError::Hung(limit)));
        assert!(Worker::stuck() >= 1);
        assert_eq!(worker.run(Duration::from_secs(10), || 7).await, Ok(7));
        drop(release);
    }

    #[tokio::test]
    async fn one_that_works_too_long_does_not_hang() {
        let worker = Worker::new(1);
        let end = Arc::new(AtomicUsize::new(0));
        let (limit, until) = (Duration::from_millis(20), Arc::clone(&end));
        let busy = move || while until.load(Ordering::Relaxed) == 0 {};
        assert_eq!(worker.run(limit, busy).await, Err(JobError::TimedOut(limit)));
        end.store(1, Ordering::Relaxed);
    }

    #[tokio::test]
    async fn a_panic_costs_one_answer() {
        let worker = Worker::new(1);
        let result =
            worker.run(Duration::from_secs(10), || panic!("a parser's fault (expected in this test)")).await;
        assert_eq!(result, Err::<(), _>(JobError::Panicked));
        assert_eq!(worker.run(Duration::from_secs(10), || 1).await, Ok(1));
    }
}
