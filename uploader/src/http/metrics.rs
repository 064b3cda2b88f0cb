//! `/metrics`: what is counted, for Prometheus.

use std::{fmt, fs};

use axum::{
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, text},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
    registry::Registry,
};
use records::{End, Loss};

use super::Context;
use crate::{
    debuginfo::Offers,
    delivery::Delivery,
    discovery::{Discovery, Outcome, Source},
    state::{LIMITATIONS, Shared},
    worker::Worker,
};

/// `/metrics`.
pub(super) async fn metrics(State(context): State<Context>) -> Response {
    let mut registry = Registry::with_prefix("bulkhead");
    registry.register_collector(Box::new(Scrape(context)));
    let mut body = String::with_capacity(16 * 1024);
    match text::encode(&mut body, &registry) {
        Ok(()) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], body).into_response()
        }
        Err(error) => {
            (StatusCode::INTERNAL_SERVER_ERROR, format!("cannot encode: {error}\n")).into_response()
        }
    }
}

#[derive(Debug)]
struct Scrape(Context);

/// Encodes one metric after the other.
struct Encoder<'a>(DescriptorEncoder<'a>);

impl Encoder<'_> {
    fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        let metric = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        ConstCounter::new(value).encode(metric)
    }

    fn seconds(&mut self, name: &str, help: &str, value: f64) -> fmt::Result {
        let metric = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        ConstCounter::new(value).encode(metric)
    }

    fn gauge(&mut self, name: &str, help: &str, value: usize) -> fmt::Result {
        let value = i64::try_from(value).unwrap_or(i64::MAX);
        let metric = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        ConstGauge::new(value).encode(metric)
    }

    /// One counter for each value of a label.
    fn counters<'l>(
        &mut self,
        name: &str,
        help: &str,
        label: &'static str,
        values: impl IntoIterator<Item = (&'l str, u64)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (value, count) in values {
            ConstCounter::new(count).encode(family.encode_family(&[(label, value)])?)?;
        }
        Ok(())
    }

    /// One gauge for each value of a label.
    fn gauges<'l>(
        &mut self,
        name: &str,
        help: &str,
        label: &'static str,
        values: impl IntoIterator<Item = (&'l str, usize)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (value, count) in values {
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            ConstGauge::new(count).encode(family.encode_family(&[(label, value)])?)?;
        }
        Ok(())
    }
}

impl Collector for Scrape {
    fn encode(&self, encoder: DescriptorEncoder) -> fmt::Result {
        let mut encoder = Encoder(encoder);
        collector(&mut encoder, &self.0.shared)?;
        own(&mut encoder, &self.0.shared)?;
        sizes(&mut encoder, &self.0.shared)?;
        let parts = self.0.confinement.parts().map(|(part, enforced)| (part, usize::from(enforced)));
        let help = "Whether landlock restricts this part of what the uploader may do";
        encoder.gauges("landlock_enforced", help, "part", parts)?;
        if let Some(offers) = &self.0.shared.debug_info {
            debug_info(&mut encoder, offers)?;
        }
        if let Some(delivery) = &self.0.delivery {
            sending(&mut encoder, delivery)?;
        }
        if let Some(source) = self.0.shared.discovery.kubernetes() {
            kubernetes(&mut encoder, source)?;
        }
        runtimes(&mut encoder, &self.0.shared.discovery)?;
        systemd(&mut encoder, &self.0.shared.discovery)?;
        process(&mut encoder)
    }
}

/// What runtimes tell of containers, by the socket of each.
fn runtimes(encoder: &mut Encoder<'_>, discovery: &Discovery) -> fmt::Result {
    let sources: Vec<_> = discovery.runtimes().collect();
    if sources.is_empty() {
        return Ok(());
    }
    let each =
        |value: fn(&Source) -> usize| sources.iter().map(move |source| (source.address(), value(source)));
    let help = "Whether the container runtime at this socket answers";
    let following = each(|source| usize::from(matches!(source.outcome(), Outcome::Following)));
    encoder.gauges("runtime_following", help, "socket", following)?;
    let help = "Containers that are known, with those that ended a little while ago";
    encoder.gauges("runtime_containers", help, "socket", each(|source| source.counts().containers))?;
    let count =
        |value: fn(&Source) -> u64| sources.iter().map(move |source| (source.address(), value(source)));
    let help = "Containers that the runtime told of as they began";
    encoder.counters("runtime_events", help, "socket", count(|source| source.counts().events))?;
    let help = "Failures of asking the runtime";
    encoder.counters("runtime_errors", help, "socket", count(|source| source.counts().errors))?;
    let help = "Containers that are not known for want of room";
    encoder.counters("runtime_refused", help, "socket", count(|source| source.counts().refused))
}

