//! The HTML of the page: the table of targets, and the shell that the flame graph is drawn into. No script and no
//! style stands in the HTML, so that the policy can refuse both; every name is text by [`text`].

use std::borrow::Cow;
use std::cmp::Ordering;
use std::fmt::Write;
use std::time::Duration;

use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY as CSP_HEADER, CONTENT_TYPE, REFERRER_POLICY,
    X_CONTENT_TYPE_OPTIONS,
};
use axum::response::{IntoResponse, Response};

use super::assets;

/// The policy that goes with every answer: nothing but our own files, and no other site may frame them.
pub const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; \
     img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Longest text of one label, error or selector in the HTML, in characters; the rest is cut and marked.
const MAX_TEXT: usize = 4096;

/// A row of the table "Active Profilers".
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TargetRow {
    /// What is profiled, such as `cpu`.
    pub profile_type: String,
    /// Names and values, sorted by name.
    pub labels: Vec<(String, String)>,
    /// When the last finished window ended, as RFC 3339 text; none before the first.
    pub last_profile: Option<String>,
    /// What went wrong in the last window.
    pub error: Option<String>,
    /// Samples in the last finished window.
    pub samples: u64,
    /// Share of its samples whose stacks reach the root, 0 to 1.
    pub complete: Option<f64>,
    /// The selector that means this target alone, such as `{comm="sh"}`; not yet encoded for a URL.
    pub query: String,
}

/// What the page of a profile is told before it has loaded the profile.
#[derive(Clone, Copy, Debug)]
pub struct ProfilePage<'a> {
    /// The selector, as the user gave it.
    pub query: &'a str,
    /// What is profiled, such as `cpu`.
    pub profile_type: &'a str,
    /// The labels of every target that matches now.
    pub targets: &'a [Vec<(String, String)>],
    /// Length of a window: how long the next one may take.
    pub window: Duration,
}

/// A page of HTML as an answer: never stored, never framed, no script but ours.
pub fn response(html: String) -> Response {
    (
        [
            (CONTENT_TYPE, "text/html; charset=utf-8"),
            (CSP_HEADER, CONTENT_SECURITY_POLICY),
            (CACHE_CONTROL, "no-store"),
            (X_CONTENT_TYPE_OPTIONS, "nosniff"),
            (REFERRER_POLICY, "no-referrer"),
        ],
        html,
    )
        .into_response()
}

/// `/`: the table of all targets, sorted by labels. Above it stand a notice, for what concerns the whole machine, and
/// sentences on how it goes with those who are asked or sent to, each with its id in the HTML.
pub fn index_page(rows: &[TargetRow], notice: Option<&str>, sentences: &[(&str, &str)]) -> String {
    let mut html = head("Active Profilers", assets::INDEX_SCRIPT);
    html.push_str("<main>\n<div class=\"title\"><h1>Active Profilers</h1>");
    let _ = writeln!(html, "<span id=\"count\" class=\"muted\" role=\"status\">{}</span></div>", count(rows));
    if let Some(notice) = notice {
        let _ = writeln!(html, "<p class=\"note\" role=\"note\">{}</p>", text(notice));
    }
    for (id, sentence) in sentences {
        let _ = writeln!(html, "<p id=\"{id}\" class=\"muted\">{}</p>", text(sentence));
    }
    html.push_str(
        "<div class=\"toolbar\"><label class=\"grow\"><span class=\"hidden\">Filter the targets</span>\
         <input id=\"filter\" type=\"search\" placeholder=\"Filter by label, type or error\" autocomplete=\"off\" \
         spellcheck=\"false\" aria-controls=\"targets\"></label>\
         <span id=\"updated\" class=\"muted\"></span></div>\n\
         <div class=\"scroll\"><table id=\"targets\"><thead><tr><th scope=\"col\">Profile Type</th>\
         <th scope=\"col\">Labels</th><th scope=\"col\">Last Profile Taken</th>\
         <th scope=\"col\" class=\"number\">Samples</th><th scope=\"col\" class=\"number\">Complete</th>\
         <th scope=\"col\">Error</th><th scope=\"col\">Show Profile</th></tr></thead>\n<tbody>\n",
    );
    let mut sorted: Vec<&TargetRow> = rows.iter().collect();
    sorted.sort_by(|a, b| by_labels(a, b));
    for row in sorted {
        index_row(&mut html, row);
    }
    let _ = write!(
        html,
        "</tbody></table></div>\n<p id=\"empty\" class=\"empty\"{}>No target yet: the first window is still open. \
         The table fills by itself.</p>\n</main>\n",
        if rows.is_empty() { "" } else { " hidden" }
    );
    html.push_str(FOOT);
    html
}

