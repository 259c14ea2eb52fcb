"""The inside of a sandbox: gives up all rights, then runs a program on one input after another.

A script of its own that needs the standard library alone: nothing else is there to be seen. It speaks one JSON object a
line. In: {"code", "function", "input"}. Out: {"status", "output", "error"} with status ok, error, timeout or output.

Every run is a fork with limits of its own; what it leaves behind is killed before the next. Expected outputs never come
in here, so a program that takes this process over has gained nothing: it still has to know the right output.
"""

from __future__ import annotations

import ctypes
import errno
import json
import linecache
import os
import resource
import select
import shutil
import signal
import sys
import threading
import time
import traceback
import types

_LIBC = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_CAPBSET_DROP, _PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 1, 4, 24, 36, 38
_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 22, 2
_KEYCTL_JOIN_SESSION_KEYRING = 1
_CLONE_NEWUSER = 0x10000000
_CAPABILITY_VERSION_3 = 0x20080522
#: Where a program's own frames stand in a traceback.
SOLUTION = "solution.py"
#: Characters of a traceback or of standard error that are kept.
_ERROR_CHARACTERS = 2000
#: How often a waiting guest looks whether the other side is still there.
_GLANCE_SECONDS = 0.2
#: Descriptors of a run: input, output, errors, and the value that a function returned.
_VALUE = 3


def prctl(option: int, value: int) -> None:
    """Raises OSError where the kernel refuses."""
    if _LIBC.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl {option}: {os.strerror(ctypes.get_errno())}")


def die_with_parent() -> None:
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def become(uid: int) -> None:
    """Root becomes the unprivileged user `uid`: root's processes are not counted, and root owns most files."""
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


class _Filter(ctypes.Structure):
    """`struct sock_fprog` of the kernel: the number of instructions, eight bytes each, and where they are."""

    _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p)]


def leave_key_rings(keyctl: int) -> None:
    """A new and empty session key ring takes the place of the one that the login shares.

    Where the machine forbids the call itself (EPERM, ENOSYS), nobody can read keys.
    """
    if _LIBC.syscall(keyctl, _KEYCTL_JOIN_SESSION_KEYRING, None) == -1:
        error = ctypes.get_errno()
        if error not in (errno.EPERM, errno.ENOSYS):
            raise OSError(error, f"keyctl: {os.strerror(error)}")


def filter_system_calls(instructions: bytes) -> None:
    """For this process and all that it starts, for good. Raises OSError where the kernel has no filters."""
    program = _Filter(len(instructions) // 8, instructions)
    if _LIBC.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"seccomp: {os.strerror(ctypes.get_errno())}")


def give_up_rights(uid: int, processes: int) -> None:
    """No capability, no way to get one, a user namespace of one's own in which at most `processes` processes count."""
    if os.geteuid() == 0:
        become(uid)
    uid, gid = os.getuid(), os.getgid()
    prctl(_PR_SET_DUMPABLE, 1)  # A change of user hides /proc/self, where the maps are written.
    if os.path.exists("/proc/self/uid_map") and _LIBC.unshare(_CLONE_NEWUSER) == 0:
        for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            _write(f"/proc/self/{name}", text)
        _write("/proc/sys/user/max_user_namespaces", "0")
        for capability in range(64):
            if _LIBC.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) != 0:
                break
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    if _LIBC.capset(header, (ctypes.c_uint32 * 6)()) != 0:
        raise OSError(ctypes.get_errno(), "capset")
    prctl(_PR_SET_NO_NEW_PRIVS, 1)
    resource.setrlimit(resource.RLIMIT_NPROC, (processes, processes))
    prctl(_PR_SET_DUMPABLE, 0)  # A program may neither trace this process nor read its memory.
    die_with_parent()  # A change of user has cleared it.


