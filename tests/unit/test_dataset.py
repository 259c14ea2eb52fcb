"""The dataset stage: repeats, splits, expected counts, exclusions, near duplicates; all counted, nothing held twice."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from selfdistill.artifacts.store import Artifact, freeze
from selfdistill.artifacts.tables import PROBLEMS, read_rows
from selfdistill.plan.graph import Node
from selfdistill.prompts import INSTRUCTIONS, problem_id
from selfdistill.run.job import Job, Tee
from selfdistill.schema.common import AssetPin
from selfdistill.schema.errors import UserError
from selfdistill.schema.runtime import StageRuntime
from selfdistill.schema.sources import Expectation, FieldMap, FileSource, NearDuplicates, Part
from selfdistill.schema.stages import DatasetSpec, SampleSpec
from selfdistill.stages import dataset, sample
from small_specs import small

PREFIX, SUFFIX = INSTRUCTIONS["answer_line"]
PAPER_FIELDS = FieldMap(question="prompt.0.content", answer="reward_model.ground_truth")


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SELFDISTILL_TEST_DATA", raising=False)
    (tmp_path / "config").mkdir()
    (tmp_path / "config/assets.local.yaml").write_text("{}\n")
    return tmp_path


def add(project: Path, name: str, rows: list[dict], ending: str = "jsonl") -> AssetPin:
    """A file of one's own, recorded as `selfdistill assets add` does."""
    from selfdistill.assets import Assets, add_local

    path = project / f"{name}.{ending}"
    if ending == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=500)
    else:
        path.write_text("\n".join(map(json.dumps, rows)))
    add_local(Assets.here(project), name, path)
    return Assets.here(project).lock.pin(name)


def make(node: Node, main=dataset.main) -> Artifact:
    """Run the stage of a node whose inputs are made already."""
    freeze(node.folder(), node.frozen_spec)
    artifact = Artifact.open(node.folder())
    with Tee(Path("log.txt"), node.stage) as tee:
        artifact.seal(main(Job(artifact, StageRuntime(), tee)))
    return Artifact.open(node.folder())


def problems(artifact: Artifact) -> list[dict]:
    return read_rows(artifact.payload / "problems.parquet")


def node(pin: AssetPin, inputs: dict[str, Node] | None = None, fields: FieldMap | None = None, **settings) -> Node:
    instruction = settings.pop("instruction", "none")
    source = FileSource(pin=pin, fields=fields or FieldMap(), instruction=instruction)
    return Node(small(DatasetSpec, source=source, **settings), inputs or {})


def dapo_rows(distinct: int, copies: int) -> list[dict]:
    """Rows as DAPO-Math-17k has them: each problem many times, in one order after the other."""
    return [
        {
            "data_source": "math_dapo",
            "prompt": [{"role": "user", "content": f"{PREFIX}What is {number} + {number}?{SUFFIX}"}],
            "ability": "MATH",
            "reward_model": {"ground_truth": str(2 * number), "style": "rule-lighteval/MATH_v2"},
            "extra_info": {"index": f"{copy}-{number}"},
        }
        for copy in range(copies)
        for number in range(distinct)
    ]


def test_repeats_of_dapo_are_dropped_counted_and_expected(project):
    rows = dapo_rows(40, 100)
    rows[7 * 40 + 3]["reward_model"]["ground_truth"] = "another answer"
    pin = add(project, "dapo", rows, "parquet")
    expect = Expectation(rows=(3900, 4100), distinct=(40, 40))
    made = make(node(pin, fields=PAPER_FIELDS, instruction="answer_line", expect=expect))
    assert [p["question"] for p in problems(made)] == [f"What is {n} + {n}?" for n in range(40)]
    assert [p["row_id"] for p in problems(made)] == list(range(40))
    summary = made.manifest["summary"]
    assert summary["dropped"] == {"duplicate": 3960}
    assert summary["source"] == {
        "rows": 4000,
        "distinct": 40,
        "fewest_copies": 100,
        "median_copies": 100,
        "most_copies": 100,
        "with_several_answers": 1,
    }


@pytest.mark.parametrize(
    ("expect", "message"),
    [
        ({"rows": (10, 20)}, r"expect.rows: the source has 6, but 10 to 20 were expected"),
        ({"rows": (6, 6), "distinct": (4, 9)}, r"expect.distinct: the source has 3"),
    ],
)
def test_another_file_than_expected_stops(project, expect, message):
    pin = add(project, "dapo", dapo_rows(3, 2), "parquet")
    with pytest.raises(UserError, match=message):
        make(node(pin, fields=PAPER_FIELDS, expect=Expectation(**expect)))


