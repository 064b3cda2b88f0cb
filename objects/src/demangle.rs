//! Names as people write them.

use std::borrow::Cow;

use cpp_demangle::{DemangleOptions, ParseOptions, Symbol};

/// Longest name that is given out, in bytes.
const MAX_LENGTH: usize = 4096;
/// Longest mangled C++ name that is tried: what a template can make of it grows faster than its length.
const MAX_CPP: usize = 2048;
/// Longest mangled Rust name that is tried.
const MAX_RUST: usize = 4096;
/// How deep the parser and the writer may recurse.
const MAX_RECURSION: u32 = 96;
/// Substitutions in a mangled C++ name: each may double what is written.
const MAX_SUBSTITUTIONS: usize = 64;

/// The name as its programmer wrote it (Rust, C++), or the name itself. Never slow, never long: names that are too long
/// or too deeply nested stay mangled, and are cut to 4 KiB.
pub fn demangle(name: &str) -> Cow<'_, str> {
    rust(name)
        .or_else(|| cpp(name))
        .map_or_else(|| Cow::Borrowed(cut(name)), |name| Cow::Owned(cut(&name).to_owned()))
}

fn cut(name: &str) -> &str {
    &name[..name.floor_char_boundary(MAX_LENGTH)]
}

/// Rust's two schemes: `_R...` (v0) and `_ZN...17h<hash>E` (legacy). What a compiler hangs on with a dot (`.llvm.123`,
/// `.cold`) is taken off first; of such a tail only what tells the parts of a function apart stays.
fn rust(name: &str) -> Option<String> {
    if name.len() > MAX_RUST || !(name.starts_with("_R") || name.starts_with("_ZN")) {
        return None;
    }
    let (name, tail) = split_tail(name);
    let demangled = rustc_demangle::try_demangle(name).ok()?;
    let mut text = Limited(String::new());
    // The alternate form leaves the hash out.
    std::fmt::write(&mut text, format_args!("{demangled:#}")).ok()?;
    text.0.push_str(tail);
    Some(text.0)
}

/// A mangled name and what a compiler hung on.
fn split_tail(name: &str) -> (&str, &str) {
    let Some(dot) = name.find('.') else { return (name, "") };
    let (base, tail) = name.split_at(dot);
    let keep = ["cold", "part", "isra", "constprop"].iter().any(|kind| tail[1..].starts_with(kind));
    (base, if keep { tail } else { "" })
}

fn cpp(name: &str) -> Option<String> {
    if name.len() > MAX_CPP || !(name.starts_with("_Z") || name.starts_with("__Z")) {
        return None;
    }
    // `S_`, `S1_`, `T_`: references to earlier parts of the name.
    let bytes = name.as_bytes();
    let substitutions =
        bytes.windows(2).filter(|pair| matches!(pair, [b'S' | b'T', b'_' | b'0'..=b'9'])).count();
    if substitutions > MAX_SUBSTITUTIONS {
        return None;
    }
    let parsed =
        Symbol::new_with_options(bytes, &ParseOptions::default().recursion_limit(MAX_RECURSION)).ok()?;
    let mut text = Limited(String::new());
    let options = DemangleOptions::new().recursion_limit(MAX_RECURSION);
    parsed.structured_demangle(&mut text, &options).ok()?;
    (!text.0.is_empty()).then_some(text.0)
}

/// Takes no more than is given out, so that a name that doubles with each of its parts ends early.
struct Limited(String);

impl std::fmt::Write for Limited {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        if self.0.len() + text.len() > MAX_LENGTH {
            return Err(std::fmt::Error);
        }
        self.0.push_str(text);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn rust_names_of_both_schemes() {
        let legacy = "_ZN4core3fmt9Formatter9write_str17h0123456789abcdefE";
        assert_eq!(demangle(legacy), "core::fmt::Formatter::write_str");
        assert_eq!(demangle(&format!("{legacy}.llvm.123456")), "core::fmt::Formatter::write_str");
        assert_eq!(demangle(&format!("{legacy}.cold")), "core::fmt::Formatter::write_str.cold");
        assert_eq!(demangle("_RNvCs1234_7mycrate3foo"), "mycrate::foo");
        assert_eq!(demangle("_RINvCs1234_7mycrate3fooNvB2_3barE"), "mycrate::foo::<mycrate::bar>");
    }

    #[test]
    fn cpp_names() {
        assert_eq!(demangle("_ZN3foo3barEi"), "foo::bar(int)");
        assert_eq!(
            demangle("_ZNSt6vectorIiSaIiEE9push_backEOi"),
            "std::vector<int, std::allocator<int> >::push_back(int&&)"
        );
        assert_eq!(demangle("_ZN3foo3barEi.cold"), "foo::bar(int) [clone .cold]");
    }

    #[test]
    fn other_names_stay_as_they_are() {
        for name in ["main", "", "_Z", "_R", "_ZN", "main.main", "a::b", "_ZN3fo", "Java_x"] {
            assert_eq!(demangle(name), name);
        }
    }

    #[test]
    fn hostile_names_are_quick_and_short() {
        let mut nested = String::from("i");
        for _ in 0..40 {
            nested = format!("N1AI{nested}S_S_E1BE");
        }
        let doubling = (0..30).map(|i| format!("S{i}_S{i}_")).collect::<Vec<_>>().concat();
        let names = [
            format!("_ZN1aI{nested}E1bEv"),
            format!("_Z1fI{doubling}Ev"),
            format!("_Z{}", "N".repeat(1_000_000)),
            format!("_Z1f{}", "P".repeat(1000)),
            format!("_R{}", "I".repeat(1_000_000)),
            format!("_RNv{}", "B_".repeat(1000)),
            "x".repeat(1_000_000),
            "\u{e4}".repeat(5000),
        ];
        for name in names {
            let start = Instant::now();
            let text = demangle(&name);
            assert!(text.len() <= MAX_LENGTH);
            // A bound on work, not a measurement: without the limits these take minutes or end the process.
            assert!(start.elapsed() < Duration::from_secs(2), "{}", &name[..20]);
        }
    }
}
