//! The one border at which bytes that other people choose (command names, paths, symbol names) become text.

use std::fmt::Write;

/// The bytes as text of one line: what is no UTF-8 and what is a control character is written `\xNN`, so that two
/// names that differ stay two. So is what turns the direction of text around, which would have the rest of a line read as
/// something else. Everything behind this border may take names for valid text; none of it may take them for markup.
pub fn printable(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            if character.is_control() || turns_text_around(character) {
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

/// Explicit marks of direction (Unicode's `Bidi_Control`), but the Arabic letter mark, which overrides nothing and is part of words.
fn turns_text_around(character: char) -> bool {
    matches!(character, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
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
        for mark in
            "\u{200e}\u{200f}\u{202a}\u{202b}\u{202c}\u{202d}\u{202e}\u{2066}\u{2067}\u{2068}\u{2069}".chars()
        {
            let name = format!("cat{mark}exe");
            assert!(printable(name.as_bytes()).is_ascii(), "{mark:?}");
        }
        assert_eq!(printable("a\u{202e}b".as_bytes()), "a\\xe2\\x80\\xaeb");
        // Names that are written from right to left stay.
        assert_eq!(printable("שלום".as_bytes()), "שלום");
        assert_ne!(printable(b"\xfe"), printable(b"\xff"));
    }
}
