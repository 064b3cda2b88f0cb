//! The socket that the uploader connects to.

use std::{
    fs, io,
    os::unix::{fs::FileTypeExt, net::UnixStream},
    path::{Path, PathBuf},
};

use rustix::{fs::Mode, process::umask};
use thiserror::Error;
use tokio::net::UnixListener;

#[derive(Debug, Error)]
pub(crate) enum ListenError {
    #[error("another proxy listens on {0}: stop it, or give another --socket")]
    Taken(PathBuf),
    #[error("{0} exists and is no socket: remove it, or give another --socket")]
    NoSocket(PathBuf),
    #[error("cannot listen on {path}: {source}; does its folder exist, and may this user write to it?")]
    Listen { path: PathBuf, source: io::Error },
}

/// Listens. The socket's mode is 0660; of those who may connect, one user is served.
pub(crate) fn listen(path: &Path) -> Result<UnixListener, ListenError> {
    let error = |source| ListenError::Listen { path: path.to_owned(), source };
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => return Err(ListenError::NoSocket(path.to_owned())),
        Ok(_) if UnixStream::connect(path).is_ok() => return Err(ListenError::Taken(path.to_owned())),
        // Left behind by one that was killed.
        Ok(_) => fs::remove_file(path).map_err(error)?,
        Err(_) => {}
    }
    let before = umask(Mode::from_raw_mode(0o117));
    let listener = UnixListener::bind(path);
    umask(before);
    listener.map_err(error)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[tokio::test]
    async fn a_socket_in_use_is_not_taken_and_one_left_behind_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let first = listen(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        assert!(matches!(listen(&path), Err(ListenError::Taken(_))));
        drop(first);
        drop(listen(&path).unwrap());
        fs::remove_file(&path).unwrap();
        fs::write(&path, "").unwrap();
        assert!(matches!(listen(&path), Err(ListenError::NoSocket(_))));
        assert!(matches!(listen(&folder.path().join("no/s")), Err(ListenError::Listen { .. })));
    }
}
