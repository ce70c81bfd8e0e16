//! The first process of every pod sandbox: holds its namespaces, reaps what is left to it, and ends with 0 on TERM or INT.
//!
//! No libc and no allocation, so that it is a few KB and needs no other file: `build.rs` compiles it into the agent.

#![no_std]
#![no_main]

use core::arch::{asm, global_asm};

const SIGINT: u64 = 2;
const SIGTERM: u64 = 15;
const SIGCHLD: u64 = 17;
const SIG_BLOCK: usize = 0;
const WNOHANG: usize = 1;

/// The signals that it waits for, as the kernel's set of 64 bits.
static SIGNALS: u64 = 1 << (SIGINT - 1) | 1 << (SIGTERM - 1) | 1 << (SIGCHLD - 1);

#[cfg(target_arch = "x86_64")]
mod number {
    pub(super) const RT_SIGPROCMASK: usize = 14;
    pub(super) const WAIT4: usize = 61;
    pub(super) const RT_SIGTIMEDWAIT: usize = 128;
    pub(super) const EXIT_GROUP: usize = 231;
}

#[cfg(target_arch = "aarch64")]
mod number {
    pub(super) const RT_SIGPROCMASK: usize = 135;
    pub(super) const WAIT4: usize = 260;
    pub(super) const RT_SIGTIMEDWAIT: usize = 137;
    pub(super) const EXIT_GROUP: usize = 94;
}

// The kernel enters here with nothing on the stack that interests us; what follows wants it aligned to 16 bytes.
#[cfg(target_arch = "x86_64")]
global_asm!(".globl _start", "_start:", "xor %ebp, %ebp", "and $-16, %rsp", "call {}", sym pause, options(att_syntax));
#[cfg(target_arch = "aarch64")]
global_asm!(".globl _start", "_start:", "mov x29, #0", "bl {}", sym pause);

/// A system call.
///
/// # Safety
///
/// The arguments must be what the kernel expects of that call; pointers must be valid for as long as it takes.
#[cfg(target_arch = "x86_64")]
unsafe fn call(number: usize, arguments: [usize; 4]) -> isize {
    let result;
    // SAFETY: the convention of x86_64: the number in rax, arguments in rdi, rsi, rdx, r10; rcx and r11 are overwritten. The caller
    // answers for the arguments.
    unsafe {
        asm!("syscall", inlateout("rax") number as isize => result, in("rdi") arguments[0], in("rsi") arguments[1],
            in("rdx") arguments[2], in("r10") arguments[3], lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    result
}

/// A system call.
///
/// # Safety
///
/// The arguments must be what the kernel expects of that call; pointers must be valid for as long as it takes.
#[cfg(target_arch = "aarch64")]
unsafe fn call(number: usize, arguments: [usize; 4]) -> isize {
    let result;
    // SAFETY: the convention of aarch64: the number in x8, arguments from x0 on, the result in x0. The caller answers for the
    // arguments.
    unsafe {
        asm!("svc 0", in("x8") number, inlateout("x0") arguments[0] as isize => result, in("x1") arguments[1],
            in("x2") arguments[2], in("x3") arguments[3], options(nostack));
    }
    result
}

extern "C" fn pause() -> ! {
    let signals = &raw const SIGNALS as usize;
    // SAFETY: the set is a static of 8 bytes; no old set is asked for. Blocked signals are kept for us even though we are PID 1,
    // to which the kernel does not send those with a default action.
    unsafe { call(number::RT_SIGPROCMASK, [SIG_BLOCK, signals, 0, 8]) };
    loop {
        // What died before the signals were blocked, or while one CHLD stood for several: all of it, each time.
        // SAFETY: no status and no resource usage are asked for, so no memory is written.
        while unsafe { call(number::WAIT4, [usize::MAX, 0, WNOHANG, 0]) } > 0 {}
        // SAFETY: the same set; neither the details nor a time limit are asked for.
        let signal = unsafe { call(number::RT_SIGTIMEDWAIT, [signals, 0, 0, 8]) };
        if signal == SIGTERM as isize || signal == SIGINT as isize {
            exit(0)
        }
    }
}

fn exit(code: usize) -> ! {
    loop {
        // SAFETY: takes a number and does not return.
        unsafe { call(number::EXIT_GROUP, [code, 0, 0, 0]) };
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    exit(2)
}