/// What systemd says of its units, where it is asked.
fn systemd(encoder: &mut Encoder<'_>, discovery: &Discovery) -> fmt::Result {
    let Some(systemd) = discovery.systemd() else { return Ok(()) };
    let Some(outcome) = systemd.outcome() else { return Ok(()) };
    let help = "Whether systemd answers over the system bus";
    encoder.gauge("systemd_following", help, usize::from(matches!(outcome, Outcome::Following)))?;
    encoder.counter("systemd_errors", "Failures of asking systemd", systemd.errors())
}

/// What the API server tells of pods.
fn kubernetes(encoder: &mut Encoder<'_>, source: &Source) -> fmt::Result {
    let counts = source.counts();
    let follows = matches!(source.outcome(), Outcome::Following);
    encoder.gauge(
        "kubernetes_following",
        "Whether the API server tells of this node's pods",
        usize::from(follows),
    )?;
    let help = "Pods that are known, with those that ended a little while ago";
    encoder.gauge("kubernetes_pods", help, counts.pods)?;
    let help = "Containers that are known, with those that ended a little while ago";
    encoder.gauge("kubernetes_containers", help, counts.containers)?;
    encoder.counter("kubernetes_events", "Changes of pods that the API server told of", counts.events)?;
    encoder.counter("kubernetes_errors", "Failures of asking the API server", counts.errors)?;
    encoder.counter(
        "kubernetes_refused",
        "Pods and containers that are not known for want of room",
        counts.refused,
    )
}

/// Debug information for the store.
fn debug_info(encoder: &mut Encoder<'_>, offers: &Offers) -> fmt::Result {
    let counts = offers.counts();
    let help = "Executables whose debug information the store should have, by what became of it";
    encoder.counters("debuginfo", help, "outcome", counts.outcomes)?;
    encoder.counter("debuginfo_bytes", "Bytes of debug information that were sent", counts.bytes)?;
    encoder.gauge("debuginfo_waiting", "Executables whose debug information waits", counts.waiting)?;
    encoder.gauge("debuginfo_known", "Builds of which the store has debug information", counts.known)
}

/// What was sent to the store, what waits for it, and what was lost.
fn sending(encoder: &mut Encoder<'_>, delivery: &Delivery) -> fmt::Result {
    let (counts, spooled, content) = (delivery.counts(), delivery.spool.counts(), delivery.spool.content());
    let profiles = [
        ("spooled", spooled.written),
        ("sent", counts.sent),
        ("refused", counts.refused),
        ("dropped", spooled.dropped),
        ("damaged", spooled.damaged),
    ];
    encoder.counters(
        "store_profiles",
        "Profiles for the store, by what became of them",
        "state",
        profiles,
    )?;
    let bytes =
        [("sent", counts.sent_bytes), ("refused", counts.refused_bytes), ("dropped", spooled.dropped_bytes)];
    encoder.counters(
        "store_bytes",
        "Bytes of profiles for the store, by what became of them",
        "state",
        bytes,
    )?;
    encoder.counters("store_calls", "Calls to the store, by how they ended", "result", counts.calls)?;
    let number = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
    encoder.gauge("spool_entries", "Entries that wait to be sent", content.entries)?;
    encoder.gauge("spool_profiles", "Profiles that wait to be sent", number(content.profiles))?;
    encoder.gauge("spool_bytes", "Bytes that the spool has on the disk", number(content.bytes))?;
    let oldest = number(content.oldest.unwrap_or_default().as_secs());
    encoder.gauge("spool_oldest_age_seconds", "How long the oldest entry has waited", oldest)
}

