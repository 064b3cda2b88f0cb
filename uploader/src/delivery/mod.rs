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
use tracing::{info, warn};

use self::backoff::Backoff;
pub use self::state::{Delivery, DeliveryCounts, Outcome};
use crate::{
    spool::{Spool, Taken},
    store::parca::{Failure, Parca},
};

/// Bytes that are sent in one call, if one profile has no more: what gRPC servers take if nobody tells them otherwise is 4 MiB.
pub const CALL_BYTES: usize = 4 << 20;
/// So often a server may fail at the same profiles before they are sent in two parts, to find the one that it fails at.
const STUMBLES: u32 = 6;
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
        while let Some((taken, series)) = take(&spool).await {
            deliver(&delivery, &store, series).await;
            remove(&spool, taken).await;
        }
        sleep_until(next).await;
        // What came meanwhile has left a mark.
        if spool.content().entries == 0 {
            spool.arrived.notified().await;
        }
    }
}

/// The oldest entries, as much as is sent at once.
async fn take(spool: &Arc<Spool>) -> Option<(Taken, Vec<RawProfileSeries>)> {
    let spool = Arc::clone(spool);
    let taken = spawn_blocking(move || {
        let mut taken = spool.take((CALL_BYTES - AROUND) as u64)?;
        let mut series = Vec::new();
        for payload in taken.payloads.drain(..) {
            match WriteRawRequest::decode(payload.as_slice()) {
                Ok(request) => series.extend(request.series),
                // It is what was written, so by another release.
                Err(error) => {
                    warn!("what waits in the spool is of another release, and is set aside: {error}");
                    spool.keep_refused(&payload);
                }
            }
        }
        Some((taken, series))
    });
    // A fault in there is none of the entries'.
    taken.await.unwrap_or_default()
}

async fn remove(spool: &Arc<Spool>, taken: Taken) {
    let spool = Arc::clone(spool);
    // Nobody can do anything about a fault in there.
    let _ = spawn_blocking(move || spool.remove(&taken)).await;
}

/// Profiles that are sent in one call, and how often the server itself failed at them.
struct Piece {
    series: Vec<RawProfileSeries>,
    stumbles: u32,
    /// How many pieces had arrived when it failed first.
    arrived_before: u64,
}

impl Piece {
    fn new(series: Vec<RawProfileSeries>) -> Self {
        Piece { series, stumbles: 0, arrived_before: 0 }
    }

    fn bytes(&self) -> u64 {
        self.series.iter().map(Message::encoded_len).sum::<usize>() as u64
    }

    /// Two of it.
    fn halves(mut self) -> [Piece; 2] {
        let second = self.series.split_off(self.series.len() / 2);
        [Piece::new(self.series), Piece::new(second)]
    }
}

/// Sends profiles until each has arrived or was refused.
async fn deliver(delivery: &Delivery, store: &Parca, series: Vec<RawProfileSeries>) {
    let mut pieces = VecDeque::from([Piece::new(series)]);
    pieces.retain(|piece| !piece.series.is_empty());
    let mut backoff = Backoff::new();
    let mut arrived = 0;
    while let Some(mut piece) = pieces.pop_front() {
        let profiles = piece.series.len() as u64;
        let failure = match store.write(piece.series.clone()).await {
            Ok(()) => {
                backoff = Backoff::new();
                arrived += 1;
                if let Some(outage) = delivery.sent(profiles, piece.bytes()) {
                    info!("the store takes profiles again, after {} seconds", outage.as_secs());
                }
                continue;
            }
            Err(failure) => failure,
        };
        let (code, reason) = match failure {
            Failure::Refused(reason) if profiles > 1 => {
                delivery.count_call("refused");
                warn!(
                    "the store refuses {profiles} profiles together, which are sent in two parts: {reason}"
                );
                piece.halves().into_iter().rev().for_each(|half| pieces.push_front(half));
                continue;
            }
            Failure::Refused(reason) => {
                delivery.count_call("refused");
                set_aside(delivery, piece, &reason).await;
                continue;
            }
            Failure::Stumbles(code, reason) => {
                if piece.stumbles == 0 {
                    piece.arrived_before = arrived;
                }
                piece.stumbles += 1;
                // It takes others, but not this.
                if piece.stumbles > STUMBLES && profiles == 1 && arrived > piece.arrived_before {
                    delivery.count_call(code);
                    set_aside(delivery, piece, &format!("it fails at it again and again: {reason}")).await;
                    continue;
                }
                (code, reason)
            }
            Failure::Later(code, reason) => (code, reason),
        };
        if delivery.failed(code, &reason) {
            warn!("the store does not take profiles, which wait in the spool: {reason} ({code})");
        }
        if piece.stumbles <= STUMBLES {
            pieces.push_front(piece);
        } else if profiles > 1 {
            pieces.extend(piece.halves());
        } else {
            // Whether the server takes others shows when they are tried before.
            pieces.push_back(piece);
        }
        sleep(backoff.next()).await;
    }
}

/// Gives a profile up that the store will never take, but for somebody to look at.
async fn set_aside(delivery: &Delivery, piece: Piece, reason: &str) {
    warn!("the store refuses a profile for good, of {}: {reason}", labels(&piece.series));
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
