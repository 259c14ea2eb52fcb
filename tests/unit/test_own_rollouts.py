"""`selfdistill grade` and `count-epistemic`: any file or pipe in, records and totals out."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import resource
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from typer.testing import CliRunner

from selfdistill.cli import app
from selfdistill.schema.errors import UserError
from selfdistill.sources.tables import read_batches

ROWS = [
    {"completion": r"Wait. \boxed{5}", "answer": 5, "problem": "a", "tokens": 10},
    {"completion": r"\boxed{\frac{1}{2}}", "answer": "0.5", "problem": "b", "tokens": 20},
    {"completion": r"maybe \boxed{6}", "answer": 5, "problem": "a", "tokens": 30},
    {"completion": "no answer, wait", "answer": 0.5, "problem": "b", "tokens": 40},
]


def lines(rows) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def run(*arguments, text=None):
    """(standard output, standard error); a UserError comes out as it is."""
    result = CliRunner().invoke(app, [str(item) for item in arguments], input=text, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout, result.stderr


def json_lines(*arguments):
    out, _ = run(*arguments, "--format", "json")
    *records, totals = map(json.loads, out.splitlines())
    return records, totals["totals"]


def measures(totals) -> dict:
    return {item["name"]: item for item in totals["measures"]}


@pytest.fixture
def written(tmp_path):
    """The same rows in every format."""
    text = lines(ROWS)
    (tmp_path / "rows.jsonl").write_text(text)
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    frames = [zstandard.compress(text[:100].encode()), zstandard.compress(text[100:].encode())]
    (tmp_path / "rows.jsonl.zst").write_bytes(b"".join(frames))
    table = pa.Table.from_pylist([{**row, "answer": str(row["answer"])} for row in ROWS])
    pq.write_table(table, tmp_path / "rows.parquet")
    return tmp_path


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.jsonl.zst", "rows.parquet"])
def test_every_format_gives_the_same_verdicts(written, name):
    records, totals = json_lines("grade", written / name)
    assert [record["outcome"] for record in records] == ["correct", "correct", "wrong", "unparsed"]
    assert [record["line"] for record in records] == [1, 2, 3, 4]
    assert (totals["records"], totals["correct"], totals["wrong"], totals["unparsed"], totals["timeout"]) == (
        4,
        2,
        1,
        1,
        0,
    )
    # Clopper and Pearson for 2 of 4: the lower end p solves 6p^2(1-p)^2 + 4p^3(1-p) + p^4 = 0.025.
    score = measures(totals)["score"]
    p = score["low"]
    assert 6 * p**2 * (1 - p) ** 2 + 4 * p**3 * (1 - p) + p**4 == pytest.approx(0.025)
    assert (score["value"], score["high"]) == (0.5, pytest.approx(1 - p))


def test_named_problems_give_avg_pass_and_maj(written):
    _, totals = json_lines("grade", written / "rows.jsonl", "--problem-field", "problem")
    found = measures(totals)
    assert list(found) == ["avg@2", "pass@1", "pass@2", "maj@2"]
    assert [found[name]["value"] for name in found] == [0.5, 0.5, 1.0, 0.75]
    assert totals["problems"] == 2
    assert (found["maj@2"]["low"], found["maj@2"]["high"]) == (0.5, 1.0)


def test_a_list_of_completions_is_one_problem(tmp_path):
    path = tmp_path / "lists.jsonl"
    row = {"out": {"texts": [r"\boxed{1}", r"\boxed{2}", "-", r"\boxed{1.0}"]}, "gold": {"value": "1"}}
    path.write_text(lines([row]))
    records, totals = json_lines("grade", path, "--field", "out.texts", "--gold-field", "gold.value")
    assert [(r["line"], r["sample"], r["problem"], r["outcome"]) for r in records] == [
        (1, 0, "1", "correct"), (1, 1, "1", "wrong"), (1, 2, "1", "unparsed"), (1, 3, "1", "correct"),
    ]  # fmt: skip
    assert [(m["name"], m["value"]) for m in totals["measures"]] == [
        ("avg@4", 0.5), ("pass@1", 0.5), ("pass@2", pytest.approx(5 / 6)), ("pass@4", 1.0), ("maj@4", 1.0),
    ]  # fmt: skip


def test_grader_options_reach_the_grader(tmp_path):
    path = tmp_path / "rows.jsonl"
    far = {"completion": r"\boxed{7}" + " " * 100, "answer": "7"}
    path.write_text(
        lines([far, {"completion": r"\boxed{1\,000}", "answer": "1000"}, {"completion": "it is 7", "answer": 7}])
    )

    def outcomes(*options):
        return [record["outcome"] for record in json_lines("grade", path, *options)[0]]

    assert outcomes() == ["correct", "correct", "unparsed"]
    assert outcomes("--scope-characters", 100) == ["unparsed", "correct", "unparsed"]
    assert outcomes("--rules", "math_verify") == ["correct", "wrong", "unparsed"]
    assert outcomes("--fallback", "last_number") == ["correct", "correct", "correct"]
    hang = tmp_path / "hang.jsonl"
    hang.write_text(
        lines([{"completion": r"\boxed{9^{9^{9^{9}}}}", "answer": 5}, {"completion": r"\boxed{5}", "answer": 5}])
    )
    assert [r["outcome"] for r in json_lines("grade", hang, "--timeout", 0.5)[0]] == ["timeout", "correct"]


@pytest.fixture
def judged(tmp_path, monkeypatch):
    """Completions with questions, as JSON lines and parquet, and functions of the user's in the current folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_judge.py").write_text(
        "def judge(completion, answer, question):\n    return completion == answer + question\n"
        "def half(completion, answer):\n    return 0.5 if completion == '12' else None\n"
    )
    rows = [
        {"completion": ["12", "13"], "answer": "1", "question": "2"},
        {"completion": ["12", "13"], "answer": "1", "question": "3"},
    ]
    (tmp_path / "rows.jsonl").write_text(lines(rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    return tmp_path


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_a_function_of_ones_own_is_given_the_question_of_the_record(judged, name):
    records, totals = json_lines("grade", judged / name, "--function", "own_judge:judge")
    assert [(r["outcome"], r["reward"]) for r in records] == [
        ("correct", 1.0), ("wrong", 0.0), ("wrong", 0.0), ("correct", 1.0),
    ]  # fmt: skip
    # It extracts no answers that could vote.
    assert list(measures(totals)) == ["avg@2", "pass@1", "pass@2"]


def test_a_function_of_two_parameters_needs_no_question(judged):
    records, _ = json_lines("grade", judged / "rows.jsonl", "--function", "own_judge:half", "--question-field", "none")
    assert [(r["outcome"], r["reward"]) for r in records] == [("correct", 0.5), ("unparsed", 0.0)] * 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--function", "own_judge:judge", "--question-field", "q"],
            "grader own_judge:judge: it takes the question",
        ),
        (["--function", "own_judge:missing"], "grader own_judge:missing: own_judge has no function `missing`"),
        (["--function", "own_judge"], "--function `own_judge`: write module:function"),
        (["--function", "own_judge:half", "--choices", "AB"], "--choices and --function are two graders"),
        (["--function", "own_judge:half", "--rules", "math_verify"], "belong to maths; leave them out with --function"),
    ],
)
def test_mistakes_around_a_function_are_one_line(judged, options, message):
    with pytest.raises(UserError) as error:
        run("grade", judged / "rows.jsonl", *options)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_multiple_choice(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(
        lines([{"completion": r"\boxed{\text{(B)}}", "answer": "B"}, {"completion": "Answer: A", "answer": "b"}])
    )
    records, _ = json_lines("grade", path, "--choices", "ABCD")
    assert [record["outcome"] for record in records] == ["correct", "wrong"]
    with pytest.raises(UserError, match="line 1: `answer` is `B`, none of the letters XY"):
        run("grade", path, "--choices", "XY")
    with pytest.raises(UserError, match="belong to maths"):
        run("grade", path, "--choices", "AB", "--scope-characters", 5)


def test_csv_rows_go_to_standard_output_and_totals_beside_it(written):
    out, err = run("grade", written / "rows.jsonl", "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [row["outcome"] for row in rows] == ["correct", "correct", "wrong", "unparsed"]
    assert "exact binomial" in err
    table, err = run("grade", written / "rows.jsonl")
    assert "exact binomial" in table and err == "" and "frac" not in table


def test_words_are_counted_per_record_and_in_all(written, tmp_path):
    records, totals = json_lines("count-epistemic", written / "rows.parquet", "--tokens-field", "tokens")
    assert [(r["wait"], r["maybe"], r["total"], r["density_per_1k_tokens"]) for r in records] == [
        (1, 0, 1, 100.0), (0, 0, 0, 0.0), (0, 1, 1, pytest.approx(1000 / 30)), (1, 0, 1, 25.0),
    ]  # fmt: skip
    found = measures(totals)
    assert found["wait, per completion"]["value"] == 0.5
    assert found["total, per 1,000 tokens"]["value"] == 30.0
    assert found["total, per 1,000 tokens"]["low"] < 30.0 < found["total, per 1,000 tokens"]["high"]
    lexicon = tmp_path / "words.txt"
    lexicon.write_text("# mine\nNO\nno answer\n\n")
    records, _ = json_lines("count-epistemic", written / "rows.jsonl", "--lexicon", lexicon, "--mode", "word")
    assert [(r["no"], r["no answer"]) for r in records] == [(0, 0), (0, 0), (0, 0), (1, 1)]


def test_word_counts_over_problems_average_the_samples_first(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(lines([{"completion": ["wait wait", "wait", "no"]}, {"completion": ["no"]}]))
    _, totals = json_lines("count-epistemic", path)
    assert totals["problems"] == 2
    assert measures(totals)["wait, per completion"]["value"] == 0.5  # (3/3 + 0/1) / 2, not 3/4


def test_a_lexicon_is_checked_and_a_script_without_spaces_is_pointed_out(written, tmp_path):
    lexicon = tmp_path / "words.txt"
    for text, message in (("", "no words"), ("wait\nWAIT\n", "listed twice"), ("total\n", "column's name")):
        lexicon.write_text(text)
        with pytest.raises(UserError, match=message):
            run("count-epistemic", written / "rows.jsonl", "--lexicon", lexicon)
    lexicon.write_text("也许\n", encoding="utf-8")
    _, err = run("count-epistemic", written / "rows.jsonl", "--lexicon", lexicon, "--mode", "word")
    assert "--mode substring" in err
    with pytest.raises(UserError, match="--mode `words` is unknown"):
        run("count-epistemic", written / "rows.jsonl", "--mode", "words")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"completion": "x", "answer": 1}\n{bad\n', "line 2 is not valid JSON"),
        ('{"completion": "x", "answer": 1}\n\n[1]\n', "line 3 is not a JSON object"),
        ('{"completion": 5, "answer": 1}', "line 1: `completion` is neither a text nor a list of texts"),
        ('{"completion": [], "answer": 1}', "line 1: `completion` is neither"),
        ('{"completions": "x", "answer": 1}', "line 1 has no `completion`. Did you mean `completions`?"),
        ('{"completion": "x"}', "line 1 has no `answer`"),
        ('{"completion": "x", "answer": " "}', "line 1: `answer` is not a text or number"),
        ('{"completion": "x", "answer": {"a": 1}}', "line 1: `answer` is not a text or number"),
        ('{"completion": "x", "answer": 1}\n{"completion": ["x"], "answer": 1}', "name the problems"),
    ],
)  # fmt: skip
def test_a_bad_record_is_named_by_its_line(tmp_path, text, message):
    path = tmp_path / "rows.jsonl"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        run("grade", path)
    assert message in str(caught.value)


def test_bad_files_are_named(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        run("grade", tmp_path / "none.jsonl")
    for name in ("rows.jsonl.gz", "rows.jsonl.zst", "rows.parquet"):
        (tmp_path / name).write_bytes(b"not what it says")
        with pytest.raises(UserError, match="cannot be read"):
            run("grade", tmp_path / name)
    (tmp_path / "rows.jsonl").write_bytes(b'{"completion": "\xff"}\n')
    with pytest.raises(UserError, match="line 1 is not valid JSON"):
        run("grade", tmp_path / "rows.jsonl")


def test_no_records_is_no_error(tmp_path):
    (tmp_path / "rows.jsonl").write_text("\n")
    assert json_lines("grade", tmp_path / "rows.jsonl")[1]["measures"] == []
    assert json_lines("count-epistemic", tmp_path / "rows.jsonl")[1] == {"records": 0, "measures": []}


def test_lines_are_found_whatever_the_blocks(tmp_path):
    path = tmp_path / "rows.jsonl"
    texts = ["é" * size for size in (0, 1, 3_000_000, 5, 2_000_000, 7)]
    path.write_text("".join(json.dumps({"t": text}, ensure_ascii=False) + "\r\n" for text in texts), encoding="utf-8")
    assert [row.values["t"] for rows in read_batches(str(path), ()) for row in rows] == texts


# --- as a process ----------------------------------------------------------------------------------------------------


def start(*arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "selfdistill.cli", *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, **options,
    )  # fmt: skip


@pytest.mark.parametrize("command", ["grade", "count-epistemic"])
def test_a_pipe_is_answered_before_it_ends(command):
    with start(command, "-", "--format", "json") as process:
        for number, row in enumerate(ROWS[:3], start=1):
            process.stdin.write(json.dumps(row) + "\n")
            process.stdin.flush()
            # This would wait for ever if records were held back until the input ends.
            assert json.loads(process.stdout.readline())["line"] == number
        process.stdin.close()
        assert json.loads(process.stdout.readline())["totals"]["records"] == 3
        assert process.wait() == 0


def test_a_bad_line_in_a_pipe_is_one_line_of_error_after_the_records_before_it():
    with start("grade", "-", "--format", "json") as process:
        process.stdin.write(lines(ROWS[:1]))
        process.stdin.flush()
        assert json.loads(process.stdout.readline())["outcome"] == "correct"
        out, err = process.communicate("nonsense\n")
        assert process.returncode == 2
        assert out == ""
        assert err.startswith("error: standard input: line 2 is not valid JSON") and err.count("\n") == 1


def test_a_reader_that_leaves_early_ends_the_command_quietly():
    with start("count-epistemic", "-", "--format", "json") as process:
        process.stdin.write(lines(ROWS[:1]))
        process.stdin.flush()
        process.stdout.readline()
        process.stdout.close()
        try:
            process.stdin.write(lines(ROWS * 100))
            process.stdin.close()
        except BrokenPipeError:
            pass
        assert "Traceback" not in process.stderr.read()


def test_memory_does_not_grow_with_the_input(tmp_path):
    """128 MB of records in a process that could not hold them twice."""
    path = tmp_path / "many.jsonl"
    row = json.dumps({"completion": "wait " * 200_000}) + "\n"
    with path.open("w") as file:
        file.writelines(row for _ in range(128))

    def limit():
        resource.setrlimit(resource.RLIMIT_DATA, (200 * 2**20, 200 * 2**20))

    with start("count-epistemic", str(path), preexec_fn=limit, env={**os.environ, "OMP_NUM_THREADS": "1"}) as process:
        out, err = process.communicate()
    assert process.returncode == 0, err
    assert "200,000" in out or "2e+05" in out


def ended(command: list[str], **options) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(command, capture_output=True, timeout=120, **options)


GRADE = [sys.executable, "-m", "selfdistill.cli", "grade"]


def test_records_before_a_broken_one_are_written_even_of_a_large_file(tmp_path):
    """All of these lines are in the first block that is read."""
    path = tmp_path / "rows.jsonl"
    path.write_text(lines(ROWS) + "{broken\n" + lines(ROWS))
    done = ended([*GRADE, path, "--format", "json"])
    assert done.returncode == 2
    assert [json.loads(line)["line"] for line in done.stdout.splitlines()] == [1, 2, 3, 4]
    assert b"line 5 is not valid JSON" in done.stderr


def test_a_record_without_its_field_comes_after_the_records_before_it(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(lines(ROWS[:2]) + '{"completion": "x"}\n')
    for command in ("grade", "count-epistemic"):
        field = ["--field", "answer"] if command == "count-epistemic" else []
        if field:
            path.write_text('{"answer": "a"}\n{"answer": "b"}\n{"completion": "x"}\n')
        done = ended([*GRADE[:-1], command, path, *field, "--format", "json"])
        assert [json.loads(line)["line"] for line in done.stdout.splitlines()] == [1, 2], done.stderr
        assert (done.returncode, b"line 3 has no `answer`" in done.stderr) == (2, True)


def test_csv_pretty_json_and_process_substitution_are_read(written):
    (written / "rows.csv").write_text(
        "completion,answer,tokens\n" + "".join(f'"{r["completion"]}",{r["answer"]},{r["tokens"]}\n' for r in ROWS)
    )
    (written / "pretty.json").write_text("\n".join(json.dumps(row, indent=2) for row in ROWS))
    (written / "array.json").write_text(json.dumps(ROWS, indent=2))
    for name in ("rows.csv", "pretty.json", "array.json"):
        records, _ = json_lines("grade", written / name)
        assert [record["outcome"] for record in records] == ["correct", "correct", "wrong", "unparsed"]
        script = f"{sys.executable} -m selfdistill.cli grade <(cat {written / name}) --format json"
        done = ended(["bash", "-c", script])
        assert json.loads(done.stdout.splitlines()[-1])["totals"]["correct"] == 2, done.stderr
    _, totals = json_lines("count-epistemic", written / "rows.csv", "--tokens-field", "tokens")
    assert measures(totals)["tokens, per completion"]["value"] == 25


def test_a_zst_file_that_was_cut_short_is_not_graded_as_if_whole(written):
    path = written / "rows.jsonl.zst"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(UserError, match="cannot be read"):
        run("grade", path)


def test_half_a_surrogate_pair_in_a_completion_reaches_csv(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"completion": "\\\\boxed{\\ud83d}", "answer": 5, "problem": "p"}\n')
    done = ended([*GRADE, path, "--format", "csv"])
    assert done.returncode == 0, done.stderr
    (row,) = csv.DictReader(io.StringIO(done.stdout.decode()))
    assert row["extracted"] == "�"


def test_csv_in_a_pipe_is_utf_8_and_tables_are_escaped_where_the_terminal_is_not(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"completion": "\\\\boxed{ℓ}", "answer": 5, "problem": "ℓ"}\n', encoding="utf-8")
    ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = ended([*GRADE, path, "--format", "csv"], env=ascii_only)
    assert done.returncode == 0, done.stderr
    assert "ℓ" in done.stdout.decode("utf-8")
    (tmp_path / "words.txt").write_text("ℓ\n", encoding="utf-8")
    command = [*GRADE[:-1], "count-epistemic", path, "--lexicon", tmp_path / "words.txt"]
    done = ended(command, env=ascii_only)
    assert (done.returncode, b"\\u2113, per completion" in done.stdout) == (0, True), done.stderr
