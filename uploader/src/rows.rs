//! Unwind rows for the collector: computed from the executables that it asks for, one at a time, and sent in parts. What
//! has no rows gets an empty table, so that it is not asked for again.

use std::{
    collections::HashSet,
    fs::File,
    sync::Arc,
    time::{Duration, Instant},
};

use ipc::{ChannelError, ExecutableId, FromUploader, PageRows, Sender, TableBegin};
use objects::{ObjectError, UnwindRows};
use security::TimeShare;
use tokio::{
    sync::{Mutex, Semaphore},
    time::sleep,
};
use tracing::debug;

use crate::{
    sparingly::warn_sparingly,
    state::Shared,
    worker::{JobError, Worker},
};

/// How long the rows of one executable may take at first: those of nearly all take less than a tenth of it. And how long with what a slow disk
/// takes for it.
const QUICK: Duration = Duration::from_millis(500);
const QUICK_LIMIT: Duration = Duration::from_secs(3);
/// How long those of the others may take: more than 30 million rows. A GiB of text takes less than that, too.
const SLOW: Duration = Duration::from_secs(10);
const SLOW_LIMIT: Duration = Duration::from_secs(30);
/// Executables that wait, with their files open: of the first kind, and of the second.
const MAX_WAITING: usize = 256;
const MAX_SLOW: usize = 4;
/// Rows are computed for so long without a pause: those of all that runs, when the collector is new. After that, one part of the time in so many.
const QUICK_AT_ONCE: Duration = Duration::from_mins(1);
const SLOW_AT_ONCE: Duration = Duration::from_secs(20);
const SHARE: u32 = 8;
/// Most rows of one executable: 32 MiB while they are here.
const MAX_ROWS: usize = 8 << 20;
/// Tables that wait to be sent: each may be large.
pub const MAX_TABLES: usize = 1;
/// So many rules, pages and rows make a message; each takes 15 bytes at most, and a message has 64 KiB.
const PER_MESSAGE: usize = 4096;

/// A table, and the session that the executable's id is of.
pub type Table = (u64, ExecutableId, UnwindRows);

/// Executables whose rows were asked for and whose file is not here.
#[derive(Debug, Default)]
pub struct Wanted(HashSet<ExecutableId>);

impl Wanted {
    /// Most that are remembered; what is beyond is asked for again by the collector.
    const MOST: usize = 4096;

    /// Remembers that rows are wanted as soon as the file is here.
    pub fn add(&mut self, id: ExecutableId) {
        if self.0.len() < Self::MOST {
            self.0.insert(id);
        }
    }

    /// Whether rows were wanted of it, now that its file is here.
    pub fn take(&mut self, id: ExecutableId) -> bool {
        self.0.remove(&id)
    }

    /// The session is over, and the ids with it.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}

/// Computes rows, one executable at a time, in turn. One that takes long is begun anew beside the others, and has its share of the time: who
/// runs what takes long, again and again, keeps nobody else from having rows.
#[derive(Debug)]
pub struct RowsWorker {
    quick: Lane,
    slow: Lane,
}

impl Default for RowsWorker {
    fn default() -> Self {
        RowsWorker { quick: Lane::new(MAX_WAITING, QUICK_AT_ONCE), slow: Lane::new(MAX_SLOW, SLOW_AT_ONCE) }
    }
}

impl RowsWorker {
    /// The rows of an executable. [`JobError::Busy`] or [`JobError::Refused`]: perhaps later.
    async fn read(&self, file: &Arc<File>) -> Result<Read, JobError> {
        let quick = self.quick.read(file, QUICK, QUICK_LIMIT).await;
        let is_slow = match &quick {
            Ok(Ok(rows)) => matches!(rows.problem, Some(ObjectError::TooMuchWork(_))),
            Ok(Err(_)) => false,
            Err(error) => matches!(error, JobError::TimedOut(_) | JobError::Hung(_)),
        };
        if is_slow { self.slow.read(file, SLOW, SLOW_LIMIT).await } else { quick }
    }
}

type Read = Result<UnwindRows, ObjectError>;

/// One after the other, with bounds for how many wait and for the time that all take.
#[derive(Debug)]
struct Lane {
    worker: Worker,
    places: Semaphore,
    /// Whoever has it is the one whose turn it is.
    share: Mutex<TimeShare>,
}

impl Lane {
    fn new(waiting: usize, at_once: Duration) -> Self {
        Lane {
            worker: Worker::new(1),
            places: Semaphore::new(1 + waiting),
            share: Mutex::new(TimeShare::new(at_once, SHARE)),
        }
    }

