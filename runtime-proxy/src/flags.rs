//! The proxy's flags.

use std::{ffi::OsString, path::PathBuf};

use lexopt::prelude::*;

const HELP: &str = "\
bulkhead-runtime-proxy: lets bulkhead-uploader read lists of containers, and do nothing else, at a container runtime's socket

Usage: bulkhead-runtime-proxy --runtime=PATH [FLAGS]

Flags:
      --runtime=PATH  Socket of the runtime: containerd, CRI-O, Docker or Podman. This user must be able to open it.
      --socket=PATH   Socket to listen on. [default: /run/bulkhead-runtime-proxy/runtime.sock]
      --user=USER     User, by name or number, that may connect; nobody else can. [default: bulkhead-uploader]
  -h, --help          Show this help.
  -V, --version       Show the version.
";

/// What the command line asked for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Command {
    Run(Flags),
    /// Print this and stop.
    Print(String),
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Flags {
    pub(crate) runtime: PathBuf,
    pub(crate) socket: PathBuf,
    pub(crate) user: String,
}

/// Reads the arguments, without the program's name.
pub(crate) fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Command, lexopt::Error> {
    let mut runtime = None;
    let mut socket = PathBuf::from("/run/bulkhead-runtime-proxy/runtime.sock");
    let mut user = "bulkhead-uploader".to_owned();
    let mut parser = lexopt::Parser::from_args(arguments);
    while let Some(argument) = parser.next()? {
        match argument {
            Short('h') | Long("help") => return Ok(Command::Print(HELP.into())),
            Short('V') | Long("version") => {
                let version = env!("CARGO_PKG_VERSION");
                return Ok(Command::Print(format!("bulkhead-runtime-proxy {version}\n")));
            }
            Long("runtime") => runtime = Some(parser.value()?.into()),
            Long("socket") => socket = parser.value()?.into(),
            Long("user") => user = parser.value()?.string()?,
            other => return Err(other.unexpected()),
        }
    }
    let runtime = runtime.ok_or("--runtime is missing: the socket of the runtime; --help lists the flags")?;
    Ok(Command::Run(Flags { runtime, socket, user }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &[&str]) -> Result<Command, lexopt::Error> {
        super::parse(line.iter().map(Into::into))
    }

    #[test]
    fn a_runtime_is_needed() {
        assert!(parse(&[]).unwrap_err().to_string().contains("--runtime"));
        assert!(parse(&["--runtime=a", "--enter"]).is_err());
        let flags =
            Flags { runtime: "/run/docker.sock".into(), socket: "/tmp/s".into(), user: "65534".into() };
        let line = ["--runtime=/run/docker.sock", "--socket", "/tmp/s", "--user=65534"];
        assert_eq!(parse(&line).unwrap(), Command::Run(flags));
        assert!(matches!(parse(&["--help"]), Ok(Command::Print(text)) if text.contains("--socket")));
    }
}