/// What the collector counts, summed over its restarts.
fn collector(encoder: &mut Encoder<'_>, shared: &Shared) -> fmt::Result {
    let (counters, connected, limited) = {
        let state = shared.state();
        let limited = LIMITATIONS.map(|(limitation, name)| (name, usize::from(state.is_limited(limitation))));
        (state.collector.total(), state.is_connected(), limited)
    };
    encoder.gauges(
        "collector_limited",
        "Whether the collector lacks something on this machine",
        "by",
        limited,
    )?;
    encoder.gauge("collector_connected", "Whether a collector is connected", usize::from(connected))?;
    encoder.counter(
        "collector_samples",
        "Samples that the collector's BPF program recorded",
        counters.samples,
    )?;
    encoder.counter(
        "collector_idle",
        "Samples of the idle task, of which no record is made",
        counters.idle,
    )?;
    let skips = &counters.skips;
    let skipped = [("kernel", skips.in_kernel), ("collector", skips.in_collector)];
    let help = "Samples of cgroups that flags leave out, which the uploader never saw, by who dropped them";
    encoder.counters("collector_skipped", help, "by", skipped)?;
    let not_skipped = [("unknown_cgroup", skips.unknown), ("no_room", skips.no_room)];
    let help =
        "Times that the collector could not have the kernel drop samples of cgroups that flags leave out";
    encoder.counters("collector_not_skipped", help, "reason", not_skipped)?;
    let count = |list: &[u64], number: u8| list.get(usize::from(number)).copied().unwrap_or(0);
    let ends = End::ALL.iter().map(|end| (end.label(), count(&counters.ends, *end as u8)));
    encoder.counters("unwinds", "How the unwinds of user stacks ended", "end", ends)?;
    let losses = Loss::ALL.iter().map(|loss| (loss.label(), count(&counters.losses, *loss as u8)));
    encoder.counters("lost", "What was lost before it reached the uploader", "reason", losses)?;
    let help = "Records of mappings and processes that the collector read";
    encoder.counter("collector_kernel_events", help, counters.kernel_events)?;
    let count = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
    encoder.gauge("collector_processes", "Processes that the collector knows", count(counters.processes))?;
    encoder.gauge(
        "collector_executables",
        "Executables that the collector knows",
        count(counters.executables),
    )?;
    tables(encoder, &counters.tables)
}

/// The unwind tables in the kernel.
fn tables(encoder: &mut Encoder<'_>, tables: &ipc::TableCounters) -> fmt::Result {
    let count = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
    encoder.gauge("unwind_tables", "Executables with an unwind table", count(tables.tables))?;
    encoder.gauge("unwind_rules", "Distinct unwind rules of all tables", count(tables.rules))?;
    let help = "Kernel memory that unwind rows take";
    encoder.gauge("unwind_table_bytes", help, count(tables.row_bytes))?;
    let help = "Kernel memory that unwind rows may take";
    encoder.gauge("unwind_table_limit_bytes", help, count(tables.row_bytes_most))?;
    let events = [
        ("shown", tables.shown),
        ("evicted", tables.evicted),
        ("refused", tables.refused),
        ("too_large", tables.too_large),
        ("no_room_yet", tables.no_room),
        ("rule_without_room", tables.rules_full),
    ];
    let help = "What became of unwind tables, since the collector's start";
    encoder.counters("unwind_table_events", help, "event", events)
}

