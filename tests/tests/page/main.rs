//! The page in a real browser: what people see of profiles whose content is known, and of names that are meant to
//! harm. Needs `chromium` and `chromedriver`; neither root nor BPF.

mod browser;
mod fixture;

use std::{
    collections::{HashMap, HashSet},
    io::Read,
    time::Duration,
};

use browser::Browser;
use fixture::{HOSTILE, large, serve, small};
use prost::Message;
use proto::pprof::Profile;
use serde_json::json;

const LOCAL: &str = "127.0.0.1:0";
/// [`HOSTILE`] as people see it.
const HOSTILE_SHOWN: &str = "<img src=x onerror=\"window.pwned=1\"><script>window.pwned=1</script>';alert(1)//\\u{202e}\\u{1b}[2J\\u{a}&amp;;x";

/// What `go tool pprof -top` would say: flat and cum of each named function, counted anew from the pprof.
fn top(profile: &Profile) -> HashMap<&str, (i64, i64)> {
    let mut top: HashMap<&str, (i64, i64)> = HashMap::new();
    let index = |id: u64| usize::try_from(id).expect("small") - 1;
    for sample in &profile.sample {
        let names: Vec<&str> = sample
            .location_id
            .iter()
            .flat_map(|id| &profile.location[index(*id)].line)
            .map(|line| {
                let name = profile.function[index(line.function_id)].name;
                profile.string_table[usize::try_from(name).expect("an index")].as_str()
            })
            .collect();
        let leaf_is_named = !profile.location[index(sample.location_id[0])].line.is_empty();
        if leaf_is_named {
            top.entry(names[0]).or_default().0 += sample.value[0];
        }
        let distinct: HashSet<&str> = names.into_iter().collect();
        for name in distinct {
            top.entry(name).or_default().1 += sample.value[0];
        }
    }
    top
}

/// The profile page of a target, drawn.
async fn open_profile(browser: &Browser, site: &str, comm: &str) {
    browser.go(&format!("{site}/")).await;
    browser.fill("#filter", comm).await;
    browser.click("#targets tbody tr:not([hidden]) a").await;
    drawn(browser).await;
}

async fn drawn(browser: &Browser) {
    browser
        .wait("return Number(document.querySelector('#canvas')?.dataset.drawn ?? 0)", |n| {
            n.as_f64() > Some(0.0)
        })
        .await;
}

/// Waits until an element has this text.
async fn shows(browser: &Browser, selector: &str, text: &str) {
    browser
        .wait(&format!("return document.querySelector('{selector}')?.textContent ?? null"), |shown| {
            shown == text
        })
        .await;
}

