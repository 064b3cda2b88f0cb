//! The one border at which bytes that other people choose (command names, paths, symbol names) become text.

use std::fmt::Write;

/// The bytes as text of one line: what is no UTF-8 and what is a control character is written `\xNN`, so that two
/// names that differ stay two. Everything behind this border may take names for valid text; none of it may take them
/// for markup.
pub fn printable(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            if character.is_control() {
                let mut buffer = [0; 4];
                escape(&mut text, character.encode_utf8(&mut buffer).as_bytes());
            } else {
                text.push(character);
            }
        }
        escape(&mut text, chunk.invalid());
    }
    text
}

fn escape(text: &mut String, bytes: &[u8]) {
    for byte in bytes {
        // Writing to a string cannot fail.
        let _ = write!(text, "\\x{byte:02x}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_stays_and_the_rest_is_escaped() {
        assert_eq!(printable(b"plain name; <b>\"x\"</b>"), "plain name; <b>\"x\"</b>");
        assert_eq!(printable("größe ✓".as_bytes()), "größe ✓");
        assert_eq!(printable(b"a\xffb\n\x1b[0m\0"), "a\\xffb\\x0a\\x1b[0m\\x00");
        assert_eq!(printable("\u{85}".as_bytes()), "\\xc2\\x85");
        assert_eq!(printable(b"cut \xe2\x9c"), "cut \\xe2\\x9c");
        assert_ne!(printable(b"\xfe"), printable(b"\xff"));
    }
}
