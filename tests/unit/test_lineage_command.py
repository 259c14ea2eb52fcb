"""selfdistill lineage: what a result was made from and what was made from it, for every way to name one."""

import csv
import html
import json
import shutil
import subprocess

import pytest
import yaml
from typer.testing import CliRunner

from selfdistill.artifacts.lineage import closure, descendants
from selfdistill.artifacts.store import all_artifacts, locate
from selfdistill.cli import app
from selfdistill.plan.made_views import record_view
from selfdistill.plan.workspace import plan_path, read_plan
from selfdistill.schema.errors import UserError
from tracking_project import COMMIT, CONFIG, fill, of_stage, plan

TABLE = "results/ood/tiny_grpo.csv"


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Two finished experiments, and the table of one of them as a view writes it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config").mkdir()
    (tmp_path / "config/config.yaml").write_text(yaml.safe_dump(CONFIG))
    plan()
    for artifact in all_artifacts():
        if not artifact.is_sealed:
            fill(artifact)
    rows = read_plan(plan_path("ood", "tiny_grpo"))["rows"]
    (tmp_path / TABLE).parent.mkdir()
    with (tmp_path / TABLE).open("w", newline="") as file:
        columns = ("seed", "train_artifact", "evaluate_artifact")
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return tmp_path


def lineage(*arguments: str) -> str:
    done = CliRunner().invoke(app, ["lineage", *arguments], catch_exceptions=False, env={"COLUMNS": "300"})
    assert done.exit_code == 0
    return done.output


def found(name: str) -> dict:
    return json.loads(lineage(name, "--json"))


def train():
    return next(a for a in of_stage("train") if "grpo" in a.slug)


def test_backwards_to_data_model_code_and_forwards_to_tables(project):
    everything, subject = all_artifacts(), train()
    record = found(subject.key)
    assert record["subjects"] == [subject.id]
    assert set(record["made_from"]) == {a.id for a in closure([subject])} - {subject.id}
    assert {id.split("/")[0] for id in record["made_from"]} >= {"dataset", "prompts", "pretrain"}
    assert set(record["made_into"]) == {a.id for a in descendants([subject], everything)}
    assert set(record["shown_in"]) == {TABLE}
    of_train = record["artifacts"][subject.id]
    assert of_train["spec"] == subject.frozen_spec and of_train["state"] == "sealed"
    assert of_train["code"]["commit"] == COMMIT and of_train["environment"]["host"] == "here"
    assert of_train["files"] == subject.manifest["files"]


def test_every_way_to_name_a_checkpoint_leads_to_its_training(project, tmp_path_factory):
    subject = train()
    checkpoint = subject.payload / "checkpoints/step-4"
    copy = tmp_path_factory.mktemp("elsewhere") / "copy"
    shutil.copytree(checkpoint, copy)
    paths = (checkpoint, checkpoint / "weights", subject.manifest_path, subject.metrics, checkpoint.resolve(), copy)
    for name in (subject.key, subject.id, subject.name, *map(str, paths)):
        assert found(name)["subjects"] == [subject.id], name


def test_a_cell_of_a_table_leads_to_its_own_artifacts(project):
    rows = list(csv.DictReader((project / TABLE).open()))
    for line, row in enumerate(rows, start=2):
        names = {found(f"{TABLE}:{line}")["artifacts"][i]["name"] for i in found(f"{TABLE}:{line}")["subjects"]}
        assert names == {row["train_artifact"], row["evaluate_artifact"]}
    assert len(found(TABLE)["subjects"]) > len(names)
    for name, problem in ((f"{TABLE}:1", "rows are lines 2 to"), (f"{TABLE}:99", "has no row in line 99")):
        with pytest.raises(UserError, match=problem):
            lineage(name)


def test_an_experiment_and_a_target_are_what_their_plan_names(project):
    planned = {a.rsplit("-", 1)[1] for a in read_plan(plan_path("ood", "tiny_sdpo"))["artifacts"]}
    for name in ("tiny_sdpo", "results/ood/tiny_sdpo.csv", "ood/tiny_sdpo"):
        assert {i.split("/")[1] for i in found(name)["subjects"]} == planned


