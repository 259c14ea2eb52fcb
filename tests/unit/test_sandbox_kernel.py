"""What a sandboxed program may not ask of the kernel: keys, rarely used system calls, odd sockets, new namespaces."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import sys
from pathlib import Path

import pytest

from selfdistill.grading.programs import is_same_value, read_task
from selfdistill.grading.sandbox import Limits, Sandbox, backends, obstacle, system_calls
from selfdistill.schema.errors import UserError

LIMITS = Limits(timeout_seconds=2, memory_mb=256, output_mb=1, scratch_mb=8, processes=12)
OBSTACLES = {name: obstacle(name) for name in ("bubblewrap", "kernel")}
WORKING = [name for name, reason in OBSTACLES.items() if reason is None]
pytestmark = pytest.mark.skipif(not WORKING, reason=f"this machine has no sandbox for untrusted programs: {OBSTACLES}")
SESSION, JOIN = -3, 1
CALL = (
    "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
    "def call(*arguments):\n"
    "    arguments = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]\n"
    "    return 0 if libc.syscall(*arguments) != -1 else ctypes.get_errno()\n"
)


def number(name: str) -> int:
    pyseccomp = pytest.importorskip("pyseccomp")
    return pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name)


@pytest.fixture(params=WORKING)
def sandbox(request):
    with Sandbox(request.param, LIMITS) as sandbox:
        yield sandbox


@pytest.fixture
def secret_key():
    """A key in the session key ring of this process."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(number("keyctl"), JOIN, None) == -1:
        pytest.skip("this machine has no key rings")
    description = b"selfdistill-test"
    assert libc.syscall(number("add_key"), b"user", description, b"hidden", 6, SESSION) > 0
    found = libc.syscall(number("keyctl"), 10, SESSION, b"user", description, 0)
    assert found > 0, "the secret can be found from outside"
    return found


def test_the_session_key_ring_cannot_be_read(sandbox, secret_key):
    code = (
        f"{CALL}buffer = ctypes.create_string_buffer(100)\n"
        f"for ring in (-3, -4, -5):\n"
        f"    found = libc.syscall({number('keyctl')}, 10, ring, b'user', b'selfdistill-test', 0)\n"
        f"    libc.syscall({number('keyctl')}, 11, found, buffer, 100)\n"
        f"libc.syscall({number('keyctl')}, 11, {secret_key}, buffer, 100)\n"
        "print(buffer.value)\n"
        "try:\n    print('selfdistill-test' in open('/proc/keys').read())\nexcept OSError:\n    print(False)"
    )
    assert sandbox.run(code, None, "").output == "b''\nFalse\n"


def test_the_key_ring_is_a_new_one_even_where_the_filter_is_not_there(secret_key, monkeypatch):
    """Two walls: with a filter that refuses nothing, the secret is still out of reach."""
    import pyseccomp

    code = f"{CALL}print(libc.syscall({number('keyctl')}, 10, -3, b'user', b'selfdistill-test', 0))"
    nothing = pyseccomp.SyscallFilter(pyseccomp.ALLOW)
    with os.fdopen(os.memfd_create("filter"), "w+b") as stream:
        nothing.export_bpf(stream)
        stream.seek(0)
        content = stream.read()
    monkeypatch.setattr(system_calls, "compiled_filter", lambda: content)
    with Sandbox(WORKING[0], LIMITS) as sandbox:
        assert sandbox.run(code, None, "").output == "-1\n"


@pytest.mark.parametrize(
    "name",
    ["keyctl", "add_key", "request_key", "io_uring_setup", "userfaultfd", "bpf", "perf_event_open", "ptrace", "unshare",
     "setns", "process_vm_readv", "open_by_handle_at", "mount", "init_module", "kexec_load", "fsopen"],
)  # fmt: skip
def test_system_calls_that_programs_never_need_are_refused(sandbox, name):
    """Whatever the arguments: the answer comes from the filter, not from a check of them."""
    run = sandbox.run(f"{CALL}print(call({number(name)}, 0, 0, 0, 0, 0))", None, "")
    assert run.output == f"{errno.EPERM}\n"


def test_only_sockets_of_this_machine_and_of_the_internet_are_made(sandbox):
    code = (
        "import socket\nmade = []\n"
        "for family in range(70):\n"
        "    try:\n        socket.socket(family, socket.SOCK_DGRAM).close()\n        made.append(family)\n"
        "    except PermissionError:\n        pass\n"
        "    except OSError as error:\n        made.append((family, error.errno))\n"
        "print(made, socket.socketpair()[0].family)"
    )
    assert sandbox.run(code, None, "").output.startswith("[1, 2, 10] ")


