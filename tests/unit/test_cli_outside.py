"""Commands that work on a project say so where there is none; they do not find nothing and call it well."""

import subprocess
import sys

import pytest

COMMANDS = (
    "verify", "track", "status", "lock", "gc", "doctor", "where toy_grpo", "lineage toy_grpo", "explain toy_grpo",
    "discard 0123456789ab", "estimate toy_grpo", "assets check", "assets add mine mine.jsonl",
    "assets fetch qwen3_8b", "contamination toy_id", "register 0123456789ab x", "reproduce toy_grpo",
    "export toy_grpo x.tar.zst", "import x.tar.zst", "push 0123456789ab me/x",
)  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_outside_a_checkout_a_command_of_the_project_is_an_error(tmp_path, command):
    (tmp_path / "mine.jsonl").write_text('{"question": "1 + 1?", "answer": "2"}\n')
    before = sorted(tmp_path.rglob("*"))
    done = subprocess.run(
        [sys.executable, "-m", "selfdistill.cli", *command.split()], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "is not a project: it has no config/config.yaml" in done.stderr
    assert sorted(tmp_path.rglob("*")) == before
