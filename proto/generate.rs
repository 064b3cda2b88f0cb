//! The generator of the committed code, used by the example that writes it and by the test that compares it.

use std::{error::Error, path::Path};

/// The packages, each in a file of its own.
const FILES: [&str; 4] = ["pprof.proto", "parca_profilestore.proto", "parca_debuginfo.proto", "cri.proto"];

/// Writes a file of Rust code for each package into `folder`. The compiler for .proto files is written in Rust, so
/// nothing needs to be installed. Of services there are clients, and servers for those who want them.
pub(crate) fn generate(folder: &Path) -> Result<(), Box<dyn Error>> {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("proto");
    let files = protox::compile(FILES.map(|file| sources.join(file)), [&sources])?;
    tonic_prost_build::configure()
        .out_dir(folder)
        .build_transport(false)
        .server_mod_attribute(".", "#[cfg(feature = \"server\")]")
        .compile_fds(files)?;
    Ok(())
}
