//! Notes: records with an owner's name, a type and a content. Build ids are such.

use crate::{
    FileId, IdKind,
    elf::{Elf, Encoding, PT_NOTE, SHT_NOTE},
    read_at::read_exact,
};

/// Bytes that are read of one segment or section of notes.
const MAX_NOTES_SIZE: u64 = 256 * 1024;
/// Segments and sections of notes that are read.
const MAX_NOTE_PARTS: usize = 64;
/// Longest build id, in bytes. Linkers make 8 to 32 of them, and as many as one writes after `--build-id=0x`.
const MAX_ID_SIZE: usize = 1024;

const NT_GNU_BUILD_ID: u32 = 3;
const NT_GO_BUILD_ID: u32 = 4;

/// The build id: GNU's, wherever it stands, before Go's. Segments come first, for they are what is loaded; sections are
/// asked because some linker scripts leave the note out of `PT_NOTE`.
pub(crate) fn build_id(elf: &Elf<'_>) -> Option<FileId> {
    let segments = elf.program_headers.iter().filter(|header| header.kind == PT_NOTE);
    let segments = segments.map(|header| (header.offset, header.file_size, header.align));
    let sections = elf.sections.iter().filter(|section| section.kind == SHT_NOTE);
    let sections = sections.map(|section| (section.offset, section.size, section.align));
    let mut go = None;
    for (offset, size, align) in segments.take(MAX_NOTE_PARTS).chain(sections.take(MAX_NOTE_PARTS)) {
        let available = elf.file.size().saturating_sub(offset).min(size).min(MAX_NOTES_SIZE);
        let mut bytes = vec![0; usize::try_from(available).unwrap_or_default()];
        if read_exact(elf.file, "notes", offset, &mut bytes).is_err() {
            continue;
        }
        // Notes of 8-byte alignment pad to 8. Some linkers put notes of 4 into the same segment.
        let paddings: &[usize] = if align == 8 { &[8, 4] } else { &[4] };
        for &padding in paddings {
            let found = find_id(elf.encoding, &bytes, padding);
            match found {
                Some(id) if id.kind == IdKind::Gnu => return Some(id),
                Some(id) if go.is_none() => go = Some(id),
                _ => {}
            }
        }
    }
    go
}

fn find_id(encoding: Encoding, bytes: &[u8], padding: usize) -> Option<FileId> {
    let mut go = None;
    let mut rest = bytes;
    while rest.len() >= 12 {
        let name_size = encoding.u32(rest, 0) as usize;
        let content_size = encoding.u32(rest, 4) as usize;
        let kind = encoding.u32(rest, 8);
        // 12 bytes of header and the name are padded together, and so is the content. The last content need not be.
        let Some(content_at) = 12usize.checked_add(name_size).map(|end| end.next_multiple_of(padding)) else {
            break;
        };
        let Some(content_end) = content_at.checked_add(content_size) else { break };
        let (Some(name), Some(content)) = (rest.get(12..12 + name_size), rest.get(content_at..content_end))
        else {
            break;
        };
        if (1..=MAX_ID_SIZE).contains(&content_size) {
            match (name, kind) {
                (b"GNU\0", NT_GNU_BUILD_ID) => {
                    return Some(FileId { kind: IdKind::Gnu, bytes: content.to_vec() });
                }
                (b"Go\0\0", NT_GO_BUILD_ID) if go.is_none() => {
                    go = Some(FileId { kind: IdKind::Go, bytes: content.to_vec() });
                }
                _ => {}
            }
        }
        rest = rest.get(content_end.next_multiple_of(padding)..).unwrap_or_default();
    }
    go
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Class;

    const LITTLE: Encoding = Encoding { class: Class::Elf64, little_endian: true };

    fn note(name: &[u8], kind: u32, content: &[u8], padding: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        for number in [u32::try_from(name.len()).unwrap(), u32::try_from(content.len()).unwrap(), kind] {
            bytes.extend(number.to_le_bytes());
        }
        bytes.extend(name);
        bytes.resize(bytes.len().next_multiple_of(padding), 0);
        bytes.extend(content);
        bytes.resize(bytes.len().next_multiple_of(padding), 0);
        bytes
    }

    #[test]
    fn the_gnu_id_wins_and_is_found_behind_others() {
        let notes = [
            note(b"GNU\0", 1, &[0; 16], 4),
            note(b"Go\0\0", 4, b"text", 4),
            note(b"GNU\0", 3, b"\x12\x34\x56", 4),
        ];
        let id = find_id(LITTLE, &notes.concat(), 4).unwrap();
        assert_eq!((id.kind, id.to_string().as_str()), (IdKind::Gnu, "123456"));
        let id = find_id(LITTLE, &notes[..2].concat(), 4).unwrap();
        assert_eq!((id.kind, id.bytes.as_slice()), (IdKind::Go, &b"text"[..]));
    }

    #[test]
    fn padding_to_8_is_that_of_header_and_name_together() {
        let notes = [note(b"GNU\0", 5, &[7; 12], 8), note(b"GNU\0", 3, b"\xab\xcd", 8)];
        assert_eq!(find_id(LITTLE, &notes.concat(), 8).unwrap().to_string(), "abcd");
    }

    #[test]
    fn forged_sizes_end_the_walk() {
        for (field, value) in [(0, u32::MAX), (4, u32::MAX), (4, 2000), (0, 13)] {
            let mut notes = note(b"GNU\0", 3, &[1; 20], 4);
            notes[field..field + 4].copy_from_slice(&value.to_le_bytes());
            assert_eq!(find_id(LITTLE, &notes, 4), None);
        }
        assert_eq!(find_id(LITTLE, &note(b"GNU\0", 3, &[], 4), 4), None);
    }
}