/// `/query?debug=1`: the shell of the flame graph, which loads the profile itself.
pub fn profile_page(page: &ProfilePage) -> String {
    let mut html = head("Profile", assets::PROFILE_SCRIPT);
    let query = url_component(page.query);
    let _ = write!(
        html,
        "<main id=\"profile\" data-query=\"{query}\" data-window-ms=\"{}\">\n\
         <div class=\"title\"><h1>{} profile</h1><span id=\"when\" class=\"muted\"></span>\
         <span class=\"grow\"></span>\
         <button id=\"next\" type=\"button\">Wait for the next window</button>\
         <a id=\"download\" class=\"button\" download=\"profile.pb.gz\" href=\"/query?query={query}&amp;window=last\">\
         Download Pprof</a></div>\n",
        page.window.as_millis(),
        text(page.profile_type),
    );
    targets_of(&mut html, page);
    html.push_str(PROFILE_BODY);
    html.push_str(FOOT);
    html
}

/// A page that says what went wrong, for a person who came with a browser.
pub fn message_page(title: &str, message: &str) -> String {
    let mut html = head(title, "");
    let _ = write!(
        html,
        "<main><div class=\"title\"><h1>{}</h1></div>\n<p class=\"note\">{}</p>\n\
         <p><a href=\"/\">All targets</a></p></main>\n",
        text(title),
        text(message)
    );
    html.push_str(FOOT);
    html
}

const PROFILE_BODY: &str = r#"<noscript><p class="note">The flame graph needs JavaScript. “Download Pprof” works without it.</p></noscript>
<div id="notes"></div>
<div id="wait" class="wait" role="status" hidden><span id="wait-text"></span><progress id="progress" max="100" value="0"></progress></div>
<div id="view" hidden>
<div class="toolbar">
<label class="grow"><span class="hidden">Search functions</span><input id="search" type="search" placeholder="Search functions (press /)" autocomplete="off" spellcheck="false"></label>
<span id="matched" class="matched" role="status"></span>
<label class="choice">Colour <select id="colour"><option value="kind">by kind</option><option value="binary">by binary</option></select></label>
<button id="reset" type="button" disabled>Reset zoom</button>
</div>
<nav id="crumbs" class="crumbs" aria-label="Zoomed to"></nav>
<section aria-label="Flame graph">
<div id="graph" class="graph"><div id="spacer"><canvas id="canvas" tabindex="0" role="application" aria-roledescription="flame graph" aria-label="Flame graph, root at the top" aria-describedby="keys detail"></canvas></div></div>
<p id="detail" class="detail" aria-live="polite"></p>
<div class="below"><ul id="legend" class="legend" aria-label="Colours"></ul><p id="keys" class="muted">Click a frame to zoom. Keys: arrows move, Enter zooms, Escape goes back, / searches.</p></div>
</section>
<section aria-labelledby="top-title">
<div class="title"><h2 id="top-title">Top functions</h2><span id="top-count" class="muted" role="status"></span></div>
<div class="toolbar"><label class="grow"><span class="hidden">Filter the table</span><input id="top-filter" type="search" placeholder="Filter the table by function, file or binary" autocomplete="off" spellcheck="false" aria-controls="top"></label></div>
<div class="scroll"><table id="top" class="top"><thead><tr></tr></thead><tbody></tbody></table></div>
<p><button id="more" type="button" hidden>Show more</button></p>
</section>
</div>
<div id="tip" class="tip" hidden aria-hidden="true"></div>
</main>
"#;

