//! From the spool to the store: what waits is sent, the oldest first, until it has arrived. What cannot be sent now is tried again, later
//! and later; what the store refuses for good is set aside alone, whatever it was sent together with.

mod backoff;
mod state;

use std::{collections::VecDeque, sync::Arc, time::Duration};

use prost::Message;
use proto::profilestore::{RawProfileSeries, WriteRawRequest};
use tokio::{
    task::spawn_blocking,
    time::{Instant, sleep, sleep_until},
};
use tracing::{debug, info, warn};

use self::backoff::Backoff;
pub use self::state::{Delivery, DeliveryCounts, Outcome};
use crate::{
    spool::{Spool, Taken},
    store::parca::{Failure, Parca},
};

/// Bytes that are sent in one call, if one profile has no more: what gRPC servers take if nobody tells them otherwise is 4 MiB.
pub const CALL_BYTES: usize = 4 << 20;
/// So often a store may fail at the same profiles before they are sent in two parts, to find how much it takes, or the one that it fails
/// at.
const FAILURES: u32 = 3;
/// The pause while such a one is looked for, and the server takes others.
const AFTER_HALVING: Duration = Duration::from_millis(250);
/// So often more is taken from the spool, to see whether the store takes anything.
const MOST_OTHERS: u32 = 4;
/// Who is refused does not come back at once.
const AFTER_REFUSAL: Duration = Duration::from_millis(100);
/// Room for what is around the profiles of a call.
const AROUND: usize = 64 << 10;

/// Writes the profiles of a window into the spool, in entries of the size that is sent at once. Blocks. Says how many could not be
/// written.
pub fn put(spool: &Spool, series: Vec<RawProfileSeries>) -> u64 {
    let mut lost = 0;
    let mut entry = Vec::new();
    let mut bytes = 0;
    let mut write = |entry: Vec<RawProfileSeries>| {
        if entry.is_empty() {
            return;
        }
        let profiles = entry.len() as u64;
        let payload = WriteRawRequest { series: entry, normalized: true }.encode_to_vec();
        if let Err(error) = spool.put(&payload, profiles) {
            // One line a window: what is wrong with the folder is wrong for all of them.
            if lost == 0 {
                warn!("profiles are lost: {error}");
            }
            lost += profiles;
        }
    };
    for one in series {
        let size = one.encoded_len();
        if bytes + size > CALL_BYTES - AROUND {
            write(std::mem::take(&mut entry));
            bytes = 0;
        }
        bytes += size;
        entry.push(one);
    }
    write(entry);
    lost
}

/// Sends what is in the spool, every so often, for ever.
pub async fn run(delivery: Arc<Delivery>, store: Arc<Parca>, interval: Duration) {
    let spool = Arc::clone(&delivery.spool);
    loop {
        let next = Instant::now() + interval;
        while let Some(batch) = take(&spool, None).await {
            let taken = deliver(&delivery, &store, batch).await;
            remove(&spool, taken).await;
        }
        sleep_until(next).await;
        // What came meanwhile has left a mark.
        if spool.content().entries == 0 {
            spool.arrived.notified().await;
        }
    }
}

/// Entries that were taken, and the profiles in those that were taken last.
type Batch = (Taken, Vec<RawProfileSeries>);

/// The oldest entries, or those that follow on what was taken, as much as is sent at once.
async fn take(spool: &Arc<Spool>, before: Option<Taken>) -> Option<Batch> {
    let spool = Arc::clone(spool);
    let taking = spawn_blocking(move || {
        let most = (CALL_BYTES - AROUND) as u64;
        let mut taken = match before {
            None => spool.take(most)?,
            Some(mut taken) => {
                spool.take_more(&mut taken, most);
                taken
            }
        };
        let mut series = Vec::new();
        for payload in taken.payloads.drain(..) {
            match WriteRawRequest::decode(payload.as_slice()) {
                Ok(request) => series.extend(request.series),
                // It is what was written, so by another release.
                Err(error) => {
                    spool.count_damaged(1);
                    warn!("what waits in the spool is of another release, and is set aside: {error}");
                    spool.keep_refused(&payload);
                }
            }
        }
        Some((taken, series))
    });
    // A fault in there is none of the entries'.
    taking.await.unwrap_or_default()
}

async fn remove(spool: &Arc<Spool>, taken: Taken) {
    let spool = Arc::clone(spool);
    // Nobody can do anything about a fault in there.
    let _ = spawn_blocking(move || spool.remove(&taken)).await;
}

/// Profiles that are sent in one call.
struct Piece {
    series: Vec<RawProfileSeries>,
    /// How often the store failed in a way that may be their own fault.
    failures: u32,
    /// When the server itself failed at them first.
    stumbled: Option<Instant>,
    /// How often it failed at them since it has taken others.
    blamed: u32,
}

impl Piece {
    fn new(series: Vec<RawProfileSeries>) -> Self {
        Piece { series, failures: 0, stumbled: None, blamed: 0 }
    }

