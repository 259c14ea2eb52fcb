"""The MLflow UI as it is installed, in a real browser, on a store that `selfdistill track` wrote.

The way that docs/mlflow.md describes, from the home page to a comparison and to a checkpoint. With
SELFDISTILL_SCREENSHOTS=1 the pages on the way are written to docs/images.
"""

from __future__ import annotations

import copy
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from playwright.sync_api import BrowserContext, Page, expect

from browser import NEEDS_BROWSER, chromium
from selfdistill.artifacts.store import Artifact, all_artifacts
from selfdistill.stages.shared.generate import describe
from selfdistill.tracking import track
from synthetic import CONFIG, build_study
from test_live_tracking import mlflow_server
from test_report_browser import said, scalars

pytestmark = NEEDS_BROWSER
IMAGES = Path(__file__).parents[2] / "docs/images"
#: Pages load data while they are shown; a loaded machine needs its time.
PATIENCE_MS = 60_000
expect.set_options(timeout=PATIENCE_MS)


def config() -> dict:
    """toy_grpo and toy_sdpo, two seeds each, on one benchmark."""
    found = copy.deepcopy(CONFIG)
    found["datasets"]["exam"]["source"]["count"] = 8
    found["benchmarks"] = {"toy_ood": found["benchmarks"]["exam"]}
    found["models"] = {"toy": found["models"]["tiny"]}
    common = {"model": "toy", "dataset": "drill", "seeds": [0, 1], "benchmarks": ["toy_ood"], "evaluate": "all"}
    found["experiments"] = {f"toy_{recipe}": common | {"recipe": recipe} for recipe in ("grpo", "sdpo")}
    return found | {"richness": {}, "report": {"experiments": ["toy_grpo", "toy_sdpo"]}}


def summary(artifact: Artifact) -> dict:
    """Of evaluations and counts of words, as the stages write them."""
    if artifact.stage == "evaluate":
        return {f"step-{step}": found for step, found in describe(artifact.payload / "rollouts.parquet").items()}
    if artifact.stage == "epistemics":
        counts = pd.read_parquet(artifact.payload / "counts.parquet").groupby("step")["substring_total"].mean()
        return {f"step-{step}": {"epistemic_count": float(mean)} for step, mean in counts.items()}
    return {}


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    """The folder of a store, written from a small study whose runs took twelve minutes."""
    folder = tmp_path_factory.mktemp("ui")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setattr("synthetic._summary", summary)
        build_study("report", "report", said, scalars, config())
        for artifact in all_artifacts():
            path = artifact.folder / "provenance.json"
            attempts = json.loads(path.read_text())["attempts"]
            path.write_text(json.dumps({"attempts": [{**attempts[0], "finished": "2026-01-02T03:16:05+00:00"}]}))
        track(say=lambda _: None)
    return folder / "results/mlflow"


@pytest.fixture(scope="module")
def address(store) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with mlflow_server(port, store, "mlflow.db") as uri:
        yield uri


@pytest.fixture(scope="module")
def context() -> Iterator[BrowserContext]:
    with chromium() as browser:
        found = browser.new_context(viewport={"width": 1300, "height": 620})
        found.set_default_timeout(PATIENCE_MS)
        yield found


def keep(page: Page, name: str) -> None:
    """Write a screenshot for the docs, if asked to."""
    if os.environ.get("SELFDISTILL_SCREENSHOTS"):
        page.wait_for_timeout(1500)  # animations end
        page.screenshot(path=IMAGES / f"mlflow-{name}.png")


@pytest.fixture(scope="module")
def training(address, context) -> Page:
    """From the home page to the training runs, by clicks alone."""
    page = context.new_page()
    page.goto(address, wait_until="commit")
    page.get_by_text("Model training", exact=True).click()
    expect(page.get_by_role("link", name="selfdistill training")).to_be_visible()
    page.locator("[data-component-id='mlflow.assistant.chat_panel.close']").click()
    page.get_by_role("link", name="selfdistill training").scroll_into_view_if_needed()
    keep(page, "home")
    page.get_by_role("link", name="selfdistill training").click()
    expect(page.get_by_role("link", name="Methods, seeds and scores side by side")).to_be_visible()
    return page


@pytest.fixture(scope="module")
def methods(training, context) -> Page:
    """The prepared view, in the tab that its link opens."""
    with context.expect_page() as opened:
        training.get_by_role("link", name="Methods, seeds and scores side by side").click()
    return opened.value


def test_a_link_of_the_experiment_shows_methods_seeds_and_scores(methods):
    for name in ("toy", *(f"toy_{method} seed {seed}" for method in ("grpo", "sdpo") for seed in (0, 1))):
        expect(methods.get_by_role("link", name=name, exact=True)).to_be_visible()
    for column in ("method", "seed", "toy_ood/avg_at_k", "toy_ood/mean_length"):
        expect(methods.get_by_role("columnheader", name=column).first).to_be_visible()
    keep(methods, "runs")


def test_two_methods_are_compared_in_three_clicks(methods):
    for name in ("toy_grpo seed 0", "toy_sdpo seed 0"):
        methods.get_by_role("row").filter(has_text=name).get_by_role("checkbox").first.click()
    methods.get_by_role("button", name="Compare", exact=True).click()
    expect(methods.get_by_role("heading", name="Comparing 2 Runs from 1 Experiment")).to_be_visible()
    main = methods.locator("main")
    for shown in ("toy_grpo seed 0", "toy_sdpo seed 0", "method.context", "toy_ood/avg_at_k"):
        expect(main).to_contain_text(shown)
    methods.get_by_text("toy_ood/avg_at_k").last.scroll_into_view_if_needed()
    keep(methods, "compare")


def test_the_page_of_a_checkpoint_shows_parent_data_and_scores(training, store):
    """The scores are those of the completions themselves."""
    artifacts = store.parent / "artifacts"
    (trained,) = artifacts.glob("train/toy-id-4-sdpo-solution-seed0-*")
    (evaluated,) = artifacts.glob("evaluate/*sdpo-solution-seed0*")
    key, train = trained.name.rpartition("-")[2], Artifact.open(trained)
    rollouts = pd.read_parquet(evaluated / "payload/rollouts.parquet").query("step == 12")
    training.get_by_role("link", name="Models", exact=True).click()
    training.get_by_role("link", name="toy-id-4-sdpo-solution-seed0-step-12", exact=True).click()
    main = training.locator("main")
    expect(main).to_contain_text("Parameters (13)")
    lines = main.inner_text().splitlines()
    following = dict(zip(lines, lines[1:], strict=False))
    assert following["parent"] == f"train/{key}@6"
    assert following["artifact"] == f"train/{key}"
    assert following["base_model"] == train.input_ids["model"]
    assert following["dataset"].startswith("dataset/")
    assert following["Source run"] == "toy_sdpo seed 0"
    for name, value in (("avg_at_k", rollouts["outcome"].eq("correct").mean()),
                        ("mean_length", rollouts["completion_tokens"].mean())):  # fmt: skip
        about = lines[lines.index(name) :][:4]
        assert about[1].startswith("long-mod-8"), "the data it was measured on"
        assert float(about[3]) == pytest.approx(value, rel=1e-6)
    training.get_by_role("heading", name="Metrics (4)").scroll_into_view_if_needed()
    keep(training, "checkpoint")
