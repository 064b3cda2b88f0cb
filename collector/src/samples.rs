//! The records of the BPF program, out of the ring.

use records::{COMM_LENGTH, SAMPLE_HEADER_SIZE, SampleHeader};

/// A record, taken apart.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct RawSample {
    pub(crate) timestamp: u64,
    pub(crate) cgroup: u64,
    pub(crate) start_boottime: u64,
    pub(crate) pid: u32,
    pub(crate) tid: u32,
    pub(crate) cpu: u32,
    pub(crate) end: u8,
    pub(crate) comm: Vec<u8>,
    /// Addresses, innermost first.
    pub(crate) kernel: Vec<u64>,
    pub(crate) user: Vec<u64>,
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
    let frames = record.get(SAMPLE_HEADER_SIZE..)?;
    if frames.len() != (kernel + user) * 8 {
        return None;
    }
    let mut frames =
        frames.chunks_exact(8).filter_map(|chunk| Some(u64::from_ne_bytes(chunk.try_into().ok()?)));
    Some(RawSample {
        timestamp: u64_at(offset_of!(SampleHeader, timestamp))?,
        cgroup: u64_at(offset_of!(SampleHeader, cgroup))?,
        start_boottime: u64_at(offset_of!(SampleHeader, start_boottime))?,
        pid: u32_at(offset_of!(SampleHeader, pid))?,
        tid: u32_at(offset_of!(SampleHeader, tid))?,
        cpu: u32_at(offset_of!(SampleHeader, cpu))?,
        end: u8::try_from(u32_at(offset_of!(SampleHeader, end))?).ok()?,
        comm,
        kernel: frames.by_ref().take(kernel).collect(),
        user: frames.collect(),
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
        record.extend(7u32.to_ne_bytes());
        record.extend(0u32.to_ne_bytes());
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
            comm: b"name".to_vec(),
            kernel: vec![10],
            user: vec![20, 21],
        };
        assert_eq!(parse(&record), Some(expected));
        for length in 0..record.len() {
            assert_eq!(parse(&record[..length]), None);
        }
        record.extend([0; 8]);
        assert_eq!(parse(&record), None);
    }
}