const FOOT: &str = "<footer class=\"muted\">Bulkhead · <a href=\"/metrics\">metrics</a> · \
                    <a href=\"/api/targets\">targets as JSON</a></footer>\n</body>\n</html>\n";

fn head(title: &str, script: &str) -> String {
    let mut html = String::with_capacity(16 * 1024);
    let _ = write!(
        html,
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<title>{} · Bulkhead</title>\n\
         <link rel=\"stylesheet\" href=\"/assets/{}\">\n\
         <link rel=\"icon\" type=\"image/svg+xml\" href=\"/assets/{}\">\n",
        text(title),
        assets::STYLE,
        assets::ICON
    );
    if !script.is_empty() {
        let _ = writeln!(html, "<script type=\"module\" src=\"/assets/{script}\"></script>");
    }
    let _ = write!(
        html,
        "</head>\n<body>\n<header><a class=\"brand\" href=\"/\"><img src=\"/assets/{}\" alt=\"\" width=\"22\" \
         height=\"22\">Bulkhead</a><nav><a href=\"/\">Active Profilers</a></nav></header>\n",
        assets::ICON
    );
    html
}

fn by_labels(a: &TargetRow, b: &TargetRow) -> Ordering {
    a.labels.cmp(&b.labels).then_with(|| a.profile_type.cmp(&b.profile_type))
}

fn count(rows: &[TargetRow]) -> String {
    match rows.len() {
        1 => "1 target".into(),
        count => format!("{count} targets"),
    }
}

fn index_row(html: &mut String, row: &TargetRow) {
    let _ = write!(html, "<tr><td>{}</td><td>", text(&row.profile_type));
    labels(html, &row.labels);
    html.push_str("</td><td>");
    if let Some(time) = &row.last_profile {
        let _ = write!(html, "<time datetime=\"{0}\">{0}</time>", text(time));
    } else {
        html.push_str("<span class=\"muted\">none yet</span>");
    }
    let _ = write!(html, "</td><td class=\"number\">{}</td><td class=\"number\">", row.samples);
    if let Some(share) = row.complete.filter(|share| share.is_finite()) {
        let _ = write!(html, "{}", percent(share));
    }
    let _ = writeln!(
        html,
        "</td><td class=\"error\">{}</td><td><a href=\"/query?debug=1&amp;query={}\">Show Profile</a></td></tr>",
        text(row.error.as_deref().unwrap_or("")),
        url_component(&row.query)
    );
}

/// A share as people read it. Rounded down, so that 100 % means all.
fn percent(share: f64) -> String {
    format!("{:.1} %", (share * 1000.0).floor() / 10.0)
}

fn labels(html: &mut String, labels: &[(String, String)]) {
    html.push_str("<ul class=\"labels\">");
    for (name, value) in labels {
        let _ = write!(html, "<li><b>{}</b>=<bdi>{}</bdi></li>", text(name), text(value));
    }
    html.push_str("</ul>");
}

fn targets_of(html: &mut String, page: &ProfilePage) {
    match page.targets {
        [] => {
            let _ = writeln!(html, "<p class=\"muted\"><code>{}</code></p>", text(page.query));
        }
        [only] => {
            labels(html, only);
            html.push('\n');
        }
        many => {
            const SHOWN: usize = 100;
            let _ = write!(
                html,
                "<details><summary>{} targets match <code>{}</code>; their profiles are merged</summary>",
                many.len(),
                text(page.query)
            );
            for target in many.iter().take(SHOWN) {
                labels(html, target);
            }
            if many.len() > SHOWN {
                let _ = write!(html, "<p class=\"muted\">and {} more</p>", many.len() - SHOWN);
            }
            html.push_str("</details>\n");
        }
    }
}

/// Text with what is invisible or turns the reading direction written out: control characters, and the bidirectional
/// and zero-width ones with which a name can pass for another.
pub(crate) fn visible(text: &str) -> Cow<'_, str> {
    if !text.chars().any(is_hidden) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        if is_hidden(character) {
            // Writing to a string cannot fail, here as below.
            let _ = write!(shown, "\\u{{{:x}}}", u32::from(character));
        } else {
            shown.push(character);
        }
    }
    Cow::Owned(shown)
}

