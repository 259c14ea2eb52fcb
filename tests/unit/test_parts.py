"""Part files: the result is the same file, however completions were divided into parts."""

from __future__ import annotations

import pyarrow.parquet as pq
import pytest

from selfdistill.artifacts.tables import ROLLOUTS, read_rows, write_rows
from selfdistill.run.job import Shard
from selfdistill.stages.shared import parts as parts_module
from selfdistill.stages.shared.parts import PartFiles, merge

SAMPLES = 3


def rows_of(row_id: int, step: int = 0):
    return [
        {
            "step": step, "row_id": row_id, "sample": sample, "problem_id": f"p{row_id}", "family": "f", "answer": "1",
            "prompt_tokens": 5, "completion": f"text {row_id}", "completion_ids": list(range(row_id + 1)),
            "logprobs": [-0.5] * (row_id + 1), "completion_tokens": row_id + 1, "stop_reason": "eos",
            "outcome": "wrong", "reward": 0.0, "extracted": None,
        }
        for sample in range(SAMPLES)
    ]  # fmt: skip


def write(folder, *cuts, shard=None):
    parts = PartFiles(folder, shard or Shard())
    for cut in cuts:
        parts.add([row for row_id in cut for row in rows_of(row_id)])
    return parts


def test_the_result_is_the_table_of_all_rows_in_order_however_it_was_cut(tmp_path):
    write_rows(tmp_path / "whole.parquet", [row for row_id in range(6) for row in rows_of(row_id)], ROLLOUTS)
    for name, cuts in {
        "one": [range(6)],
        "each": [[5], [0], [3], [1], [2], [4]],
        "two": [[4, 1], [5, 0, 2, 3]],
    }.items():
        merge(tmp_path / f"{name}.parquet", [write(tmp_path / name, *cuts)], range(6))
        assert (tmp_path / f"{name}.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()


def test_checkpoints_follow_each_other_and_groups_of_rows_are_cut_at_prompts(tmp_path, monkeypatch):
    monkeypatch.setattr(parts_module, "_GROUP_ROWS", 7)
    both = [write(tmp_path / "a", [1, 0], [2]), write(tmp_path / "b", [0], [2, 1])]
    merge(tmp_path / "x.parquet", both, [0, 1, 2])
    found = [(row["row_id"], row["sample"]) for row in read_rows(tmp_path / "x.parquet")]
    assert found == 2 * [(row_id, sample) for row_id in range(3) for sample in range(SAMPLES)]
    metadata = pq.ParquetFile(tmp_path / "x.parquet").metadata
    assert [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)] == [9, 9]


def test_what_is_finished_is_known_whoever_did_it(tmp_path):
    write(tmp_path, [7], shard=Shard(0, 2))
    write(tmp_path, [4, 9], shard=Shard(1, 2))
    assert PartFiles(tmp_path, Shard()).finished() == {4, 7, 9}
    names = sorted(path.name for path in tmp_path.iterdir())
    assert [name[:13] for name in names] == ["1-of-2-000001", "2-of-2-000001"]


def test_a_damaged_part_does_not_count_wherever_the_damage_is(tmp_path, caplog):
    """Values in an arrow file have no checksum of their own: another reward would be believed."""
    parts = write(tmp_path, [1], [2])
    damaged, _ = sorted(tmp_path.glob("*.arrow"))
    intact = damaged.read_bytes()
    for place in range(0, len(intact), 7):
        damaged.write_bytes(intact[:place] + bytes([intact[place] ^ 1]) + intact[place + 1 :])
        assert parts.finished() == {2}
    assert "its prompts are sampled again" in caplog.text
    parts.add(rows_of(1))
    assert parts.finished() == {1, 2} and len(list(tmp_path.glob("*.arrow"))) == 3


def test_parts_of_earlier_versions_are_read(tmp_path):
    parts = write(tmp_path, [1])
    (path,) = tmp_path.glob("*.arrow")
    path.rename(tmp_path / "1-of-1-000001.arrow")
    assert parts.finished() == {1}


def test_a_part_whose_writing_was_cut_off_does_not_count(tmp_path):
    parts = write(tmp_path, [1])
    (tmp_path / ".1-of-1-000002.part").write_bytes(b"ARROW1 half")
    assert parts.finished() == {1}
    parts.add(rows_of(2))
    assert parts.finished() == {1, 2}


def test_a_prompt_done_twice_counts_once_and_a_missing_one_is_an_error(tmp_path):
    write(tmp_path, [1, 2], shard=Shard(0, 2))
    write(tmp_path, [2], shard=Shard(1, 2))
    merge(tmp_path / "x.parquet", [PartFiles(tmp_path, Shard())], [1, 2])
    assert len(read_rows(tmp_path / "x.parquet")) == 2 * SAMPLES
    with pytest.raises(KeyError):
        merge(tmp_path / "y.parquet", [PartFiles(tmp_path, Shard())], [1, 2, 3])
    assert not (tmp_path / "y.parquet").exists()


def test_names_of_shards():
    assert Shard.parse("2-of-8") == Shard(1, 8) and str(Shard(1, 8)) == "2-of-8"
    for wrong in ("0-of-2", "3-of-2", "2", "a-of-b"):
        with pytest.raises(ValueError):
            Shard.parse(wrong)
