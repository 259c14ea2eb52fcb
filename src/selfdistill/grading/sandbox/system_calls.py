"""What a program may not ask of the kernel, as a seccomp filter that libseccomp compiles.

Namespaces hide files, processes and networks. They do not hide key rings, and they leave a program all of the kernel's
rarely used parts, where most of its faults lie. What honest programs never need is refused with EPERM.
"""

from __future__ import annotations

import errno
import os
import socket
import termios
from functools import cache

_REFUSED = (
    # Keys: the session key ring is shared by all processes of a login.
    "add_key", "keyctl", "request_key",
    # Parts of the kernel with a history of faults.
    "bpf", "fanotify_init", "io_uring_enter", "io_uring_register", "io_uring_setup", "lookup_dcookie",
    "perf_event_open", "quotactl", "quotactl_fd", "userfaultfd",
    # Other processes.
    "kcmp", "migrate_pages", "move_pages", "pidfd_getfd", "process_madvise", "process_mrelease", "process_vm_readv",
    "process_vm_writev", "ptrace",
    # Namespaces, mounts, and files by number.
    "chroot", "fsconfig", "fsmount", "fsopen", "fspick", "mount", "mount_setattr", "move_mount", "name_to_handle_at",
    "open_by_handle_at", "open_tree", "pivot_root", "setns", "umount2", "unshare",
    # The machine itself.
    "acct", "adjtimex", "clock_adjtime", "clock_settime", "delete_module", "finit_module", "init_module", "ioperm",
    "iopl", "kexec_file_load", "kexec_load", "reboot", "settimeofday", "swapoff", "swapon", "syslog", "vhangup",
)  # fmt: skip
#: Flags of `clone` that make a namespace.
_NEW_NAMESPACES = (0x80, 0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000)
_FAMILIES = (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6)
#: Above the highest family of sockets that a kernel knows.
_MOST_FAMILIES = 64


@cache
def keyctl_number() -> int:
    """Number of the system call `keyctl` on this machine. Raises RuntimeError without libseccomp."""
    seccomp = _library()
    return seccomp.resolve_syscall(seccomp.Arch.NATIVE, "keyctl")


@cache
def compiled_filter() -> bytes:
    """The filter, as instructions of BPF for this machine. Raises RuntimeError without libseccomp.

    Calls of another architecture (32 bits on a machine of 64) end the program. `clone3` hides its flags from a filter:
    it is said to be missing, and the C library falls back to `clone`.
    """
    seccomp = _library()
    program = seccomp.SyscallFilter(seccomp.ALLOW)
    refused = seccomp.ERRNO(errno.EPERM)
    for name in _REFUSED:
        if seccomp.resolve_syscall(seccomp.Arch.NATIVE, name) != -1:  # Not known to an old libseccomp.
            program.add_rule(refused, name)
    program.add_rule(seccomp.ERRNO(errno.ENOSYS), "clone3")
    for flag in _NEW_NAMESPACES:
        program.add_rule(refused, "clone", seccomp.Arg(0, seccomp.MASKED_EQ, flag, flag))
    program.add_rule(refused, "ioctl", seccomp.Arg(1, seccomp.MASKED_EQ, 0xFFFFFFFF, termios.TIOCSTI))
    for call in ("socket", "socketpair"):
        program.add_rule(refused, call, seccomp.Arg(0, seccomp.GE, _MOST_FAMILIES))
        for family in set(range(_MOST_FAMILIES)) - set(_FAMILIES):
            program.add_rule(refused, call, seccomp.Arg(0, seccomp.EQ, family))
    with os.fdopen(os.memfd_create("filter"), "w+b") as stream:
        program.export_bpf(stream)
        stream.seek(0)
        return stream.read()


def _library():
    """pyseccomp looks for the library when it is imported."""
    try:
        import pyseccomp
    except (ImportError, RuntimeError) as error:
        raise RuntimeError(f"libseccomp cannot be used: {error} (apt-get install libseccomp2)") from error
    return pyseccomp
