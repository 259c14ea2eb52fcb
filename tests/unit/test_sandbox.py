"""The sandbox: what hostile programs try, each for real, under every sandbox that this machine offers."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from selfdistill.grading.sandbox import Limits, Sandbox, obstacle

LIMITS = Limits(timeout_seconds=1, memory_mb=256, output_mb=1, scratch_mb=8, processes=12)
SOURCES = Path(__file__).parents[2] / "src"


OBSTACLES = {name: obstacle(name) for name in ("bubblewrap", "kernel")}


@pytest.fixture(params=[name for name, reason in OBSTACLES.items() if reason is None] or [None])
def backend(request):
    """Every sandbox that works here; a machine with none says why."""
    if request.param is None:
        pytest.skip(f"this machine has no sandbox for untrusted programs: {OBSTACLES}")
    return request.param


@pytest.fixture
def sandbox(backend):
    with Sandbox(backend, LIMITS) as sandbox:
        yield sandbox


def processes_with(mark: str) -> list[int]:
    """Processes of the machine that have `mark` in their environment or command line, or that sleep in a sandbox."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                text = (folder / "cmdline").read_bytes() + (folder / "comm").read_bytes()
            except OSError:
                continue
            if mark.encode() in text:
                found.append(int(folder.name))
    return found


def wait_until(condition, seconds: float = 5.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


# --- honest programs --------------------------------------------------------------------------------------------------


def test_a_program_reads_its_input_and_its_output_comes_back(sandbox):
    code = "import sys\nprint(sum(map(int, sys.stdin.read().split())))"
    assert [sandbox.run(code, None, text).output for text in ("1 2", "30\n4\n")] == ["3\n", "34\n"]
    assert sandbox.run("print(open('/dev/stdin').read()[::-1])", None, "abc").output == "cba\n"


@pytest.mark.parametrize(
    "code",
    [
        "def add(a: List[int], b):\n    return a + [b]",
        "class Solution:\n    def add(self, a, b):\n        return a + [b]",
    ],
)
def test_a_function_gets_one_argument_a_line_and_gives_its_value(sandbox, code):
    run = sandbox.run(f"print('noise')\n{code}", "add", "[1, 2]\n3")
    assert (run.status, json.loads(run.output)) == ("ok", [1, 2, 3])


def test_threads_exit_codes_and_numpy_are_as_usual(sandbox):
    thread = (
        "import threading, time\ndef f():\n    time.sleep(0.2)\n    print('late')\nthreading.Thread(target=f).start()"
    )
    assert sandbox.run(thread, None, "").output == "late\n"
    assert sandbox.run("print(1)\nexit()\nprint(2)", None, "").output == "1\n"
    assert sandbox.run("import numpy\nprint(numpy.arange(4).sum())", None, "").output == "6\n"
    assert sandbox.run("exit(3)", None, "").status == "error"


def test_an_error_is_told_with_the_line_of_the_program_and_nothing_of_ours(sandbox):
    run = sandbox.run("def f(x):\n    return 1 / x\nf(0)", None, "")
    assert run.status == "error"
    assert "line 2, in f" in run.error
    assert run.error.endswith("ZeroDivisionError: division by zero")
    assert "guest" not in run.error
    assert "SyntaxError" in sandbox.run("if", None, "").error
    assert "no function add" in sandbox.run("x = 1", "add", "1").error


def test_runs_do_not_see_each_other(sandbox):
    sandbox.run("open('/tmp/left', 'w').write('x')\nimport builtins\nbuiltins.seen = 1", None, "")
    run = sandbox.run("import os, builtins\nprint(os.listdir('/tmp'), hasattr(builtins, 'seen'))", None, "")
    assert run.output == "[] False\n"


# --- hostile programs -------------------------------------------------------------------------------------------------


def test_an_endless_loop_and_an_endless_sleep_are_timeouts_and_the_next_run_goes_on(sandbox):
    assert sandbox.run("while True: pass", None, "").status == "timeout"
    start = time.monotonic()
    assert sandbox.run("import time\ntime.sleep(1000)", None, "").status == "timeout"
    assert time.monotonic() - start < LIMITS.wall_seconds + 3
    assert sandbox.run("print('alive')", None, "").output == "alive\n"


def test_a_fork_bomb_ends_with_its_run(sandbox):
    bomb = "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass"
    assert sandbox.run(bomb, None, "").status == "timeout"
    count = "import os\nprint(sum(name.isdigit() for name in os.listdir('/proc')))"
    assert sandbox.run(count, None, "").output == "2\n", "process 1 and the program itself"


def test_at_most_so_many_processes_live_at_once(sandbox):
    code = (
        "import os, time\nmade = 0\n"
        "for _ in range(100):\n    try:\n        if os.fork() == 0:\n"
        "            time.sleep(60)\n            os._exit(0)\n"
        "    except OSError:\n        break\n    made += 1\nprint(made)"
    )
    assert 1 <= int(sandbox.run(code, None, "").output) < LIMITS.processes


def test_a_memory_hog_gets_an_error(sandbox):
    run = sandbox.run("x = []\nwhile True: x.append(bytearray(10 ** 7))", None, "")
    assert run.status == "error"
    assert "MemoryError" in run.error
    assert sandbox.run("x = bytearray(10 ** 12)", None, "").status == "error"
    first_to_go = "print(open('/proc/self/oom_score_adj').read())"
    assert sandbox.run(first_to_go, None, "").output.strip() == "1000"


def test_endless_output_is_stopped_at_the_limit(sandbox):
    assert sandbox.run("while True: print('x' * 1000)", None, "").status == "output"
    assert sandbox.run("import sys\nwhile True: sys.stderr.write('x' * 1000)", None, "").status == "error"
    assert sandbox.run("print('x' * (LIMIT))".replace("LIMIT", str(10**6)), None, "").status == "ok"


def test_files_are_bounded_one_by_one_and_together(sandbox):
    one = "with open('/tmp/big', 'wb') as f:\n    while True: f.write(b'x' * 10 ** 5)"
    assert "File too large" in sandbox.run(one, None, "").error
    many = "for i in range(100):\n    with open(f'/tmp/{i}', 'wb') as f: f.write(b'x' * 10 ** 6)"
    assert "No space left" in sandbox.run(many, None, "").error


def test_there_is_no_network_not_even_to_this_machine(sandbox):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        run = sandbox.run(f"import socket\nsocket.create_connection(('127.0.0.1', {port}), timeout=1)", None, "")
        assert run.status == "error"
        assert "Network is unreachable" in run.error or "Cannot assign" in run.error or "refused" in run.error
        server.settimeout(0.2)
        with pytest.raises(TimeoutError):
            server.accept()
    names = "print([line.split(':')[0].strip() for line in open('/proc/net/dev') if ':' in line])"
    assert sandbox.run(names, None, "").output == "['lo']\n"


def test_home_project_and_environment_cannot_be_read(backend, tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "hidden")
    secrets = [Path.home() / f".selfdistill-test-{os.getpid()}", tmp_path / "secret", Path(__file__)]
    try:
        for path in secrets[:2]:
            path.write_text("secret")
        with Sandbox(backend, LIMITS) as sandbox:
            for path in [
                *secrets,
                Path("/etc/passwd"),
                Path("/etc/shadow"),
                Path("/proc/1/environ"),
                Path("/proc/1/mem"),
            ]:
                run = sandbox.run(f"print(open({str(path)!r}, 'rb').read(10))", None, "")
                assert run.status == "error", path
                assert "FileNotFoundError" in run.error or "PermissionError" in run.error
            environment = sandbox.run("import os\nprint(sorted(os.environ))", None, "").output
            assert "SECRET" not in environment
    finally:
        secrets[0].unlink(missing_ok=True)


def test_nothing_outside_can_be_written(sandbox):
    for path in ("/usr/evil", "/evil", "/dev/evil", os.path.realpath(sys.executable), "/proc/sys/kernel/hostname"):
        run = sandbox.run(f"open({path!r}, 'a').write('x')", None, "")
        assert run.status == "error", path
        assert "Read-only file system" in run.error or "Permission denied" in run.error
    mount = sandbox.run("import subprocess\nsubprocess.run(['mount', '-o', 'remount,rw', '/'], check=True)", None, "")
    assert mount.status == "error"


def test_a_symbolic_link_leads_nowhere(sandbox, tmp_path):
    target = tmp_path / "victim"
    target.write_text("whole")
    for place in (target, Path("/proc/1/root") / target.relative_to("/")):
        code = f"import os\nos.symlink({str(place)!r}, '/tmp/link')\nopen('/tmp/link', 'w').write('broken')"
        assert sandbox.run(code, None, "").status == "error"
    assert target.read_text() == "whole"


def test_a_daemon_forked_twice_does_not_outlive_its_run(backend):
    mark = f"daemon{os.getpid()}{backend[0]}"[:15]
    code = (
        "import os, time\n"
        "if os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n"
        f"        open('/proc/self/comm', 'w').write({mark!r})\n"
        "        print('up', flush=True)\n        time.sleep(600)\n"
        "    os._exit(0)\n"
        "os.wait()\ntime.sleep(0.5)"
    )
    with Sandbox(backend, LIMITS) as sandbox:
        assert sandbox.run(code, None, "").output == "up\n"
        assert not processes_with(mark)
        sandbox.run("print(1)", None, "")


def test_closing_kills_what_is_running(backend):
    """Also where the sandbox is closed in the middle of a run, as Ctrl-C does."""
    mark = f"running{os.getpid()}{backend[0]}"[:15]
    sandbox = Sandbox(backend, LIMITS)
    code = f"open('/proc/self/comm', 'w').write({mark!r})\nimport time\ntime.sleep(600)"
    request = json.dumps({"code": code, "function": None, "input": ""})
    sandbox._process.stdin.write(request.encode() + b"\n")
    sandbox._process.stdin.flush()
    assert wait_until(lambda: processes_with(mark))
    sandbox.close()
    assert wait_until(lambda: not processes_with(mark))


def test_the_guest_dies_with_its_parent(backend):
    mark = f"orphan{os.getpid()}{backend[0]}"[:15]
    # The mark stands nowhere in the command line of the parent itself.
    parent = (
        "import os, sys\nfrom selfdistill.grading.sandbox import Limits, Sandbox\n"
        f"sandbox = Sandbox({backend!r}, Limits(timeout_seconds=60))\n"
        f"code = \"open('/proc/self/comm', 'w').write({mark[::-1]!r}[::-1])\\nimport time\\ntime.sleep(60)\"\n"
        "sandbox.run(code, None, '')"
    )
    process = subprocess.Popen([sys.executable, "-c", parent], env={**os.environ, "PYTHONPATH": str(SOURCES)})
    assert wait_until(lambda: processes_with(mark), 20)
    process.kill()
    process.wait()
    assert wait_until(lambda: not processes_with(mark))


def test_a_program_has_no_rights_and_cannot_get_any(sandbox):
    code = (
        "import ctypes, os\n"
        "status = dict(line.split(':', 1) for line in open('/proc/self/status'))\n"
        "names = ('CapPrm', 'CapEff', 'CapBnd', 'CapInh', 'CapAmb')\n"
        "print({status[name].strip() for name in names}, status['NoNewPrivs'].strip())\n"
        "print(os.getuid(), os.getgid(), 0 in os.getgroups())\n"
        "libc = ctypes.CDLL(None, use_errno=True)\nprint(libc.unshare(0x10000000), libc.ptrace(16, 1, 0, 0))\n"
        "try:\n    os.kill(1, 9)\nexcept OSError as error:\n    print(error)\nprint('still here')"
    )
    lines = sandbox.run(code, None, "").output.splitlines()
    assert lines[0] == "{'0000000000000000'} 1"
    assert lines[1] == "65534 65534 False"
    assert lines[2] == "-1 -1", "no user namespace of its own, no hold on the guest"
    assert lines[-1] == "still here"
    assert sandbox.run("print(1)", None, "").output == "1\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can try it as somebody else too")
