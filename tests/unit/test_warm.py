"""A warm start runs a job in a fork exactly as it would run alone, or lets it run alone and says why."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from selfdistill.run import launch, surroundings, warm

JOB = """
    import json, os, resource, signal, sys, time

    def describe():
        signals = [(n, str(signal.getsignal(n))) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)]
        mask = os.umask(0)
        os.umask(mask)
        return {
            "folder": os.getcwd(), "environment": dict(os.environ), "arguments": sys.argv[1:], "path": sys.path,
            "umask": mask, "limit": resource.getrlimit(resource.RLIMIT_NOFILE), "flags": str(sys.flags),
            "processors": sorted(os.sched_getaffinity(0)), "nice": os.nice(0), "signals": signals,
            "blocked": sorted(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, []))), "input": sys.stdin.read(),
        }

    def run(arguments):
        what = arguments[0]
        if what == "describe":
            print(json.dumps(describe()), flush=True)
            print("to the errors", file=sys.stderr)
            return 7
        if what == "wait":
            def stop(number, frame):
                print("got", number, flush=True)
                raise SystemExit
            signal.signal(signal.SIGTERM, stop)
            try:
                print(os.getpid(), os.getppid(), flush=True)
                for _ in range(600):  # A signal just before a long sleep would be handled after it.
                    time.sleep(0.1)
            except SystemExit:
                return 9
        if what == "sleep":
            print(os.getpid(), os.getppid(), flush=True)
            time.sleep(float(arguments[1]))
            return 5
        if what == "exit":
            import atexit, threading
            atexit.register(print, "registered")
            threading.Thread(target=lambda: (time.sleep(0.2), print("thread"))).start()
            print("unflushed")
            sys.exit("a reason")
        if what == "raise":
            raise ZeroDivisionError("outside of everything")
        if what == "leave":
            os._exit(70)
        if what == "die":
            os.kill(os.getpid(), signal.SIGKILL)

    if __name__ == "__main__":
        sys.exit(run(sys.argv[1:]))
"""
SERVER = """
    import sys
    from pathlib import Path
    from selfdistill.run import warm_server
    warm_server.LIBRARIES = ()
    warm_server.IDLE_SECONDS = 600
    sys.exit(warm_server.main(Path(sys.argv[1])))
"""
CLIENT = """
    import sys
    from selfdistill.run import warm
    warm._command = lambda address: [sys.executable, "-m", "server", str(address)]
    code = warm.run_forked(sys.argv[1:], "job")
    if code is None:
        import job
        code = job.run(sys.argv[1:])
    sys.exit(code if code >= 0 else 128 - code)
"""


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a client whose jobs are the functions above; `alone=True` runs the same job without a server."""
    for name, text in (("job", JOB), ("server", SERVER), ("client", CLIENT)):
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(text))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(warm.__file__).parents[2]}")
    started = []

    def client(*arguments: str, alone: bool = False, **options: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "job" if alone else "client", *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL, "text": True}
        started.append(subprocess.Popen(command, **pipes | options))
        return started[-1]

    yield client
    for process in started:
        process.kill()
        process.communicate()
    for pid in servers(tmp_path):
        os.kill(pid, signal.SIGKILL)


def servers(folder: Path) -> list[int]:
    """Servers that were started by a test, but not their forks."""
    commands = {process: process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])}
    mine = [p for p, words in commands.items() if words[1:3] == ["-m", "server"] and words[3].startswith(str(folder))]
    return [p.pid for p in mine if p.ppid() not in {other.pid for other in mine}]


def ends(pid: int, seconds: float = 10) -> bool:
    _, alive = psutil.wait_procs([psutil.Process(pid)] if psutil.pid_exists(pid) else [], timeout=seconds)
    return not alive


def described(process: subprocess.Popen[str]) -> dict:
    output, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (7, "to the errors\n")
    found = json.loads(output)
    found["environment"].pop("_", None)
    return found


def nothing() -> None:
    pass


def limits() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (300, 400))


def one_processor() -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def ignore_hangup() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def block_signal() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})


def lower_priority() -> None:
    os.nice(3)


CHANGES = [nothing, limits, one_processor, ignore_hangup, block_signal, lower_priority, lambda: os.umask(0o27)]


