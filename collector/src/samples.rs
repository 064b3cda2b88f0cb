//! The records of the BPF program, out of the ring.

use records::{
    COMM_LENGTH, MAX_STACK_BYTES, REGISTERS, RESUME_SIZE, Resume, SAMPLE_HEADER_SIZE, SampleHeader,
};
use unwinder::{Cursor, Registers};

/// A record, taken apart.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct RawSample {
    pub(crate) timestamp: u64,
    pub(crate) cgroup: u64,
    pub(crate) start_boottime: u64,
    pub(crate) pid: u32,
    pub(crate) tid: u32,
    pub(crate) cpu: u32,
    pub(crate) end: u8,
    pub(crate) guessed: u16,
    /// What the process was called in the table that the stack was unwound by; 0: it was in none.
    pub(crate) process: u32,
    pub(crate) comm: Vec<u8>,
    /// Addresses, innermost first.
    pub(crate) kernel: Vec<u64>,
    pub(crate) user: Vec<u64>,
    /// Where to go on, if the programs knew too little of the process.
    pub(crate) rest: Option<Box<Rest>>,
}

/// The part of a stack that is still to be unwound. It stays in this process.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Rest {
    /// At the last of the user frames.
    pub(crate) cursor: Cursor,
    /// The general registers of the innermost frame, in DWARF's order.
    pub(crate) registers: [u64; REGISTERS as usize],
    /// The stack, and the address that it begins at.
    pub(crate) base: u64,
    pub(crate) stack: Vec<u8>,
}

impl Rest {
    fn parse(bytes: &[u8]) -> Option<Box<Self>> {
        use std::mem::offset_of;
        let (resume, stack) = bytes.split_at_checked(RESUME_SIZE)?;
        let word = |at: usize| Some(u64::from_ne_bytes(resume.get(at..at + 8)?.try_into().ok()?));
        let half = |at: usize| Some(u32::from_ne_bytes(resume.get(at..at + 4)?.try_into().ok()?));
        let registers = Registers {
            ip: word(offset_of!(Resume, ip))?,
            sp: word(offset_of!(Resume, sp))?,
            fp: word(offset_of!(Resume, fp))?,
        };
        let context = word(offset_of!(Resume, context))?;
        let interrupted = half(offset_of!(Resume, interrupted))?;
        let guessed = half(offset_of!(Resume, guessed))?;
        let cursor = Cursor { registers, context, interrupted, guessed };
        let base = registers.sp;
        let mut registers = [0; REGISTERS as usize];
        for (at, register) in (offset_of!(Resume, registers)..).step_by(8).zip(&mut registers) {
            *register = word(at)?;
        }
        Some(Box::new(Rest { cursor, registers, base, stack: stack.to_vec() }))
    }
}

/// Reads a record; `None` if it is not as long as it says or holds what no record holds.
pub(crate) fn parse(record: &[u8]) -> Option<RawSample> {
    use std::mem::offset_of;
    let u16_at = |at: usize| Some(u16::from_ne_bytes(record.get(at..at + 2)?.try_into().ok()?));
    let u32_at = |at: usize| Some(u32::from_ne_bytes(record.get(at..at + 4)?.try_into().ok()?));
    let u64_at = |at: usize| Some(u64::from_ne_bytes(record.get(at..at + 8)?.try_into().ok()?));
    let comm = offset_of!(SampleHeader, comm);
    let comm = record.get(comm..comm + COMM_LENGTH)?.split(|byte| *byte == 0).next()?.to_vec();
    let kernel = usize::from(u16_at(offset_of!(SampleHeader, kernel_frames))?);
    let user = usize::from(u16_at(offset_of!(SampleHeader, user_frames))?);
    let (frames, rest) = record.get(SAMPLE_HEADER_SIZE..)?.split_at_checked((kernel + user) * 8)?;
    let stack_bytes = usize::try_from(u32_at(offset_of!(SampleHeader, stack_bytes))?).ok()?;
    let rest = match stack_bytes {
        0 if rest.is_empty() => None,
        1..=MAX_STACK_BYTES if rest.len() == RESUME_SIZE + stack_bytes => Some(Rest::parse(rest)?),
        _ => return None,
    };
    let mut frames =
        frames.chunks_exact(8).filter_map(|chunk| Some(u64::from_ne_bytes(chunk.try_into().ok()?)));
    Some(RawSample {
        timestamp: u64_at(offset_of!(SampleHeader, timestamp))?,
        cgroup: u64_at(offset_of!(SampleHeader, cgroup))?,
        start_boottime: u64_at(offset_of!(SampleHeader, start_boottime))?,
        pid: u32_at(offset_of!(SampleHeader, pid))?,
        tid: u32_at(offset_of!(SampleHeader, tid))?,
        cpu: u32_at(offset_of!(SampleHeader, cpu))?,
        end: u8::try_from(u16_at(offset_of!(SampleHeader, end))?).ok()?,
        guessed: u16_at(offset_of!(SampleHeader, guessed))?,
        process: u32_at(offset_of!(SampleHeader, process))?,
        comm,
        kernel: frames.by_ref().take(kernel).collect(),
        user: frames.collect(),
        rest,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_whole_or_not_at_all() {
        let mut record = Vec::new();
        for word in [1u64, 2, 3] {
            record.extend(word.to_ne_bytes());
        }
        for word in [4u32, 5, 6] {
            record.extend(word.to_ne_bytes());
        }
        record.extend(1u16.to_ne_bytes());
        record.extend(2u16.to_ne_bytes());
        record.extend(7u16.to_ne_bytes());
        record.extend(1u16.to_ne_bytes());
        for word in [0u32, 9, 0] {
            record.extend(word.to_ne_bytes());
        }
        record.extend(b"name\0garbage....");
        for frame in [10u64, 20, 21] {
            record.extend(frame.to_ne_bytes());
        }
        let expected = RawSample {
            timestamp: 1,
            cgroup: 2,
            start_boottime: 3,
            pid: 4,
            tid: 5,
            cpu: 6,
            end: 7,
            guessed: 1,
            process: 9,
            comm: b"name".to_vec(),
            kernel: vec![10],
            user: vec![20, 21],
            rest: None,
        };
        assert_eq!(parse(&record), Some(expected));
        for length in 0..record.len() {
            assert_eq!(parse(&record[..length]), None);
        }
        record.extend([0; 8]);
        assert_eq!(parse(&record), None);
    }

    #[test]
    fn a_stack_comes_with_where_to_go_on() {
        let mut record = vec![0; SAMPLE_HEADER_SIZE];
        record[44] = 16;
        for word in [1u64, 2, 3, 9] {
            record.extend(word.to_ne_bytes());
        }
        record.extend(1u32.to_ne_bytes());
        record.extend(4u32.to_ne_bytes());
        for register in 100..116u64 {
            record.extend(register.to_ne_bytes());
        }
        record.extend([5; 16]);
        let rest = parse(&record).unwrap().rest.unwrap();
        let registers = Registers { ip: 1, sp: 2, fp: 3 };
        assert_eq!(rest.cursor, Cursor { registers, context: 9, interrupted: 1, guessed: 4 });
        assert!(rest.registers.into_iter().eq(100..116));
        assert_eq!(rest.stack, [5; 16]);
        for length in 0..record.len() {
            assert_eq!(parse(&record[..length]), None);
        }
    }
}
