"""Takes away from the calling process, for ever, all that generated code has no need for: Linux only, standard library only.

`resource limits` bound memory, CPU and files; Landlock leaves of the file system only the interpreter's own library, read-only;
seccomp leaves of the system calls those that pure computing needs (a list of what is allowed, so that what a newer kernel adds is
denied); capabilities go. The same holds for native code that the process maps, since all four are the kernel's.
"""

from __future__ import annotations

import ctypes
import os
import resource
import struct
import sys

_LIBC = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
_LANDLOCK_CREATE_RULESET, _LANDLOCK_ADD_RULE, _LANDLOCK_RESTRICT_SELF = 444, 445, 446
_READ_FILE, _READ_DIR, _EXECUTE = 1 << 2, 1 << 3, 1 << 0

_CALLS = {
    # name: (x86_64, aarch64); -1 where a machine does not have it. From the kernel's asm/unistd_64.h and asm-generic/unistd.h.
    "read": (0, 63), "write": (1, 64), "open": (2, -1), "close": (3, 57), "stat": (4, -1), "fstat": (5, 80), "lstat": (6, -1),
    "poll": (7, -1), "lseek": (8, 62), "mmap": (9, 222), "mprotect": (10, 226), "munmap": (11, 215), "brk": (12, 214),
    "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "pread64": (17, 67), "readv": (19, 65),
    "writev": (20, 66), "access": (21, -1), "select": (23, -1), "sched_yield": (24, 124), "mremap": (25, 216),
    "mincore": (27, 232), "madvise": (28, 233), "dup": (32, 23), "dup2": (33, -1), "nanosleep": (35, 101), "getitimer": (36, 102),
    "alarm": (37, -1), "setitimer": (38, 103), "getpid": (39, 172), "exit": (60, 93), "uname": (63, 160),
    "getcwd": (79, 17), "readlink": (89, -1), "gettimeofday": (96, 169), "getrlimit": (97, 163), "getrusage": (98, 165),
    "sysinfo": (99, 179), "times": (100, 153), "getuid": (102, 174), "getgid": (104, 176), "geteuid": (107, 175),
    "getegid": (108, 177), "sigaltstack": (131, 132), "gettid": (186, 178), "futex": (202, 98), "sched_getaffinity": (204, 123),
    "getdents64": (217, 61), "restart_syscall": (219, 128), "clock_gettime": (228, 113), "clock_getres": (229, 114),
    "clock_nanosleep": (230, 115), "exit_group": (231, 94), "openat": (257, 56), "newfstatat": (262, 79), "readlinkat": (267, 78),
    "faccessat": (269, 48), "pselect6": (270, 72), "ppoll": (271, 73), "set_robust_list": (273, 99), "dup3": (292, 24),
    "getrandom": (318, 278), "statx": (332, 291), "rseq": (334, 293), "faccessat2": (439, 439), "membarrier": (324, 283),
}  # fmt: skip
_CLONE, _CLONE3, _IOCTL, _FCNTL = (56, 220), (435, 435), (16, 29), (72, 25)
_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""Machine -> (column above, AUDIT_ARCH_*)."""


class CannotConfine(Exception):
    """This kernel or machine lacks a layer; the text names it."""


def confine(memory_bytes: int, cpu_seconds: int, with_landlock: bool) -> None:
    """Confines the calling process; nothing undoes it.

    Args:
        memory_bytes: of address space.
        cpu_seconds: after which the kernel ends the process.
        with_landlock: False only where a mount namespace already hides the host's files.

    Raises:
        CannotConfine: a layer is missing; what was applied before it stays.
    """
    if sys.platform != "linux" or os.uname().machine not in _ARCHITECTURES:
        raise CannotConfine(f"there is no confinement for {sys.platform} on {os.uname().machine}")
    _die_with_parent()
    for kind, limit in (
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_CPU, cpu_seconds),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 64),
    ):
        resource.setrlimit(kind, (limit, limit))
    _call(_LIBC.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    _drop_capabilities()
    if with_landlock:
        _landlock()
    _seccomp()


def _die_with_parent() -> None:
    _call(_LIBC.prctl(_PR_SET_PDEATHSIG, 9, 0, 0, 0), "a signal at the parent's death")
    _call(_LIBC.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0), "no dumps")


def _drop_capabilities() -> None:
    """As root too, so that only what the file modes give is left, and that goes next."""
    header = ctypes.create_string_buffer(struct.pack("=Ii", 0x20080522, 0))
    _call(_LIBC.capset(header, ctypes.create_string_buffer(struct.pack("=6I", *[0] * 6))), "capset")


def library_folders() -> list[str]:
    """What the interpreter reads while it imports from its standard library."""
    # Not by sysconfig, which takes longer to import than all the rest.
    folders = [os.path.dirname(os.__file__), os.path.join(sys.base_prefix, "lib")]
    folders += ["/usr/lib", "/lib", "/lib64", "/usr/share/zoneinfo"]
    return sorted({os.path.realpath(folder) for folder in folders if os.path.isdir(folder)})


def landlock_version() -> int:
    """The kernel's Landlock ABI; 0: none."""
    if sys.platform != "linux":
        return 0
    return max(0, int(_LIBC.syscall(_LANDLOCK_CREATE_RULESET, None, 0, 1)))