@pytest.mark.parametrize("change", CHANGES)
def test_a_fork_is_what_the_job_would_be_alone(start, tmp_path: Path, change: Callable[[], object]) -> None:
    """Also where another client, of other surroundings, started a server before."""
    described(start("describe"))
    (tmp_path / "other").mkdir()
    (tmp_path / "input").write_text("read me")
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "MARK": "m"}
    found = []
    for alone in (True, False, False):
        with (tmp_path / "input").open() as stdin:
            options = {"cwd": tmp_path / "other", "env": environment, "stdin": stdin, "preexec_fn": change}
            found.append(described(start("describe", "x y", alone=alone, **options)))
    assert found[0] == found[1] == found[2]
    assert found[0]["input"] == "read me" and found[0]["arguments"] == ["describe", "x y"]
    assert len(servers(tmp_path)) == 2


def test_jobs_of_one_command_share_a_server(start, tmp_path: Path) -> None:
    for number in range(3):
        found = described(start("describe", env=os.environ | {"SELFDISTILL_RUN": str(number)}))
        assert found["environment"]["SELFDISTILL_RUN"] == str(number)
    assert len(servers(tmp_path)) == 1


def test_forks_of_a_process_with_threads_are_refused(start, tmp_path: Path) -> None:
    thread = "threading.Thread(target=time.sleep, args=[9], daemon=True)"
    (tmp_path / "threads.py").write_text(f"import threading, time; {thread}.start()")
    text = (tmp_path / "server.py").read_text()
    (tmp_path / "server.py").write_text(text.replace("LIBRARIES = ()", "LIBRARIES = ['threads']"))
    process = start("describe")
    assert "this job starts alone: its server did not start" in process.communicate(timeout=30)[1]
    assert process.returncode == 7


def test_another_checkout_or_edited_code_is_another_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = surroundings.digest()
    assert surroundings.digest() == before
    monkeypatch.setattr(surroundings, "_PACKAGE", tmp_path)
    (tmp_path / "module.py").write_text("x = 1")
    other = surroundings.digest()
    (tmp_path / "module.py").write_text("x = 2")
    assert len({before, other, surroundings.digest()}) == 3


def test_a_server_that_would_differ_from_its_client_does_not_serve(start, tmp_path: Path) -> None:
    """Here the client runs with an option of the interpreter."""
    command = [sys.executable, "-X", "utf8=0", "-m", "client", "describe"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 7 and "this job starts alone: its server did not start" in done.stderr
    assert not servers(tmp_path)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 9), (signal.SIGINT, 128 + signal.SIGINT)])
