//! Memory that was used and is not needed any more.
#![expect(unsafe_code, reason = "a call into the C library")]

/// Returns freed memory to the kernel. The allocator keeps it otherwise: the collector reads ten times what its work
/// needs at its start, and the uploader at the end of each window.
pub fn give_back_memory() {
    // SAFETY: the function takes a number and may be called at any time, by any thread (malloc_trim(3)).
    unsafe { libc::malloc_trim(0) };
}
