//! Profiles made for the page, and a server that shows them through the uploader's own pages.

use std::{
    collections::HashMap,
    io::Write,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{
    Json, Router,
    extract::{Query, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use flate2::{Compression, write::GzEncoder};
use prost::Message;
use proto::pprof::{Function, Line, Location, Mapping, Profile, Sample, ValueType};
use serde_json::{Value, json};
use uploader::http::{
    assets, flamegraph,
    pages::{self, ProfilePage, TargetRow},
};

/// Runs a script wherever a name is taken for markup.
pub(crate) const HOSTILE: &str = "<img src=x onerror=\"window.pwned=1\"><script>window.pwned=1</script>';alert(1)//\u{202e}\u{1b}[2J\n&amp;;x";
/// A stack, outermost first, as function and binary, and how often it was seen.
pub(crate) type Stack = (Vec<(String, &'static str)>, i64);

const PROGRAM: &str = "/usr/bin/program";
const LIBC: &str = "/usr/lib/libc.so.6";
const KERNEL: &str = "[kernel.kallsyms]";
const JIT: &str = "[anonymous]";

/// A profile with one of everything.
pub(crate) fn small() -> Profile {
    let stack = |frames: &[(&str, &'static str)], value| {
        (frames.iter().map(|(name, binary)| ((*name).to_owned(), *binary)).collect(), value)
    };
    let long = "long_name_".repeat(1000);
    pprof(
        &[
            stack(&[("_start", PROGRAM), ("main", PROGRAM), ("serve", PROGRAM), ("parse", PROGRAM)], 310),
            stack(
                &[
                    ("_start", PROGRAM),
                    ("main", PROGRAM),
                    ("serve", PROGRAM),
                    ("parse", PROGRAM),
                    ("memcpy", LIBC),
                ],
                140,
            ),
            stack(
                &[
                    ("_start", PROGRAM),
                    ("main", PROGRAM),
                    ("serve", PROGRAM),
                    ("write", LIBC),
                    ("do_syscall_64", KERNEL),
                    ("ksys_write", KERNEL),
                ],
                95,
            ),
            stack(
                &[
                    ("_start", PROGRAM),
                    ("main", PROGRAM),
                    ("walk", PROGRAM),
                    ("walk", PROGRAM),
                    ("walk", PROGRAM),
                ],
                60,
            ),
            stack(
                &[
                    ("_start", PROGRAM),
                    ("main", PROGRAM),
                    ("run_script", PROGRAM),
                    ("jitted", JIT),
                    ("memcpy", LIBC),
                ],
                48,
            ),
            stack(&[("_start", PROGRAM), ("main", PROGRAM), (HOSTILE, PROGRAM), (&long, PROGRAM)], 40),
            stack(&[("_start", PROGRAM), ("main", PROGRAM), ("", PROGRAM)], 25),
            stack(&[("_start", PROGRAM), ("main", PROGRAM), ("größe ✓ مرحبا", PROGRAM)], 20),
            stack(&[("idle_worker", KERNEL)], 12),
        ],
        &[
            "738 of 750 user stacks are complete to their root; 12: code without frame pointers",
            "frames of 750 of 750 user stacks were left by frame pointers",
        ],
    )
}

/// A profile of 50,000 distinct stacks, 8 to 40 deep.
pub(crate) fn large() -> Profile {
    let mut seed = 12_345_u32;
    let mut random = move || {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        f64::from(seed) / 4_294_967_296.0
    };
    let mut distinct = std::collections::HashSet::new();
    let mut stacks = Vec::new();
    while stacks.len() < 50_000 {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small positive numbers")]
        let stack: Vec<u32> = {
            let depth = 8 + (random() * 33.0) as u32;
            let mut state = 1_u32;
            (0..depth)
                .map(|level| {
                    let branches = if level < 6 {
                        2.0
                    } else if level < 12 {
                        3.0
                    } else {
                        6.0
                    };
                    let branch = (random().powi(2) * branches) as u32;
                    state = state.wrapping_mul(31).wrapping_add(branch * 7 + level);
                    state % 4000
                })
                .collect()
        };
        if distinct.insert(stack.clone()) {
            let frames = stack
                .into_iter()
                .map(|id| {
                    let name = format!(
                        "lib{}::module_{}::function_number_{id}(int, char const*)",
                        id % 37,
                        id % 211
                    );
                    (name, [PROGRAM, LIBC, KERNEL, JIT][id as usize % 4])
                })
                .collect();
            stacks.push((frames, 1));
        }
    }
    pprof(&stacks, &["50000 of 50000 user stacks are complete to their root"])
}

/// The stacks as a pprof. A frame without a name has no function.
pub(crate) fn pprof(stacks: &[Stack], comments: &[&str]) -> Profile {
    let mut strings: HashMap<String, i64> = HashMap::new();
    let mut table = Vec::new();
    let mut string = |text: &str| {
        *strings.entry(text.to_owned()).or_insert_with(|| {
            table.push(text.to_owned());
            i64::try_from(table.len()).expect("few strings") - 1
        })
    };
    string("");
    let mut profile = Profile {
        sample_type: vec![ValueType { r#type: string("samples"), unit: string("count") }],
        period_type: Some(ValueType { r#type: string("cpu"), unit: string("nanoseconds") }),
        period: 10_000_000,
        time_nanos: 1_764_045_310_000_000_000,
        duration_nanos: 10_000_000_000,
        comment: comments.iter().map(|comment| string(comment)).collect(),
        ..Profile::default()
    };
    let mut mappings: HashMap<&str, u64> = HashMap::new();
    let mut locations: HashMap<(String, &str), u64> = HashMap::new();
    for (frames, value) in stacks {
        let mut sample = Sample { value: vec![*value], ..Sample::default() };
        for (name, binary) in frames.iter().rev() {
            let next = locations.len() as u64 + 1;
            let id = *locations.entry((name.clone(), binary)).or_insert_with(|| {
                let next_mapping = mappings.len() as u64 + 1;
                let mapping_id = *mappings.entry(binary).or_insert_with(|| {
                    let filename = string(binary);
                    profile.mapping.push(Mapping { id: next_mapping, filename, ..Mapping::default() });
                    next_mapping
                });
                let mut line = Vec::new();
                if !name.is_empty() {
                    let filename = string(if *binary == PROGRAM { "src/program.c" } else { "" });
                    let function_id = profile.function.len() as u64 + 1;
                    profile.function.push(Function {
                        id: function_id,
                        name: string(name),
                        filename,
                        ..Function::default()
                    });
                    line = vec![Line { function_id, line: i64::from(*binary == PROGRAM) * 42, column: 0 }];
                }
                let address = 0x1000 + next * 16;
                profile.location.push(Location { id: next, mapping_id, address, line, is_folded: false });
                next
            });
            sample.location_id.push(id);
        }
        profile.sample.push(sample);
    }
    profile.string_table = table;
    profile
}

pub(crate) fn gzip(profile: &Profile) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(&profile.encode_to_vec()).expect("memory takes all");
    encoder.finish().expect("memory takes all")
}

/// The targets on the index, as (comm, profile).
pub(crate) struct Fixture {
    targets: Vec<(&'static str, Profile)>,
    /// How often the table was asked for: the rows tell, so that a refresh can be seen.
    asked: AtomicU64,
}

impl Fixture {
    fn rows(&self) -> Vec<TargetRow> {
        let asked = self.asked.fetch_add(1, Ordering::Relaxed);
        let rows = self.targets.iter().map(|(comm, _)| TargetRow {
            profile_type: "cpu".into(),
            labels: vec![("comm".into(), (*comm).into()), ("node".into(), "host-1".into())],
            last_profile: Some("2025-11-25T04:35:20Z".into()),
            error: (*comm == HOSTILE).then(|| HOSTILE.into()),
            samples: 1000 + asked,
            complete: Some(0.984),
            query: selector(comm),
        });
        rows.collect()
    }

    fn find(&self, query: &str) -> Option<&Profile> {
        self.targets.iter().find(|(comm, _)| selector(comm) == query).map(|(_, profile)| profile)
    }
}

fn selector(comm: &str) -> String {
    format!("{{comm={comm:?},node=\"host-1\"}}")
}

/// Serves these targets. A target with the name `late` has no finished window, but its next comes in two seconds.
pub(crate) async fn serve(address: &str, targets: Vec<(&'static str, Profile)>) -> String {
    let fixture = Arc::new(Fixture { targets, asked: AtomicU64::new(0) });
    let router = Router::new()
        .route("/", get(index))
        .route("/query", get(query))
        .route("/api/targets", get(api_targets))
        .route("/api/flamegraph", get(api_flamegraph))
        .with_state(fixture)
        .merge(assets::router());
    let listener = tokio::net::TcpListener::bind(address).await.expect("an address to listen at");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move { axum::serve(listener, router).await });
    format!("http://{address}")
}

type Parameters = Query<HashMap<String, String>>;

async fn index(State(fixture): State<Arc<Fixture>>) -> Response {
    let notice = fixture.targets.iter().any(|(comm, _)| *comm == HOSTILE).then_some(HOSTILE);
    pages::response(pages::index_page(&fixture.rows(), notice, &[]))
}

async fn query(State(fixture): State<Arc<Fixture>>, parameters: Parameters) -> Response {
    let query = &parameters["query"];
    if parameters.contains_key("debug") {
        let rows = fixture.rows();
        let targets: Vec<_> =
            rows.into_iter().filter(|row| row.query == *query).map(|row| row.labels).collect();
        let window = Duration::from_secs(2);
        return pages::response(pages::profile_page(&ProfilePage {
            query,
            profile_type: "cpu",
            targets: &targets,
            window,
        }));
    }
    match fixture.find(query) {
        Some(profile) => {
            let kind = [(header::CONTENT_TYPE, "application/vnd.google.protobuf+gzip")];
            (kind, gzip(profile)).into_response()
        }
        None => (StatusCode::NOT_FOUND, "no such target\n").into_response(),
    }
}

async fn api_targets(State(fixture): State<Arc<Fixture>>) -> Json<Vec<Value>> {
    let rows = fixture.rows().into_iter().map(|row| {
        let labels: HashMap<String, String> = row.labels.into_iter().collect();
        json!({"labels": labels, "profile_type": row.profile_type, "last_profile": row.last_profile,
               "samples": row.samples, "error": row.error, "complete": row.complete, "query": row.query})
    });
    Json(rows.collect())
}

async fn api_flamegraph(State(fixture): State<Arc<Fixture>>, parameters: Parameters) -> Response {
    let query = &parameters["query"];
    let late = *query == selector("late");
    if parameters["window"] == "next" {
        // Who looks at how the page waits has to come in time, and to see it more than once.
        tokio::time::sleep(Duration::from_secs(if late { 8 } else { 2 })).await;
    } else if late {
        return (StatusCode::NOT_FOUND, "no finished window yet\n").into_response();
    }
    match fixture.find(query) {
        Some(profile) => {
            let kind = [(header::CONTENT_TYPE, "application/json")];
            (kind, flamegraph::flamegraph_json(profile)).into_response()
        }
        None => (StatusCode::NOT_FOUND, "no such <b>target</b>\n").into_response(),
    }
}
