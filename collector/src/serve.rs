//! The event loop: one thread, woken by the kernel's first record after a pause, by a timer, by the uploader.
#![expect(unsafe_code, reason = "tokio takes files to wait for on the promise that they stay open")]

use std::{
    fs, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use ipc::{CollectorEnd, HandshakeError};
use log::Level;
use rustix::{
    event::{Timespec, epoll},
    time::{
        ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, clock_gettime, timerfd_create,
        timerfd_settime,
    },
};
use thiserror::Error;
use tokio::{
    io::unix::AsyncFd,
    signal::unix::{Signal, SignalKind, signal},
};

use crate::{kernel_events::KernelEvents, logger, programs::Programs, setup::Ready, socket};

/// After its first record, the kernel is not listened to for this long: more of them come together, and one round for
/// all costs a fifth of a round for each.
const GATHER: Duration = Duration::from_millis(2);
/// How often the ring of samples is emptied, unless it fills faster.
const DRAIN_EVERY: Timespec = Timespec { tv_sec: 0, tv_nsec: 250_000_000 };
/// How often to look whether a CPU came online or kernel addresses became readable.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// When a connection could not be accepted, the next attempt is this much later.
const ACCEPT_AGAIN: Duration = Duration::from_secs(1);

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

/// Becomes readable with the kernel's next record, of whichever CPU, and when the ring of samples is to be emptied.
pub(crate) struct Wake {
    set: AsyncFd<OwnedFd>,
    /// A timer of the kernel's: the event loop's own would be set anew, and wake the loop once more, for each round.
    timer: OwnedFd,
}

/// What has woken us, by the words of the set's events.
const RECORD: u64 = 0;
const TIMER: u64 = 1;

impl Wake {
    pub(crate) fn new(programs: &Programs, kernel_events: &KernelEvents) -> io::Result<Self> {
        let set = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let add = |file: BorrowedFd| {
            epoll::add(&set, file, epoll::EventData::new_u64(RECORD), epoll::EventFlags::IN)
        };
        add(programs.ring.as_fd())?;
        for file in kernel_events.files() {
            add(file)?;
        }
        let timer =
            timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?;
        let every = Itimerspec { it_interval: DRAIN_EVERY, it_value: DRAIN_EVERY };
        timerfd_settime(&timer, TimerfdTimerFlags::empty(), &every)?;
        epoll::add(&set, &timer, epoll::EventData::new_u64(TIMER), epoll::EventFlags::IN)?;
        // SAFETY: an `OwnedFd` stays open and is the same file as long as the `AsyncFd` owns it.
        let set = unsafe { AsyncFd::register(set) }.map_err(io::Error::from)?;
        Ok(Wake { set, timer })
    }

    /// Returns whether it was a record of the kernel's.
    async fn wait(&self) -> io::Result<bool> {
        let mut ready = self.set.readable().await?;
        // Takes the events off the inner set, so that it can become readable again.
        let mut record = false;
        let mut events = Vec::with_capacity(64);
        loop {
            events.clear();
            let taken = epoll::wait(
                self.set.get_ref(),
                rustix::buffer::spare_capacity(&mut events),
                Some(&Timespec { tv_sec: 0, tv_nsec: 0 }),
            )?;
            record |= events.iter().any(|event| event.data.u64() == RECORD);
            if events.iter().any(|event| event.data.u64() == TIMER) {
                // Starts its next period.
                rustix::io::read(&self.timer, &mut [0; 8])?;
            }
            if taken < 64 {
                break;
            }
        }
        ready.clear_ready();
        Ok(record)
    }
}

/// The signals by which somebody says that it is time to stop.
pub(crate) struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

impl Stop {
    pub(crate) fn listen() -> io::Result<Self> {
        Ok(Stop { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// When somebody has said so.
    async fn told(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Works until told to stop.
pub(crate) async fn run(ready: Ready) -> Result<Outcome, ServeError> {
    let Ready {
        mut profiler,
        mut listener,
        uploader,
        wake,
        mut stop,
        supervisor,
        waits_for_kernel_addresses,
    } = ready;
    let error = |action| move |source| ServeError { action, source };
    let mut cpus: Vec<u32> = profiler.cpus().to_vec();
    // Whether something waits for the next round already.
    let mut more = false;
    let mut next_look = Instant::now() + LOOK_EVERY;
    // Looked at whenever something has woken the loop, which the timer does four times a second.
    let mut next_accept = Instant::now();
    let mut greeting: Option<Greeting> = None;

    loop {
        // Without an order: whoever is always ready, a storm of records or an uploader that floods, has its share only.
        tokio::select! {
            () = stop.told() => {
                supervisor.stopping();
                return Ok(Outcome::Stopped);
            }
            woken = wake.wait() => {
                more |= woken.map_err(error("wait for the kernel's records"))?;
            }
            request = profiler.link.next_request() => {
                match request {
                    Ok(request) => profiler.answer(&request, now()),
                    Err(error) => profiler.end_session(&error),
                }
                continue;
            }
            accepted = socket::accept(&mut listener, uploader), if Instant::now() >= next_accept => {
                match accepted {
                    Ok(_) if greeting.is_some() || profiler.link.session().is_some() => {
                        let line = format_args!("a second uploader connected and was turned away");
                        logger::sparingly(Level::Warn, line);
                    }
                    Ok(channel) => greeting = Some(Box::pin(greet(channel))),
                    // The machine is out of files or of memory, say. It is still there to be taken next time, and would be tried at once.
                    Err(error) => {
                        let line = format_args!("cannot accept a connection: {error}; trying again");
                        logger::sparingly(Level::Warn, line);
                        next_accept = Instant::now() + ACCEPT_AGAIN;
                    }
                }
                continue;
            }
            (channel, greeted) = finished(&mut greeting) => {
                greeting = None;
                match greeted {
                    Ok(hello) => {
                        let line = format_args!("an uploader has connected: {}", hello.release);
                        logger::sparingly(Level::Info, line);
                        profiler.begin_session(channel);
                    }
                    Err(error) => {
                        let line = format_args!("an uploader connected and was turned away: {error}");
                        logger::sparingly(Level::Warn, line);
                    }
                }
                continue;
            }
            () = std::future::ready(()), if more => {}
        }
        if more {
            // Blocks the one thread on purpose: what came meanwhile would otherwise wake it for each record.
            std::thread::sleep(GATHER);
        }
        more = profiler.round(now());
        // While something always waits for the next round, nothing else here gives way to the runtime, which alone can find that the uploader
        // has written or is gone, that another has connected, that a signal has come.
        tokio::task::yield_now().await;
        if Instant::now() >= next_look {
            next_look = Instant::now() + LOOK_EVERY;
            supervisor.alive();
            if let Some(reason) = look(&mut cpus, waits_for_kernel_addresses) {
                return Ok(Outcome::StartAgain(reason));
            }
        }
    }
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
