"""Lineage: the same answers for planned nodes and for artifacts on disk; records of attempts, whole and damaged."""

import json
import re
import shutil
from dataclasses import dataclass, field

import pytest
import yaml
from typer.testing import CliRunner

from selfdistill.artifacts.lineage import (
    base_model,
    base_slug,
    closure,
    current_attempts,
    descendants,
    last_attempt,
    provenance_path,
    read_attempts,
    trained_model,
)
from selfdistill.artifacts.store import Artifact, all_artifacts, freeze
from selfdistill.cli import app
from selfdistill.plan.views import plan_view, view_names
from selfdistill.plan.workspace import Workspace
from selfdistill.schema.errors import UserError


@pytest.fixture(scope="module")
def plans(project_root):
    """The plans of all views about the toy world."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project_root)
        planner = Workspace(yaml.safe_load((project_root / "config/config.yaml").read_text())).planner
        named = [(view, name) for view, names in view_names(planner).items() for name in names if "toy" in name]
        return [plan_view(planner, view, name) for view, name in named]


@pytest.fixture(scope="module")
def nodes(plans):
    return list(closure(node for plan in plans for node in plan.nodes.values()))


@pytest.fixture(scope="module")
def root(nodes, tmp_path_factory):
    """The same study on disk, nothing of it computed yet."""
    root = tmp_path_factory.mktemp("artifacts")
    for node in nodes:
        freeze(node.folder(root), node.frozen_spec)
    return root


def test_the_closure_is_upstream_first_and_has_everything_once(nodes):
    place = {node.id: index for index, node in enumerate(nodes)}
    assert len(place) == len(nodes) > 50
    assert all(place[upstream] < place[node.id] for node in nodes for upstream in node.input_ids.values())


def test_plan_and_disk_agree_on_closure_base_model_and_training_run(nodes, root):
    for node in nodes:
        artifact = Artifact.open(node.folder(root))
        assert {a.id for a in closure([artifact])} == {n.id for n in closure([node])}
        assert base_slug(artifact) == base_slug(node)
        trained, planned = trained_model(artifact), trained_model(node)
        assert (trained and trained.id) == (planned and planned.id)


def test_every_artifact_about_a_model_leads_to_the_one_base_model(nodes):
    for node in nodes:
        is_data = node.stage in ("dataset", "sample")
        assert (base_model(node) is None) == is_data
        assert base_slug(node) == ("" if is_data else "toy")
        if node.stage == "evaluate":
            trained = node.inputs["model"]
            assert trained_model(node) is (trained if trained.stage == "train" else None)


def test_descendants_are_those_in_whose_closure_an_artifact_lies(nodes, root):
    everything = all_artifacts(root)
    upstream = {a.id: {b.id for b in closure([a])} for a in everything}
    for artifact in everything[::5]:
        expected = {a.id for a in everything if artifact.id in upstream[a.id]} - {artifact.id}
        assert {a.id for a in descendants([artifact], everything)} == expected
    assert {n.id for n in descendants([nodes[0]], nodes)} == {
        n.id for n in nodes if nodes[0].id in {m.id for m in closure([n])} and n is not nodes[0]
    }


def test_a_missing_folder_upstream_is_a_clear_error(tmp_path, nodes):
    evaluation = next(node for node in nodes if node.stage == "evaluate")
    freeze(evaluation.folder(tmp_path), evaluation.frozen_spec)
    with pytest.raises(UserError, match="does not exist under"):
        base_slug(Artifact.open(evaluation.folder(tmp_path)))


@dataclass
class Known:
    """An item some of whose inputs nothing is known of, as in a survey."""

    id: str
    input_ids: dict[str, str]
    others: dict[str, "Known"] = field(default_factory=dict)

    @property
    def stage(self):
        return self.id.split("/")[0]

    def upstream(self, role):
        return self.others.get(self.input_ids[role])


def test_a_path_that_ends_is_not_continued_along_another_role():
    base = Known("model/b", {})
    prompts = Known("prompts/p", {"model": base.id}, {base.id: base})
    ids = {"model": "train/gone", "prompts": prompts.id}
    evaluation = Known("evaluate/e", ids, {prompts.id: prompts})
    assert base_model(evaluation) is None  # The base model of its prompts is not the model that was evaluated.
    assert [item.id for item in closure([evaluation])] == [base.id, prompts.id, evaluation.id]


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"attempts": null}', '{"attempts": [1]}', "\xff"])
def test_a_damaged_record_of_attempts_counts_as_none(tmp_path, text):
    path = tmp_path / "provenance.json"
    path.write_bytes(text.encode("latin-1"))
    assert read_attempts(path) == [] and last_attempt(tmp_path) == {}
    path.unlink()
    assert read_attempts(path) == [] and last_attempt(tmp_path) == {}


def test_attempts_at_the_present_result_follow_the_last_earlier_seal(tmp_path):
    made = [{"n": 0}, {"n": 1, "sealed": True}, {"n": 2}, {"n": 3, "sealed": True}]
    (tmp_path / "provenance.json").write_text(json.dumps({"attempts": made}))
    assert last_attempt(tmp_path)["n"] == 3
    assert [a["n"] for a in current_attempts(read_attempts(provenance_path(tmp_path)))] == [2, 3]
    assert [a["n"] for a in current_attempts(made[:2])] == [0, 1]


@pytest.mark.parametrize("record", ['{"attempts": null}', '{"attempts": [{}]}', "{"])
def test_a_damaged_record_of_a_finished_artifact_means_one_shard(tmp_path, nodes, record):
    node = next(node for node in nodes if node.stage == "rollouts")
    folder = node.folder(tmp_path)
    freeze(folder, node.frozen_spec)
    (folder / "manifest.json").write_text("{}")
    (folder / "provenance.json").write_text(record)
    assert Workspace({}, root=tmp_path).shards("rollouts", folder.name) == 1


def test_where_lists_what_an_artifact_was_made_from(nodes, project_root, tmp_path, monkeypatch):
    shutil.copytree(project_root / "config", tmp_path / "config")
    monkeypatch.chdir(tmp_path)
    evaluation = next(node for node in nodes if node.stage == "evaluate" and node.inputs["model"].stage == "train")
    behind = list(closure([evaluation]))
    for node in behind:
        freeze(node.folder(), node.frozen_spec)
    for name in (evaluation.key, evaluation.id, evaluation.name, str(evaluation.folder() / "manifest.json")):
        done = CliRunner().invoke(app, ["where", name], catch_exceptions=False, env={"COLUMNS": "300"})
        assert re.findall(r"results/artifacts/(\S+)", done.output) == [node.name for node in behind]
