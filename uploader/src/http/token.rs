//! A token that whoever asks must give: for a page that listens beyond this machine.

use std::{path::Path, sync::Arc};

use axum::{
    extract::{Request, State},
    http::{HeaderMap, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use base64::{Engine, prelude::BASE64_STANDARD};

use crate::secret::{Secret, SecretError, SecretFile};

/// Shortest: what is shorter can be guessed.
const MIN_LENGTH: usize = 16;
/// What a browser shows when it asks for the token.
const CHALLENGE: &str = "Basic realm=\"Bulkhead: any user, the token as password\", charset=\"UTF-8\"";

/// The token.
#[derive(Debug)]
pub struct Token(SecretFile);

impl Token {
    /// Reads it from a file, without the line's end.
    pub fn read(path: &Path) -> Result<Self, SecretError> {
        SecretFile::open(path, "--http-token-file", MIN_LENGTH).map(Token)
    }
}

/// Whether a request has the token: `Authorization: Bearer TOKEN` (RFC 6750), or `Basic` with the token as the password of whichever
/// user (RFC 7617), which is what a browser can ask a person for.
fn has(token: &Secret, headers: &HeaderMap) -> bool {
    let Some((scheme, value)) =
        headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()?.split_once(' '))
    else {
        return false;
    };
    if scheme.eq_ignore_ascii_case("bearer") {
        return is(token, value.trim().as_bytes());
    }
    let decoded = BASE64_STANDARD.decode(value.trim());
    let Ok(decoded) = decoded else { return false };
    let password = decoded.iter().position(|byte| *byte == b':').map(|colon| &decoded[colon + 1..]);
    scheme.eq_ignore_ascii_case("basic") && password.is_some_and(|password| is(token, password))
}

/// Compares all of it, whatever differs first: the time tells nothing but the length.
fn is(token: &Secret, given: &[u8]) -> bool {
    let own = token.reveal().as_bytes();
    let differences = own.iter().zip(given).fold(0, |all, (own, given)| all | (own ^ given));
    std::hint::black_box(differences) == 0 && own.len() == given.len()
}

/// Refuses requests without the token.
pub(super) async fn check(State(token): State<Arc<Token>>, request: Request, next: Next) -> Response {
    if has(&token.0.current(), request.headers()) {
        return next.run(request).await;
    }
    let headers = [(header::WWW_AUTHENTICATE, CHALLENGE)];
    let message = "A token is asked for here: Authorization: Bearer TOKEN, or the token as a password.\n";
    (StatusCode::UNAUTHORIZED, headers, message).into_response()
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    const TOKEN: &str = "0123456789abcdef:x";

    fn token() -> Secret {
        Secret::parse(TOKEN, MIN_LENGTH).unwrap()
    }

    fn is_in(authorization: &str) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, HeaderValue::from_str(authorization).unwrap());
        has(&token(), &headers)
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
        assert!(!has(&token(), &HeaderMap::new()));
    }
}
