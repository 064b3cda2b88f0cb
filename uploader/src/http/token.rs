//! A token that whoever asks must give: for a page that listens beyond this machine.

use std::{
    fmt,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::Arc,
};

use axum::{
    extract::{Request, State},
    http::{HeaderMap, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use base64::{Engine, prelude::BASE64_STANDARD};
use thiserror::Error;

/// Longest token, in bytes.
const MAX_LENGTH: u64 = 4096;
/// Shortest: what is shorter can be guessed.
const MIN_LENGTH: usize = 16;
/// What a browser shows when it asks for the token.
const CHALLENGE: &str = "Basic realm=\"Bulkhead: any user, the token as password\", charset=\"UTF-8\"";

/// Why there is no token. Never says what the file has in it.
#[derive(Debug, Error)]
pub enum TokenError {
    /// The file cannot be read.
    #[error("cannot read {path} (--http-token-file): {source}")]
    Read {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file has something else in it.
    #[error(
        "{0} (--http-token-file) has no token in it: one line of {MIN_LENGTH} to {MAX_LENGTH} printable ASCII characters, such as `openssl rand -hex 32` prints"
    )]
    Malformed(PathBuf),
}

/// The token.
pub struct Token(String);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(not shown)")
    }
}

impl Token {
    /// Reads it from a file, without the line's end.
    pub fn read(path: &Path) -> Result<Self, TokenError> {
        let error = |source| TokenError::Read { path: path.to_owned(), source };
        let mut bytes = Vec::new();
        let file = File::open(path).map_err(error)?;
        file.take(MAX_LENGTH + 2).read_to_end(&mut bytes).map_err(error)?;
        let text = String::from_utf8(bytes).unwrap_or_default();
        let token = text.trim_end_matches(['\r', '\n']);
        let length_is_right = token.len() >= MIN_LENGTH && token.len() as u64 <= MAX_LENGTH;
        if !length_is_right || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(TokenError::Malformed(path.to_owned()));
        }
        Ok(Token(token.to_owned()))
    }

    /// Whether a request has it: `Authorization: Bearer TOKEN` (RFC 6750), or `Basic` with the token as the password of whichever
    /// user (RFC 7617), which is what a browser can ask a person for.
    fn is_in(&self, headers: &HeaderMap) -> bool {
        let Some((scheme, value)) =
            headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()?.split_once(' '))
        else {
            return false;
        };
        if scheme.eq_ignore_ascii_case("bearer") {
            return self.is(value.trim().as_bytes());
        }
        let decoded = BASE64_STANDARD.decode(value.trim());
        let Ok(decoded) = decoded else { return false };
        let password = decoded.iter().position(|byte| *byte == b':').map(|colon| &decoded[colon + 1..]);
        scheme.eq_ignore_ascii_case("basic") && password.is_some_and(|password| self.is(password))
    }

    /// Compares all of it, whatever differs first: the time tells nothing but the length.
    fn is(&self, given: &[u8]) -> bool {
        let own = self.0.as_bytes();
        let differences = own.iter().zip(given).fold(0, |all, (own, given)| all | (own ^ given));
        std::hint::black_box(differences) == 0 && own.len() == given.len()
    }
}

/// Refuses requests without the token.
pub(super) async fn check(State(token): State<Arc<Token>>, request: Request, next: Next) -> Response {
    if token.is_in(request.headers()) {
        return next.run(request).await;
    }
    let headers = [(header::WWW_AUTHENTICATE, CHALLENGE)];
    let message = "A token is asked for here: Authorization: Bearer TOKEN, or the token as a password.\n";
    (StatusCode::UNAUTHORIZED, headers, message).into_response()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use axum::http::HeaderValue;

    use super::*;

    const TOKEN: &str = "0123456789abcdef:x";

    fn is_in(authorization: &str) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, HeaderValue::from_str(authorization).unwrap());
        Token(TOKEN.into()).is_in(&headers)
    }

    #[test]
    fn as_a_bearer_token_or_a_password() {
        assert!(is_in(&format!("Bearer {TOKEN}")));
        assert!(is_in(&format!("bearer  {TOKEN}")));
        let basic = |text: &str| format!("Basic {}", BASE64_STANDARD.encode(text));
        assert!(is_in(&basic(&format!("me:{TOKEN}"))));
        assert!(is_in(&basic(&format!(":{TOKEN}"))));
        for wrong in [
            "",
            "Bearer",
            "Bearer ",
            "Bearer 0123456789abcdef:y",
            "Bearer 0123456789abcdef:",
            "Bearer 0123456789abcdef:xx",
            "Digest 0123456789abcdef:x",
            "0123456789abcdef:x",
            "Basic !",
            &basic(TOKEN),
            &basic("me:"),
            &basic("me"),
            &format!("Bearer {}", BASE64_STANDARD.encode(TOKEN)),
        ] {
            assert!(!is_in(wrong), "{wrong}");
        }
        assert!(!Token(TOKEN.into()).is_in(&HeaderMap::new()));
    }

    #[test]
    fn a_file_has_one_line_and_no_error_shows_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        for text in ["0123456789abcdef", "0123456789abcdef\n", "0123456789abcdef\r\n"] {
            fs::write(&path, text).unwrap();
            let token = Token::read(&path).unwrap();
            assert_eq!(token.0, "0123456789abcdef");
            assert!(!format!("{token:?}").contains("0123"));
        }
        let long = "x".repeat(5000);
        for text in ["", "short", "0123456789abcdef\nsecond", "0123456789 abcdef", "0123456789abcdefé", &long]
        {
            fs::write(&path, text).unwrap();
            let message = Token::read(&path).unwrap_err().to_string();
            assert!(message.contains("token") && (text.is_empty() || !message.contains(text)), "{message}");
        }
        let message = Token::read(&folder.path().join("none")).unwrap_err().to_string();
        assert!(message.contains("none") && message.contains("No such file"), "{message}");
    }
}
