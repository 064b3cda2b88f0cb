//! From the text of `/proc/PID/cgroup` to the container or systemd unit that a process belongs to, in cgroup v1, v2
//! and hybrid forms.
//!
//! The rules:
//!
//! - Every line is `HIERARCHY:CONTROLLERS:PATH`, and the path may have colons of its own. The lines are asked in
//!   this order: the hierarchy of systemd (`name=systemd`), the unified one (`0::`), then all others as they come; the
//!   first that has an answer gives it. So a hybrid machine's `0::/` says nothing, and does no harm.
//! - A root path never names anything. Components `..`, as seen from a nested cgroup namespace, are passed over.
//! - Containers before units: a container's engine may be a unit (`docker.service`), and a container may run systemd.
//! - Of nested containers (kind, docker in docker) the innermost is named: it is what the process's own people
//!   know it by.
//! - Of nested units the outermost is named, as systemd does (`cg_path_get_unit` in systemd's
//!   `src/basic/cgroup-util.c`): what lies below a unit is its own business. The exception is a unit of a user's
//!   manager: it is named after the manager's unit (`user@1000.service/x.service`), so that it is told apart
//!   from a system unit `x.service`.

use crate::printable::printable;

/// What a process belongs to.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Owner {
    /// A container, by its bare id (or its name, for LXC).
    Container(String),
    /// A systemd unit, spelled as systemd spells it.
    Unit(String),
}

/// Most lines that are looked at. The kernel has about a dozen controllers.
const MAX_LINES: usize = 64;

/// What the process with this text of `/proc/PID/cgroup` belongs to.
pub fn owner(text: &[u8]) -> Option<Owner> {
    let paths: Vec<Vec<&str>> = paths(text).into_iter().map(components).collect();
    let container = paths.iter().find_map(|path| container(path)).map(Owner::Container);
    container.or_else(|| paths.iter().find_map(|path| unit(path)).map(Owner::Unit))
}

