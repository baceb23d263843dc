//! The part of QEMU's plugin interface that is used, version 1 (QEMU's `include/qemu/qemu-plugin.h`, from 4.2 on).
//!
//! QEMU resolves these names itself when it loads the plugin.

use std::ffi::{c_char, c_int, c_uint, c_void};

/// Which plugin is meant.
pub type PluginId = u64;

/// A block that is being translated.
#[repr(C)]
pub struct Block {
    _private: [u8; 0],
}

/// An instruction of such a block.
#[repr(C)]
pub struct Insn {
    _private: [u8; 0],
}

/// The callback reads no registers.
pub const NO_REGS: c_int = 0;

unsafe extern "C" {
    pub fn qemu_plugin_register_vcpu_exit_cb(id: PluginId, cb: extern "C" fn(PluginId, c_uint));
    pub fn qemu_plugin_register_vcpu_tb_trans_cb(id: PluginId, cb: extern "C" fn(PluginId, *mut Block));
    pub fn qemu_plugin_register_vcpu_tb_exec_cb(
        block: *mut Block,
        cb: extern "C" fn(c_uint, *mut c_void),
        flags: c_int,
        userdata: *mut c_void,
    );
    pub fn qemu_plugin_register_vcpu_syscall_cb(
        id: PluginId,
        cb: extern "C" fn(PluginId, c_uint, i64, u64, u64, u64, u64, u64, u64, u64, u64),
    );
    pub fn qemu_plugin_register_vcpu_syscall_ret_cb(
        id: PluginId,
        cb: extern "C" fn(PluginId, c_uint, i64, i64),
    );
    pub fn qemu_plugin_register_atexit_cb(
        id: PluginId,
        cb: extern "C" fn(PluginId, *mut c_void),
        userdata: *mut c_void,
    );
    pub fn qemu_plugin_tb_n_insns(block: *const Block) -> usize;
    pub fn qemu_plugin_tb_get_insn(block: *const Block, index: usize) -> *mut Insn;
    pub fn qemu_plugin_insn_data(insn: *const Insn) -> *const u8;
    pub fn qemu_plugin_insn_size(insn: *const Insn) -> usize;
    pub fn qemu_plugin_insn_vaddr(insn: *const Insn) -> u64;
    pub fn qemu_plugin_insn_haddr(insn: *const Insn) -> *const u8;
}

/// The interface version that QEMU looks for.
#[unsafe(no_mangle)]
pub static qemu_plugin_version: c_int = 1;

/// Words after the plugin's file name, `name=value` each.
///
/// # Safety
/// `argv` holds `argc` NUL-terminated strings, as QEMU hands them over.
pub unsafe fn arguments(argc: c_int, argv: *const *const c_char) -> Vec<(String, String)> {
    (0..usize::try_from(argc).unwrap_or(0))
        .filter_map(|index| {
            // SAFETY: by this function's contract.
            let word = unsafe { std::ffi::CStr::from_ptr(*argv.add(index)) };
            let (name, value) = word.to_str().ok()?.split_once('=')?;
            Some((name.to_owned(), value.to_owned()))
        })
        .collect()
}
