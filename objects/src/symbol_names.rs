//! Names as string tables hold them: bytes up to a NUL, one inside the tail of another, and anything but text if the
//! file is hostile.

/// Longest name that is kept, in bytes; longer ones are cut.
pub(crate) const MAX_NAME: usize = 4096;

/// The name at an offset: up to its NUL, and without the version that old linkers write behind it (`@@GLIBC_2.14`).
pub(crate) fn name_at(names: &[u8], offset: u32) -> &[u8] {
    name_within(names, offset, MAX_NAME)
}

/// The first part of it, by which names are compared: names are as long as an enemy wants, and there can be millions, all of them one's tails.
pub(crate) fn head_of_name(names: &[u8], offset: u32) -> &[u8] {
    name_within(names, offset, MAX_NAME / 16)
}

fn name_within(names: &[u8], offset: u32, length: usize) -> &[u8] {
    let rest = names.get(offset as usize..).unwrap_or_default();
    let rest = &rest[..rest.len().min(length)];
    let end = rest.iter().position(|byte| *byte == 0).unwrap_or(rest.len());
    let name = &rest[..end];
    match name.iter().position(|byte| *byte == b'@') {
        Some(version) if version > 0 => &name[..version],
        _ => name,
    }
}

/// Keeps only the names at these offsets, which must come in ascending order, and moves the offsets along. Names that
/// share bytes in the table go on sharing them.
pub(crate) fn compact<'a>(names: &mut Vec<u8>, offsets: impl Iterator<Item = &'a mut u32>) {
    // Every name is followed by at least one byte that is not part of it, so the copy with its NUL never overtakes what
    // is still to be read.
    let mut write = 0;
    // What was last copied: from, up to, to.
    let mut last = (0, 0, 0);
    for offset in offsets {
        let from = *offset as usize;
        // At its very end there is its NUL now; that can be the start of another name only if this one was cut.
        if from <= last.1 && last.1 > 0 {
            *offset = u32::try_from(last.2 + (from - last.0)).unwrap_or_default();
            continue;
        }
        let length = name_at(names, *offset).len();
        names.copy_within(from..from + length, write);
        names[write + length] = 0;
        last = (from, from + length, write);
        *offset = u32::try_from(write).unwrap_or_default();
        write += length + 1;
    }
    names.truncate(write);
    names.shrink_to_fit();
}

/// As text: what is neither UTF-8 nor printable becomes `?`, in place; NUL stays.
pub(crate) fn printable(mut names: Vec<u8>) -> String {
    for byte in &mut names {
        if byte.is_ascii_control() && *byte != 0 {
            *byte = b'?';
        }
    }
    // The other control characters, U+0080 to U+009F, have these two bytes, which are nothing else anywhere.
    let mut at = 0;
    while let Some([lead, next]) = names.get_mut(at..).and_then(|rest| rest.first_chunk_mut()) {
        if *lead == 0xc2 && matches!(next, 0x80..=0x9f) {
            (*lead, *next) = (b'?', b'?');
        }
        at += 1;
    }
    loop {
        match String::from_utf8(names) {
            Ok(text) => return text,
            Err(error) => {
                let mut at = error.utf8_error().valid_up_to();
                names = error.into_bytes();
                // All faults in one go: starting over after each would take quadratic time.
                while at < names.len() {
                    match std::str::from_utf8(&names[at..]) {
                        Ok(_) => break,
                        Err(fault) => {
                            let bad = at + fault.valid_up_to();
                            let length = fault.error_len().unwrap_or(names.len() - bad);
                            names[bad..bad + length].fill(b'?');
                            at = bad + length;
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_end_at_their_nul_and_before_their_version() {
        let names = b"write\0memcpy@@GLIBC_2.14\0@odd\0tail";
        assert_eq!(name_at(names, 0), b"write");
        assert_eq!(name_at(names, 6), b"memcpy");
        assert_eq!(name_at(names, 25), b"@odd");
        assert_eq!(name_at(names, 30), b"tail");
        assert_eq!(name_at(names, 1000), b"");
        assert_eq!(name_at(&[b'x'; 2 * MAX_NAME], 1).len(), MAX_NAME);
        assert_eq!(head_of_name(&[b'x'; 2 * MAX_NAME], 1).len(), MAX_NAME / 16);
        assert_eq!(head_of_name(b"name@@V1\0", 0), b"name");
    }

    #[test]
    fn compacting_keeps_the_wanted_names_and_their_sharing() {
        let mut names = b"unwanted\0__write\0other\0v@1\0z\0".to_vec();
        let mut offsets = [9, 11, 11, 23, 27];
        compact(&mut names, offsets.iter_mut());
        assert_eq!(names, b"__write\0v\0z\0");
        let kept: Vec<_> = offsets.iter().map(|offset| name_at(&names, *offset)).collect();
        assert_eq!(kept, [&b"__write"[..], b"write", b"write", b"v", b"z"]);
    }

    #[test]
    fn a_name_inside_one_that_was_cut_ends_where_that_one_does() {
        let mut names = vec![b'x'; 3 * MAX_NAME];
        names.push(0);
        let mut offsets = [0, 1, u32::try_from(MAX_NAME).unwrap()];
        compact(&mut names, offsets.iter_mut());
        assert_eq!(name_at(&names, offsets[1]).len(), MAX_NAME - 1);
        assert_eq!(name_at(&names, offsets[2]).len(), 0);
    }

    #[test]
    fn what_is_no_text_becomes_question_marks() {
        assert_eq!(printable(b"a\xff\xfeb\0\xc3\xa4\n\x1b\0\xe2\x82".to_vec()), "a??b\0\u{e4}??\0??");
        assert_eq!(printable("a\u{80}\u{9f}\u{a0}\u{85}".as_bytes().to_vec()), "a????\u{a0}??");
    }
}
