//! The end of windows: every `--profiling-duration` the open window is taken, named, and made into profiles, while the
//! next one fills.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    sync::{mpsc, oneshot},
    task::spawn_blocking,
    time::sleep_until,
};
use tracing::{debug, warn};

use crate::{
    delivery,
    profile::{Finished, Frame, Names, TargetSamples, Window, build, to_gzip},
    resolve,
    spool::Spool,
    state::Shared,
    store::{local::LocalStore, parca},
};

/// Names of long windows are looked up this often, so that files need not be held open until the end.
const PASS: Duration = Duration::from_secs(10);
/// Names may take so long at least, however short windows are; otherwise this part of a window, so that one is finished before the next ends.
const SHORTEST: Duration = Duration::from_secs(2);
const PART: f64 = 0.75;
/// Windows that may wait for those before them to be finished.
const MAX_WAITING: usize = 1;

/// Where profiles go beside the page.
#[derive(Clone, Debug, Default)]
pub struct Sinks {
    /// A folder for people.
    pub local: Option<Arc<LocalStore>>,
    /// What is to be sent to a store.
    pub spool: Option<Arc<Spool>>,
}

/// Ends windows and finishes them, until it is told to stop: then the open one is ended early, and all are finished.
pub async fn run(shared: Arc<Shared>, length: Duration, sinks: Sinks, stop: oneshot::Receiver<()>) {
    let (sender, receiver) = mpsc::channel(MAX_WAITING);
    let ending = async {
        tokio::select! {
            () = end(&shared, length, &sender) => {}
            // Whoever would have told may be gone: that is no reason to stop.
            Ok(()) = stop => {}
        }
        let window = shared.state().end_window(Instant::now());
        // There is nobody to wait for it if this fails.
        let _ = sender.send(window).await;
        // Without a sender, those that are finished were the last.
        drop(sender);
    };
    tokio::join!(ending, finish(&shared, length, receiver, sinks));
}

async fn end(shared: &Arc<Shared>, length: Duration, finished: &mpsc::Sender<Window>) {
    let mut due = Instant::now() + length;
    loop {
        let mut named = 0;
        // The last pass is the end of the window itself.
        while due.saturating_duration_since(Instant::now()) > PASS + PASS / 2 {
            sleep_until((Instant::now() + PASS).into()).await;
            let stacks = shared.state().window().stacks.get(named..).map(<[_]>::to_vec).unwrap_or_default();
            named += stacks.len();
            // The window ends in time, whatever this takes.
            let left = due.saturating_duration_since(Instant::now());
            drop(resolve::names(shared, &stacks, left).await);
            shared.state().executables.close_old(Instant::now());
        }
        sleep_until(due.into()).await;
        let now = Instant::now();
        let window = shared.state().end_window(now);
        // A machine that slept, or one that was too busy, does not make up for it with short windows.
        due = if now > due + length { now + length } else { due + length };
        let (number, samples) = (window.number, window.total());
        if finished.try_send(window).is_err() {
            let mut state = shared.state();
            state.counts.windows_dropped += 1;
            state.counts.samples_dropped += samples;
            warn!(
                "window {number} is dropped, with its {samples} samples: those before it are not finished yet"
            );
        }
    }
}

async fn finish(shared: &Arc<Shared>, length: Duration, mut windows: mpsc::Receiver<Window>, sinks: Sinks) {
    while let Some(window) = windows.recv().await {
        let begun = Instant::now();
        let limit = shared.discovery.longest_settle();
        let (names, ()) = tokio::join!(
            resolve::names(shared, &window.stacks, length.mul_f64(PART).max(SHORTEST)),
            shared.discovery.settle(window.origins.keys().map(Arc::as_ref), limit)
        );
        let (number, maker, discovery) =
            (window.number, shared.state().maker(), Arc::clone(&shared.discovery));
        let sinks = sinks.clone();
        let result = spawn_blocking(move || {
            let mut window = window;
            let not_selected = window.find_targets(|origin| maker.target(origin, &discovery));
            let profiles = (profiles(&window, &names, &sinks), not_selected, window.merged);
            drop((window, names));
            // A window takes many times the memory that is kept between windows.
            security::give_back_memory();
            profiles
        })
        .await;
        let Ok(((finished, stored, failures), not_selected, merged)) = result else {
            warn!("window {number} could not be made into profiles: this is a fault of Bulkhead's");
            continue;
        };
        debug!("window {number}: {} profiles in {} ms", finished.len(), begun.elapsed().as_millis());
        {
            let mut state = shared.state();
            state.counts.windows += 1;
            state.counts.samples_not_selected += not_selected;
            state.counts.merged_samples += merged;
            state.counts.profiles += finished.len() as u64;
            state.counts.stored += stored;
            state.counts.store_failures += failures;
        }
        shared.profiles.publish(number, finished);
    }
}

/// The profiles of a window, and how many the store took and failed to take.
fn profiles(window: &Window, names: &Names, sinks: &Sinks) -> (Vec<Finished>, u64, u64) {
    let (mut stored, mut failures) = (0, 0);
    let mut sent = Vec::new();
    let mut finished = Vec::with_capacity(window.targets.len());
    for (labels, samples) in &window.targets {
        let pprof = to_gzip(&build(window, labels, samples, names));
        if let Some(store) = &sinks.local {
            match store.write(labels, window.time_nanos, &pprof) {
                Ok(()) => stored += 1,
                Err(error) => {
                    failures += 1;
                    // One line a window: the folder is full, or gone, for all of them.
                    if failures == 1 {
                        warn!("{error}");
                    }
                }
            }
        }
        if sinks.spool.is_some() {
            sent.push(parca::series(labels, pprof.clone()));
        }
        let length = i64::try_from(window.duration.as_nanos()).unwrap_or(i64::MAX);
        finished.push(Finished {
            window: window.number,
            labels: Arc::clone(labels),
            ended_nanos: window.time_nanos.saturating_add(length),
            samples: samples.total(),
            ends: samples.ends.clone(),
            problem: problem(window, samples, names),
            pprof: Some(pprof.into()),
        });
    }
    if let Some(spool) = &sinks.spool {
        // What is lost is counted there.
        delivery::put(spool, sent);
    }
    (finished, stored, failures)
}

/// The first executable of a target that has no names, and why.
fn problem(window: &Window, samples: &TargetSamples, names: &Names) -> Option<Arc<str>> {
    if names.executables.values().all(|info| info.problem.is_none()) {
        return None;
    }
    let stacks = samples.counts.keys().filter_map(|(stack, _)| window.stacks.get(stack.0 as usize));
    stacks.flat_map(|stack| stack.iter()).find_map(|frame| {
        let Frame::File(key, _) = frame else { return None };
        let info = names.executables.get(key)?;
        let problem = info.problem.as_ref()?;
        Some(format!("frames in {} have no names: {problem}", info.path).into())
    })
}
