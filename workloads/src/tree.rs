//! Generates a C program from a call tree: every leaf does the same loop, so its share of time is its share of
//! iterations.

use std::{collections::BTreeMap, fmt::Write as _, path::PathBuf};

use crate::{BuildError, Language, compile};

/// A function that spends time, and how it is reached.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Leaf {
    /// Names from the function that `main` calls to the leaf itself. A name belongs to one place in the tree.
    pub path: Vec<String>,
    /// How much of the time is spent here, in slots of equal length.
    pub slots: u32,
}

/// How a program begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Start {
    /// As a usual program, linked with the C library. Its start code has no frame pointers, so that by frame
    /// pointers alone a stack can be followed to `main` and to the one who called it.
    Libc,
    /// Without any library: a `_start` of its own, with the frame pointer cleared as the ABI asks, calls `main`. A
    /// stack ends there.
    Bare,
}

/// A program to generate.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CallTree {
    /// Its file and command name, at most 15 characters.
    pub name: String,
    /// Its leaves.
    pub leaves: Vec<Leaf>,
    /// How many calls of a recursive function, `descend`, lie between `main` and the paths.
    pub recursion: u32,
    /// How it begins.
    pub start: Start,
}

/// Flags of gcc's for a tree without frame pointers, whose functions stay functions, each with its own code.
pub const WITHOUT_FRAME_POINTERS: &[&str] = &[
    "-O2",
    "-fomit-frame-pointer",
    "-fno-inline",
    "-fno-optimize-sibling-calls",
    "-fno-ipa-icf",
    "-fno-ipa-cp",
    "-fno-ipa-sra",
    "-fno-ipa-pure-const",
    "-fno-partial-inlining",
];

/// Iterations of one slot: about a third of a millisecond, short against the time between two samples.
const SLOT_ITERATIONS: u32 = 150_000;
/// The programs end by themselves after this many seconds, also when nobody stops them.
const LIFETIME_SECONDS: u32 = 600;

/// A tree with paths of different depth, functions with several callees, and shares from 3 to 31 percent.
pub fn standard_leaves() -> Vec<Leaf> {
    [
        (&["parse", "parse_header", "decode"][..], 31),
        (&["parse", "parse_body", "inflate"], 22),
        (&["parse", "parse_body", "checksum"], 5),
        (&["render", "layout", "measure", "shape"], 17),
        (&["render", "layout", "wrap"], 8),
        (&["render", "paint"], 11),
        (&["idle_work"], 3),
        (&["store", "compress", "find_match"], 3),
    ]
    .into_iter()
    .map(|(path, slots)| Leaf { path: path.iter().map(|name| (*name).to_owned()).collect(), slots })
    .collect()
}

impl CallTree {
    /// The tree of [`standard_leaves`], without recursion.
    pub fn standard(name: &str, start: Start) -> Self {
        CallTree { name: name.into(), leaves: standard_leaves(), recursion: 0, start }
    }

    /// The share of time of each leaf, with the names of its stack from the leaf to `main` (and `_start` where there
    /// is one of the program's own).
    pub fn expected(&self) -> Vec<(Vec<String>, f64)> {
        let slots: u32 = self.leaves.iter().map(|leaf| leaf.slots).sum();
        self.leaves
            .iter()
            .map(|leaf| {
                let mut stack: Vec<String> = leaf.path.iter().rev().cloned().collect();
                stack.extend((0..self.recursion).map(|_| "descend".into()));
                stack.push("main".into());
                if self.start == Start::Bare {
                    stack.push("_start".into());
                }
                (stack, f64::from(leaf.slots) / f64::from(slots))
            })
            .collect()
    }

    /// Compiles the program: no optimisation, a frame in every function.
    pub fn build(&self) -> Result<PathBuf, BuildError> {
        self.build_with(&[])
    }

    /// Compiles the program with further flags.
    pub fn build_with(&self, flags: &[&str]) -> Result<PathBuf, BuildError> {
        let mut all = vec!["-O0", "-fno-omit-frame-pointer", "-fcf-protection=none", "-Wall", "-Werror"];
        if self.start == Start::Bare {
            all.extend([
                "-DBARE",
                "-nostdlib",
                "-nostartfiles",
                "-static",
                "-no-pie",
                "-fno-stack-protector",
            ]);
        }
        all.extend(flags);
        compile(&self.name, Language::C, &self.source(), &all)
    }

