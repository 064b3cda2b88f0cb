//! Patience with processes that hold up who looks at what they have mapped. Looking takes a process's own lock on its mappings
//! (`mmap_lock`), and a process can hold that for seconds on end, with system calls on very much memory. So it is kept in mind how long looks
//! have taken, and whose process it was is left alone until he has no more than a fiftieth of the collector's time.

use std::{
    cell::RefCell,
    io,
    time::{Duration, Instant},
};

use security::TimeShare;

use crate::procfs;

/// A look takes some 20 us. Longer than this is kept in mind, which takes some 40 us itself.
const NOTICED: Duration = Duration::from_micros(200);
/// So much together does no harm: it happens to whoever is not on a CPU for a moment, now and then.
const HARMLESS: Duration = Duration::from_millis(250);
/// For each so much time, as long as one of that is forgotten.
const FORGETS: u32 = 50;
/// Most owners that are remembered; beyond, who would be forgotten first goes.
const MOST: usize = 256;

/// Who answers for a process. Each can be changed by whom it names: a user with subordinate users, a container that makes cgroups. Both
/// at once, for each process anew, is more than most can.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Owner {
    /// Any user but root, who is in every container.
    User(u32),
    /// Cgroups, unless they are the roots.
    Cgroup(Vec<u8>),
    /// What has neither.
    Process(u32),
}

impl Owner {
    fn all_of(pid: u32) -> Vec<Owner> {
        let user = procfs::status(pid).ok().map(|status| status.effective_uid).filter(|uid| *uid != 0);
        let is_root = |text: &Vec<u8>| {
            text.trim_ascii_end().split(|byte| *byte == b'\n').all(|line| line.ends_with(b":/"))
        };
        let cgroup = procfs::cgroup_text(pid).filter(|text| !is_root(text));
        let mut owners: Vec<Owner> =
            user.map(Owner::User).into_iter().chain(cgroup.map(Owner::Cgroup)).collect();
        if owners.is_empty() {
            owners.push(Owner::Process(pid));
        }
        owners
    }
}

/// How long looks at whose processes have taken.
#[derive(Default)]
struct Memory(Vec<(Owner, TimeShare)>);

impl Memory {
    /// Whether the owner of this process is left alone.
    fn leaves_alone(&mut self, pid: u32, now: Instant) -> bool {
        self.0.retain(|(_, share)| !share.spent(now).is_zero());
        let must_wait = |share: &TimeShare| !share.wait(now).is_zero();
        // Nearly always: then nothing is asked.
        if !self.0.iter().any(|(_, share)| must_wait(share)) {
            return false;
        }
        let owners = Owner::all_of(pid);
        self.0.iter().any(|(owner, share)| must_wait(share) && owners.contains(owner))
    }

    /// A look has taken so long.
    fn add(&mut self, pid: u32, took: Duration, now: Instant) {
        for owner in Owner::all_of(pid) {
            if let Some((_, share)) = self.0.iter_mut().find(|(other, _)| *other == owner) {
                share.spend(took, now);
                continue;
            }
            if self.0.len() >= MOST
                && let Some(least) = (0..self.0.len()).min_by_key(|at| self.0[*at].1.spent(now))
            {
                self.0.swap_remove(least);
            }
            let mut share = TimeShare::new(HARMLESS, FORGETS);
            share.spend(took, now);
            self.0.push((owner, share));
        }
    }
}

thread_local! {
    /// Of the one thread that looks.
    static MEMORY: RefCell<Memory> = RefCell::default();
}

/// Looks at what a process has mapped, unless its owner's processes are left alone now: then the error says so ([`is_for_later`]).
pub(crate) fn look<T>(pid: u32, look: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let begun = Instant::now();
    if MEMORY.with_borrow_mut(|memory| memory.leaves_alone(pid, begun)) {
        return Err(io::Error::new(
            io::ErrorKind::WouldBlock,
            "its owner's processes have held up who looked at them, and are left alone for a while",
        ));
    }
    let result = look();
    let now = Instant::now();
    let took = now.duration_since(begun);
    if took > NOTICED {
        log::debug!("looking at what process {pid} has mapped took {} us", took.as_micros());
        MEMORY.with_borrow_mut(|memory| memory.add(pid, took, now));
    }
    result
}

/// Whether there was no look at all, and there may be one later. Files of `/proc` do not fail so.
pub(crate) fn is_for_later(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use super::*;

    struct Sleeping(Child);

    impl Sleeping {
        fn of(user: &str) -> Self {
            let setpriv = ["--reuid", user, "--clear-groups", "sleep", "60"];
            let child = Command::new("setpriv").args(setpriv).spawn().unwrap();
            let sleeping = Sleeping(child);
            // It is the shell of this test until then.
            while std::fs::read(format!("/proc/{}/comm", sleeping.pid())).unwrap() != b"sleep\n" {
                std::thread::sleep(Duration::from_millis(5));
            }
            sleeping
        }

        fn pid(&self) -> u32 {
            self.0.id()
        }
    }

    impl Drop for Sleeping {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    #[test]
    fn who_takes_time_is_left_alone() {
        let [one, same, other] = ["12345", "12345", "12346"].map(Sleeping::of);
        let own = std::process::id();
        let quick = |pid| look(pid, || Ok(())).is_ok();
        let slow = |pid| {
            let slept = || {
                std::thread::sleep(HARMLESS / 10);
                Ok(())
            };
            look(pid, slept).is_ok()
        };
        assert!([one.pid(), same.pid(), other.pid(), own].into_iter().all(quick));
        let begun = Instant::now();
        // Once is nothing.
        assert!(slow(one.pid()) && quick(same.pid()));
        while slow(one.pid()) {}
        assert!(begun.elapsed() >= HARMLESS);
        // All of its user, and nobody else: these are not in a cgroup of their own, or this test is in the same.
        assert!(!quick(one.pid()) && !quick(same.pid()));
        if Owner::all_of(own) == [Owner::Process(own)] {
            assert!(quick(other.pid()) && quick(own));
        }
        let left_alone = Instant::now();
        while !quick(same.pid()) {
            assert!(left_alone.elapsed() < Duration::from_mins(1));
            std::thread::sleep(Duration::from_millis(20));
        }
        assert!(quick(one.pid()));
    }

    #[test]
    fn no_more_than_a_share_of_the_time() {
        let mut memory = Memory::default();
        let mut now = Instant::now();
        let (begun, took) = (now, Duration::from_secs(8));
        let mut spent = Duration::ZERO;
        // Nobody has this one, so it answers for itself.
        let pid = u32::MAX;
        while now.duration_since(begun) < Duration::from_hours(2) {
            now += Duration::from_millis(100);
            if !memory.leaves_alone(pid, now) {
                now += took;
                spent += took;
                memory.add(pid, took, now);
            }
        }
        assert!(spent <= Duration::from_hours(2) / FORGETS + took, "{spent:?}");
        assert!(spent + took >= Duration::from_hours(2) / FORGETS, "{spent:?}");
    }

    #[test]
    fn there_is_a_bound() {
        let mut memory = Memory::default();
        let now = Instant::now();
        for pid in 0..1000 {
            memory.add(u32::MAX - pid, Duration::from_secs(1 + u64::from(pid)), now);
        }
        assert_eq!(memory.0.len(), MOST);
        assert!(memory.leaves_alone(u32::MAX - 999, now) && !memory.leaves_alone(u32::MAX, now));
        assert!(!memory.leaves_alone(u32::MAX - 999, now + Duration::from_secs(1000) * FORGETS));
    }
}