    async fn read(&self, file: &Arc<File>, time: Duration, limit: Duration) -> Result<Read, JobError> {
        let _place = self.places.try_acquire().map_err(|_| JobError::Busy)?;
        let mut share = self.share.lock().await;
        sleep(share.wait(Instant::now())).await;
        let begun = Instant::now();
        let file = Arc::clone(file);
        let job = move || UnwindRows::read_within(file.as_ref(), MAX_ROWS, time);
        let result = self.worker.run(limit, job).await;
        let now = Instant::now();
        share.spend(now.duration_since(begun), now);
        result
    }
}

/// Computes the rows of an executable and hands them to whoever sends.
pub async fn compute(shared: &Shared, session: u64, id: ExecutableId, path: &str, file: Arc<File>) {
    let read = shared.rows.read(&file).await;
    drop(file);
    let rows = match read {
        Ok(Ok(rows)) => {
            if let Some(problem) = &rows.problem {
                warn_sparingly(format_args!("{path}: {problem}; some of its stacks may be incomplete"));
            }
            shared.state().counts.rows_computed(&rows);
            rows
        }
        Ok(Err(ObjectError::Missing(_) | ObjectError::NotElf | ObjectError::Unsupported(_))) => {
            shared.state().counts.without_rows += 1;
            UnwindRows::default()
        }
        // The collector asks again, when less waits and less is stuck.
        Err(error @ (JobError::Busy | JobError::Refused)) => {
            shared.state().counts.rows_put_off += 1;
            debug!("the unwind information of {path} is not read now: {error}");
            return;
        }
        Ok(Err(error)) => not_read(shared, path, &error),
        Err(error) => not_read(shared, path, &error),
    };
    debug!("{path}: {} unwind rows, {} rules", rows.rows.len(), rows.rules.len());
    // Fails only at the end of the program.
    let _ = shared.tables.send((session, id, rows)).await;
}

fn not_read(shared: &Shared, path: &str, error: &dyn std::error::Error) -> UnwindRows {
    warn_sparingly(format_args!(
        "cannot read the unwind information of {path}: {error}; its stacks may be incomplete"
    ));
    shared.state().counts.without_rows += 1;
    UnwindRows::default()
}

/// Sends a table, part by part.
pub async fn send(
    sender: &Sender<FromUploader>,
    executable: ExecutableId,
    table: &UnwindRows,
) -> Result<(), ChannelError> {
    let count = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
    let begin = TableBegin {
        executable,
        first_page: table.first_page,
        pages: count(table.pages.len()),
        rows: count(table.rows.len()),
    };
    sender.send(&FromUploader::TableBegin(begin), None).await?;
    for rules in table.rules.chunks(PER_MESSAGE) {
        sender.send(&FromUploader::TableRules(rules.to_vec()), None).await?;
    }
    for pages in table.pages.chunks(PER_MESSAGE) {
        let pages = pages.iter().map(|page| PageRows { first: page.first, count: page.count });
        sender.send(&FromUploader::TablePages(pages.collect()), None).await?;
    }
    for rows in table.rows.chunks(PER_MESSAGE) {
        let rows = rows.iter().map(|row| row.0);
        sender.send(&FromUploader::TableRows(rows.collect()), None).await?;
    }
    sender.send(&FromUploader::TableEnd, None).await
}

#[cfg(test)]
mod tests {
    use records::{Cfa, Page, Row, Rule};

    use super::*;

    #[test]
    fn what_is_wanted_is_computed_once() {
        let mut wanted = Wanted::default();
        wanted.add(ExecutableId(1));
        assert!(!wanted.take(ExecutableId(2)));
        assert!(wanted.take(ExecutableId(1)) && !wanted.take(ExecutableId(1)));
        (0..10_000).for_each(|id| wanted.add(ExecutableId(id)));
        assert_eq!(wanted.0.len(), Wanted::MOST);
        wanted.clear();
        assert!(!wanted.take(ExecutableId(1)));
    }

    #[tokio::test]
    async fn who_finds_no_room_is_told_at_once() {
        let lane = Lane::new(1, QUICK_AT_ONCE);
        let file = Arc::new(tempfile::tempfile().unwrap());
        let read = || lane.read(&file, QUICK, QUICK_LIMIT);
        let turn = lane.share.lock().await;
        let third = async {
            let answer = read().await;
            drop(turn);
            answer
        };
        let (first, second, third) = tokio::join!(biased; read(), read(), third);
        // The file is empty.
        assert!(matches!((first, second), (Ok(Err(_)), Ok(Err(_)))));
        assert!(matches!(third, Err(JobError::Busy)));
        assert!(matches!(read().await, Ok(Err(_))));
    }

    #[tokio::test]
    async fn a_table_of_any_size_fits_the_messages() {
        let (ours, theirs) = tokio_seqpacket::UnixSeqpacket::pair().unwrap();
        let (uploader, collector): (ipc::UploaderEnd, ipc::CollectorEnd) =
            (ipc::Channel::new(ours), ipc::Channel::new(theirs));
        let table = UnwindRows {
            first_page: 7,
            pages: vec![Page { first: u32::MAX, count: u32::MAX }; 5000],
            rows: vec![Row(u32::MAX); 30_000],
            rules: vec![Rule { cfa: Cfa::Fp as u8, fp: 1, fp_offset: i16::MIN, cfa_offset: i32::MIN }; 5000],
            ..UnwindRows::default()
        };
        let (sender, _) = uploader.split();
        let (_, mut receiver) = collector.split();
        let hearing = async {
            let mut heard = (0, 0, 0);
            loop {
                match receiver.receive().await.unwrap().0 {
                    FromUploader::TableBegin(begin) => {
                        assert_eq!((begin.first_page, begin.pages, begin.rows), (7, 5000, 30_000));
                    }
                    FromUploader::TableRules(rules) => heard.0 += rules.len(),
                    FromUploader::TablePages(pages) => heard.1 += pages.len(),
                    FromUploader::TableRows(rows) => heard.2 += rows.len(),
                    FromUploader::TableEnd => return heard,
                    other => panic!("{other:?}"),
                }
            }
        };
        let (sent, heard) = tokio::join!(send(&sender, ExecutableId(1), &table), hearing);
        sent.unwrap();
        assert_eq!(heard, (5000, 5000, 30_000));
    }
}
