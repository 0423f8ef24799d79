//! The machine a figure was measured on, in words.

/// Processor, threads that this process may use, and system: "AMD EPYC 7B13, 2 threads, linux x86_64".
#[must_use]
pub fn machine() -> String {
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let processor = processor_name(&info).unwrap_or("unknown processor");
    let plural = if threads == 1 { "" } else { "s" };
    format!("{processor}, {threads} thread{plural}, {} {}", std::env::consts::OS, std::env::consts::ARCH)
}

fn processor_name(info: &str) -> Option<&str> {
    let line = info.lines().find(|l| l.starts_with("model name"))?;
    line.split_once(':').map(|(_, name)| name.trim()).filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_processor_and_names_the_threads() {
        assert_eq!(processor_name("processor: 0\nmodel name\t: A B C\nx: y\n"), Some("A B C"));
        assert_eq!(processor_name(""), None);
        assert!(machine().contains("thread"));
    }
}