def test_the_filter_and_the_promise_of_no_new_rights_hold_for_threads_and_children(sandbox):
    status = "[l.split()[1] for l in open('/proc/thread-self/status') if l.startswith(('NoNewPrivs', 'Seccomp:'))]"
    code = (
        f"import subprocess, sys, threading\nshow = lambda: print({status}, flush=True)\n"
        "thread = threading.Thread(target=show)\nthread.start()\nthread.join()\n"
        f"subprocess.run([sys.executable, '-IS', '-c', \"print({status})\".replace(chr(10), '')])"
    ).replace("l.startswith(('NoNewPrivs', 'Seccomp:'))", "l.split(':')[0] in ('NoNewPrivs', 'Seccomp')")
    assert sandbox.run(code, None, "").output == "['1', '2']\n['1', '2']\n"


def test_calls_of_another_architecture_end_the_program(sandbox):
    if os.uname().machine != "x86_64":
        pytest.skip("32-bit calls are those of x86")
    # mov eax, 20 (getpid); int 0x80; ret
    code = (
        "import ctypes, mmap\nplace = mmap.mmap(-1, 4096, prot=7)\nplace.write(bytes.fromhex('b814000000cd80c3'))\n"
        "address = ctypes.addressof(ctypes.c_char.from_buffer(place))\n"
        "print('reached', flush=True)\nprint(ctypes.CFUNCTYPE(ctypes.c_long)(address)())"
    )
    run = sandbox.run(code, None, "")
    assert run.status == "error" and "ended by SIGSYS" in run.error


def test_bubblewrap_is_found_wherever_it_is_installed(tmp_path, monkeypatch):
    found = shutil.which("bwrap")
    if found is None or OBSTACLES["bubblewrap"]:
        pytest.skip(f"no bubblewrap here: {OBSTACLES['bubblewrap']}")
    elsewhere = tmp_path / "bwrap"
    shutil.copy(found, elsewhere)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert obstacle("bubblewrap") is None


def test_bubblewrap_that_is_no_program_is_an_obstacle_and_the_next_sandbox_is_taken(tmp_path, monkeypatch):
    elsewhere = tmp_path / "bwrap"
    elsewhere.write_text("#!/nowhere/at/all\n")
    elsewhere.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert "No such file" in obstacle("bubblewrap")
    backends.available.cache_clear()
    try:
        assert backends.available() == ("kernel" if OBSTACLES["kernel"] is None else None)
    finally:
        backends.available.cache_clear()


def test_without_libseccomp_the_obstacle_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyseccomp", None)
    system_calls.keyctl_number.cache_clear()
    try:
        assert "apt-get install libseccomp2" in obstacle("kernel")
    finally:
        system_calls.keyctl_number.cache_clear()


# --- what comes out of a sandbox --------------------------------------------------------------------------------------

NESTED = "[" * 200_000


def test_a_value_nested_deeply_is_a_wrong_value(sandbox):
    code = "import os\nos.write(3, b'[' * 200_000)\ndef f(x):\n    os._exit(0)"
    run = sandbox.run(code, "f", "1")
    assert run.status == "ok" and run.output == NESTED
    assert not is_same_value(run.output, "1")


@pytest.mark.parametrize(
    "answer",
    [
        NESTED.encode(),
        b'{"status": "ok", "output": [1], "error": ""}',
        b'{"status": "fine", "output": "", "error": ""}',
        b'{"status": "ok", "output": "\\ud800", "error": ""}',
        b"1" * 5000,
    ],
)
def test_a_guest_that_was_taken_over_is_not_believed(sandbox, monkeypatch, answer):
    monkeypatch.setattr(Sandbox, "_line", lambda *_: answer)
    run = sandbox.run("print(1)", None, "")
    assert (run.status, run.output, run.error) == ("error", "", "the sandbox has ended")


@pytest.mark.parametrize("answer", [NESTED, '{"tests": ' + NESTED, "1" * 5000])
def test_a_gold_answer_nested_deeply_is_no_task(answer):
    with pytest.raises(UserError, match="where the tests of a programming task belong"):
        read_task(answer, "all")


def test_the_sources_of_the_sandbox_need_the_standard_library_alone():
    """The guest sees nothing else; the filter reaches it as bytes."""
    for name in ("guest", "kernel"):
        text = (Path(backends.__file__).parent / f"{name}.py").read_text(encoding="utf-8")
        assert "pyseccomp" not in text and "selfdistill" not in text.replace("selfdistill-", "")