def _landlock() -> None:
    abi = landlock_version()
    if abi < 1:
        raise CannotConfine("the kernel has no Landlock (5.13 or newer, with landlock among its LSMs)")
    # Every right that this kernel knows is handled, so that what no rule grants is denied.
    files = (1 << (13 if abi < 2 else 14 if abi < 3 else 15 if abi < 5 else 16)) - 1
    handled = struct.pack("=QQQ", files, 3 if abi >= 4 else 0, 3 if abi >= 6 else 0)[: 8 if abi < 4 else 16 if abi < 6 else 24]
    ruleset = _call(_LIBC.syscall(_LANDLOCK_CREATE_RULESET, handled, len(handled), 0), "a Landlock ruleset")
    for path in (*library_folders(), "/dev/null", "/dev/urandom"):
        rights = _READ_FILE if path.startswith("/dev/") else _READ_FILE | _READ_DIR
        beneath = os.open(path, os.O_PATH | os.O_CLOEXEC)
        rule = struct.pack("=Qi", rights, beneath)
        _call(_LIBC.syscall(_LANDLOCK_ADD_RULE, ruleset, 1, rule, 0), f"a Landlock rule for {path}")
        os.close(beneath)
    _call(_LIBC.syscall(_LANDLOCK_RESTRICT_SELF, ruleset, 0), "Landlock")
    os.close(ruleset)


def _seccomp() -> None:
    column, architecture = _ARCHITECTURES[os.uname().machine]
    allow, deny = 0x7FFF0000, 0x00050000 | 1  # SECCOMP_RET_ALLOW; SECCOMP_RET_ERRNO with EPERM
    load, equal, any_bit, give = 0x20, 0x15, 0x45, 0x06  # BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_JMP|JSET|K, BPF_RET|K
    lines: list[tuple[int, int, int, int]] = [
        (load, 0, 0, 4), (equal, 1, 0, architecture), (give, 0, 0, 0x80000000),  # another architecture's call ends the process
        (load, 0, 0, 0),
    ]  # fmt: skip
    for numbers in _CALLS.values():
        if numbers[column] >= 0:
            lines += [(equal, 0, 1, numbers[column]), (give, 0, 0, allow)]
    # No clone3 (38: ENOSYS), so that libc falls back to clone, whose flags can be seen; no terminal (25: ENOTTY).
    lines += [(equal, 0, 1, _CLONE3[column]), (give, 0, 0, 0x00050000 | 38)]
    lines += [(equal, 0, 1, _IOCTL[column]), (give, 0, 0, 0x00050000 | 25)]
    # No file that tells another process of its news by a signal: F_SETOWN, F_SETSIG, F_SETOWN_EX.
    lines += [
        (equal, 0, 6, _FCNTL[column]), (load, 0, 0, 24),
        (equal, 2, 0, 8), (equal, 1, 0, 10), (equal, 0, 1, 15), (give, 0, 0, deny), (give, 0, 0, allow),
    ]  # fmt: skip
    # Threads yes (CLONE_THREAD), processes and namespaces (CLONE_NEW*) no.
    lines += [
        (equal, 0, 5, _CLONE[column]), (load, 0, 0, 16),
        (any_bit, 0, 3, 0x00010000), (any_bit, 2, 0, 0x7E020080), (give, 0, 0, allow), (give, 0, 0, deny),
        (give, 0, 0, deny),
    ]  # fmt: skip
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in lines))
    program = struct.pack("=H6xQ", len(lines), ctypes.addressof(code))
    _call(_LIBC.prctl(_PR_SET_SECCOMP, 2, ctypes.create_string_buffer(program), 0, 0), "seccomp filters")


def _call(result: int, layer: str) -> int:
    if result < 0:
        raise CannotConfine(f"the kernel refuses {layer} ({os.strerror(ctypes.get_errno())})")
    return result