    fn bytes(&self) -> u64 {
        self.series.iter().map(Message::encoded_len).sum::<usize>() as u64
    }

    /// Whether it cannot be made smaller, and has failed too often.
    fn is_stuck(&self) -> bool {
        self.series.len() == 1 && self.failures > FAILURES
    }

    /// Two of it, that have failed as often.
    fn halves(self) -> [Piece; 2] {
        let mut first = self.series;
        let second = first.split_off(first.len() / 2);
        let (failures, stumbled) = (self.failures, self.stumbled);
        [first, second].map(|series| Piece { series, failures, stumbled, blamed: 0 })
    }
}

/// Sends profiles until each has arrived or was refused. Gives what was taken: more than before, where only others could show whether the
/// store fails at everything or at one profile.
async fn deliver(delivery: &Delivery, store: &Parca, (mut taken, series): Batch) -> Taken {
    let mut pieces = VecDeque::from([Piece::new(series)]);
    pieces.retain(|piece| !piece.series.is_empty());
    let mut backoff = Backoff::new();
    let mut last_sent: Option<Instant> = None;
    let (mut said, mut others) = (false, 0);
    while let Some(mut piece) = pieces.pop_front() {
        let profiles = piece.series.len() as u64;
        let failure = match store.write(piece.series.clone()).await {
            Ok(()) => {
                backoff = Backoff::new();
                last_sent = Some(Instant::now());
                if let Some(outage) = delivery.sent(profiles, piece.bytes()) {
                    info!("the store takes profiles again, after {} seconds", outage.as_secs());
                }
                continue;
            }
            Err(failure) => failure,
        };
        let (code, reason) = match failure {
            Failure::Refused(reason) => {
                delivery.count_call("refused");
                if profiles > 1 {
                    debug!(
                        "the store refuses {profiles} profiles together, which are sent in two parts: {reason}"
                    );
                    piece.halves().into_iter().rev().for_each(|half| pieces.push_front(half));
                } else {
                    set_aside(delivery, piece, &reason, &mut said).await;
                }
                sleep(AFTER_REFUSAL).await;
                continue;
            }
            Failure::Stumbles(code, reason) => {
                piece.failures += 1;
                let since = *piece.stumbled.get_or_insert_with(Instant::now);
                // It takes others, but not this.
                piece.blamed += u32::from(last_sent.is_some_and(|sent| sent > since));
                if piece.is_stuck() && piece.blamed >= FAILURES {
                    delivery.count_call(code);
                    let reason = format!("it fails at it again and again: {reason}");
                    set_aside(delivery, piece, &reason, &mut said).await;
                    continue;
                }
                (code, reason)
            }
            Failure::TooMuch(code, reason) => {
                piece.failures += 1;
                (code, reason)
            }
            Failure::Later(code, reason) => (code, reason),
        };
        if delivery.failed(code, &reason) {
            warn!("the store does not take profiles, which wait in the spool: {reason} ({code})");
        }
        if piece.failures <= FAILURES {
            pieces.push_front(piece);
            sleep(backoff.next()).await;
        } else if profiles > 1 {
            // Smaller ones go through, or show which it is: that is found out without long pauses.
            piece.halves().into_iter().rev().for_each(|half| pieces.push_front(half));
            sleep(AFTER_HALVING).await;
        } else {
            // Whether the server takes others shows when they are tried.
            let no_others = piece.blamed == 0;
            let pause = if no_others { backoff.next() } else { AFTER_HALVING };
            pieces.push_back(piece);
            if no_others && others < MOST_OTHERS && pieces.iter().all(Piece::is_stuck) {
                others += 1;
                let more;
                let Some(batch) = take(&delivery.spool, Some(taken)).await else { return Taken::default() };
                (taken, more) = batch;
                if !more.is_empty() {
                    pieces.push_front(Piece::new(more));
                }
            }
            sleep(pause).await;
        }
    }
    taken
}

/// Gives a profile up that the store will never take, but for somebody to look at.
async fn set_aside(delivery: &Delivery, piece: Piece, reason: &str, said: &mut bool) {
    let labels = labels(&piece.series);
    // One line for what was sent together: the others are in the folder.
    if std::mem::replace(said, true) {
        debug!("the store refuses a profile for good, of {labels}: {reason}");
    } else {
        warn!("the store refuses a profile for good, of {labels}: {reason}");
    }
    delivery.refused(piece.series.len() as u64, piece.bytes());
    let payload = WriteRawRequest { series: piece.series, normalized: true }.encode_to_vec();
    let spool = Arc::clone(&delivery.spool);
    // Kept if that works.
    let _ = spawn_blocking(move || spool.keep_refused(&payload)).await;
}

fn labels(piece: &[RawProfileSeries]) -> String {
    let labels = piece.iter().filter_map(|series| series.labels.as_ref()).flat_map(|labels| &labels.labels);
    let text = labels.map(|label| format!("{}={:?}", label.name, label.value)).collect::<Vec<_>>();
    format!("{{{}}}", text.join(", "))
}
