//! Work on files that other people own, off the main thread and with a time limit: a file system can hang for ever
//! (FUSE, a network), a parser can meet a file that makes it panic, and neither may stop anything else.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
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
    /// It took longer than its limit; its thread is given up until it comes back by itself.
    #[error("no answer within {} ms", .0.as_millis())]
    TimedOut(Duration),
    /// It panicked: a fault of ours, which cost this one answer.
    #[error("the parser failed")]
    Panicked,
    /// Too many threads are stuck already.
    #[error("too many files are stuck already")]
    Refused,
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
        let mut handle = spawn_blocking(job);
        if let Ok(result) = timeout(limit, &mut handle).await {
            return result.map_err(|_| JobError::Panicked);
        }
        STUCK.fetch_add(1, Ordering::Relaxed);
        tokio::spawn(async move {
            // Whether it comes back with an answer or a panic, nobody waits for it any more.
            drop(handle.await);
            STUCK.fetch_sub(1, Ordering::Relaxed);
        });
        Err(JobError::TimedOut(limit))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn a_stuck_job_is_given_up_and_does_not_stop_others() {
        let worker = Worker::new(1);
        let (release, wait) = mpsc::channel::<()>();
        let limit = Duration::from_millis(20);
        let stuck = worker.run(limit, move || wait.recv().is_ok()).await;
        assert_eq!(stuck, Err(JobError::TimedOut(limit)));
        assert!(Worker::stuck() >= 1);
        assert_eq!(worker.run(Duration::from_secs(10), || 7).await, Ok(7));
        drop(release);
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
