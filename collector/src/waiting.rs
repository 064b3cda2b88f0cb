//! Samples that wait for unwind rows: the first ones of a program that nobody has seen before. Their stacks were copied, so the
//! program itself may be gone by the time that the rows come.

use std::collections::VecDeque;

use ipc::{ExecutableId, ProcessId};

use crate::{address_space::AddressSpace, samples::RawSample};

/// How long a sample waits (nanoseconds). A program of a few hundred functions has its rows within 50 ms.
pub(crate) const WAIT_FOR: u64 = 1_000_000_000;
/// Bytes of stacks that wait at a time; the sample that finds no room is passed on as it is.
const MAX_BYTES: usize = 8 << 20;

/// A sample on its way, with all that it was taken in.
pub(crate) struct OnItsWay {
    pub(crate) raw: RawSample,
    /// How its unwind ended in the programs.
    pub(crate) counted: u8,
    pub(crate) process: ProcessId,
    /// What was mapped at its moment.
    pub(crate) space: AddressSpace,
    /// How long it may wait for rows (nanoseconds).
    pub(crate) until: u64,
}

/// Those that wait, and for whose rows, oldest first.
#[derive(Default)]
pub(crate) struct Waiting {
    samples: VecDeque<(ExecutableId, OnItsWay)>,
    bytes: usize,
}

impl Waiting {
    /// Lets a sample wait, or gives it back: there are too many.
    pub(crate) fn add(&mut self, executable: ExecutableId, sample: OnItsWay) -> Option<OnItsWay> {
        let bytes = size(&sample);
        if self.bytes + bytes > MAX_BYTES {
            return Some(sample);
        }
        self.bytes += bytes;
        self.samples.push_back((executable, sample));
        None
    }

    /// Takes out those whose time is over, and those for whose executable `is_awaited` says no.
    pub(crate) fn take(&mut self, now: u64, is_awaited: impl Fn(ExecutableId) -> bool) -> Vec<OnItsWay> {
        let (mut taken, mut bytes) = (Vec::new(), 0);
        for (executable, sample) in std::mem::take(&mut self.samples) {
            if now < sample.until && is_awaited(executable) {
                bytes += size(&sample);
                self.samples.push_back((executable, sample));
            } else {
                taken.push(sample);
            }
        }
        self.bytes = bytes;
        taken
    }
}

/// Nearly all of it: the copy of the stack, and the frames.
fn size(sample: &OnItsWay) -> usize {
    let stack = sample.raw.rest.as_ref().map_or(0, |rest| rest.stack.len());
    size_of::<OnItsWay>() + stack + (sample.raw.user.len() + sample.raw.kernel.len()) * 8
}

#[cfg(test)]
mod tests {
    use records::REGISTERS;

    use super::*;
    use crate::samples::Rest;

    fn sample(pid: u32, until: u64) -> OnItsWay {
        let rest = Rest {
            cursor: unwinder::Cursor::default(),
            registers: [0; REGISTERS as usize],
            base: 0,
            stack: vec![0; 16 * 1024],
        };
        let raw = RawSample { pid, user: vec![0x1000], rest: Some(Box::new(rest)), ..RawSample::default() };
        OnItsWay { raw, counted: 0, process: ProcessId(pid), space: AddressSpace::default(), until }
    }

    #[test]
    fn a_sample_waits_for_its_rows_and_not_for_ever() {
        let mut waiting = Waiting::default();
        for pid in 1..=4 {
            assert!(waiting.add(ExecutableId(pid % 2), sample(pid, u64::from(pid) * 10)).is_none());
        }
        let pids = |taken: Vec<OnItsWay>| taken.iter().map(|sample| sample.raw.pid).collect::<Vec<_>>();
        assert_eq!(pids(waiting.take(9, |_| true)), []);
        assert_eq!(pids(waiting.take(10, |_| true)), [1]);
        assert_eq!(pids(waiting.take(11, |executable| executable == ExecutableId(1))), [2, 4]);
        assert_eq!(pids(waiting.take(12, |_| false)), [3]);
        assert_eq!((waiting.bytes, waiting.samples.len()), (0, 0));
    }

    #[test]
    fn there_is_a_bound() {
        let mut waiting = Waiting::default();
        let added =
            (0..10_000).take_while(|pid| waiting.add(ExecutableId(1), sample(*pid, 1)).is_none()).count();
        assert!((400..512).contains(&added) && waiting.bytes <= MAX_BYTES);
        assert_eq!(waiting.take(1, |_| true).len(), added);
        assert!(waiting.add(ExecutableId(1), sample(1, 1)).is_none());
    }
}
