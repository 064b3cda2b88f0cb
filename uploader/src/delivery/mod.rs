//! From the spool to the store: what waits is sent, the oldest first, until it has arrived. What cannot be sent now is tried again, later
//! and later; what the store refuses for good is set aside alone, whatever it was sent together with.

mod state;

use std::{collections::VecDeque, sync::Arc, time::Duration};

use prost::Message;
use proto::profilestore::{RawProfileSeries, WriteRawRequest};
use tokio::{
    task::spawn_blocking,
    time::{Instant, sleep, sleep_until},
};
use tracing::{debug, info, warn};

pub use self::state::{Delivery, DeliveryCounts, Outcome};
use crate::{
    backoff::Backoff,
    spool::{Spool, Taken},
    store::parca::{Failure, Parca},
};

/// Bytes that are sent in one call, if one profile has no more: what gRPC servers take if nobody tells them otherwise is 4 MiB.
pub const CALL_BYTES: usize = 4 << 20;
/// So often a store may fail at the same profiles before they are sent in two parts, to find how much it takes, or the one that it fails
/// at.
const FAILURES: u32 = 3;
/// The pauses after a failure of the store's: from the first, at most, to the longest.
const PAUSES: [Duration; 2] = [Duration::from_secs(1), Duration::from_mins(1)];
/// How long a size is kept to that the store, or a proxy before it, was found to take.
const KEPT_TO: Duration = Duration::from_hours(1);
/// The least such size, in bytes.
const LEAST: usize = 64 << 10;
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
    let mut size = CallSize::default();
    loop {
        let next = Instant::now() + interval;
        while let Some(batch) = take(&spool, None).await {
            let taken = deliver(&delivery, &store, &mut size, batch).await;
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

/// How much is sent in one call.
#[derive(Default)]
struct CallSize {
    /// What was found to go through, where more did not, and since when.
    found: Option<(usize, Instant)>,
}

impl CallSize {
    /// Bytes of the next calls, at most.
    fn most(&self) -> usize {
        let found = self.found.filter(|(_, since)| since.elapsed() < KEPT_TO);
        found.map_or(usize::MAX, |(most, _)| most)
    }

    /// Profiles went through in parts of this size alone.
    fn learn(&mut self, largest: usize) {
        self.found = Some((largest.max(LEAST), Instant::now()));
    }

    /// Profiles in pieces that are no larger, but for one that is so alone.
    fn pieces(&self, series: Vec<RawProfileSeries>) -> VecDeque<Piece> {
        let (most, mut bytes) = (self.most(), 0);
        let mut pieces = VecDeque::<Piece>::new();
        for one in series {
            let size = one.encoded_len();
            match pieces.back_mut() {
                Some(piece) if bytes + size <= most => {
                    piece.series.push(one);
                    bytes += size;
                }
                _ => {
                    pieces.push_back(Piece::new(vec![one]));
                    bytes = size;
                }
            }
        }
        pieces
    }
}

/// Profiles that are sent in one call.
struct Piece {
    series: Vec<RawProfileSeries>,
    /// How often the store failed in a way that may be their own fault.
    failures: u32,
    /// When it failed at them first.
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
async fn deliver(
    delivery: &Delivery,
    store: &Parca,
    size: &mut CallSize,
    (mut taken, series): Batch,
) -> Taken {
    let mut pieces = size.pieces(series);
    // What tells a store that takes no more at once from one that fails at a profile.
    let (mut is_halved, mut largest, mut is_aside) = (false, 0, false);
    let mut backoff = Backoff::new(PAUSES[0], PAUSES[1]);
    let mut last_sent: Option<Instant> = None;
    let (mut said, mut warned, mut others) = (false, false, 0);
    while let Some(mut piece) = pieces.pop_front() {
        let profiles = piece.series.len() as u64;
        let failure = match store.write(piece.series.clone()).await {
            Ok(()) => {
                backoff.reset();
                last_sent = Some(Instant::now());
                largest = largest.max(usize::try_from(piece.bytes()).unwrap_or(usize::MAX));
                let outage = delivery.sent(profiles, piece.bytes());
                if let Some(outage) = outage.filter(|_| std::mem::take(&mut warned)) {
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
                    is_halved = true;
                } else {
                    is_aside = true;
                    set_aside(delivery, piece, &reason, &mut said).await;
                }
                sleep(AFTER_REFUSAL).await;
                continue;
            }
            // Perhaps it is what was sent, or how much.
            Failure::Stumbles(code, reason) | Failure::TooMuch(code, reason) => {
                piece.failures += 1;
                let since = *piece.stumbled.get_or_insert_with(Instant::now);
                // It takes others, but not this.
                piece.blamed += u32::from(last_sent.is_some_and(|sent| sent > since));
                if piece.is_stuck() && piece.blamed >= FAILURES {
                    delivery.count_call(code);
                    is_aside = true;
                    let reason = format!("it fails at it again and again: {reason}");
                    set_aside(delivery, piece, &reason, &mut said).await;
                    continue;
                }
                (code, reason)
            }
            Failure::Later(code, reason) => (code, reason),
        };
        // What is sent in parts fails and succeeds in turns: that is one story.
        if delivery.failed(code, &reason) && piece.failures <= FAILURES {
            warned = true;
            warn!("the store does not take profiles, which wait in the spool: {reason} ({code})");
        }
        if piece.failures <= FAILURES {
            pieces.push_front(piece);
            sleep(backoff.next()).await;
        } else if profiles > 1 {
            // Smaller ones go through, or show which it is: that is found out without long pauses.
            is_halved = true;
            piece.halves().into_iter().rev().for_each(|half| pieces.push_front(half));
            sleep(AFTER_HALVING).await;
        } else {
            // Whether the server takes others shows when they are tried.
            let no_others = piece.blamed == 0;
            let pause = if no_others { backoff.next() } else { AFTER_HALVING };
            pieces.push_back(piece);
            if no_others && others < MOST_OTHERS && pieces.iter().all(Piece::is_stuck) {
                let more;
                let Some(batch) = take(&delivery.spool, Some(taken)).await else { return Taken::default() };
                (taken, more) = batch;
                // Where there was nothing to be had, there may be later.
                others += u32::from(!more.is_empty());
                size.pieces(more).into_iter().rev().for_each(|piece| pieces.push_front(piece));
            }
            sleep(pause).await;
        }
    }
    if is_halved && !is_aside {
        size.learn(largest);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_went_through_is_the_size_of_the_next_calls() {
        let series = |count: usize| {
            let sample =
                proto::profilestore::RawSample { raw_profile: vec![7; 60 << 10], executable_info: vec![] };
            vec![RawProfileSeries { labels: None, samples: vec![sample] }; count]
        };
        let counts = |size: &CallSize, count| {
            size.pieces(series(count)).iter().map(|piece| piece.series.len()).collect::<Vec<_>>()
        };
        let mut size = CallSize::default();
        assert_eq!(counts(&size, 0), [0; 0]);
        assert_eq!(counts(&size, 9), [9]);
        size.learn(130 << 10);
        assert_eq!(counts(&size, 9), [2, 2, 2, 2, 1]);
        // One that is larger goes alone.
        size.learn(1);
        assert_eq!(counts(&size, 3), [1, 1, 1]);
        size.found = size.found.map(|(most, since)| (most, since.checked_sub(KEPT_TO).unwrap()));
        assert_eq!(counts(&size, 9), [9], "after a while more is tried again");
    }
}