def serve(settings: dict) -> None:
    """Answer requests until the other side closes the channel."""
    requests, answers = os.fdopen(os.dup(0), "r", encoding="utf-8"), os.fdopen(os.dup(1), "w", encoding="utf-8")
    null = os.open("/dev/null", os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    # The signal at a parent's death is not enough: bubblewrap's own process has no right to send it to another user.
    lifeline = select.poll()
    lifeline.register(requests.fileno(), select.POLLHUP)
    print("ready", file=answers, flush=True)
    for line in requests:
        answer = run(json.loads(line), settings, lifeline)
        print(json.dumps(answer), file=answers, flush=True)


def run(request: dict, settings: dict, lifeline: select.poll) -> dict[str, str]:
    """One program on one input, in a process of its own. `lifeline` fires when the other side is gone."""
    files = [os.memfd_create(name) for name in ("input", "output", "errors", "value")]
    try:
        with os.fdopen(os.dup(files[0]), "wb") as stream:
            stream.write(request["input"].encode("utf-8", "surrogatepass"))
        os.lseek(files[0], 0, os.SEEK_SET)
        child = os.fork()
        if child == 0:
            _run_in_child(request, settings, files)
        status = _wait(child, time.monotonic() + settings["wall_seconds"], lifeline)
        _kill_everything_left()
        limit = settings["output_bytes"]
        output, errors, value = (_read(descriptor, limit) for descriptor in files[1:])
    finally:
        for descriptor in files:
            os.close(descriptor)
    if len(output) >= limit or len(value) >= limit:
        return {"status": "output", "output": "", "error": f"more than {limit} bytes were written"}
    return _answer(status, value if request["function"] else output, errors)


def _answer(status: int | None, output: str, errors: str) -> dict[str, str]:
    if status is None or (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU):
        return {"status": "timeout", "output": "", "error": ""}
    if os.WIFSIGNALED(status):
        name = signal.Signals(os.WTERMSIG(status)).name
        return {"status": "error", "output": output, "error": f"{errors[-_ERROR_CHARACTERS:]}\nended by {name}".strip()}
    if os.WEXITSTATUS(status) != 0:
        return {"status": "error", "output": output, "error": errors[-_ERROR_CHARACTERS:].strip() or "exit code not 0"}
    return {"status": "ok", "output": output, "error": ""}


def _wait(child: int, deadline: float, lifeline: select.poll) -> int | None:
    """Status of the child; None if it had to be killed. Children of the dead come here too and are reaped."""
    while (remaining := deadline - time.monotonic()) > 0:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == child:
            return status
        if pid == 0:
            signal.sigtimedwait({signal.SIGCHLD}, min(remaining, _GLANCE_SECONDS))
            if lifeline.poll(0):
                os._exit(1)  # Nobody is there to be answered: process 1 ends, and all others with it.
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def _kill_everything_left() -> None:
    """In a process namespace of its own this reaches every process but itself; elsewhere only its own descendants."""
    while True:
        for pid in (-1,) if os.getpid() == 1 else _children():
            _kill(pid)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            break
    for name in os.listdir("."):
        shutil.rmtree(name, ignore_errors=True) if os.path.isdir(name) else os.unlink(name)


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _children() -> list[int]:
    """Without a namespace: children of this process, which as a subreaper inherits those of its dead children."""
    with open(f"/proc/self/task/{os.getpid()}/children", encoding="ascii") as stream:
        return [int(pid) for pid in stream.read().split()]


def _read(descriptor: int, limit: int) -> str:
    os.lseek(descriptor, 0, os.SEEK_SET)
    with os.fdopen(os.dup(descriptor), "rb") as stream:
        return stream.read(limit).decode("utf-8", "replace")


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="ascii") as stream:
        stream.write(text)


# --- in the child -----------------------------------------------------------------------------------------------------


def _run_in_child(request: dict, settings: dict, files: list[int]) -> None:
    code = 1
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
        # First out of the way of 0 to 3, then into place: no copy may overwrite one that is still needed.
        for target, descriptor in enumerate([os.dup2(file, 100 + file) for file in files]):
            os.dup2(descriptor, target)
        os.closerange(_VALUE + 1, 4096)
        _limit(settings)
        prctl(_PR_SET_DUMPABLE, 1)  # Otherwise /dev/stdin is closed to the program itself.
        if os.path.exists("/proc/self/oom_score_adj"):
            _write("/proc/self/oom_score_adj", "1000")  # Where memory runs out, the kernel ends programs first.
        code = _execute(request["code"], request["function"], request["input"])
    finally:
        os._exit(code)


