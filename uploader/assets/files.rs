// Made by script/build-web; do not edit.
pub(crate) const ICON: &str = "favicon-a6734e19e9ef.svg";
pub(crate) const INDEX_SCRIPT: &str = "index-b1717f9e9d4d.js";
pub(crate) const PROFILE_SCRIPT: &str = "profile-bc7650f87e5f.js";
pub(crate) const STYLE: &str = "style-9ce7fcb6bdef.css";
const FILES: &[(&str, &str, &[u8])] = &[
    (ICON, "image/svg+xml", include_bytes!("favicon-a6734e19e9ef.svg")),
    (INDEX_SCRIPT, "text/javascript; charset=utf-8", include_bytes!("index-b1717f9e9d4d.js")),
    (PROFILE_SCRIPT, "text/javascript; charset=utf-8", include_bytes!("profile-bc7650f87e5f.js")),
    (STYLE, "text/css; charset=utf-8", include_bytes!("style-9ce7fcb6bdef.css")),
];
