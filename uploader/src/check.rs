//! `bulkhead-uploader check`: which labels each process that runs now would get, and by which rule. It reads `/proc` as any user may, and is no
//! part of what runs all the time.

use std::{
    fmt::Write as _,
    fs,
    io::{self, Write as _},
    sync::Arc,
    time::Duration,
};

use tokio::{runtime, task::JoinSet, time::timeout};

use crate::{
    app::{self, AppError},
    config::ConfigFile,
    discovery::Discovery,
    flags::Flags,
    printable::printable,
    relabel::LabelMap,
    targets::{Labels, Origin, Target, TargetMaker, Why},
};

/// How long the names of containers are waited for.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often is looked whether they are there.
const PAUSE: Duration = Duration::from_millis(50);

/// Prints it for all processes.
pub fn run(flags: &Flags) -> Result<(), AppError> {
    app::log_to_stderr(flags.log_level);
    let mut maker = TargetMaker::new(&flags.node, flags.external_labels()).with_selection(flags.selection());
    if let Some(path) = flags.selection.config_path() {
        maker.set_rules(ConfigFile::open(path)?.1.rules);
    }
    let (discovery, origins) = discover(flags, &mut maker)?;
    let mut output = io::BufWriter::new(io::stdout().lock());
    let mut print = || -> io::Result<()> {
        if let Some(sentence) = discovery.sentence() {
            writeln!(output, "{sentence}\n")?;
        }
        for (pid, origin) in &origins {
            output.write_all(describe(*pid, origin, &maker, &discovery).as_bytes())?;
        }
        writeln!(output, "{} processes", origins.len())?;
        output.flush()
    };
    match print() {
        // Whoever reads it may have seen enough.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// The processes that run, and what is known of their containers and units, once all was told, or it is clear that it will not be.
fn discover(flags: &Flags, maker: &mut TargetMaker) -> Result<(Discovery, Vec<(u32, Origin)>), AppError> {
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    // Reading a kubeconfig has a runtime of its own, and there can be but one.
    let server = app::find_api_server(flags)?;
    runtime.block_on(async {
        let mut asking = JoinSet::new();
        let (discovery, units) = app::ask_for_names(flags, server, &mut asking);
        discovery.describe_units(maker.wants_descriptions());
        let told = async {
            while discovery.is_waiting() {
                tokio::time::sleep(PAUSE).await;
            }
        };
        // What came in time is used.
        let _ = tokio::join!(timeout(PATIENCE, told), units.first_answer());
        maker.set_unit_ids(units.ids().borrow().clone().unwrap_or_default());
        let origins = origins(maker)?;
        discovery.settle(origins.iter().map(|(_, origin)| origin), PATIENCE).await;
        Ok((discovery, origins))
    })
}

/// All processes that run, by their pids.
fn origins(maker: &TargetMaker) -> io::Result<Vec<(u32, Origin)>> {
    let entries = fs::read_dir("/proc")?.flatten();
    let mut pids: Vec<u32> = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    pids.sort_unstable();
    Ok(pids.into_iter().filter_map(|pid| Some((pid, origin(pid, maker)?))).collect())
}

/// `None`: it has ended meanwhile.
fn origin(pid: u32, maker: &TargetMaker) -> Option<Origin> {
    let mut comm = fs::read(format!("/proc/{pid}/comm")).ok()?;
    comm.truncate(comm.strip_suffix(b"\n").map_or(comm.len(), <[u8]>::len));
    let cgroup = fs::read(format!("/proc/{pid}/cgroup")).ok();
    let cgroup = cgroup.map(|text| Arc::new(maker.cgroup(&text)));
    Some(Origin { comm: printable(&comm), pid: Some(pid), cgroup })
}

fn describe(pid: u32, origin: &Origin, maker: &TargetMaker, discovery: &Discovery) -> String {
    let mut steps = String::new();
    let mut before = LabelMap::new();
    let target = maker.explained_target(origin, discovery, |rule, labels| {
        if rule > 0 {
            let changes = changes(&before, labels);
            if !changes.is_empty() {
                // Writing to a string cannot fail.
                let _ = writeln!(steps, "    rule {rule} ({}): {changes}", maker.rules().action(rule));
            }
        }
        before.clone_from(labels);
    });
    let outcome = match target {
        Target::Of(labels) => labels.to_string(),
        Target::NotSelected(Why::NotNamed) => "not profiled: flags name others".to_owned(),
        Target::NotSelected(Why::Rule(rule)) => {
            format!("not profiled: rule {rule} ({})", maker.rules().action(rule))
        }
        Target::NotSelected(Why::NotSampled) => {
            "not profiled: in the other part (--sampling-ratio)".to_owned()
        }
    };
    format!("{pid} {}\n{steps}    {outcome}\n", origin.comm)
}

/// What one rule has changed.
fn changes(before: &LabelMap, after: &LabelMap) -> String {
    let mut changes = Vec::new();
    for (name, value) in after {
        if before.get(name) != Some(value) {
            // As a selector has it, without its braces.
            let label = Labels([(name.clone(), value.clone())].into()).to_string();
            changes.push(label.trim_matches(['{', '}']).to_owned());
        }
    }
    changes.extend(before.keys().filter(|name| !after.contains_key(*name)).map(|name| format!("no {name}")));
    changes.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse;

    #[test]
    fn each_rule_says_what_it_does() {
        let text = "relabel_configs:\n\
            - {source_labels: [__meta_process_cgroup], regex: '/(.*)\\.slice/.*', target_label: slice}\n\
            - {source_labels: [comm], regex: 'nothing', target_label: never}\n\
            - {regex: node, action: labeldrop}\n\
            - {source_labels: [comm], regex: noise, action: drop}\n";
        let mut maker = TargetMaker::new("n", []);
        maker.set_rules(parse(text).unwrap().rules);
        let cgroup = Some(Arc::new(maker.cgroup(b"0::/system.slice/a.service")));
        let origin = |comm: &str| Origin { comm: comm.into(), pid: Some(7), cgroup: cgroup.clone() };
        let text = describe(7, &origin("web"), &maker, &Discovery::default());
        let expected = "7 web\n    rule 1 (replace): slice=\"system\"\n    rule 3 (labeldrop): no node\n    {comm=\"web\", slice=\"system\", systemd_unit=\"a.service\"}\n";
        assert_eq!(text, expected);
        let text = describe(8, &origin("noise"), &maker, &Discovery::default());
        assert!(text.ends_with("    not profiled: rule 4 (drop)\n"), "{text}");
    }

    #[test]
    fn this_process_is_among_those_that_run() {
        let maker = TargetMaker::new("n", []);
        let own = origin(std::process::id(), &maker).unwrap();
        assert!(!own.comm.is_empty() && !own.comm.contains('\n') && own.cgroup.is_some());
        assert_eq!(origin(u32::MAX, &maker), None);
    }
}
