//! The recorder: a QEMU user-mode plugin that turns what a program does into an Intel PT capture and its truth.
//!
//! ```text
//! translate ─► Block (leaked, one a translation)
//! execute   ─► Thread ─┬─► PtEncoder ─► AUXTRACE records, a chunk at a time
//!                      └─► Truth     ─┬─► truth.edges, totals.json at the end
//!                                      └─► truth.TID.log as it runs, on request
//! ```
//!
//! Each guest thread has its own [`thread::Thread`], which only its own vCPU touches: the hot path takes no lock.
//! Forked children are not traced; a program that replaces itself by exec ends the recording.

mod block;
mod cpus;
mod disturb;
mod maps;
mod qemu;
mod recorder;
mod thread;
mod truth;

use block::Block;
use qemu::PluginId;
use recorder::Recorder;
use std::ffi::{c_char, c_int, c_uint, c_void};
use std::sync::OnceLock;

static RECORDER: OnceLock<Recorder> = OnceLock::new();

/// System calls by number (linux `arch/x86/entry/syscalls/syscall_64.tbl`).
mod nr {
    pub const MMAP: i64 = 9;
    pub const MUNMAP: i64 = 11;
    pub const RT_SIGACTION: i64 = 13;
    pub const RT_SIGRETURN: i64 = 15;
    pub const CLONE: i64 = 56;
    pub const FORK: i64 = 57;
    pub const VFORK: i64 = 58;
    pub const EXECVE: i64 = 59;
    pub const EXECVEAT: i64 = 322;
    pub const CLONE3: i64 = 435;
}

/// QEMU's entry point.
///
/// # Safety
/// Called once by QEMU, with its own arguments.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qemu_plugin_install(
    id: PluginId,
    _info: *const c_void,
    argc: c_int,
    argv: *const *const c_char,
) -> c_int {
    // SAFETY: QEMU hands over argc NUL-terminated words.
    let words = unsafe { qemu::arguments(argc, argv) };
    let recorder = match Recorder::new(&words) {
        Ok(recorder) => recorder,
        Err(error) => {
            eprintln!("recorder: {error}");
            return 1;
        }
    };
    if RECORDER.set(recorder).is_err() {
        return 1;
    }
    // SAFETY: the callbacks have the types that the interface asks for, and live as long as the process.
    unsafe {
        qemu::qemu_plugin_register_vcpu_tb_trans_cb(id, on_translate);
        qemu::qemu_plugin_register_vcpu_syscall_cb(id, on_syscall);
        qemu::qemu_plugin_register_vcpu_syscall_ret_cb(id, on_syscall_return);
        qemu::qemu_plugin_register_vcpu_exit_cb(id, on_vcpu_exit);
        qemu::qemu_plugin_register_atexit_cb(id, on_exit, std::ptr::null_mut());
    }
    0
}

extern "C" fn on_translate(_: PluginId, tb: *mut qemu::Block) {
    let Some(recorder) = RECORDER.get() else { return };
    // SAFETY: QEMU's block and its instructions live through this callback; the data of an instruction is as long as
    // its size says.
    let insns: Vec<(u64, &[u8])> = unsafe {
        (0..qemu::qemu_plugin_tb_n_insns(tb))
            .map(|index| {
                let insn = qemu::qemu_plugin_tb_get_insn(tb, index);
                let (data, size) = (qemu::qemu_plugin_insn_data(insn), qemu::qemu_plugin_insn_size(insn));
                (qemu::qemu_plugin_insn_vaddr(insn), std::slice::from_raw_parts(data, size))
            })
            .collect()
    };
    if insns.is_empty() {
        return;
    }
    // SAFETY: the block has a first instruction.
    let host = unsafe { qemu::qemu_plugin_insn_haddr(qemu::qemu_plugin_tb_get_insn(tb, 0)) } as u64;
    let block = recorder.translate(&insns, host);
    let userdata = std::ptr::from_ref(block).cast_mut().cast::<c_void>();
    // SAFETY: the block lives for ever.
    unsafe { qemu::qemu_plugin_register_vcpu_tb_exec_cb(tb, on_execute, qemu::NO_REGS, userdata) };
}

extern "C" fn on_execute(vcpu: c_uint, userdata: *mut c_void) {
    // SAFETY: this is the block that `on_translate` registered, which is never freed or changed.
    let block: &'static Block = unsafe { &*userdata.cast::<Block>() };
    if let Some(recorder) = RECORDER.get() {
        recorder.execute(vcpu, block);
    }
}

#[allow(clippy::too_many_arguments, reason = "QEMU's own signature")]
extern "C" fn on_syscall(
    _: PluginId,
    vcpu: c_uint,
    number: i64,
    a1: u64,
    a2: u64,
    _a3: u64,
    _a4: u64,
    _a5: u64,
    _a6: u64,
    _a7: u64,
    _a8: u64,
) {
    let Some(recorder) = RECORDER.get() else { return };
    recorder.syscall(vcpu, number == nr::RT_SIGRETURN);
    match number {
        nr::RT_SIGACTION if a2 != 0 => recorder.signal_handler_at(a2),
        nr::MUNMAP => recorder.unmapped(a1, a2),
        nr::MMAP if a1 != 0 => recorder.unmapped(a1, a2),
        nr::EXECVE | nr::EXECVEAT => recorder.finish(),
        _ => {}
    }
}

extern "C" fn on_syscall_return(_: PluginId, vcpu: c_uint, number: i64, result: i64) {
    let Some(recorder) = RECORDER.get() else { return };
    if matches!(number, nr::FORK | nr::VFORK | nr::CLONE | nr::CLONE3) && result == 0 {
        recorder.leave_if_child();
    }
    recorder.syscall_returned(vcpu);
}

extern "C" fn on_vcpu_exit(_: PluginId, vcpu: c_uint) {
    if let Some(recorder) = RECORDER.get() {
        recorder.vcpu_exit(vcpu);
    }
}

extern "C" fn on_exit(_: PluginId, _: *mut c_void) {
    if let Some(recorder) = RECORDER.get() {
        recorder.finish();
    }
}