def _limit(settings: dict) -> None:
    seconds, memory = settings["cpu_seconds"], settings["memory_bytes"]
    limits = {
        resource.RLIMIT_CPU: (seconds, seconds + 1),
        resource.RLIMIT_AS: (memory, memory),
        resource.RLIMIT_FSIZE: (settings["output_bytes"], settings["output_bytes"]),
        resource.RLIMIT_NOFILE: (64, 64),
        resource.RLIMIT_CORE: (0, 0),
        resource.RLIMIT_MSGQUEUE: (0, 0),
    }
    for kind, wanted in limits.items():
        hard = resource.getrlimit(kind)[1]
        resource.setrlimit(kind, wanted if hard == resource.RLIM_INFINITY else tuple(min(w, hard) for w in wanted))


def _execute(code: str, function: str | None, text: str) -> int:
    """Exit code of a program that was run to its end, its threads included."""
    sys.stdin = os.fdopen(0, encoding="utf-8", errors="replace")
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", errors="replace")
    sys.stderr = os.fdopen(2, "w", encoding="utf-8", errors="replace", buffering=1)
    linecache.cache[SOLUTION] = (len(code), None, code.splitlines(keepends=True), SOLUTION)
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    try:
        if function:
            exec("from typing import *", module.__dict__)  # Signatures of the task use these names.
        exec(compile(code, SOLUTION, "exec"), module.__dict__)
        if function:
            value = _call(module, function, text)
            with open(_VALUE, "w", encoding="utf-8") as stream:
                json.dump(value, stream)
        for thread in threading.enumerate():
            if thread is not threading.current_thread() and not thread.daemon:
                thread.join()
        sys.stdout.flush()
    except SystemExit as end:
        sys.stdout.flush()
        if isinstance(end.code, int) or end.code is None:
            return (end.code or 0) & 0xFF
        print(end.code, file=sys.stderr)
        return 1
    except BaseException as error:  # Whatever a program raises is its own doing, and is told.
        _report(error)
        return 1
    return 0


def _call(module: types.ModuleType, function: str, text: str) -> object:
    """Arguments stand one a line, as JSON; the function is a method of `Solution` or stands alone."""
    arguments = [json.loads(line) for line in text.splitlines() if line.strip()]
    holder = getattr(module, "Solution", None)
    if holder is not None and hasattr(holder, function):
        return getattr(holder(), function)(*arguments)
    if not hasattr(module, function):
        raise NameError(f"no function {function} is defined")
    return getattr(module, function)(*arguments)


def _report(error: BaseException) -> None:
    """The frames of the program itself and the error, on standard error."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == SOLUTION]
    lines = traceback.format_list(frames[-5:]) + traceback.format_exception_only(error)
    print("".join(lines)[-_ERROR_CHARACTERS:], file=sys.stderr, flush=True)


def _is_open_to_all(path: str) -> bool:
    """Whether every folder on the way may be entered by everybody: root's own Python is of no use to others."""
    while (path := os.path.dirname(path)) != "/":
        if not os.stat(path).st_mode & 0o001:
            return False
    return True


def main(settings: dict) -> None:
    """Serve; without a process namespace the rights are given up as far as that is possible."""
    if os.getpid() == 1:
        leave_key_rings(settings["keyctl"])
        give_up_rights(settings["uid"], settings["processes"])
        filter_system_calls(bytes.fromhex(settings["filter"]))
    else:
        if not settings["is_unsandboxed"]:
            raise RuntimeError("not in a process namespace of its own")
        if os.geteuid() == 0 and _is_open_to_all(os.__file__):
            become(settings["uid"])
        prctl(_PR_SET_CHILD_SUBREAPER, 1)
        prctl(_PR_SET_NO_NEW_PRIVS, 1)
        die_with_parent()
    import site

    site.setquit()  # exit() and quit(), which programs use, come from this module.
    sys.path.append("/packages")
    serve(settings)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
