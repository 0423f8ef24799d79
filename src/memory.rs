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

/// Bytes of the process that are resident, where the system tells.
#[must_use]
pub fn resident() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next())?;
    kib.parse().ok().map(|kib: u64| kib << 10)
}

/// Looks now and then how much the process has, and gives back what it can where that is much more than it needed
/// when there was nothing to do: many large bodies or replies at once leave their memory with the allocator.
#[derive(Debug, Default)]
pub struct Keeper {
    /// Bytes resident when there was nothing to do.
    idle: u64,
}

impl Keeper {
    /// Bytes beyond that which are not worth the time.
    const SLACK: u64 = 64 << 20;

    /// Looks; `busy` says whether there is work in hand, which needs its memory.
    pub fn look(&mut self, busy: bool) {
        let Some(mut now) = resident() else { return };
        if now > self.idle + Self::SLACK {
            give_back();
            now = resident().unwrap_or(now);
        }
        if !busy || now < self.idle {
            self.idle = now;
        }
    }
}

#[cfg(test)]
mod tests {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[test]
    fn holes_are_given_back() {
        let mut keeper = super::Keeper::default();
        keeper.look(false);
        // Pieces so small that the allocator does not give them back by itself, with what stays between them.
        let pieces: Vec<Vec<u8>> = (0..8000).map(|_| vec![1u8; 32 << 10]).collect();
        let (stay, go): (Vec<_>, Vec<_>) = pieces.into_iter().enumerate().partition(|(n, _)| n % 2 == 0);
        drop(go);
        let before = super::resident().unwrap();
        keeper.look(true);
        let after = super::resident().unwrap();
        assert!(after + (60 << 20) < before, "{after} {before}");
        // What is held while there is work is not what is needed without.
        assert!(keeper.idle + (30 << 20) < after, "{} {after}", keeper.idle);
        keeper.look(false);
        assert!(keeper.idle + (60 << 20) > after, "{} {after}", keeper.idle);
        drop(stay);
    }
}