/// A click (or another mouse event) on the canvas, at a share of its width, in a row.
async fn mouse(browser: &Browser, kind: &str, share: f64, row: f64) {
    browser
        .eval(&format!(
            "const canvas = document.querySelector('#canvas'); const box = canvas.getBoundingClientRect();
             canvas.dispatchEvent(new PointerEvent('{kind}', {{bubbles: true, pointerType: 'mouse',
               clientX: box.left + box.width * {share}, clientY: box.top + ({row} + 0.5) * 20}}))"
        ))
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_index_filters_and_refreshes() {
    let targets = vec![("zsh", small()), ("bash", small()), (HOSTILE, small())];
    let site = serve(LOCAL, targets).await;
    let browser = Browser::open(1200, 800).await;
    browser.go(&site).await;

    let headers =
        browser.eval("return [...document.querySelectorAll('#targets th')].map(e => e.textContent)").await;
    assert_eq!(
        headers,
        json!([
            "Profile Type",
            "Labels",
            "Last Profile Taken",
            "Samples",
            "Complete",
            "Error",
            "Show Profile"
        ])
    );
    let comms =
        "return [...document.querySelectorAll('#targets tbody tr:not([hidden]) .labels li:first-child bdi')]
                 .map(e => e.textContent)";
    assert_eq!(browser.eval(comms).await, json!([HOSTILE_SHOWN, "bash", "zsh"]));
    assert_eq!(browser.text("return document.querySelector('.note').textContent").await, HOSTILE_SHOWN);

    browser.fill("#filter", "BASH host-1").await;
    browser.wait(comms, |shown| *shown == json!(["bash"])).await;
    shows(&browser, "#count", "1 of 3 targets").await;

    // The table refreshes itself; the filter, and the focus, stay.
    let samples = "return Number(document.querySelector('#targets tbody tr:not([hidden]) td.number').textContent.replace(',', ''))";
    let before = browser.eval(samples).await.as_f64();
    browser.eval("document.querySelector('#targets tbody tr:not([hidden]) a').focus()").await;
    browser.wait(samples, |now| now.as_f64() > before).await;
    assert_eq!(browser.eval(comms).await, json!(["bash"]));
    assert_eq!(browser.text("return document.activeElement.textContent").await, "Show Profile");

    // After the refresh the names came from the script, and are text as well.
    browser.fill("#filter", "onerror").await;
    browser.wait(comms, |shown| *shown == json!([HOSTILE_SHOWN])).await;
    assert_eq!(
        browser.text("return document.querySelector('tr:not([hidden]) .error').textContent").await,
        HOSTILE_SHOWN
    );
    assert_eq!(browser.eval("return document.querySelectorAll('main img, main script').length").await, 0);
    assert_eq!(browser.eval("return window.pwned ?? null").await, json!(null));
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_flame_graph_is_searched_zoomed_and_downloaded() {
    let site = serve(LOCAL, vec![("bash", small()), (HOSTILE, small())]).await;
    let browser = Browser::open(1200, 900).await;
    open_profile(&browser, &site, "onerror").await;

    let labels = browser.text("return document.querySelector('main > .labels').textContent").await;
    assert_eq!(labels, format!("comm={HOSTILE_SHOWN}node=host-1"));
    let when = browser.text("return document.querySelector('#when').textContent").await;
    assert_eq!(when, "2025-11-25 04:35:10 UTC, 10.0 s · 750 samples · 7.50 s of CPU time");
    let note = browser.text("return document.querySelector('#notes').textContent").await;
    assert!(note.starts_with("738 of 750 user stacks are complete"), "{note}");
    assert!(note.ends_with("frames of 750 of 750 user stacks were left by frame pointers"), "{note}");
    let good = browser.eval("return document.querySelectorAll('#notes .good').length").await;
    assert_eq!(good, json!(0), "neither is good news");
    let legend =
        browser.eval("return [...document.querySelectorAll('#legend li')].map(e => e.textContent)").await;
    assert_eq!(legend, json!(["User code", "Kernel", "Run-time code (JIT)", "No name"]));

    // memcpy is called from two places.
    browser.fill("#search", "MEMCPY").await;
    shows(&browser, "#matched", "25.07 % matched (188)").await;
    // Recursion counts once.
    browser.fill("#search", "walk").await;
    shows(&browser, "#matched", "8.00 % matched (60)").await;
    browser.fill("#search", "no such function").await;
    shows(&browser, "#matched", "no match").await;

    tooltip_and_zoom(&browser).await;

    // A click in the table shows every place that calls the function.
    browser.fill("#top-filter", "memcpy").await;
    shows(&browser, "#top-count", "1 of 16 functions").await;
    browser.click("#top tbody button").await;
    shows(&browser, "#crumbs [aria-current]", "main").await;
    shows(&browser, "#matched", "25.07 % matched (188), 25.47 % of what is zoomed").await;

    browser.click("#download").await;
    let file = browser.downloads().join("profile.pb.gz");
    for _ in 0..600 {
        if file.exists() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let mut bytes = Vec::new();
    let zipped = std::fs::read(&file).expect("the download");
    flate2::read::GzDecoder::new(zipped.as_slice()).read_to_end(&mut bytes).expect("gzip");
    assert_eq!(Profile::decode(bytes.as_slice()).expect("a pprof"), small());

    assert_eq!(browser.eval("return document.querySelectorAll('main img, main script').length").await, 0);
    assert_eq!(browser.eval("return window.pwned ?? null").await, json!(null));
    browser.close().await;
}

async fn tooltip_and_zoom(browser: &Browser) {
    // Below the root and _start is main; the first of its children by name is the hostile one.
    mouse(browser, "pointermove", 0.03, 3.0).await;
    browser
        .wait("return document.querySelector('#tip').textContent", |tip| {
            let tip = tip.as_str().unwrap_or_default();
            tip.starts_with(HOSTILE_SHOWN)
                && tip.contains("src/program.c:42")
                && tip.contains("total 40 (5.33 %), 400 ms")
                && tip.contains("self 0 (0.00 %)")
        })
        .await;
    mouse(browser, "click", 0.03, 3.0).await;
    shows(browser, "#crumbs [aria-current]", HOSTILE_SHOWN).await;
    assert_eq!(browser.eval("return document.querySelectorAll('#crumbs button').length").await, 4);
    // A click on a caller, which takes the whole width now, goes back to it.
    mouse(browser, "click", 0.9, 2.0).await;
    shows(browser, "#crumbs [aria-current]", "main").await;
    // Keys: down to the widest child, which Enter zooms to; Escape and "Reset zoom" lead back.
    browser.eval("document.querySelector('#canvas').focus()").await;
    let canvas = browser.client.find(fantoccini::Locator::Css("#canvas")).await.expect("the canvas");
    canvas.send_keys("\u{e015}\u{e007}").await.expect("keys");
    shows(browser, "#crumbs [aria-current]", "serve").await;
    let detail = browser.text("return document.querySelector('#detail').textContent").await;
    assert!(
        detail.starts_with("serve · src/program.c:42 · /usr/bin/program · total 545 (72.67 %)"),
        "{detail}"
    );
    canvas.send_keys("\u{e00c}").await.expect("keys");
    shows(browser, "#crumbs [aria-current]", "main").await;
    browser.click("#reset").await;
    shows(browser, "#crumbs [aria-current]", "all").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_table_says_what_the_pprof_says() {
    let profile = small();
    let site = serve(LOCAL, vec![("bash", profile.clone())]).await;
    let browser = Browser::open(1200, 900).await;
    open_profile(&browser, &site, "bash").await;

    let rows = "return [...document.querySelectorAll('#top tbody tr')].map(row =>
        [row.querySelector('.name').textContent, row.cells[0].textContent, row.cells[2].textContent])";
    let rows: Vec<(String, String, String)> = serde_json::from_value(browser.eval(rows).await).expect("rows");
    let flats: Vec<i64> = rows.iter().map(|row| row.1.parse().expect("a number")).collect();
    assert!(flats.is_sorted_by(|a, b| a >= b), "sorted by flat: {flats:?}");
    assert_eq!(flats.iter().sum::<i64>(), 750);

    let mut shown: HashMap<String, (i64, i64)> = rows
        .into_iter()
        .map(|(name, flat, cum)| (name, (flat.parse().expect("a number"), cum.parse().expect("a number"))))
        .collect();
    let unnamed: Vec<_> = shown.keys().filter(|name| name.starts_with("program 0x")).cloned().collect();
    assert_eq!(unnamed.len(), 1, "{shown:?}");
    assert_eq!(shown.remove(&unnamed[0]), Some((25, 25)));
    for (name, expected) in top(&profile) {
        let name = if name == HOSTILE { HOSTILE_SHOWN } else { name };
        let name = if name.len() > 1024 { format!("{}…", &name[..1024]) } else { name.to_owned() };
        assert_eq!(shown.remove(&name), Some(expected), "{name}");
    }
    assert!(shown.is_empty(), "too much: {shown:?}");

    browser.click("#top th:nth-child(2) button").await;
    let first = "return document.querySelector('#top tbody tr').cells[2].textContent";
    assert_eq!(browser.text(first).await, "738");
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_thousand_stacks_are_drawn_and_searched() {
    let profile = tokio::task::spawn_blocking(large).await.expect("a profile");
    let expected: i64 = {
        let mut matching = 0;
        for sample in &profile.sample {
            let matches = sample.location_id.iter().any(|id| {
                let line = &profile.location[usize::try_from(*id).expect("small") - 1].line[0];
                let function = &profile.function[usize::try_from(line.function_id).expect("small") - 1];
                profile.string_table[usize::try_from(function.name).expect("small")].contains("module_20:")
            });
            matching += i64::from(matches);
        }
        matching
    };
    let site = serve(LOCAL, vec![("large", profile)]).await;
    let browser = Browser::open(1400, 900).await;
    open_profile(&browser, &site, "large").await;
    let drawn = browser.eval("return Number(document.querySelector('#canvas').dataset.drawn)").await;
    assert!(drawn.as_f64() > Some(1000.0), "{drawn} frames drawn");
    assert_eq!(browser.eval("return document.querySelectorAll('.note:not(.good)').length").await, 0);
    browser.fill("#search", "module_20:").await;
    browser
        .wait("return document.querySelector('#matched').textContent", |text| {
            let number: String = text.as_str().unwrap_or_default().replace(',', "");
            number.contains(&format!("({expected})"))
        })
        .await;
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_without_a_window_is_waited_for() {
    let site = serve(LOCAL, vec![("late", small())]).await;
    let browser = Browser::open(1200, 900).await;
    browser.go(&site).await;
    browser.click("#targets tbody a").await;
    browser
        .wait("const wait = document.querySelector('#wait'); return wait && !wait.hidden ? wait.textContent : ''", |text| {
            text.as_str().unwrap_or_default().starts_with("Waiting for the next window")
        })
        .await;
    browser
        .wait("return document.querySelector('#progress').value", |value| value.as_f64() > Some(20.0))
        .await;
    drawn(&browser).await;
    browser.wait_true("return document.querySelector('#wait').hidden").await;
    browser.close().await;

    let browser = Browser::open(1200, 900).await;
    browser.go(&format!("{site}/query?debug=1&query=%7Bcomm%3D%22gone%22%7D")).await;
    shows(&browser, ".note.bad", "no such <b>target</b>").await;
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_fits_a_phone_and_the_dark() {
    let site = serve(LOCAL, vec![("bash", small()), (HOSTILE, small())]).await;
    let browser = Browser::open(1200, 900).await;
    let phone = json!({"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": true});
    browser.devtools("Emulation.setDeviceMetricsOverride", &phone);
    let overflow = "return document.documentElement.scrollWidth - document.documentElement.clientWidth";
    browser.go(&site).await;
    assert_eq!(browser.eval(overflow).await, 0, "the index is wider than the phone");
    open_profile(&browser, &site, "bash").await;
    assert_eq!(browser.eval(overflow).await, 0, "the profile is wider than the phone");
    assert_eq!(
        browser.eval("return document.querySelector('#canvas').width").await,
        json!(2 * (360 - 24 - 2))
    );

    let pixel = "const c = document.querySelector('#canvas'); return [...c.getContext('2d').getImageData(c.width / 2, 2, 1, 1).data].join()";
    let light = browser.text(pixel).await;
    let dark = json!({"features": [{"name": "prefers-color-scheme", "value": "dark"}]});
    browser.devtools("Emulation.setEmulatedMedia", &dark);
    browser.wait(pixel, |now| now.as_str() != Some(light.as_str())).await;
    assert_eq!(
        browser.text("return getComputedStyle(document.body).backgroundColor").await,
        "rgb(17, 22, 29)"
    );
    browser.close().await;
}
