//! The generator of the committed code, used by the example that writes it and by the test that compares it.

use std::{error::Error, path::Path};

/// Writes a file of Rust code for each package into `folder`. The compiler for .proto files is written in Rust, so
/// nothing needs to be installed.
pub(crate) fn generate(folder: &Path) -> Result<(), Box<dyn Error>> {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("proto");
    let files = protox::compile([sources.join("pprof.proto")], [&sources])?;
    prost_build::Config::new().out_dir(folder).compile_fds(files)?;
    Ok(())
}