/// What the uploader counts.
fn own(encoder: &mut Encoder<'_>, shared: &Shared) -> fmt::Result {
    let (counts, refused, closed_early) = {
        let state = shared.state();
        (state.counts.clone(), state.processes.refused, state.executables.closed_early)
    };
    encoder.counter("collector_sessions", "Connections to a collector", counts.sessions)?;
    let help = "Connections to a collector after the first";
    encoder.counter("collector_reconnects", help, counts.sessions.saturating_sub(1))?;
    let help = "Times that the collector was another one than before";
    encoder.counter("collector_restarts", help, counts.collector_restarts)?;
    let help = "Time without a collector, after the first was met";
    encoder.seconds("collector_disconnected_seconds", help, counts.disconnected.as_secs_f64())?;
    let help = "Connections that ended because of what the collector sent";
    encoder.counter("collector_faults", help, counts.faults)?;
    encoder.counter("messages", "Messages received from the collector", counts.messages)?;
    encoder.counter("samples", "Samples received from the collector", counts.samples)?;
    let help = "Samples with frames in files that no unwind row covers: those were left by frame pointers";
    encoder.counter("samples_by_frame_pointers", help, counts.samples_guessed)?;
    encoder.counter("windows", "Windows that became profiles", counts.windows)?;
    encoder.counter("profiles", "Profiles made", counts.profiles)?;
    let dropped = [("window_queue_full", counts.samples_dropped)];
    encoder.counters("samples_dropped", "Samples that the uploader threw away", "reason", dropped)?;
    let help = "Samples of what is not to be profiled, by flags or rules";
    encoder.counter("samples_not_selected", help, counts.samples_not_selected)?;
    let [read, refused_configurations] = counts.configurations;
    let outcomes = [("read", read), ("refused", refused_configurations)];
    let help = "Times that the configuration was read again, by what came of it";
    encoder.counters("configurations", help, "outcome", outcomes)?;
    let help = "Windows thrown away, because those before them were not finished";
    encoder.counter("windows_dropped", help, counts.windows_dropped)?;
    let put_off = [("unwind_rows", counts.rows_put_off), ("perf_map", counts.perf_maps_put_off)];
    let help = "Files that were to be read, and were not yet, because others had taken long, by what for";
    encoder.counters("put_off", help, "file", put_off)?;
    let degraded = [
        ("window_full", counts.merged_samples),
        ("unknown_process", counts.samples_unknown_process),
        ("unknown_executable", counts.frames_unknown_executable),
        ("mirror_full", refused),
        ("files_closed_early", closed_early),
    ];
    encoder.counters("degraded", "What was kept with less than could be known of it", "reason", degraded)?;
    let outcomes = [
        ("named", counts.executables_named),
        ("unreadable", counts.executables_unreadable),
        ("timed_out", counts.executables_timed_out),
        ("unavailable", counts.executables_unavailable),
    ];
    encoder.counters(
        "executables",
        "Executables by what came of reading their names",
        "outcome",
        outcomes,
    )?;
    let requests = [
        ("sent", counts.requests),
        ("held_back", counts.requests_refused),
        ("not_fulfilled", counts.not_reopened),
    ];
    encoder.counters("requests", "Requests to the collector for files", "outcome", requests)?;
    let rows = [("with_rows", counts.with_rows), ("without_rows", counts.without_rows)];
    let help = "Executables by what came of computing their unwind rows";
    encoder.counters("unwind_executables", help, "outcome", rows)?;
    encoder.counter("unwind_rows", "Unwind rows that were computed", counts.rows)?;
    let help = "Places in executables that no unwind row can describe, by kind";
    let misfits = counts.misfits.iter().map(|(kind, count)| (*kind, *count));
    encoder.counters("unwind_misfits", help, "kind", misfits)?;
    let stored = [("written", counts.stored), ("failed", counts.store_failures)];
    encoder.counters("local_store_profiles", "Profiles for the local folder", "outcome", stored)
}

/// What is held in memory.
fn sizes(encoder: &mut Encoder<'_>, shared: &Shared) -> fmt::Result {
    let (targets, profile_bytes) = shared.profiles.sizes();
    let (entries, bytes) = {
        let state = shared.state();
        let entries = [
            ("processes", state.processes.len()),
            ("cgroups", state.processes.cgroups()),
            ("executables", state.executables.len()),
            ("open_files", state.executables.held()),
            ("jit_processes", state.jit.len()),
            ("names", state.names.len()),
            ("kernel_symbols", state.kernel.len()),
            ("targets", targets),
            ("window_origins", state.window().origins.len()),
            ("window_stacks", state.window().stacks.len()),
            ("stuck_threads", Worker::stuck()),
        ];
        let bytes = [
            ("names", state.names.bytes()),
            ("symbol_tables", state.tables.bytes()),
            ("profiles", profile_bytes),
        ];
        (entries, bytes)
    };
    encoder.gauges("entries", "What the uploader holds, in entries", "of", entries)?;
    encoder.gauges("bytes", "What the uploader holds, in bytes (about)", "of", bytes)
}

/// This process itself.
fn process(encoder: &mut Encoder<'_>) -> fmt::Result {
    let page = rustix::param::page_size();
    let tick = rustix::param::clock_ticks_per_second();
    // proc(5): resident pages are the second number of statm.
    let statm = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let resident: usize = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0);
    encoder.gauge("process_resident_memory_bytes", "Resident memory of the uploader", resident * page)?;
    // User and system time are numbers 14 and 15 of stat; the name before them may have blanks and brackets.
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let times = stat.rsplit_once(") ").map_or("", |(_, rest)| rest).split(' ').skip(11).take(2);
    let ticks: u64 = times.filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
    let seconds = ticks as f64 / tick as f64;
    encoder.seconds("process_cpu_seconds", "CPU time of the uploader, user and system", seconds)
}
