//! Memory: what the allocator keeps of what was freed is given back to the system.

/// Gives back what it can. It takes some milliseconds for each GiB, so it is for the end of large work alone.
pub fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        unsafe extern "C" {
            fn malloc_trim(pad: usize) -> std::ffi::c_int;
        }
        // SAFETY: it may be called at any time from any thread (malloc_trim(3)); it only gives back free pages.
        unsafe { malloc_trim(0) };
    }
}

#[cfg(test)]
mod tests {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[test]
    fn holes_are_given_back() {
        let resident = || {
            let status = std::fs::read_to_string("/proc/self/status").unwrap();
            let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
            line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
        };
        // Pieces so small that the allocator does not give them back by itself, with what stays between them.
        let pieces: Vec<Vec<u8>> = (0..8000).map(|_| vec![1u8; 32 << 10]).collect();
        let (stay, go): (Vec<_>, Vec<_>) = pieces.into_iter().enumerate().partition(|(n, _)| n % 2 == 0);
        drop(go);
        let before = resident();
        super::give_back();
        assert!(resident() + (60 << 10) < before, "{} {before}", resident());
        drop(stay);
    }
}
