//! Unwind rows for the collector: computed from the executables that it asks for, one at a time, and sent in parts. What
//! has no rows gets an empty table, so that it is not asked for again.

use std::{collections::HashSet, fs::File, sync::Arc, time::Duration};

use ipc::{ChannelError, ExecutableId, FromUploader, PageRows, Sender, TableBegin};
use objects::{ObjectError, UnwindRows};
use tracing::{debug, warn};

use crate::{state::Shared, worker::JobError};

/// How long the rows of one executable may take. A GiB of text takes less than 10 s.
const ROWS_LIMIT: Duration = Duration::from_secs(30);
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

/// Computes the rows of an executable and hands them to whoever sends.
pub async fn compute(shared: &Shared, session: u64, id: ExecutableId, path: &str, file: Arc<File>) {
    let computed = shared.rows.run(ROWS_LIMIT, move || UnwindRows::read(file.as_ref(), MAX_ROWS)).await;
    let rows = match computed {
        Ok(Ok(rows)) => {
            if let Some(problem) = &rows.problem {
                warn!("{path}: {problem}; some of its stacks may be incomplete");
            }
            shared.state().counts.rows_computed(&rows);
            rows
        }
        Ok(Err(ObjectError::Missing(_) | ObjectError::NotElf | ObjectError::Unsupported(_))) => {
            shared.state().counts.without_rows += 1;
            UnwindRows::default()
        }
        Ok(Err(error)) => {
            warn!("cannot read the unwind information of {path}: {error}; its stacks may be incomplete");
            shared.state().counts.without_rows += 1;
            UnwindRows::default()
        }
        Err(error) => {
            warn!("cannot read the unwind information of {path}: {error}; its stacks may be incomplete");
            shared.state().counts.without_rows += 1;
            if matches!(error, JobError::Refused) {
                // Asked for again when fewer files are stuck.
                return;
            }
            UnwindRows::default()
        }
    };
    debug!("{path}: {} unwind rows, {} rules", rows.rows.len(), rows.rules.len());
    // Fails only at the end of the program.
    let _ = shared.tables.send((session, id, rows)).await;
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
