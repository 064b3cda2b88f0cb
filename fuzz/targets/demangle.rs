//! Names of functions.
#![no_main]

use libfuzzer_sys::fuzz_target;

/// Longest name that is given out, in bytes.
const MAX_LENGTH: usize = 4096;

fuzz_target!(|data: &[u8]| {
    let Ok(name) = std::str::from_utf8(data) else { return };
    assert!(objects::demangle(name).len() <= MAX_LENGTH);
    // What says that it is mangled.
    for prefix in ["_Z", "_ZN", "_R", "_RNv"] {
        assert!(objects::demangle(&format!("{prefix}{name}")).len() <= MAX_LENGTH);
    }
});