/// The paths of a text of `/proc/PID/cgroup`, in the order in which they are asked.
pub fn paths(text: &[u8]) -> Vec<&str> {
    let mut paths: Vec<(u8, &str)> = text
        .split(|byte| *byte == b'\n')
        .take(MAX_LINES)
        .filter_map(|line| std::str::from_utf8(line).ok())
        .filter_map(|line| {
            let mut parts = line.splitn(3, ':');
            let (hierarchy, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
            let rank = match (hierarchy, controllers) {
                (_, "name=systemd") => 0,
                ("0", "") => 1,
                _ => 2,
            };
            // The kernel's mark of a cgroup that was removed while the process was in it.
            Some((rank, path.strip_suffix(" (deleted)").unwrap_or(path)))
        })
        .collect();
    paths.sort_by_key(|(rank, _)| *rank);
    paths.into_iter().map(|(_, path)| path).collect()
}

/// The parts of a path that name something: a process in a cgroup namespace beside another sees its paths as `/../../x`.
pub(super) fn components(path: &str) -> Vec<&str> {
    path.split('/').filter(|part| !matches!(*part, "" | "." | "..")).collect()
}

/// The innermost container of a path.
fn container(path: &[&str]) -> Option<String> {
    (0..path.len()).rev().find_map(|index| {
        // Podman's monitor of a container in a pod is in the pod's cgroup, which has an id as well.
        if path.get(index + 1) == Some(&"conmon") {
            return None;
        }
        let parent = index.checked_sub(1).map_or("", |parent| path[parent]);
        container_id(path[index], parent)
    })
}

/// The container that a component names, given the component above it.
fn container_id(component: &str, parent: &str) -> Option<String> {
    // LXC names its cgroups after containers, which have names and no ids. The monitor is not in the container.
    if let Some(name) = component.strip_prefix("lxc.payload.").filter(|name| !name.is_empty()) {
        return Some(printable(name.as_bytes()));
    }
    if matches!(parent, "lxc" | "lxc.payload") {
        if component == "lxc.pivot" || component.starts_with("lxc.monitor.") {
            return None;
        }
        return Some(printable(component.as_bytes()));
    }
    // What runs in a machine of systemd-nspawn's; beside it is the program that runs the machine.
    if component == "payload" {
        return machine(parent);
    }
    // systemd's form `cri-containerd-ID.scope`, containerd's `SLICE:cri-containerd:ID`.
    let bare = component.strip_suffix(".scope").unwrap_or(component);
    let bare = bare.rsplit(':').next().unwrap_or(bare);
    if is_hex(bare, 64) {
        return Some(bare.to_owned());
    }
    if let Some((engine, id)) = bare.rsplit_once('-')
        && is_hex(id, 64)
        // Each container's monitor has a scope of its own: it is no part of the container.
        && !engine.ends_with("conmon")
    {
        return Some(id.to_owned());
    }
    // Fargate: the task's id, then a number.
    if let Some((task, number)) = bare.split_once('-')
        && is_hex(task, 32)
        && !number.is_empty()
        && number.bytes().all(|byte| byte.is_ascii_digit())
    {
        return Some(bare.to_owned());
    }
    // 32 digits could be anything (a machine's id, a hash), unless it is where containers are.
    let among_containers = parent == "garden" || pod_uid(parent).is_some();
    if among_containers && (is_hex(bare, 32) || (parent == "garden" && is_uuid(bare))) {
        return Some(bare.to_owned());
    }
    None
}

/// The machine that a unit of systemd-nspawn's runs: `systemd-nspawn@NAME.service`, or `machine-NAME.scope` (systemd's `src/nspawn` and
/// `src/machine/machine-dbus.c`), where NAME is written as in all names of units (systemd-escape(1)).
fn machine(unit: &str) -> Option<String> {
    let service = unit.strip_prefix("systemd-nspawn@").and_then(|rest| rest.strip_suffix(".service"));
    let name = service.or_else(|| unit.strip_prefix("machine-")?.strip_suffix(".scope"))?;
    (!name.is_empty()).then(|| printable(name.replace(r"\x2d", "-").as_bytes()))
}

/// The uid of the innermost pod of a path, as the API server writes it.
pub(super) fn pod(path: &str) -> Option<String> {
    components(path).iter().rev().find_map(|component| pod_uid(component))
}

/// The uid of `pod` and a uid, in the forms of cgroupfs and systemd (`kubepods-besteffort-podUID.slice`), also where containerd puts its own
/// after it (`SLICE:cri-containerd:ID`).
fn pod_uid(component: &str) -> Option<String> {
    let name = component.split(':').next().unwrap_or(component);
    let name = name.strip_suffix(".slice").unwrap_or(name);
    let (_, uid) = name.rsplit_once("pod")?;
    let uid = uid.replace('_', "-");
    (is_hex(&uid, 32) || is_uuid(&uid)).then_some(uid)
}

fn is_hex(text: &str, length: usize) -> bool {
    text.len() == length && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn is_uuid(text: &str) -> bool {
    let mut lengths = [8, 4, 4, 4, 12].iter();
    text.split('-').all(|part| lengths.next().is_some_and(|length| is_hex(part, *length)))
        && lengths.next().is_none()
}

/// The unit of a path; of a user's unit its manager's too.
fn unit(path: &[&str]) -> Option<String> {
    let mut units = path.iter().filter_map(|component| unit_name(component));
    let unit = units.next()?;
    let is_manager = unit
        .strip_prefix("user@")
        .and_then(|rest| rest.strip_suffix(".service"))
        .is_some_and(|uid| !uid.is_empty() && uid.bytes().all(|byte| byte.is_ascii_digit()));
    match units.next() {
        Some(inner) if is_manager => Some(format!("{unit}/{inner}")),
        _ => Some(unit.to_owned()),
    }
}

/// The name that systemd gave a cgroup: it puts `_` before those that the kernel could take for its own files (`cg_escape` in its
/// `src/basic/cgroup-util.c`).
pub(super) fn unescaped(component: &str) -> &str {
    component.strip_prefix('_').unwrap_or(component)
}

/// The component as the name of a unit that processes can be in. Slices only hold other units.
fn unit_name(component: &str) -> Option<&str> {
    let name = unescaped(component);
    let (stem, kind) = name.rsplit_once('.')?;
    let holds_processes = matches!(kind, "service" | "scope" | "socket" | "mount" | "swap");
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b":-_.\\@".contains(&byte);
    // systemd's bound (UNIT_NAME_MAX) is 255.
    (holds_processes && !stem.is_empty() && name.len() <= 255 && name.bytes().all(legal)).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    const INNER: &str = "fedcba9876543210fedcba9876543210fedcba9876543210fedcba9876543210";
    const UID: &str = "12345678-9abc-def0-1234-56789abcdef0";
    const HASH: &str = "0123456789abcdef0123456789abcdef";

    fn of(text: &str) -> Option<Owner> {
        let text = text.replace("INNER", INNER).replace("ID", ID).replace("UUU", UID).replace("HHH", HASH);
        owner(text.as_bytes())
    }

    #[test]
    fn container_ids_in_every_form() {
        // Reports R08 and R23, and the forms of real-world engines.
        for path in [
            "/docker/ID",
            "/system.slice/docker-ID.scope",
            "/system.slice/docker.service/docker/ID",
            "/kubepods/besteffort/podUUU/ID",
            "/kubepods/podUUU/ID",
            "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-podUUU.slice/cri-containerd-ID.scope",
            "/kubepods.slice/kubepods-podUUU.slice/crio-ID.scope",
            "/system.slice/containerd.service/kubepods-besteffort-podUUU.slice:cri-containerd:ID",
            "/kubepods-burstable-podUUU.slice:cri-containerd:ID",
            "/machine.slice/libpod-ID.scope",
            "/machine.slice/libpod-ID.scope/container",
            "/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-ID.scope",
            "/libpod_parent/libpod-ID",
            "/libpod_parent/INNER/libpod-ID",
            "/my/parent/libpod-ID",
            "/system.slice/web.service/libpod-payload-ID",
            "/user.slice/user-1000.slice/user@1000.service/mine/libpod-ID",
            "/docker/ID/libpod_parent/INNER/conmon",
            "/ecs/HHH/ID",
            "/actions_job/ID",
            "/../../docker/ID",
            "/../cri-containerd-ID.scope",
            "/docker/ID (deleted)",
            "/docker/ID/system.slice/nginx.service",
        ] {
            let expected = Some(Owner::Container(ID.into()));
            assert_eq!(of(&format!("0::{path}\n")), expected, "v2 {path}");
            assert_eq!(
                of(&format!("12:cpu,cpuacct:/\n1:name=systemd:{path}\n0::/\n")),
                expected,
                "systemd {path}"
            );
            assert_eq!(of(&format!("1:name=systemd:/\n0::/\n7:memory:{path}")), expected, "hybrid {path}");
        }
    }

    #[test]
    fn pods_by_their_uid() {
        let systemd = UID.replace('-', "_");
        for path in [
            "/kubepods/besteffort/podUUU/ID",
            "/kubepods/podUUU",
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podSSS.slice/cri-containerd-ID.scope",
            "/system.slice/containerd.service/kubepods-besteffort-podSSS.slice:cri-containerd:ID",
            "/docker/ID/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-podSSS.slice/crio-INNER.scope",
        ] {
            let path = path.replace("UUU", UID).replace("SSS", &systemd).replace("ID", ID);
            assert_eq!(pod(&path).as_deref(), Some(UID), "{path}");
        }
        assert_eq!(pod(&format!("/kubepods/burstable/pod{HASH}/{ID}")).as_deref(), Some(HASH));
        for path in ["/", "/docker/ID", "/podman/x", "/kubepods/podder"] {
            assert_eq!(pod(path), None, "{path}");
        }
    }

    #[test]
    fn the_innermost_container_wins() {
        for path in [
            "/docker/ID/docker/INNER",
            "/docker/ID/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-podUUU.slice/cri-containerd-INNER.scope",
            "/kubepods/besteffort/podUUU/ID/kubepods/besteffort/podUUU/INNER",
        ] {
            assert_eq!(of(&format!("0::{path}")), Some(Owner::Container(INNER.into())), "{path}");
        }
    }

    #[test]
    fn ids_that_are_not_64_digits() {
        for (path, id) in [
            ("/lxc/web-1", "web-1"),
            ("/lxc.payload.web-1", "web-1"),
            ("/my/group/lxc.payload.web.2", "web.2"),
            ("/lxc/lxc.payload.web-5", "web-5"),
            ("/lxc/lxc.payload.web-5/.lxc", "web-5"),
            ("/lxc/103/ns", "103"),
            ("/lxc.payload.web/init.scope", "web"),
            ("/lxc.payload/web", "web"),
            ("/machine.slice/systemd-nspawn@web.service/payload", "web"),
            ("/machine.slice/systemd-nspawn@web.service/payload/system.slice/nginx.service", "web"),
            (r"/machine.slice/machine-web\x2d1.scope/payload/init.scope", "web-1"),
            ("/garden/HHH", HASH),
            ("/garden/UUU", UID),
            ("/kubepods/burstable/podHHH/HHH", HASH),
        ] {
            assert_eq!(of(&format!("4:memory:{path}\n0::/")), Some(Owner::Container(id.into())), "{path}");
        }
        let fargate = format!("{HASH}-2532925943");
        assert_eq!(of(&format!("0::/ecs/HHH/{fargate}")), Some(Owner::Container(fargate)));
    }

    #[test]
    fn what_is_no_container() {
        for text in [
            "",
            "0::/",
            "0::/..",
            "0::/../../..",
            "1:name=openrc:/\n",
            "1:name=systemd:/\n0::/\n",
            "garbage\n0:\n::\n",
            "0::/kubepods/besteffort/podUUU",
            "0::/kubepods/burstable/podHHH",
            "0::/HHH",
            "0::/some/HHH",
            "0::/machine.slice/libpod-conmon-ID",
            "0::/lxc.monitor.web",
            "0::/lxc/lxc.monitor.web-5",
            "0::/lxc/lxc.pivot",
            "0::/my/group/lxc.monitor.web.2",
            "0::/lxc.monitor/103",
            "0::/web",
            "0::/default/web",
            "9:name=systemd:/\n4:memory:/libpod_parent/conmon\n0::/",
            "9:name=systemd:/\n4:memory:/libpod_parent/ID/conmon\n0::/",
            "0::/lxc.payload.",
            "0::/docker/0123",
            "0::/docker/IDa",
        ] {
            assert_eq!(of(text), None, "{text}");
        }
        assert_eq!(owner(b"0::/\xff\xfe/docker\n"), None);
        assert_eq!(owner(&b"1:x:/y\n".repeat(1_000_000)), None);
    }

    #[test]
    fn units_are_spelled_as_systemd_does() {
        // Report R27.
        for (path, unit) in [
            ("/system.slice/nginx.service", "nginx.service"),
            (r"/system.slice/system-a.slice/a@b\x2dc.service", r"a@b\x2dc.service"),
            (r"/a.slice/a-b.slice/a-b-c.slice/x\x2dy.service", r"x\x2dy.service"),
            ("/init.scope", "init.scope"),
            ("/system.slice/run-u7.scope", "run-u7.scope"),
            ("/system.slice/a.service/sub/x.service", "a.service"),
            ("/payload/system.slice/a.service", "a.service"),
            ("/system.slice/_cpu.service", "cpu.service"),
            ("/system.slice/boot.mount", "boot.mount"),
            ("/user.slice/user-1000.slice/session-3.scope", "session-3.scope"),
            ("/user.slice/user-1000.slice/user@1000.service", "user@1000.service"),
            (
                "/user.slice/user-1000.slice/user@1000.service/app.slice/nginx.service",
                "user@1000.service/nginx.service",
            ),
            ("/user.slice/user-1000.slice/user@1000.service/init.scope", "user@1000.service/init.scope"),
            ("/machine.slice/libpod-conmon-ID.scope", "libpod-conmon-ID.scope"),
            // The program that runs a machine is not in it.
            ("/machine.slice/systemd-nspawn@web.service/supervisor", "systemd-nspawn@web.service"),
            (r"/machine.slice/machine-qemu\x2d1\x2dvm.scope/libvirt/vcpu0", r"machine-qemu\x2d1\x2dvm.scope"),
            ("/../system.slice/nginx.service", "nginx.service"),
        ] {
            let expected = Some(Owner::Unit(unit.replace("ID", ID)));
            assert_eq!(of(&format!("0::{path}\n")), expected, "v2 {path}");
            assert_eq!(of(&format!("3:cpu:/\n1:name=systemd:{path}\n0::/\n")), expected, "hybrid {path}");
        }
    }

    #[test]
    fn the_hierarchy_of_systemd_is_asked_first() {
        let text = "5:cpu:/b.service\n0::/c.service\n1:name=systemd:/system.slice/a.service\n";
        assert_eq!(of(text), Some(Owner::Unit("a.service".into())));
        assert_eq!(of("5:cpu:/b.service\n0::/c.service\n"), Some(Owner::Unit("c.service".into())));
    }

    #[test]
    fn what_is_no_unit() {
        for path in [
            "/system.slice",
            "/user.slice/user-1000.slice",
            "/.service",
            "/a b.service",
            "/x.timer",
            "/é.service",
        ] {
            assert_eq!(of(&format!("0::{path}\n")), None, "{path}");
        }
        assert_eq!(of(&format!("0::/{}.service", "x".repeat(300))), None);
    }
}
