//! The process: how it is set up for tensors on the CPU, and how much of CPU and memory it takes.

use std::time::Duration;

use sysinfo::{ProcessRefreshKind, ProcessesToUpdate, System};

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

/// Keeps freed memory in the process, and in one place. Training allocates and frees the same large tensors at every step;
/// glibc would give them back to the kernel each time, and the page faults cost 25 to 40 % of a step (measured). It would
/// also give each thread memory of its own, where what one role has freed serves no other. Only what is larger than the
/// logits of a pass (copies of an embedding) comes from the kernel: it would leave holes that nothing else fills. PPO on a
/// model of 45M parameters takes 2,100 MiB so, 2,250 with the logits' limit alone or with one place alone, and is as fast.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn tune_allocator() {
    const LARGEST: libc::c_int = libc::c_int::MAX;
    const MORE_THAN_LOGITS: libc::c_int = 65 * 1024 * 1024;
    const TOP_PAD: libc::c_int = 256 * 1024 * 1024;
    for (setting, value) in [
        (libc::M_MMAP_THRESHOLD, MORE_THAN_LOGITS),
        (libc::M_TRIM_THRESHOLD, LARGEST),
        (libc::M_TOP_PAD, TOP_PAD),
        (libc::M_ARENA_MAX, 1),
    ] {
        // SAFETY: mallopt changes a number inside the allocator. It refuses what it does not take, and then the run is
        // only slower.
        unsafe { libc::mallopt(setting, value) };
    }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn tune_allocator() {}

/// Gives freed memory back to the kernel after all: between parts of a run whose tensors are of other sizes, and lie in
/// other threads' shares of it.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub fn release_freed_memory() {
    // SAFETY: it changes nothing that is in use.
    unsafe { libc::malloc_trim(0) };
}

/// Gives freed memory back to the kernel, where the allocator keeps it.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn release_freed_memory() {}

/// Memory that can be had without swapping, of the machine or of the container: bytes; `None` where that is not known.
pub fn available_memory() -> Option<u64> {
    let mut system = System::new().ok()?;
    system.refresh_memory();
    let of_container = system.cgroup_limits().map(|limits| limits.free_memory);
    let available = Some(system.available_memory()).filter(|bytes| *bytes > 0)?;
    Some(of_container.map_or(available, |free| free.min(available)))
}

/// Memory that the process has now: bytes; 0 where that is not known.
pub fn memory_in_use() -> u64 {
    let (Ok(own), Ok(mut system)) = (sysinfo::get_current_pid(), System::new()) else { return 0 };
    let what = ProcessRefreshKind::nothing().with_memory();
    system.refresh_processes_specifics(ProcessesToUpdate::Some(&[own]), false, what);
    system.process(own).map_or(0, sysinfo::Process::memory)
}

/// The most memory that the process has had since [`forget_peak`]; `None` where that is not known.
pub fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let kilobytes = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB"))?;
    Some(1024 * kilobytes.trim().parse::<u64>().ok()?)
}

/// Measures the peak from now on, where the system lets it.
pub fn forget_peak() {
    // Of no consequence where it fails: the peak is then that of the whole process.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

/// CPU time of all threads of the process so far.
pub fn cpu_time() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::try_from(now).unwrap_or_default()
}
