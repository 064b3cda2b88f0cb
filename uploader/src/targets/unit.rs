//! What the name of a systemd unit and its place among cgroups say (systemd.unit(5)).

use super::cgroup::unescaped;
use crate::relabel::LabelMap;

/// Labels for the rules alone of the unit of this name (of a user's: with its manager's before it) in the cgroup of this path: its slice, and of
/// an instance its template and what it is an instance for, as systemd spells that.
pub(super) fn meta(unit: &str, path: &str) -> LabelMap {
    let mut labels = LabelMap::new();
    let name = unit.rsplit('/').next().unwrap_or(unit);
    let above = path.split('/').take_while(|component| unescaped(component) != name);
    let slice =
        above.filter(|component| component.rsplit_once('.').is_some_and(|(_, kind)| kind == "slice")).last();
    if let Some(slice) = slice {
        labels.insert("__meta_systemd_unit_slice".into(), slice.into());
    }
    if let Some((stem, kind)) = name.rsplit_once('.')
        && let Some((template, instance)) = stem.split_once('@')
        && !instance.is_empty()
    {
        labels.insert("__meta_systemd_unit_template".into(), format!("{template}@.{kind}"));
        labels.insert("__meta_systemd_unit_instance".into(), instance.into());
    }
    labels
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_templates_and_instances() {
        let of = |unit: &str, path: &str| {
            let labels = meta(unit, path);
            let get =
                |name: &str| labels.get(&format!("__meta_systemd_unit_{name}")).cloned().unwrap_or_default();
            [get("slice"), get("template"), get("instance")].join(" ")
        };
        assert_eq!(of("a.service", "/system.slice/a.service"), "system.slice  ");
        assert_eq!(of("a.service", "/a.slice/a-b.slice/a.service/inner.slice"), "a-b.slice  ");
        assert_eq!(
            of("b@1.service", "/system.slice/system-b.slice/b@1.service"),
            "system-b.slice b@.service 1"
        );
        assert_eq!(of("b@x\\x2dy@z.service", "/b@x\\x2dy@z.service"), " b@.service x\\x2dy@z");
        assert_eq!(of("b@.service", "/system.slice/b@.service"), "system.slice  ");
        assert_eq!(of("cpu.service", "/system.slice/_cpu.service"), "system.slice  ");
        let user = "/user.slice/user-1000.slice/user@1000.service/app.slice/b@2.service";
        assert_eq!(of("user@1000.service/b@2.service", user), "app.slice b@.service 2");
        assert_eq!(of("user@1000.service", user), "user-1000.slice user@.service 1000");
    }
}