def test_a_figure_leads_to_what_its_report_shows(project):
    plan, figure = plan_path("ood", "tiny_grpo"), project / "results/figures/report/tiny-main-1.svg"
    figure.parent.mkdir(parents=True)
    figure.write_text("<svg/>")
    record_view(plan, figure.relative_to(project))
    for name in ("results/figures/report/tiny-main-1.svg", str(figure)):
        assert len(found(name)["subjects"]) == len(read_plan(plan)["artifacts"])
    assert "results/figures/report/tiny-main-1.svg" in found(train().key)["shown_in"]


def test_the_tree_says_state_date_code_and_generator(project):
    shown = lineage(train().key)
    above, below = shown.split("Made from it")
    assert all(f"{a.name}  sealed  2026-01-02 03:05" in above for a in closure([train()]))
    assert "generated: count 4, families id, kind toy" in above and TABLE in below
    assert all(a.name in below for a in descendants([train()], all_artifacts()))
    assert f"Code: commit {COMMIT[:10]}" in below


@pytest.mark.parametrize("damage", ["missing", "changed"])
def test_what_is_gone_or_changed_is_an_item_and_no_error(project, damage):
    evaluation = next(a for a in of_stage("evaluate") if train().id in a.input_ids.values())
    dataset = locate(train().input_ids["problems" if "problems" in train().input_ids else "prompts"])
    if damage == "missing":
        shutil.rmtree(dataset)
    else:
        spec = dataset / "spec.json"
        spec.write_text(spec.read_text().replace('"version": ', '"version": 9'))
    states = {i: record["state"] for i, record in found(evaluation.key)["artifacts"].items()}
    assert states[f"{dataset.parent.name}/{dataset.name[-12:]}"] == {"missing": "missing", "changed": "damaged"}[damage]
    assert states[train().id] == "sealed"


def test_an_input_that_was_made_again_is_named(project):
    pretrain = of_stage("pretrain")[0]
    pretrain.unseal()
    fill(pretrain)
    record = found(train().key)["artifacts"][train().id]
    assert record["remade_inputs"] == []  # the same bytes again
    pretrain.unseal()
    (pretrain.payload / "model").mkdir(parents=True)
    (pretrain.payload / "model/config.json").write_text("other")
    pretrain.seal({})
    assert found(train().key)["artifacts"][train().id]["remade_inputs"] == ["model"]
    assert "remade since" in lineage(train().key)


def test_the_graph_has_every_artifact_and_every_edge(project):
    text = lineage(train().key, "--dot")
    around = [*closure([train()]), *descendants([train()], all_artifacts())]
    for artifact in around:
        assert f'"{artifact.id}" [label="{artifact.name}\\nsealed 2026-01-02 03:05"' in text
    shown = {a.id for a in around}
    edges = [(i, a.id) for a in around for i in a.input_ids.values() if i in shown]
    assert edges and all(f'"{source}" -> "{made}"' in text for source, made in edges)
    assert f'"{TABLE}"' in text


@pytest.mark.skipif(shutil.which("dot") is None, reason="needs Graphviz")
def test_the_graph_is_drawn_by_graphviz(project):
    svg = lineage(train().key, "--svg")
    assert svg.lstrip().startswith("<?xml") and train().name in html.unescape(svg)
    assert (
        subprocess.run(["dot", "-Tdot"], input=lineage(train().key, "--dot"), text=True, capture_output=True).stderr
        == ""
    )


def test_without_graphviz_svg_is_one_clear_line(project, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match="--svg needs the program `dot`: install Graphviz"):
        lineage(train().key, "--svg")


def test_names_that_lead_nowhere_are_one_line(project, tmp_path_factory):
    other = tmp_path_factory.mktemp("other") / "weights"
    other.write_text("of another project")
    for arguments, problem in (
        (("tiny_gpro",), "Did you mean `tiny_grpo`"),
        ((str(other),), "no finished artifact here contains a file with the content of"),
        (("results/artifacts",), "holds many artifacts"),
        ((train().key, "--json", "--dot"), "give only one of"),
    ):
        with pytest.raises(UserError, match=problem):
            lineage(*arguments)
