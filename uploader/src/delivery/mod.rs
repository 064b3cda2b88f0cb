//! From the spool to the store: what waits is sent, the oldest first, until it has arrived. What cannot be sent now is tried again, later
//! and later; what the store refuses for good is set aside alone, whatever it was sent together with.

mod backoff;
mod state;

use std::{sync::Arc, time::Duration};

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

/// Sends profiles until each has arrived or was refused.
async fn deliver(delivery: &Delivery, store: &Parca, series: Vec<RawProfileSeries>) {
    let mut pieces = vec![series];
    pieces.retain(|piece| !piece.is_empty());
    let mut backoff = Backoff::new();
    while let Some(piece) = pieces.pop() {
        let bytes = piece.iter().map(Message::encoded_len).sum::<usize>();
        let profiles = piece.len() as u64;
        match store.write(piece.clone()).await {
            Ok(()) => {
                backoff = Backoff::new();
                if let Some(outage) = delivery.sent(profiles, bytes as u64) {
                    info!("the store takes profiles again, after {} seconds", outage.as_secs());
                }
            }
            Err(Failure::Refused(reason)) if piece.len() > 1 => {
                delivery.count_call("refused");
                warn!(
                    "the store refuses {profiles} profiles together, which are sent in two parts: {reason}"
                );
                let mut first = piece;
                let second = first.split_off(first.len() / 2);
                pieces.push(second);
                pieces.push(first);
            }
            Err(Failure::Refused(reason)) => {
                warn!("the store refuses a profile for good, of {}: {reason}", labels(&piece));
                delivery.refused(profiles, bytes as u64);
                let (spool, payload) = (
                    Arc::clone(&delivery.spool),
                    WriteRawRequest { series: piece, normalized: true }.encode_to_vec(),
                );
                // Kept for somebody to look at, if that works.
                let _ = spawn_blocking(move || spool.keep_refused(&payload)).await;
            }
            Err(Failure::Later(code, reason)) => {
                let pause = backoff.next();
                if delivery.failed(code, &reason) {
                    warn!("the store does not take profiles, which wait in the spool: {reason} ({code})");
                }
                pieces.push(piece);
                sleep(pause).await;
            }
        }
    }
}

fn labels(piece: &[RawProfileSeries]) -> String {
    let labels = piece.iter().filter_map(|series| series.labels.as_ref()).flat_map(|labels| &labels.labels);
    let text = labels.map(|label| format!("{}={:?}", label.name, label.value)).collect::<Vec<_>>();
    format!("{{{}}}", text.join(", "))
}
