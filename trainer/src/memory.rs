//! How much memory the process takes and may take.

use std::path::{Path, PathBuf};

/// Bytes that the process holds (resident), where the system tells (Linux).
#[must_use]
pub fn resident() -> Option<u64> {
    status("VmRSS:")
}

/// Largest number of bytes that it held since [`reset_peak`], or since its start.
#[must_use]
pub fn peak() -> Option<u64> {
    status("VmHWM:")
}

/// Lets [`peak`] count from here; without effect where the system does not offer it.
pub fn reset_peak() {
    // Then the peak is that since the start: an estimate from it is too large, never too small.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

/// Bytes that the process may hold in all, what it holds already among them: what the machine has left, or what its
/// cgroup still allows if that is less. `None` where the system does not tell.
#[must_use]
pub fn allowed() -> Option<u64> {
    let machine = kib_field(&std::fs::read_to_string("/proc/meminfo").ok()?, "MemAvailable:")?;
    let left = cgroup_left().map_or(machine, |cgroup| machine.min(cgroup));
    Some(left + resident()?)
}

fn status(field: &str) -> Option<u64> {
    kib_field(&std::fs::read_to_string("/proc/self/status").ok()?, field)
}

/// The value in KiB behind `field`, as bytes.
fn kib_field(text: &str, field: &str) -> Option<u64> {
    let line = text.lines().find(|l| l.starts_with(field))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib << 10)
}

/// What the process's cgroup, and those above it, leave.
fn cgroup_left() -> Option<u64> {
    let own = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = |controller: &str, root: &str| {
        let line = own.lines().find(|l| l.split(':').nth(1) == Some(controller))?;
        Some((PathBuf::from(root), line.splitn(3, ':').nth(2)?.trim_start_matches('/').to_owned()))
    };
    let second = path("", "/sys/fs/cgroup").and_then(|(root, own)| {
        left(&root, &own, ["memory.max", "memory.current", "memory.stat"], "inactive_file")
    });
    let first = path("memory", "/sys/fs/cgroup/memory").and_then(|(root, own)| {
        let files = ["memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat"];
        left(&root, &own, files, "total_inactive_file")
    });
    [first, second].into_iter().flatten().min()
}

/// The least that a cgroup and its ancestors leave. Pages of files that were not read lately count as left: the system
/// gives them up before it runs out.
fn left(root: &Path, own: &str, [limit, usage, stat]: [&str; 3], inactive: &str) -> Option<u64> {
    let number = |path: PathBuf| std::fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let one = |folder: PathBuf| {
        // "max" is no number: no limit.
        let limit = number(folder.join(limit))?;
        let stat = std::fs::read_to_string(folder.join(stat)).unwrap_or_default();
        let files =
            stat.lines().find_map(|l| l.strip_prefix(inactive)?.trim().parse::<u64>().ok()).unwrap_or(0);
        Some(limit.saturating_sub(number(folder.join(usage))?.saturating_sub(files)))
    };
    // In a container the path may not exist: its own cgroup is then mounted as the root.
    let own = Path::new(own);
    let folders = own.ancestors().map(|p| root.join(p)).chain([root.to_owned()]);
    folders.filter_map(one).min()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn a_large_allocation_shows_in_the_peak() {
        reset_peak();
        let before = peak().unwrap();
        let block = vec![1u8; 64 << 20];
        assert!(block.iter().map(|b| u64::from(*b)).sum::<u64>() == 64 << 20);
        assert!(peak().unwrap() >= before.min(resident().unwrap()) + (32 << 20));
        drop(block);
        assert!(allowed().unwrap() >= resident().unwrap() / 2);
    }

    #[test]
    fn the_tightest_cgroup_counts_and_idle_file_pages_are_left() {
        let dir = tempfile::tempdir().unwrap();
        let group = dir.path().join("a/b");
        std::fs::create_dir_all(&group).unwrap();
        let write = |at: &Path, limit: &str, usage: u64| {
            std::fs::write(at.join("memory.max"), limit).unwrap();
            std::fs::write(at.join("memory.current"), usage.to_string()).unwrap();
            std::fs::write(at.join("memory.stat"), "anon 5\ninactive_file 100\n").unwrap();
        };
        write(&group, "max\n", 500);
        write(&dir.path().join("a"), "1000\n", 600);
        write(dir.path(), "5000\n", 700);
        let files = ["memory.max", "memory.current", "memory.stat"];
        assert_eq!(left(dir.path(), "a/b", files, "inactive_file"), Some(500));
        assert_eq!(left(dir.path(), "elsewhere", files, "inactive_file"), Some(4400));
        assert_eq!(left(&group, "", files, "inactive_file"), None);
    }
}
