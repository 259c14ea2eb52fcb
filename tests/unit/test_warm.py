"""A warm start runs the same job in a fork: same arguments, directory, environment, streams, signals and exit code."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from selfdistill.run import warm

JOB = """
    import os, signal, sys, time
    def run(arguments):
        what = arguments[0]
        if what == "describe":
            print(os.getcwd(), os.environ["MARK"], arguments[1], flush=True)
            return 7
        if what == "wait":
            def stop(number, frame):
                print("got", number, flush=True)
                sys.stdout.flush()
                raise SystemExit
            signal.signal(signal.SIGTERM, stop)
            print(os.getpid(), flush=True)
            try:
                time.sleep(60)
            except SystemExit:
                return 9
        if what == "die":
            os.kill(os.getpid(), signal.SIGKILL)
"""
SERVER = """
    import sys
    from pathlib import Path
    from selfdistill.run import warm
    from job import run
    warm._LIBRARIES = ()
    warm.IDLE_SECONDS = 5
    warm.serve(Path(sys.argv[1]), run)
"""
CLIENT = """
    import sys
    from pathlib import Path
    from selfdistill.run import warm
    warm._connect = lambda module: warm._try(Path(sys.argv[1]))
    sys.exit(warm.run_forked(sys.argv[2:], "job"))
"""


@pytest.fixture
def client(tmp_path):
    """Starts clients of a server whose jobs are the functions above."""
    for name, text in (("job", JOB), ("server", SERVER), ("client", CLIENT)):
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(text))
    address = tmp_path / "s.sock"
    server = subprocess.Popen(
        [sys.executable, tmp_path / "server.py", address],
        # As in a shell's background: the jobs must hear Ctrl-C all the same.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )
    while not address.exists():
        assert server.poll() is None
        time.sleep(0.02)

    def start(*arguments, **options):
        return subprocess.Popen(
            [sys.executable, tmp_path / "client.py", address, *arguments], stdout=subprocess.PIPE, text=True, **options
        )

    yield start
    server.terminate()
    server.wait()


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rsplit(")", 1)[1].split()[0] != "Z"


def test_a_job_has_its_clients_directory_environment_and_exit_code(client, tmp_path):
    process = client("describe", "x y", cwd=tmp_path, env=os.environ | {"MARK": "m"})
    assert process.communicate(timeout=30)[0].split("\n")[0] == f"{tmp_path} m x y"
    assert process.returncode == 7


def test_sigterm_reaches_the_job(client):
    process = client("wait")
    process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    assert f"got {int(signal.SIGTERM)}" in process.communicate(timeout=30)[0]
    assert process.returncode == 9


def test_ctrl_c_reaches_the_job_even_if_the_server_ignores_it(client):
    process = client("wait")
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 1


def test_a_killed_client_takes_its_job_with_it(client):
    process = client("wait")
    pid = int(process.stdout.readline())
    process.kill()
    process.wait()
    deadline = time.monotonic() + 10
    while is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_alive(pid)


def test_a_killed_job_is_a_failure(client):
    process = client("die")
    process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGKILL


def test_jobs_run_side_by_side(client):
    one, two = client("wait"), client("wait")
    pids = {int(process.stdout.readline()) for process in (one, two)}
    assert len(pids) == 2 and all(is_alive(pid) for pid in pids)
    for process in (one, two):
        process.terminate()
        process.communicate(timeout=30)


def test_two_copies_of_the_package_have_two_servers(monkeypatch, tmp_path):
    monkeypatch.setattr(warm.tempfile, "gettempdir", lambda: str(tmp_path))
    first = warm._address()
    assert warm._address() == first
    monkeypatch.setattr(warm, "__file__", "/elsewhere/selfdistill/run/warm.py")
    assert warm._address() != first