@pytest.mark.parametrize("name", [name for name, reason in OBSTACLES.items() if reason is None])
def test_it_works_for_ordinary_users_too(name, tmp_path):
    """Without root the same is done inside a user namespace."""
    python = "/usr/bin/python3"
    version = subprocess.run([python, "-c", "import sys; print(sys.version_info >= (3, 11))"], capture_output=True)
    if version.stdout.strip() != b"True":
        pytest.skip("the system's own Python 3.11 is not here; an ordinary user cannot read root's")
    code = (
        f"import sys\nsys.path.insert(0, {str(SOURCES)!r})\n"
        "from selfdistill.grading.sandbox import Limits, Sandbox, obstacle\n"
        f"reason = obstacle({name!r})\nif reason: sys.exit(reason)\n"
        f"with Sandbox({name!r}, Limits(timeout_seconds=1, processes=8)) as sandbox:\n"
        "    print(sandbox.run('import os; print(os.getuid(), os.listdir(\".\"))', None, '').output.strip())\n"
        "    print(sandbox.run('import os\\nwhile True: os.fork()', None, '').status)\n"
        '    print(sandbox.run(\'open("/tmp/x", "w"); open("/usr/x", "w")\', None, \'\').error.splitlines()[-1])\n'
    )
    done = subprocess.run(
        [python, "-c", code], capture_output=True, text=True, user=65534, group=65534, extra_groups=[]
    )
    if done.returncode:
        pytest.skip(f"no sandbox by {name} for ordinary users here: {done.stderr.strip()[-200:]}")
    lines = done.stdout.splitlines()
    assert lines[:2] == ["65534 []", "error"]
    assert "Read-only file system" in lines[2] or "Permission denied" in lines[2]
