//! Memory that was used and is not needed any more.
#![expect(unsafe_code, reason = "a call into the C library")]

/// Returns freed memory to the kernel. The allocator keeps it otherwise: the collector reads ten times what its work
/// needs at its start and in a burst, and the uploader at the end of each window.
pub fn give_back_memory() {
    // SAFETY: the function takes a number and may be called at any time, by any thread (malloc_trim(3)).
    unsafe { libc::malloc_trim(0) };
}

/// Has all threads allocate from one heap. Otherwise the allocator gives each thread one of its own, and what lives long in it
/// keeps the memory of what that thread read from going back to the kernel. To be called before there is another thread.
pub fn share_one_heap() {
    // SAFETY: the function takes two numbers and changes only what the allocator does from now on (mallopt(3)).
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}
