//! The unwinder: one step from a frame to its caller, generic over where the stack is read. The same code runs in
//! the kernel (called by `collector-ebpf`) and in tests over recorded stacks.
//!
//! Here by frame pointers. A caller that has an unwind row for the address will try that first, so a step is asked
//! of [`Registers`], not of an address.
#![no_std]

use records::End;

/// The registers that unwinding needs (x86-64: rip, rsp, rbp).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Registers {
    /// Instruction pointer: of the first frame the interrupted instruction, of all others a return address.
    pub ip: u64,
    /// Stack pointer.
    pub sp: u64,
    /// Frame pointer.
    pub fp: u64,
}

/// The stack of the process that is unwound.
pub trait Memory {
    /// Reads two words that lie one after the other; `None` if they cannot be read.
    fn read_pair(&mut self, address: u64) -> Option<[u64; 2]>;
}

/// Moves `registers` to the caller's frame, or says why there is none.
///
/// The frame that a frame pointer leads to is, by the x86-64 ABI (System V psABI, section 3.2.2): the caller's frame
/// pointer at 0, the return address at 8, and the caller's stack above. The outermost frame has a frame pointer of
/// zero (section 3.4.1).
#[expect(clippy::inline_always, reason = "a call costs the verifier as much as it costs the kernel")]
#[inline(always)]
pub fn step(memory: &mut impl Memory, registers: &mut Registers) -> Result<(), End> {
    let frame = registers.fp;
    if frame == 0 {
        return Err(End::Root);
    }
    // Callers lie higher on the stack. What does not climb is no frame pointer but some value that code compiled
    // without them keeps in the register; following it would invent frames.
    if frame < registers.sp || frame & 7 != 0 {
        return Err(End::NotClimbing);
    }
    let [fp, ip] = memory.read_pair(frame).ok_or(End::Memory)?;
    if ip == 0 {
        return Err(End::Root);
    }
    *registers = Registers { ip, sp: frame.wrapping_add(16), fp };
    Ok(())
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::{vec, vec::Vec};

    use super::*;

    /// A stack that begins at `base`.
    struct Stack {
        base: u64,
        words: Vec<u64>,
    }

    impl Memory for Stack {
        fn read_pair(&mut self, address: u64) -> Option<[u64; 2]> {
            let index = usize::try_from(address.checked_sub(self.base)? / 8).ok()?;
            Some([*self.words.get(index)?, *self.words.get(index + 1)?])
        }
    }

    fn unwind(stack: &mut Stack, mut registers: Registers) -> (Vec<u64>, End) {
        let mut frames = vec![];
        loop {
            frames.push(registers.ip);
            match step(stack, &mut registers) {
                Ok(()) => assert!(frames.len() < 1000, "an unwind without an end"),
                Err(end) => return (frames, end),
            }
        }
    }

    #[test]
    fn three_frames_to_the_root() {
        // sp -> locals of the leaf; its frame; locals of the middle; its frame; the root's frame.
        let mut stack = Stack {
            base: 0x1000,
            words: vec![9, 0x1000 + 4 * 8, 0xb, 9, 0x1000 + 7 * 8, 0xc, 9, 0, 0xd, 1, 1],
        };
        let (frames, end) = unwind(&mut stack, Registers { ip: 0xa, sp: 0x1000, fp: 0x1008 });
        assert_eq!(frames, [0xa, 0xb, 0xc, 0xd]);
        assert_eq!(end, End::Root);
    }

    #[test]
    fn a_zero_return_address_is_the_root() {
        let mut stack = Stack { base: 0x1000, words: vec![0x1010, 0, 0, 0] };
        assert_eq!(unwind(&mut stack, Registers { ip: 1, sp: 0x1000, fp: 0x1000 }), (vec![1], End::Root));
    }

    #[test]
    fn what_is_no_frame_pointer_is_not_followed() {
        let mut stack = Stack { base: 0x1000, words: vec![0x1000, 2, 0x1000, 3] };
        // A loop, a pointer below the stack, an odd pointer, a small number (argc in glibc's start code).
        for fp in [0xfff, 0x1001, 1] {
            let (frames, end) = unwind(&mut stack, Registers { ip: 1, sp: 0x1000, fp });
            assert_eq!((frames.len(), end), (1, End::NotClimbing));
        }
        let (frames, end) = unwind(&mut stack, Registers { ip: 1, sp: 0x1000, fp: 0x1000 });
        assert_eq!((frames, end), (vec![1, 2], End::NotClimbing));
    }

    #[test]
    fn a_stack_that_cannot_be_read_says_so() {
        let mut stack = Stack { base: 0x1000, words: vec![0x9000, 2] };
        assert_eq!(
            unwind(&mut stack, Registers { ip: 1, sp: 0x1000, fp: 0x1000 }),
            (vec![1, 2], End::Memory)
        );
        assert_eq!(unwind(&mut stack, Registers { ip: 1, sp: 0x1000, fp: !7 }), (vec![1], End::Memory));
    }
}
