"""The benchmarks' harness: turns, ratios, output, and memory that belongs to the child alone."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

HARNESS = Path(__file__).parents[2] / "benchmarks" / "harness.py"


@pytest.fixture(scope="module")
def harness():
    spec = importlib.util.spec_from_file_location("harness", HARNESS)
    module = importlib.util.module_from_spec(spec)
    sys.modules["harness"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["harness"]


def sides(*pairs):
    """Two sides that return prepared values, and the order of their calls."""
    calls, ours, peer = [], iter([a for a, _ in pairs]), iter([b for _, b in pairs])
    return calls, lambda: calls.append("ours") or next(ours), lambda: calls.append("peer") or next(peer)


def test_sides_take_turns_and_the_ratio_is_the_median_of_the_turns(harness):
    calls, ours, peer = sides((10, 5), (20, 5), (90, 30))
    pair = harness.Pair("task", "other", (harness.Quantity("speed", "items/s"),), ours, peer, warm_up=False)
    (found,) = harness.compare(pair, 3)
    assert calls == ["ours", "peer", "peer", "ours", "ours", "peer"]
    assert (found.ours, found.peer, found.ratio, found.ratio_low, found.ratio_high) == (20, 5, 3, 2, 4)
    assert (found.name, found.unit, found.repeats) == ("task", "items/s", 3)


def test_of_what_is_better_low_the_ratio_turns_round(harness):
    quantities = (harness.Quantity("speed", "items/s"), harness.Quantity("memory", "MiB", "lower"))
    _, ours, peer = sides(((1, 1), (2, 2)), ((6, 10), (3, 40)))
    pair = harness.Pair("task", "other", quantities, ours, peer)  # The first turn warms up.
    speed, memory = harness.compare(pair, 1)
    assert (speed.name, speed.ratio) == ("task: speed", 2)
    assert (memory.name, memory.ratio) == ("task: memory", 4)


def test_a_side_must_measure_every_quantity(harness):
    _, ours, peer = sides(((1, 2), 3))
    pair = harness.Pair("task", "other", (harness.Quantity("speed", "items/s"),), ours, peer, warm_up=False)
    with pytest.raises(ValueError, match="2 values for 1 quantities"):
        list(harness.compare(pair, 1))


def test_json_is_one_object_a_line_and_the_table_names_everything(harness, capsys):
    def pair():
        _, ours, peer = sides((4.0, 2.0))
        return harness.Pair("task", "other", (harness.Quantity("speed", "items/s"),), ours, peer, warm_up=False)

    harness.run([pair(), pair()], harness.options("x").parse_args(["--json", "--repeats", "1"]))
    out, err = capsys.readouterr()
    found = [json.loads(line) for line in out.splitlines()]
    assert [(f["name"], f["peer_name"], f["ours"], f["peer"], f["unit"], f["ratio"], f["repeats"]) for f in found] == [
        ("task", "other", 4.0, 2.0, "items/s", 2.0, 1)
    ] * 2
    assert "load average" in err
    harness.run([pair()], harness.options("x").parse_args(["--repeats", "1"]))
    table = capsys.readouterr().out
    assert all(word in table for word in ("task", "other", "items/s", "times better"))
    with pytest.raises(SystemExit):
        harness.run([pair()], harness.options("x").parse_args(["--repeats", "0"]))


def test_a_childs_peak_is_its_own_and_what_it_prints_is_no_result(harness, tmp_path):
    script = tmp_path / "script.py"
    script.write_text("def use(mib):\n    print('noise')\n    held = bytearray(mib * 2**20)\n    return len(held)\n")
    ballast = bytearray(300 * 2**20)
    small, large = harness.child(str(script), "use", mib=1), harness.child(str(script), "use", mib=200)
    assert (small.value, large.value) == (2**20, 200 * 2**20)
    # getrusage would show this process's 300 MiB in both.
    assert small.peak_mib < 150
    assert large.peak_mib - small.peak_mib == pytest.approx(199, abs=20)
    assert len(ballast) == 300 * 2**20
    with pytest.raises(RuntimeError, match="ended with code"):
        harness.child(str(script), "missing")


@pytest.mark.slow
def test_the_benchmark_of_plans_and_jobs_measures_all_it_names():
    """Most of its code runs in other processes, where no import fails early."""
    command = [
        sys.executable,
        HARNESS.with_name("planning.py"),
        "--json",
        "--repeats",
        "1",
        "--seeds",
        "2",
        "--jobs",
        "1",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line)["name"] for line in done.stdout.splitlines()]
    assert [name.partition(" of ")[0] for name in found[:4:2]] == ["first dry run", "dry run again"]
    assert found[4:] == ["1 short jobs, by job"]
