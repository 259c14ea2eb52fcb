"""The epistemics stage: the counts of every completion, from a table that is larger than what it may hold."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from selfdistill.artifacts.tables import COLUMNS, read_rows
from selfdistill.epistemic import PAPER_WORDS, count, density
from selfdistill.schema.errors import UserError
from selfdistill.stages import epistemics

HERE = Path(__file__).parent
COLUMNS_READ = ("step", "row_id", "sample", "problem_id", "family", "completion_tokens", "completion")


class Job:
    """What the stage asks of its job: its spec, its input and where to write."""

    def __init__(self, folder: Path) -> None:
        self.artifact, self.payload = self, folder

    def spec(self, kind):
        return kind(words=list(PAPER_WORDS))

    def input(self, role):
        assert role == "rollouts"
        return self


def make_rows(count_: int, characters: int = 200) -> list[dict]:
    text = "Wait, hmm. Perhaps it is unlikely; actually maybe. √2 "
    return [
        {
            "step": 10 * (row % 3), "row_id": row // 4, "sample": row % 4, "problem_id": f"p{row % 7}",
            "family": "", "completion_tokens": 50 + row % 9,
            "completion": (f"{row} " + text * (characters // len(text) + 1))[: characters + row % 50],
        }
        for row in range(count_)
    ]  # fmt: skip


def write(path: Path, rows: list[dict], row_group: int = 10**6) -> None:
    schema = pa.schema([(name, COLUMNS[name]) for name in COLUMNS_READ])
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path, compression="zstd", row_group_size=row_group)


def all_at_once(rows: list[dict]) -> tuple[pa.Table, dict]:
    """The table and the summary as the stage made them when it held every completion."""
    columns: dict[str, list[int]] = {}
    for mode in ("substring", "word"):
        counts = [count(row["completion"], PAPER_WORDS, mode) for row in rows]
        columns |= {f"{mode}:{word}": [c[word] for c in counts] for word in PAPER_WORDS}
        columns[f"{mode}_total"] = [sum(c.values()) for c in counts]
    kept = {name: pa.array([row[name] for row in rows], COLUMNS[name]) for name in COLUMNS_READ[:-1]}
    summary = {}
    for step in sorted({row["step"] for row in rows}):
        chosen = [place for place, row in enumerate(rows) if row["step"] == step]
        total = sum(columns["substring_total"][place] for place in chosen)
        tokens = sum(rows[place]["completion_tokens"] for place in chosen)
        summary[f"step-{step}"] = {
            "completions": len(chosen),
            "epistemic_count": total / len(chosen),
            "epistemic_density_per_1k_tokens": density(total, tokens),
        }
    return pa.table(kept | {name: pa.array(values, pa.int32()) for name, values in columns.items()}), summary


@pytest.mark.parametrize("row_group", [10**6, 100])
def test_the_bytes_are_those_of_all_completions_at_once(tmp_path, row_group):
    rows = make_rows(1000)
    write(tmp_path / "rollouts.parquet", rows, row_group)
    summary = epistemics.main(Job(tmp_path))
    table, expected = all_at_once(rows)
    pq.write_table(table, tmp_path / "expected.parquet", compression="zstd")
    assert (tmp_path / "counts.parquet").read_bytes() == (tmp_path / "expected.parquet").read_bytes()
    assert summary == expected


def test_a_table_without_completions(tmp_path):
    write(tmp_path / "rollouts.parquet", [])
    assert epistemics.main(Job(tmp_path)) == {}
    assert read_rows(tmp_path / "counts.parquet") == []


def test_a_damaged_table_is_one_line(tmp_path):
    write(tmp_path / "rollouts.parquet", make_rows(3000))
    content = (tmp_path / "rollouts.parquet").read_bytes()
    (tmp_path / "rollouts.parquet").write_bytes(content[:2000] + b"\0" * 2000 + content[4000:])
    with pytest.raises(UserError, match="is damaged"):
        epistemics.main(Job(tmp_path))


PROGRAM = """
import gc, json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from measure_training import memory
from test_epistemics_stage import Job, epistemics
small, large = map(Path, sys.argv[2:])
epistemics.main(Job(small))
gc.collect()
before = memory("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
epistemics.main(Job(large))
print(json.dumps(memory("VmHWM") - before))
"""


def test_memory_does_not_grow_with_the_completions(tmp_path):
    """100 MB of text in one row group of five pages; all at once it takes 500 MB."""
    for name, number in (("small", 1000), ("large", 5000)):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "rollouts.parquet", make_rows(number, characters=20_000))
    command = [sys.executable, "-c", PROGRAM, str(HERE), str(tmp_path / "small"), str(tmp_path / "large")]
    peak = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    print(f"peak above the libraries: {peak / 1e6:.0f} MB")
    assert peak < 150e6
