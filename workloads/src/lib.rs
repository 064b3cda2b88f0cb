//! Programs with a known call tree and known shares of time, and programs that do the odd things that real ones do.
//! They are compiled when they are first asked for, into a folder under `target`, and kept by what they were made of.
//!
//! What a profile of them has to say is known before it is taken: this is what tests assert and benches measure.

mod broken;
mod catalogue;
mod churn;
mod frameless;
mod remapped;
mod toolchain;
mod tree;

pub use broken::{Broken, write_broken};
pub use catalogue::{
    Known, Program, go_and_c, go_leaves, known_cpp, known_go, known_rust, plain, plugin, program, stage,
};
pub use churn::{
    CHURN_LIBRARIES, TEMPLATE_DEPTH, breeder, churn_library, churn_library_chain, churn_loader, crowd,
    ends_at_once, floods, frameless_brief, spawner, templates, thread_starts, tiny, tiny_chain,
    tiny_for_longer,
};
pub use frameless::{Frameless, SECRET, exceptions, frameless, rust_release};
pub use remapped::{Remapped, remapped};
pub use toolchain::{BuildError, Language, compile, with_lld};
pub use tree::{CallTree, Leaf, Start, WITHOUT_FRAME_POINTERS, standard_leaves};