def test_signals_reach_the_job(start, number: int, code: int) -> None:
    # What starts the tests in the background of a shell ignores the second, and jobs inherit that.
    process = start("wait", preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
    process.stdout.readline()
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode == code


def test_a_killed_client_takes_its_job_with_it(start) -> None:
    process = start("wait")
    pid = int(process.stdout.readline().split()[0])
    process.kill()
    process.wait()
    assert ends(pid)


def test_jobs_run_side_by_side_and_end_with_their_own_client(start) -> None:
    one, two = start("wait"), start("wait")
    first, second = (int(process.stdout.readline().split()[0]) for process in (one, two))
    one.kill()
    assert ends(first) and psutil.pid_exists(second)
    two.terminate()
    two.communicate(timeout=30)
    assert two.returncode == 9


@pytest.mark.parametrize(("what", "code"), [("die", 128 + signal.SIGKILL), ("leave", 70), ("raise", 1)])
def test_a_job_ends_as_it_would_alone(start, what: str, code: int) -> None:
    process = start(what)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == code
    assert ("ZeroDivisionError: outside of everything" in errors) == (what == "raise")


def test_what_an_interpreter_does_at_its_end_is_done(start) -> None:
    process = start("exit")
    assert process.communicate(timeout=30) == ("unflushed\nthread\nregistered\n", "a reason\n")
    assert process.returncode == 1


def test_a_killed_job_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    folder = tmp_path / "results/artifacts/train/x-0123456789ab"
    folder.mkdir(parents=True)
    (folder / "provenance.json").write_text(json.dumps({"attempts": [{"finished": None}]}))
    monkeypatch.setattr(warm, "run_forked", lambda arguments, module: -signal.SIGKILL)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    arguments = ["train", str(folder / "manifest.json"), "--log", str(tmp_path / "log"), "--warm"]
    assert launch.main(arguments) == 128 + signal.SIGKILL
    assert "[train x] error: SIGKILL ended the process." in capsys.readouterr().err
    assert "SIGKILL" in (folder / "log.txt").read_text()
    assert json.loads((folder / "provenance.json").read_text())["attempts"][0]["out_of_memory"]


def test_a_killed_server_leaves_its_jobs_alone_and_is_started_again(start, tmp_path: Path) -> None:
    running = start("sleep", "2")
    running.stdout.readline()
    (server,) = servers(tmp_path)
    os.kill(server, signal.SIGKILL)
    described(start("describe"))
    assert running.wait(30) == 5
    (another,) = servers(tmp_path)
    assert another != server


def test_a_server_ends_on_sigterm(start, tmp_path: Path) -> None:
    described(start("describe"))
    (server,) = servers(tmp_path)
    os.kill(server, signal.SIGTERM)
    assert ends(server)


def test_a_server_that_is_stopped_does_not_keep_a_job(start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its client hears SIGTERM; another one runs alone after a while; no fork runs a job that its client gave up."""
    (tmp_path / "client.py").write_text(textwrap.dedent(CLIENT).replace("\ncode", "\nwarm._FORK_SECONDS = 1\ncode", 1))
    described(start("describe"))
    (server,) = servers(tmp_path)
    os.kill(server, signal.SIGSTOP)
    waiting = start("describe")
    time.sleep(0.3)
    waiting.terminate()
    assert waiting.wait(10) == -signal.SIGTERM
    alone = start("describe")
    output, errors = alone.communicate(timeout=30)
    assert alone.returncode == 7 and json.loads(output)
    assert errors.count("warm start is not possible, this job starts alone: the server of") == 1
    os.kill(server, signal.SIGCONT)
    os.kill(server, signal.SIGTERM)
    assert ends(server)


@pytest.mark.parametrize("place", ["folder in the place of the lock", "folder open to others"])
def test_what_is_in_the_way_of_a_server_is_one_line(start, tmp_path: Path, place: str) -> None:
    described(start("describe"))
    (server,) = servers(tmp_path)
    os.kill(server, signal.SIGKILL)
    folder = tmp_path / f"selfdistill-{os.getuid()}"
    if place == "folder open to others":
        folder.chmod(0o755)
    else:
        (lock,) = folder.glob("*.lock")
        lock.unlink()
        lock.mkdir()
    process = start("describe")
    output, errors = process.communicate(timeout=30)
    assert process.returncode == 7 and json.loads(output)
    assert len(errors.splitlines()) == 2 and "Traceback" not in errors
    assert errors.startswith("warm start is not possible, this job starts alone: ")


def test_a_server_that_cannot_start_is_one_line(start, tmp_path: Path) -> None:
    (tmp_path / "server.py").write_text("raise SystemExit('no memory, say')")
    process = start("describe")
    output, errors = process.communicate(timeout=30)
    assert process.returncode == 7 and json.loads(output)
    assert "did not start, see" in errors and "Traceback" not in errors
    (log,) = (tmp_path / f"selfdistill-{os.getuid()}").glob("*.log")
    assert log.read_text() == "no memory, say\n"


def test_a_long_path_of_the_folder_for_sockets_is_no_obstacle(start, tmp_path: Path, monkeypatch) -> None:
    """The system takes addresses of at most 107 characters."""
    long = tmp_path / ("x" * 110)
    long.mkdir()
    monkeypatch.setenv("TMPDIR", str(long))
    described(start("describe"))
    assert len(servers(tmp_path)) == 1


def test_a_server_leaves_nothing_behind(start, tmp_path: Path) -> None:
    text = (tmp_path / "server.py").read_text()
    (tmp_path / "server.py").write_text(text.replace("IDLE_SECONDS = 600", "IDLE_SECONDS = 0.5"))
    described(start("describe"))
    (server,) = servers(tmp_path)
    assert ends(server)
    assert not list((tmp_path / f"selfdistill-{os.getuid()}").iterdir())
