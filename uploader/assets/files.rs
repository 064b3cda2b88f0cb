// Made by script/build-web; do not edit.
pub(crate) const ICON: &str = "favicon-a6734e19e9ef.svg";
pub(crate) const INDEX_SCRIPT: &str = "index-a251d22dc959.js";
pub(crate) const PROFILE_SCRIPT: &str = "profile-130cbbc7b80a.js";
pub(crate) const STYLE: &str = "style-63b7404bf709.css";
const FILES: &[(&str, &str, &[u8])] = &[
    (ICON, "image/svg+xml", include_bytes!("favicon-a6734e19e9ef.svg")),
    (INDEX_SCRIPT, "text/javascript; charset=utf-8", include_bytes!("index-a251d22dc959.js")),
    (PROFILE_SCRIPT, "text/javascript; charset=utf-8", include_bytes!("profile-130cbbc7b80a.js")),
    (STYLE, "text/css; charset=utf-8", include_bytes!("style-63b7404bf709.css")),
];