fn is_hidden(character: char) -> bool {
    character.is_control()
        || matches!(character,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// Any text as HTML text or as the value of a quoted attribute.
fn text(text: &str) -> String {
    let shown = visible(text);
    let cut = shown.char_indices().nth(MAX_TEXT).map(|(end, _)| end);
    let mut html = escape(&shown[..cut.unwrap_or(shown.len())]);
    if cut.is_some() {
        html.push('…');
    }
    html
}

/// Text in which HTML sees no markup.
fn escape(text: &str) -> String {
    let mut html = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        match character {
            '&' => html.push_str("&amp;"),
            '<' => html.push_str("&lt;"),
            '>' => html.push_str("&gt;"),
            '"' => html.push_str("&quot;"),
            '\'' => html.push_str("&#39;"),
            _ => html.push(character),
        }
    }
    html
}

/// Any text as a value in the query part of a URL (RFC 3986: only the unreserved characters stay).
pub fn url_component(text: &str) -> String {
    let mut url = String::with_capacity(text.len() * 3);
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            url.push(char::from(byte));
        } else {
            let _ = write!(url, "%{byte:02X}");
        }
    }
    url
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(comm: &str) -> TargetRow {
        TargetRow {
            profile_type: "cpu".into(),
            labels: vec![("comm".into(), comm.into()), ("node".into(), "a".into())],
            last_profile: Some("2026-11-25T04:35:10Z".into()),
            samples: 1234,
            complete: Some(0.9999),
            query: format!("{{comm=\"{comm}\"}}"),
            ..TargetRow::default()
        }
    }

    const HOSTILE: &str = "<script>alert(1)</script>'\"&\n\u{1b}[31m\u{202e}gpj.exe;\0";

    #[test]
    fn hostile_names_are_text() {
        let mut hostile = row(HOSTILE);
        hostile.error = Some(HOSTILE.into());
        hostile.profile_type = HOSTILE.into();
        let targets = [hostile.labels.clone(), row("b").labels];
        let pages = [
            index_page(&[hostile], Some(HOSTILE), &[("store", HOSTILE)]),
            profile_page(&ProfilePage {
                query: HOSTILE,
                profile_type: HOSTILE,
                targets: &targets,
                window: Duration::from_secs(10),
            }),
            message_page(HOSTILE, HOSTILE),
        ];
        for page in pages {
            assert!(!page.contains("<script>"), "{page}");
            assert!(!page.contains('\u{1b}') && !page.contains('\0'), "{page}");
            assert!(page.contains("&lt;script&gt;alert(1)&lt;/script&gt;&#39;&quot;&amp;"), "{page}");
            assert!(page.contains("\\u{202e}gpj.exe"), "{page}");
        }
    }

    #[test]
    fn no_script_and_no_style_stands_in_the_html() {
        let page = profile_page(&ProfilePage {
            query: "{}",
            profile_type: "cpu",
            targets: &[],
            window: Duration::from_secs(10),
        });
        for page in [page, index_page(&[row("a")], None, &[])] {
            assert!(!page.contains("style=") && !page.contains("<style") && !page.contains(" onclick"));
            assert_eq!(page.matches("<script").count(), page.matches("<script type=\"module\" src=").count());
        }
    }

    #[test]
    fn rows_are_sorted_and_linked() {
        let page = index_page(&[row("b"), row("a c")], None, &[]);
        let first = page.find("<bdi>a c</bdi>").expect("a c is shown");
        let second = page.find("<bdi>b</bdi>").expect("b is shown");
        assert!(first < second);
        assert!(page.contains("/query?debug=1&amp;query=%7Bcomm%3D%22a%20c%22%7D"));
        assert!(page.contains("99.9 %"), "rounded down: {page}");
    }

    #[test]
    fn long_text_is_cut() {
        let page = message_page("x", &"é".repeat(100_000));
        assert!(page.len() < 20_000);
        assert!(page.contains("é…"));
    }
}
