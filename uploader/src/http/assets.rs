//! The built front end, compiled in. The names carry a hash of the content, so that a browser may keep them for ever.

use axum::Router;
use axum::extract::Path;
use axum::http::StatusCode;
use axum::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use super::pages;

// ICON, INDEX_SCRIPT, PROFILE_SCRIPT, STYLE: names below /assets/; FILES: name, content type, bytes.
include!(concat!(env!("CARGO_MANIFEST_DIR"), "/assets/files.rs"));

/// The files below `/assets/`.
pub fn router() -> Router {
    Router::new().route("/assets/{name}", get(file))
}

async fn file(Path(name): Path<String>) -> Response {
    match FILES.iter().find(|(known, ..)| *known == name) {
        Some((_, content_type, bytes)) => (
            [
                (CONTENT_TYPE, *content_type),
                (CACHE_CONTROL, "public, max-age=31536000, immutable"),
                (X_CONTENT_TYPE_OPTIONS, "nosniff"),
                (CONTENT_SECURITY_POLICY, pages::CONTENT_SECURITY_POLICY),
            ],
            *bytes,
        )
            .into_response(),
        None => {
            (StatusCode::NOT_FOUND, [(CACHE_CONTROL, "no-store")], "there is no such file\n").into_response()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn files_are_served_with_their_type_and_kept() {
        for name in [ICON, INDEX_SCRIPT, PROFILE_SCRIPT, STYLE] {
            let response = file(Path(name.to_owned())).await;
            assert_eq!(response.status(), StatusCode::OK, "{name}");
            let kept = response.headers()[CACHE_CONTROL].to_str().expect("text");
            assert!(kept.contains("immutable"), "{name}: {kept}");
        }
        assert_eq!(file(Path("x".into())).await.status(), StatusCode::NOT_FOUND);
        assert!(file(Path(STYLE.into())).await.headers()[CONTENT_TYPE] == "text/css; charset=utf-8");
    }
}