    /// The C source.
    pub fn source(&self) -> String {
        // Callees of each inner function, each with the leaves that are reached through it.
        let mut callees: BTreeMap<&str, BTreeMap<&str, Vec<usize>>> = BTreeMap::new();
        for (index, leaf) in self.leaves.iter().enumerate() {
            let mut caller = "top";
            for name in &leaf.path {
                callees.entry(caller).or_default().entry(name).or_default().push(index);
                caller = name;
            }
        }
        let mut names: Vec<&str> =
            self.leaves.iter().flat_map(|leaf| leaf.path.iter().map(String::as_str)).collect();
        names.sort_unstable();
        names.dedup();

        let mut out = String::from(PRELUDE);
        for name in &names {
            let _ = writeln!(out, "void {name}(int leaf, long iterations);");
        }
        for name in &names {
            match callees.get(name) {
                None => {
                    let _ = write!(out, "LEAF({name})\n\n");
                }
                Some(next) => {
                    let _ = write!(out, "void {name}(int leaf, long iterations) {{\n{}}}\n\n", switch(next));
                }
            }
        }
        let top = callees.get("top").map(switch).unwrap_or_default();
        let run = if self.recursion == 0 {
            top
        } else {
            let _ = write!(
                out,
                "void descend(int depth, int leaf, long iterations) {{\n    \
                 if (depth > 1) {{ descend(depth - 1, leaf, iterations); return; }}\n{top}}}\n\n"
            );
            format!("descend({}, leaf, iterations);\n", self.recursion)
        };
        let deck: Vec<String> = self
            .leaves
            .iter()
            .enumerate()
            .flat_map(|(index, leaf)| (0..leaf.slots).map(move |_| index.to_string()))
            .collect();
        let _ = write!(
            out,
            "{}",
            MAIN.replace("DECK", &deck.join(", "))
                .replace("RUN", &run)
                .replace("ITERATIONS", &SLOT_ITERATIONS.to_string())
                .replace("LIFETIME", &LIFETIME_SECONDS.to_string())
        );
        out
    }
}

fn switch(callees: &BTreeMap<&str, Vec<usize>>) -> String {
    let mut out = String::from("    switch (leaf) {\n");
    for (name, leaves) in callees {
        for leaf in leaves {
            let _ = write!(out, "    case {leaf}:");
        }
        let _ = writeln!(out, " {name}(leaf, iterations); break;");
    }
    out.push_str("    }\n");
    out
}

/// System calls without a library; leaves that are the same code at the same alignment, so that one is as fast as
/// another.
const PRELUDE: &str = r#"// Generated from a call tree.
static inline long call(long number, long a, long b) {
    long result;
    __asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b) : "rcx", "r11", "memory");
    return result;
}

volatile unsigned long sink;

#define LEAF(name)                                                            \
    __attribute__((aligned(64))) void name(int leaf, long iterations) {       \
        unsigned long x = leaf;                                               \
        for (long i = 0; i < iterations; i++)                                 \
            x = x * 6364136223846793005ul + 1442695040888963407ul;            \
        sink += x;                                                            \
    }

"#;

/// The slots are played in a new random order each round: no sampling period can fall in step with it.
const MAIN: &str = r#"static unsigned char deck[] = {DECK};

#ifdef BARE
__asm__(".text\n.globl _start\n.type _start, @function\n_start: xor %ebp, %ebp\n"
        "and $-16, %rsp\ncall main\nhlt\n.size _start, . - _start\n");
#endif

int main(void) {
    call(37, LIFETIME, 0); // alarm
    unsigned long random = 88172645463325252ul;
    for (;;) {
        for (int i = sizeof deck - 1; i > 0; i--) {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            int j = random % (i + 1);
            unsigned char other = deck[j];
            deck[j] = deck[i];
            deck[i] = other;
        }
        for (int i = 0; i < sizeof deck; i++) {
            int leaf = deck[i];
            long iterations = ITERATIONS;
            RUN
        }
    }
}
"#;

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn stacks_are_named_from_the_leaf_to_the_start() {
        let mut tree = CallTree::standard("x", Start::Bare);
        tree.recursion = 2;
        let (stack, share) = &tree.expected()[0];
        assert_eq!(stack, &["decode", "parse_header", "parse", "descend", "descend", "main", "_start"]);
        assert!((share - 0.31).abs() < 1e-9);
        let shares: f64 = tree.expected().iter().map(|(_, share)| share).sum();
        assert!((shares - 1.0).abs() < 1e-9);
    }

    #[test]
    fn a_bare_program_runs() {
        let mut tree = CallTree::standard("unit-bare", Start::Bare);
        tree.recursion = 400;
        let mut child = Command::new(tree.build().unwrap()).spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(200));
        let ended = child.try_wait().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(ended, None, "it ended by itself");
    }
}
