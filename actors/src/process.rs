//! The process: how it is set up for tensors on the CPU, and how much of the CPU it takes.

use std::time::Duration;

/// Sets the allocator and the thread pools up. The binary does this first of all; a service of your own that trains on
/// the CPU is some 25 to 40 % slower without.
///
/// # Safety
/// It changes environment variables: no other thread may run yet.
pub unsafe fn tune() {
    tune_allocator();
    let n_cores = std::thread::available_parallelism().map_or(1, usize::from);
    // candle reads these at every matrix product. Without `RAYON_NUM_THREADS` it parses /proc/cpuinfo each time;
    // `CANDLE_NUM_THREADS` above 1 starts a second, spinning pool that fights the first one for the cores.
    for (name, value) in [("RAYON_NUM_THREADS", n_cores.to_string()), ("CANDLE_NUM_THREADS", "1".to_owned())] {
        if std::env::var_os(name).is_none() {
            // SAFETY: no other thread runs yet that could read the environment meanwhile: the caller promises it.
            unsafe { std::env::set_var(name, value) };
        }
    }
}

/// Keeps freed memory in the process. Training allocates and frees the same large tensors at every step; glibc would
/// give them back to the kernel each time, and the page faults cost 25 to 40 % of a step (measured).
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn tune_allocator() {
    const LARGEST: libc::c_int = libc::c_int::MAX;
    const TOP_PAD: libc::c_int = 256 * 1024 * 1024;
    for (setting, value) in
        [(libc::M_MMAP_THRESHOLD, LARGEST), (libc::M_TRIM_THRESHOLD, LARGEST), (libc::M_TOP_PAD, TOP_PAD)]
    {
        // SAFETY: mallopt changes a number inside the allocator. It refuses what it does not take, and then the run is
        // only slower.
        unsafe { libc::mallopt(setting, value) };
    }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn tune_allocator() {}

/// CPU time of all threads of the process so far.
pub fn cpu_time() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::try_from(now).unwrap_or_default()
}
