//! The event loop: one thread, woken by the kernel's first record after a pause, by a timer, by the uploader.
#![expect(unsafe_code, reason = "tokio takes files to wait for on the promise that they stay open")]

use std::{
    fs, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::Duration,
};

use ipc::{CollectorEnd, HandshakeError};
use rustix::{
    event::{Timespec, epoll},
    time::{ClockId, clock_gettime},
};
use thiserror::Error;
use tokio::{
    io::unix::AsyncFd,
    signal::unix::{Signal, SignalKind, signal},
    time::{Instant, sleep_until},
};

use crate::{kernel_events::KernelEvents, programs::Programs, setup::Ready, socket};

/// After its first record, the kernel is not listened to for this long: more of them come together, and one round for
/// all costs a fifth of a round for each.
const GATHER: Duration = Duration::from_millis(2);
/// How often the ring of samples is emptied, unless it fills faster.
const DRAIN_EVERY: Duration = Duration::from_millis(100);
/// How often to look whether a CPU came online or kernel addresses became readable.
const LOOK_EVERY: Duration = Duration::from_secs(1);

#[derive(Debug, Error)]
#[error("cannot {action}: {source}")]
pub(crate) struct ServeError {
    action: &'static str,
    source: io::Error,
}

/// How the work ended.
pub(crate) enum Outcome {
    /// Somebody said so.
    Stopped,
    /// Something came that this process no longer has the privilege for.
    StartAgain(String),
}

/// Nanoseconds, `CLOCK_MONOTONIC`: the clock of the samples and of the kernel's records.
pub(crate) fn now() -> u64 {
    let Timespec { tv_sec, tv_nsec } = clock_gettime(ClockId::Monotonic);
    u64::try_from(tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(tv_nsec).unwrap_or(0)
}

/// Becomes readable with the kernel's next record, of whichever CPU.
pub(crate) struct Wake(AsyncFd<OwnedFd>);

impl Wake {
    pub(crate) fn new(programs: &Programs, kernel_events: &KernelEvents) -> io::Result<Self> {
        let set = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let add =
            |file: BorrowedFd| epoll::add(&set, file, epoll::EventData::new_u64(0), epoll::EventFlags::IN);
        add(programs.ring.as_fd())?;
        for file in kernel_events.files() {
            add(file)?;
        }
        // SAFETY: an `OwnedFd` stays open and is the same file as long as the `AsyncFd` owns it.
        Ok(Wake(unsafe { AsyncFd::register(set) }.map_err(io::Error::from)?))
    }

    async fn wait(&self) -> io::Result<()> {
        let mut ready = self.0.readable().await?;
        // Takes the events off the inner set, so that it can become readable again.
        let mut events = Vec::with_capacity(64);
        loop {
            events.clear();
            let taken = epoll::wait(
                self.0.get_ref(),
                rustix::buffer::spare_capacity(&mut events),
                Some(&Timespec { tv_sec: 0, tv_nsec: 0 }),
            )?;
            if taken < 64 {
                break;
            }
        }
        ready.clear_ready();
        Ok(())
    }
}

/// Works until told to stop.
pub(crate) async fn run(ready: Ready) -> Result<Outcome, ServeError> {
    let Ready { mut profiler, mut listener, uploader, wake, waits_for_kernel_addresses } = ready;
    let error = |action| move |source| ServeError { action, source };
    let mut terminate = listen_for(SignalKind::terminate())?;
    let mut interrupt = listen_for(SignalKind::interrupt())?;
    let mut cpus: Vec<u32> = profiler.cpus().to_vec();
    let mut next_round = Instant::now();
    let mut next_look = Instant::now() + LOOK_EVERY;
    let mut greeting: Option<Greeting> = None;

    loop {
        tokio::select! {
            biased;
            _ = terminate.recv() => return Ok(Outcome::Stopped),
            _ = interrupt.recv() => return Ok(Outcome::Stopped),
            woken = wake.wait() => {
                woken.map_err(error("wait for the kernel's records"))?;
                // Blocks the one thread on purpose: what came meanwhile would otherwise wake it for each record.
                std::thread::sleep(GATHER);
                next_round = Instant::now();
            }
            () = sleep_until(next_round) => {}
            request = profiler.link.next_request() => {
                match request {
                    Ok(request) => profiler.answer(request, now()),
                    Err(error) => profiler.end_session(&error),
                }
                continue;
            }
            accepted = socket::accept(&mut listener, uploader) => {
                let channel = accepted.map_err(error("accept a connection"))?;
                if greeting.is_some() || profiler.link.session().is_some() {
                    log::warn!("a second uploader connected and was turned away");
                } else {
                    greeting = Some(Box::pin(greet(channel)));
                }
                continue;
            }
            (channel, greeted) = finished(&mut greeting) => {
                greeting = None;
                match greeted {
                    Ok(hello) => {
                        log::info!("an uploader has connected: {}", hello.release);
                        profiler.begin_session(channel);
                    }
                    Err(error) => log::warn!("an uploader connected and was turned away: {error}"),
                }
                continue;
            }
        }
        if Instant::now() >= next_round {
            let more = profiler.round(now());
            next_round = Instant::now() + if more { GATHER } else { DRAIN_EVERY };
        }
        if Instant::now() >= next_look {
            next_look = Instant::now() + LOOK_EVERY;
            if let Some(reason) = look(&mut cpus, waits_for_kernel_addresses) {
                return Ok(Outcome::StartAgain(reason));
            }
        }
    }
}

fn listen_for(kind: SignalKind) -> Result<Signal, ServeError> {
    signal(kind).map_err(|source| ServeError { action: "listen for signals", source })
}

type Greeted = (CollectorEnd, Result<ipc::Hello, HandshakeError>);
type Greeting = std::pin::Pin<Box<dyn Future<Output = Greeted>>>;

async fn greet(mut channel: CollectorEnd) -> Greeted {
    let greeted = ipc::greet_uploader(&mut channel).await;
    (channel, greeted)
}

/// The greeting that is under way, when it is over.
async fn finished(greeting: &mut Option<Greeting>) -> Greeted {
    match greeting {
        Some(greeting) => greeting.await,
        None => std::future::pending().await,
    }
}

/// Whether something came that needs more privilege than is left.
fn look(cpus: &mut Vec<u32>, waits_for_kernel_addresses: bool) -> Option<String> {
    if let Ok(online) = aya::util::online_cpus() {
        if let Some(new) = online.iter().find(|cpu| !cpus.contains(cpu)) {
            return Some(format!("CPU {new} has come online"));
        }
        // One that goes offline is no error; when it comes back, its events are gone, and it counts as new.
        cpus.retain(|cpu| {
            let stays = online.contains(cpu);
            if !stays {
                log::info!("CPU {cpu} went offline");
            }
            stays
        });
    }
    if waits_for_kernel_addresses
        && fs::read("/proc/sys/kernel/kptr_restrict")
            .is_ok_and(|value| value.first().is_some_and(|digit| *digit < b'2'))
    {
        return Some("kernel addresses have become readable".into());
    }
    None
}
