//! An error in words, with what caused it.

use std::{error::Error, fmt::Write as _};

use crate::printable::printable;

/// `text`, and behind it what each cause says that is not in it yet, on one line.
pub(crate) fn with_causes(text: &str, mut cause: Option<&(dyn Error + 'static)>) -> String {
    let mut text = text.to_owned();
    while let Some(error) = cause {
        let words = error.to_string();
        if !text.contains(&words) {
            // Writing to a string cannot fail.
            let _ = write!(text, "{}{words}", if text.is_empty() { "" } else { ": " });
        }
        cause = error.source();
    }
    printable(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    struct Outer(&'static str, #[source] io::Error);

    #[test]
    fn each_is_said_once() {
        let said = |text| with_causes(text, Outer(text, io::Error::other("in\nner")).source());
        assert_eq!(said("outer"), "outer: in\\x0aner");
        assert_eq!(said("outer: in\nner"), "outer: in\\x0aner");
        assert_eq!((said(""), with_causes("alone", None)), ("in\\x0aner".into(), "alone".into()));
    }
}
