//! Command lines of both halves: whatever is given, they are read or refused with one error.
#![no_main]
#![allow(dead_code, reason = "modules of the collector, of which a target uses a part")]

#[path = "../../collector/src/flags.rs"]
mod collector_flags;

use std::{ffi::OsStr, ffi::OsString, os::unix::ffi::OsStrExt};

use libfuzzer_sys::fuzz_target;
use uploader::flags::Flags;

fuzz_target!(|data: &[u8]| {
    // Arguments end with a zero, as in execve(2).
    let arguments: Vec<OsString> =
        data.split(|byte| *byte == 0).take(32).map(|part| OsStr::from_bytes(part).to_owned()).collect();
    if let Err(error) = collector_flags::parse(arguments.clone()) {
        assert!(!error.to_string().is_empty());
    }
    let line = std::iter::once(OsString::from("bulkhead-uploader")).chain(arguments);
    if let Err(error) = Flags::parse_line(line) {
        assert!(!error.to_string().is_empty());
    }
});
