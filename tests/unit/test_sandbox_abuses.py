"""Fifty abuses of the sandbox, each tried for real: none gets what it wants, and the next program runs as ever."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import pytest

from selfdistill.grading.sandbox import Limits, Sandbox, obstacle
from selfdistill.grading.sandbox.system_calls import compiled_filter
from test_sandbox import processes_with

pytestmark = pytest.mark.attack
LIMITS = Limits(timeout_seconds=1, memory_mb=256, output_mb=1, scratch_mb=8, processes=12)
OBSTACLES = {name: obstacle(name) for name in ("bubblewrap", "kernel")}
WORKING = [name for name, reason in OBSTACLES.items() if reason is None]
PROLOGUE = """
import ctypes, errno, fcntl, mmap, os, resource, signal, socket, stat, struct, subprocess, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
def got(what): print("GOT", what, flush=True)
def readable(path):
    try:
        got(open(path, "rb").read(100))
    except OSError:
        pass
def done(result, what):
    if result not in (-1, None, False): got(what)
"""
#: What each program tries. It prints GOT where it has succeeded.
ABUSES = {
    # files
    "read the password file": "readable('/etc/passwd'); readable('/etc/shadow')",
    "read the secret of this test": "readable(SECRET)",
    "read it through the root of process 1": "readable('/proc/1/root' + SECRET)",
    "read it through the folder of process 1": "readable('/proc/1/cwd/../../..' + SECRET)",
    "read it through its parent": "readable(f'/proc/{os.getppid()}/root' + SECRET)",
    "climb out of the root": "[readable('../' * n + SECRET[1:]) for n in range(12)]",
    "open the root by descriptor": "[readable(f'/proc/self/fd/{n}' + SECRET) for n in range(64)]",
    "change the root": "os.mkdir('x'); done(libc.chroot(b'x'), 'chroot')",
    "mount the machine's disk": "os.mkdir('m'); done(libc.mount(b'/dev/vda', b'm', b'ext4', 0, None), 'mount')",
    "mount what the kernel knows": "os.mkdir('m'); done(libc.mount(b'none', b'm', b'sysfs', 0, None), 'mount')",
    "unmount its own root": "done(libc.umount2(b'/usr', 2), 'umount')",
    "make a device": "done(os.mknod('d', 0o666 | stat.S_IFBLK, os.makedev(8, 0)), 'device')",
    "write a program of the system": "open('/usr/bin/env', 'ab').write(b'x'); got('written')",
    "write the interpreter": "open(os.path.realpath(sys.executable), 'ab').write(b'x'); got('written')",
    "leave a program with its owner's rights": "open('s', 'w').close(); os.chown('s', 0, 0); got('chown')",
    "hard-link a file of the system": "os.link('/usr/bin/env', 'env'); got('link')",
    "read the kernel's memory": "[readable(p) for p in ('/dev/mem', '/dev/kmem', '/proc/kcore', '/dev/vda')]",
    "change a setting of the kernel": "open('/proc/sys/kernel/core_pattern', 'w').write('|/x'); got('written')",
    "ask for a restart": "open('/proc/sysrq-trigger', 'w').write('b'); got('written')",
    # processes
    "kill the guest": "os.kill(os.getppid(), 9)",
    "kill everything": "os.kill(-1, 9)",
    "stop the guest": "os.kill(os.getppid(), signal.SIGSTOP)",
    "trace the guest": "done(libc.ptrace(16, os.getppid(), 0, 0), 'ptrace')",
    "read the guest's memory": "readable(f'/proc/{os.getppid()}/mem'); readable(f'/proc/{os.getppid()}/environ')",
    "raise its own limits": "resource.setrlimit(resource.RLIMIT_AS, (-1, -1)); got('limit')",
    "raise its priority": "os.nice(-10); got('priority')",
    "become root": "os.setuid(0); got('root')",
    "become root by a program that may": "out = subprocess.run(['su', '-c', 'id'], capture_output=True, text=True)\n"
                                         "if 'uid=0' in out.stdout: got('root')",
    "get a user namespace": "done(libc.unshare(0x10000000), 'namespace')",
    "get a namespace with a child": "done(libc.syscall(56, 0x10000011, 0, 0, 0, 0), 'namespace')",
    "enter the namespaces of process 1": "fd = os.open('/proc/1/ns/mnt', os.O_RDONLY); done(libc.setns(fd, 0), 'ns')",
    "fork without end": "while True:\n    try: os.fork()\n    except OSError: pass",
    "leave a daemon": "if os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n"
                      "        open('/proc/self/comm', 'w').write(MARK)\n        time.sleep(600)\n    os._exit(0)",
    # resources
    "take all memory": "x = []\nwhile True: x.append(bytearray(1 << 22))",
    "fill the scratch folder": "while True: open(str(time.time_ns()), 'wb').write(bytes(1 << 20))",
    "write without end": "while True: sys.stdout.write('x' * 100000)",
    "run without end": "signal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass",
    "sleep without end": "signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 64))\ntime.sleep(1000)",
    # network
    "reach a server of this machine": "socket.create_connection(('127.0.0.1', PORT), timeout=1); got('network')",
    "reach it by the abstract name": "s = socket.socket(socket.AF_UNIX); s.connect('\\0' + MARK); got('socket')",
    "reach the host of a virtual machine": "s = socket.socket(40, socket.SOCK_STREAM); got('vsock')",
    "read packets": "s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 3); got('packets')",
    # the kernel
    "load a program into the kernel": "done(libc.syscall(321, 0, ctypes.create_string_buffer(100), 100), 'bpf')",
    "use io_uring": "done(libc.syscall(425, 8, ctypes.create_string_buffer(200)), 'ring')",
    "read keys": "done(libc.syscall(250, 10, -3, b'user', b'selfdistill-test', 0), 'key')",
    "catch page faults": "done(libc.syscall(323, 0), 'userfaultfd')",
    "watch the processor": "done(libc.syscall(298, ctypes.create_string_buffer(128), 0, -1, -1, 0), 'perf')",
    # the grader
    "answer in the guest's place": "[os.write(n, b'{\"status\": \"ok\", \"output\": \"42\", \"error\": \"\"}\\n')"
                                   " for n in range(64) if n not in (0, 1, 2, 3) and fcntl.fcntl(n, 1) >= 0]",
    "find the expected output": "import gc\nif any(ANSWER[::-1] in repr(o) for o in gc.get_objects()): got('answer')",
    "nest the value deeply": "os.write(3, b'[' * 200000)",
    "break the text": "os.write(1, b'\\xff\\xfe\\xed\\xa0\\x80\\0')",
    "leave by a signal": "os.kill(os.getpid(), signal.SIGSEGV)",
}  # fmt: skip


@pytest.fixture(scope="module", params=WORKING or [None])
def backend(request):
    if request.param is None:
        pytest.skip(f"this machine has no sandbox for untrusted programs: {OBSTACLES}")
    return request.param


@pytest.fixture(scope="module")
def outside(tmp_path_factory):
    """What an abuse would find: a secret that everybody may read, a server, a socket by name."""
    folder = tmp_path_factory.mktemp("outside")
    for each in (folder, *folder.parents[:-2]):
        each.chmod(0o755)
    (folder / "secret").write_text("hidden")
    mark = f"abuse{os.getpid()}"[:15]
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as named:
        named.bind("\0" + mark)
        named.listen()
        yield {"SECRET": str(folder / "secret"), "PORT": server.getsockname()[1], "MARK": mark, "ANSWER": "tupni-eht"}


@pytest.mark.parametrize("abuse", ABUSES)
def test_an_abuse_gets_nothing_and_the_next_program_runs(backend, outside, abuse):
    constants = "\n".join(f"{name} = {value!r}" for name, value in outside.items())
    started = time.monotonic()
    with Sandbox(backend, LIMITS) as sandbox:
        run = sandbox.run(f"{PROLOGUE}\n{constants}\n{ABUSES[abuse]}", None, "")
        assert "GOT" not in run.output, run.output[:500]
        assert not any(name in run.error for name in ("NameError", "SyntaxError", "AttributeError")), run.error
        assert "42" not in run.output or run.status != "ok"
        after = sandbox.run("print('alive')", None, "")
        assert after.output == "alive\n", f"{after}; it was {run}"
    assert time.monotonic() - started < 2 * LIMITS.wall_seconds + 10
    assert not processes_with(outside["MARK"])
    assert Path(outside["SECRET"]).read_text() == "hidden"


def test_there_are_fifty_abuses_and_a_filter():
    assert len(ABUSES) >= 50
    assert len(compiled_filter()) % 8 == 0
