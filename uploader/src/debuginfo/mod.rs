//! Debug information for the store: of each executable that was seen in a profile, what the server needs to find names by. A copy
//! without code is made of the file that the collector passed, or of a separate debug file of this machine, and sent if the server
//! wants it.

mod content;
mod copy;
mod known;
mod offers;
mod signed_url;
mod upload;

use std::{sync::Arc, time::Duration};

use tokio::{
    task::spawn_blocking,
    time::{Instant, sleep},
};
use tracing::{debug, info, warn};

pub use self::{
    content::Rate,
    copy::DebugFiles,
    known::Known,
    offers::{Candidate, DebugInfoCounts, Offers, Rules},
    signed_url::Allowed,
};
use self::{
    copy::CopyError,
    offers::Then,
    upload::{Decision, Uploader},
};
use crate::{
    backoff::Backoff,
    sparingly::warn_sparingly,
    store::parca::{Failure, Parca},
};

/// After a failure that is the store's, nothing is tried for so long: from the first pause, at most, to the longest.
const PAUSES: [Duration; 2] = [Duration::from_secs(10), Duration::from_mins(10)];
/// When the server says that somebody is sending the same now, it is asked again so much later.
const AGAIN: Duration = Duration::from_mins(5);
/// When this machine could not make a copy (no room, a file that changed), it is tried again so much later.
const AGAIN_HERE: Duration = Duration::from_hours(1);
/// Making copies takes at most one part in so many of the time.
const SHARE: u32 = 5;

/// Sends debug information, one executable after the other, for ever.
pub async fn run(offers: Arc<Offers>, store: Arc<Parca>, files: DebugFiles, allowed: Allowed, rate: Rate) {
    let uploader = Uploader::new(store, allowed, rate);
    let mut failing = false;
    let mut backoff = Backoff::new(PAUSES[0], PAUSES[1]);
    loop {
        let candidate = offers.next().await;
        let path = Arc::clone(&candidate.path);
        let mut copying = Duration::ZERO;
        let (outcome, then) = match one(&uploader, &files, &candidate, offers.force(&candidate), &mut copying)
            .await
        {
            Ok(Decision::Sent(bytes)) => {
                info!("sent debug information of {path} ({} KiB)", bytes >> 10);
                offers.count_bytes(bytes);
                failing = false;
                backoff.reset();
                ("uploaded", Then::Known { is_ours: true })
            }
            Ok(Decision::NotWanted(reason)) => {
                debug!("the store wants no debug information of {path}: {reason}");
                failing = false;
                backoff.reset();
                ("not_wanted", Then::Known { is_ours: false })
            }
            Ok(Decision::Later(reason)) => {
                debug!("the store wants no debug information of {path} now: {reason}");
                ("later", Then::Again(AGAIN))
            }
            Err(Problem::Copy(error @ (CopyError::Nothing | CopyError::TooLarge(_)))) => {
                debug!("no debug information of {path} is sent: {error}");
                (error.outcome(), Then::Never)
            }
            Err(Problem::Copy(error)) => {
                warn_sparingly(format_args!("no debug information of {path} is sent: {error}"));
                (error.outcome(), Then::Again(AGAIN_HERE))
            }
            Err(Problem::Store(Failure::Refused(reason))) => {
                warn_sparingly(format_args!(
                    "the store refuses debug information of {path} for good: {reason}"
                ));
                ("refused", Then::Never)
            }
            Err(Problem::Store(Failure::Stumbles(code, reason))) => {
                warn_sparingly(format_args!(
                    "the store fails at debug information of {path}: {reason} ({code})"
                ));
                ("failed", Then::Again(AGAIN_HERE))
            }
            Err(Problem::Store(Failure::Later(code, reason) | Failure::TooMuch(code, reason))) => {
                // One line until it works again.
                if !std::mem::replace(&mut failing, true) {
                    warn!("cannot send debug information of {path}, which is tried again: {reason} ({code})");
                }
                let pause = backoff.next();
                offers.pause(pause);
                ("failed", Then::Again(pause))
            }
        };
        if let Some((path, text)) = offers.decided(&candidate, outcome, then) {
            // Nothing is lost but time if it fails.
            let _ = spawn_blocking(move || known::write(&path, &text)).await;
        }
        // Not held open while nothing is done with it.
        drop(candidate);
        sleep(copying.min(Duration::from_mins(1)) * (SHARE - 1)).await;
    }
}

/// Why nothing was sent.
enum Problem {
    Copy(CopyError),
    Store(Failure),
}

/// Asks about one, and sends it if it is wanted; says how long making the copy took.
async fn one(
    uploader: &Uploader,
    files: &DebugFiles,
    candidate: &Candidate,
    force: bool,
    copying: &mut Duration,
) -> Result<Decision, Problem> {
    if let Some(decision) = uploader.ask(candidate.id(), force).await.map_err(Problem::Store)? {
        return Ok(decision);
    }
    let begun = Instant::now();
    let copy = files.copy(candidate).await.map_err(Problem::Copy);
    *copying = begun.elapsed();
    let copy = copy?;
    uploader.send(candidate.id(), &copy, force).await.map_err(Problem::Store)
}
