//! Programs that replace their own text by anonymous memory; see `programs/remapped.c`.

use std::path::PathBuf;

use crate::{BuildError, CallTree, Language, WITHOUT_FRAME_POINTERS, compile};

/// How the text is replaced.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Remapped {
    /// All of it at once, by memory that is mapped in its place.
    AtOnce,
    /// Page by page.
    InPieces,
    /// By memory that is made elsewhere and moved.
    Moved,
}

const END_OF_TEXT: &str = "__asm__(\".text\\n.p2align 12\\ntext_end:\\n.skip 4096, 0xcc\\n\");\n";

/// Compiles a call tree, without frame pointers, that replaces its text before it begins.
///
/// # Errors
///
/// As for [`compile`].
pub fn remapped(tree: &CallTree, how: Remapped) -> Result<PathBuf, BuildError> {
    let how = match how {
        Remapped::AtOnce => "-DAT_ONCE",
        Remapped::InPieces => "-DPIECES",
        Remapped::Moved => "-DMOVED",
    };
    let source = [include_str!("../programs/remapped.c"), &tree.source(), END_OF_TEXT].concat();
    // The text in the order of the source, and on several pages.
    let flags = ["-fno-toplevel-reorder", "-fno-reorder-functions", "-falign-functions=4096", how];
    compile(&tree.name, Language::C, &source, &[WITHOUT_FRAME_POINTERS, &flags].concat())
}

#[cfg(test)]
mod tests {
    use std::{fs, process::Command, thread, time::Duration};

    use super::*;
    use crate::Start;

    #[test]
    fn its_text_is_anonymous_memory_and_it_runs() {
        for how in [Remapped::AtOnce, Remapped::InPieces, Remapped::Moved] {
            let tree = CallTree::standard("unit-remapped", Start::Libc);
            let mut child = Command::new(remapped(&tree, how).unwrap()).spawn().unwrap();
            // Its text is replaced before it works: between two mappings of the file lies memory.
            let is_replaced = |maps: String| {
                let text: Vec<bool> = maps
                    .lines()
                    .filter(|line| line.contains(" r-xp "))
                    .map(|line| line.ends_with("/unit-remapped"))
                    .collect();
                text.starts_with(&[true, false]) && text[1..].contains(&true)
            };
            let replaced = (0..100).any(|_| {
                thread::sleep(Duration::from_millis(20));
                is_replaced(fs::read_to_string(format!("/proc/{}/maps", child.id())).unwrap())
            });
            let ended = child.try_wait().unwrap();
            child.kill().unwrap();
            child.wait().unwrap();
            assert!(replaced && ended.is_none(), "{how:?}: {ended:?}");
        }
    }
}
