//! Users by name.

use std::{fs, io};

use thiserror::Error;

const PASSWD: &str = "/etc/passwd";

/// A user could not be found.
#[derive(Debug, Error)]
pub enum UserError {
    /// `/etc/passwd` could not be read.
    #[error("cannot look up user {user:?}: {PASSWD}: {source}; give a number instead")]
    Read {
        /// Who was looked up.
        user: String,
        /// What went wrong.
        source: io::Error,
    },
    /// There is no such user.
    #[error(
        "there is no user {0:?} in {PASSWD}; make it (useradd --system {0}), or give another name or a number"
    )]
    Unknown(String),
}

/// The id of a user given by number or by name. Names are looked up in `/etc/passwd` alone: the directory services
/// that a C library would ask need a network and its parsers.
pub fn uid_of(user: &str) -> Result<u32, UserError> {
    if let Ok(uid) = user.parse() {
        return Ok(uid);
    }
    let text = fs::read_to_string(PASSWD).map_err(|source| UserError::Read { user: user.into(), source })?;
    find(&text, user).ok_or_else(|| UserError::Unknown(user.into()))
}

/// passwd(5): `name:password:uid:gid:...`.
fn find(passwd: &str, user: &str) -> Option<u32> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next()? == user).then(|| fields.nth(1)?.parse().ok()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_number_and_by_name() {
        assert_eq!(uid_of("65534").unwrap(), 65534);
        assert_eq!(uid_of("root").unwrap(), 0);
        assert!(matches!(uid_of("no such user"), Err(UserError::Unknown(_))));
    }

    #[test]
    fn only_the_whole_name_counts() {
        let passwd = "ab:x:1:1::/:/bin/sh\na:x:2:2::/:/bin/sh\nbroken\n:x:3:3\n";
        assert_eq!(find(passwd, "a"), Some(2));
        assert_eq!(find(passwd, "b"), None);
        assert_eq!(find(passwd, "broken"), None);
    }
}
