//! Giving back what only the start needed.
#![expect(unsafe_code, reason = "a call into the C library")]

/// Returns freed memory to the kernel: the start reads the kernel's types and symbols, ten times what the work needs.
pub(crate) fn give_back() {
    // SAFETY: the function takes a number and may be called at any time (malloc_trim(3)).
    unsafe { libc::malloc_trim(0) };
}