def test_memory_does_not_grow_with_the_repeats(project):
    """Peak memory of reading 300,000 rows is that of 3,000: rows pass by, each text is kept once."""
    code = (
        "import sys\nfrom collections import Counter\nfrom pathlib import Path\n"
        "from selfdistill.schema.common import AssetPin\nfrom selfdistill.schema.sources import FieldMap, FileSource\n"
        "from selfdistill.sources import stream_problems\nfrom selfdistill.sources.selection import Repeats\n"
        "source = FileSource(pin=AssetPin(file='x', sha256='0' * 64), fields=FieldMap(question='q', answer='a'))\n"
        "repeats = Repeats()\n"
        "for _ in repeats.watch(stream_problems(source, Counter(), lambda pin: Path(sys.argv[1]))): pass\n"
        # Not getrusage: that peak includes what this process used before the other one was started.
        "peak = next(line for line in open('/proc/self/status') if line.startswith('VmHWM'))\n"
        "print(repeats.rows, repeats.distinct, peak.split()[1])"
    )
    peaks = {}
    for rows in (3000, 300_000):
        table = pa.table({"q": [f"{i % 500} " + "long question " * 30 for i in range(rows)], "a": ["1"] * rows})
        pq.write_table(table, project / "big.parquet", row_group_size=20_000)
        del table
        done = subprocess.run([sys.executable, "-c", code, "big.parquet"], capture_output=True, text=True, check=True)
        found, distinct, peak = map(int, done.stdout.split())
        assert (found, distinct) == (rows, 500)
        peaks[rows] = peak / 1024
    assert peaks[300_000] - peaks[3000] < 60, peaks  # the questions alone are 126 MB


def test_25600_draws_see_about_as_many_problems_as_the_paper_counts():
    """17,917 (1 - exp(-25,600 / 17,917)) = 13,624 expected distinct problems."""
    from selfdistill.training.data import draw_indices

    class Recipe:
        seed, prompts_per_step, draw = 0, 256, "with_replacement"

    seen = {index for step in range(1, 101) for index in draw_indices(Recipe, step, 17_917)}
    assert abs(len(seen) - 17_917 * (1 - np.exp(-25_600 / 17_917))) < 300


def test_the_two_sides_of_a_split_are_disjoint_whole_and_independent_of_the_order(project):
    rows = [{"question": f"Question {i}?", "answer": i} for i in range(200)] + [
        {"question": "Question 3?", "answer": 3}
    ]
    pin = add(project, "all", rows)
    other = add(project, "reversed", rows[::-1])
    sides = {
        (name, part): {p["question"] for p in problems(make(node(which, split=Part(part=part), deduplicate=False)))}
        for name, which in (("all", pin), ("reversed", other))
        for part in ("train", "test")
    }
    assert len(sides["all", "test"]) == 20
    assert sides["all", "train"] | sides["all", "test"] == {row["question"] for row in rows}
    assert not sides["all", "train"] & sides["all", "test"]
    assert sides["all", "test"] == sides["reversed", "test"]
    another = make(node(pin, split=Part(part="test", seed=1)))
    assert {p["question"] for p in problems(another)} != sides["all", "test"]
    assert another.manifest["summary"]["dropped"] == {"duplicate": 1, "on the other side of the split": 180}


def test_system_messages_travel_and_tables_without_them_stay_as_they_were(project):
    rows = [{"question": "A?", "answer": "A", "rules": "Answer with a letter."}, {"question": "B?", "answer": "B"}]
    pin = add(project, "letters", rows)
    with_system = node(pin, fields=FieldMap(system="rules"))
    found = problems(make(with_system))
    assert [p["system"] for p in found] == ["Answer with a letter.", None]
    sampled = problems(make(Node(small(SampleSpec, distinct=2), {"problems": with_system}), sample.main))
    assert {p["question"]: p["system"] for p in sampled} == {"A?": "Answer with a letter.", "B?": None}
    without = make(node(pin))
    assert pq.read_schema(without.payload / "problems.parquet").names == list(PROBLEMS)


def test_duplicates_of_an_evaluation_set_are_listed_and_dropped_where_asked(project):
    base = "A train leaves the station at noon and travels {} miles per hour for three hours. How far does it get?"
    test = node(add(project, "test", [{"question": base.format(40), "answer": 120}, {"question": "Why?", "answer": 0}]))
    rows = [
        {"question": base.format(40), "answer": 120},
        {"question": base.format(41), "answer": 123},
        {"question": "What is the area of a circle of radius two?", "answer": "4π"},
    ]
    pin = add(project, "train", rows)
    make(test)
    listed = make(node(pin, {"compare.0": test}, near=NearDuplicates()))
    assert len(problems(listed)) == 3
    exact, near = read_rows(listed.payload / "near_duplicates.parquet")
    assert (exact["similarity"], exact["is_exact"], exact["is_same_answer"]) == (1.0, True, True)
    assert near["problem_id"] == problem_id(base.format(41))
    assert (near["compared_with"], near["is_exact"], near["is_same_answer"]) == ("test", False, False)
    assert 0.8 < near["similarity"] < 1
    assert listed.manifest["summary"]["compared"] == {"test": {"exact": 1, "near": 1}}

    kept = make(node(pin, {"compare.0": test, "exclude.0": test}, near=NearDuplicates(drop_from=0.8)))
    assert [p["question"] for p in problems(kept)] == [rows[2]["question"]]
    assert kept.manifest["summary"]["dropped"] == {
        "in an excluded data set": 1,
        "near duplicate of a compared data set": 1,
    }
    assert kept.manifest["summary"]["compared"] == {"test": {"exact": 0, "near": 1}}
    assert read_rows(kept.payload / "near_duplicates.parquet")[0]["is_dropped"]
