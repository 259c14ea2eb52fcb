"""The report in a real browser: two studies, two widths, light and dark.

`usual` is the small study of test_views with every section of a report; `crowded` has two base models, ten experiments
with long names, and different numbers of seeds.
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from browser import (
    NEEDS_BROWSER,
    SCREENS,
    broken_links,
    chromium,
    clipped_texts,
    columns_out_of_reach,
    open_all,
    opened,
    panels,
    texts_on_texts,
    wider_than_the_screen,
)
from selfdistill.views.__main__ import builder
from synthetic import CONFIG, Said, build_study, kind_of, seed_of

pytestmark = NEEDS_BROWSER
LONG = "tiny_model_with_a_long_name"
#: Chance of a right completion, usual tokens.
TRUTH = {"base": (0.45, 20), "grpo": (0.8, 40), "solution": (0.2, 9), "guided": (0.2, 9), "unguided": (0.7, 33)}


def said(artifact, step, family, row, sample) -> Said:
    """A completion as the methods would write it, the same in every run."""
    kind = kind_of(artifact)
    seed = seed_of(artifact) if artifact.stage == "evaluate" else None
    draw = random.Random(f"{kind} {seed} {step} {family} {row} {sample}")
    chance, tokens = TRUTH.get(kind, (0.45, 20))
    words = draw.choices(["wait", "maybe", "so", "then", "check", "\\boxed{1}"], k=max(tokens // 3, 1))
    is_cut = draw.random() < 0.05
    outcome = "unparsed" if is_cut else "correct" if draw.random() < chance else "wrong"
    return Said(outcome, " ".join(words), tokens + draw.randrange(-3, 4), "length" if is_cut else "eos")


def scalars(artifact, step) -> dict[str, float]:
    kind, draw = kind_of(artifact), random.Random(f"{artifact.key} {step}")
    if kind in ("guided", "unguided"):
        return {"loss": 1 / step}
    chance, tokens = TRUTH.get(kind, (0.45, 20))
    share = step / 12
    return {
        "reward_mean": 0.45 + (chance - 0.45) * share + 0.05 * draw.random(),
        "completion_tokens_mean": 20 + (tokens - 20) * share + draw.random(),
        "epistemic_count_mean": (20 + (tokens - 20) * share) / 9,
        "teacher_tokens": 100.0,
    }


def usual() -> dict:
    """Five methods, and every section that a report can have."""
    config = copy.deepcopy(CONFIG)
    drill = config["datasets"]["drill"]
    config["datasets"] |= {
        "exam": {"source": {"kind": "toy", "families": ["long", "mod", "sum"], "count": 8}},
        "home": {"source": drill["source"] | {"count": 12}},
    }
    config["benchmarks"]["home"] = {"dataset": "home", "domain": "in", "samples": 2, "chance": {"id": 0.25}}
    config["variants"] = {"brief": {"max_tokens": 4}}
    for name, entry in config["experiments"].items():
        entry |= {"benchmarks": ["home", "exam"], "seeds": [0, 1, 2], "evaluate": "all"}
        if name in ("tiny_grpo", "tiny_sdpo"):
            entry |= {"variants": ["brief"], "sweep": {"group_size": [2]}}
    config["diagnostics"] = {"tiny": {"experiments": ["tiny_grpo", "tiny_sdpo"], "benchmarks": ["exam"]}}
    config["cures"] = {"tiny": {"experiments": ["tiny_grpo", "tiny_sdpo", "tiny_sdpo_nothink"]}}
    config["report"] |= {name: ["tiny"] for name in ("forced", "diagnostics", "cures")}
    config["report"]["tuning"] = ["tiny_grpo", "tiny_sdpo"]
    config["report"]["compare"] = [["tiny_grpo", "tiny_sdpo"], ["tiny_sdpo:0:6", "tiny_sdpo:0"]]
    return config


def crowded() -> dict:
    """Seven experiments of two methods on one model and three on another, in their own words."""
    config = copy.deepcopy(CONFIG)
    config["datasets"]["exam"]["source"] |= {"families": ["long", "mod", "sum"], "count": 8}
    config["models"][LONG] = copy.deepcopy(config["models"]["tiny"])
    config["models"][LONG]["pretrain"]["steps"] = 3
    config["benchmarks"] = {"exam_of_problems_unlike_those": config["benchmarks"]["exam"]}
    common = {"dataset": "drill", "benchmarks": ["exam_of_problems_unlike_those"], "evaluate": "all"}
    experiments = {}
    for index in range(10):
        recipe = "grpo" if index % 3 == 0 else "sdpo"
        name = f"{recipe}_with_a_rather_long_name_and_setting_{index}"
        experiments[name] = common | {
            "model": "tiny" if index < 7 else LONG,
            "recipe": recipe,
            "seeds": [0, 1, 2] if index < 2 else [0],
            "overrides": {"optimiser": {"learning_rate": 1e-3 * (index + 1)}},
        }
    report = {"experiments": list(experiments), "richness": []}
    return {**config, "experiments": experiments, "richness": {}, "report": report}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module", params=[usual, crowded], ids=lambda study: study.__name__)
def report(request, tmp_path_factory) -> Path:
    """results/report.html of a study whose artifacts really lie beside it."""
    folder = tmp_path_factory.mktemp(request.param.__name__)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        plan = build_study("report", "report", said, scalars, request.param())
        page = folder / "results/report.html"
        page.write_text(builder("report")(json.loads(plan.read_text())), encoding="utf-8")
    return page


@pytest.mark.parametrize("width, scheme", SCREENS)
def test_the_report_holds_on_every_screen(browser, report, width, scheme):
    with opened(browser, report.as_uri(), width, scheme) as (page, complaints):
        assert wider_than_the_screen(page) == []
        assert open_all(page) > 5
        assert wider_than_the_screen(page) == []
        assert columns_out_of_reach(page) == []
        assert broken_links(page, report) == []
        assert page.evaluate("[...document.querySelectorAll('[id]')].length") == page.evaluate(
            "new Set([...document.querySelectorAll('[id]')].map(e => e.id)).size"
        )
        assert complaints == []


@pytest.mark.parametrize("width, scheme", SCREENS)
def test_every_figure_is_drawn_and_can_be_read(browser, report, width, scheme):
    with opened(browser, report.as_uri(), width, scheme) as (page, _):
        found = panels(page)
        assert len(found) > 10
        assert [p["title"] for p in found if not p["marks"]] == [], "panels without a mark"
        assert [p["fixed"] for p in found if p["fixed"]] == [], "colours that dark mode cannot change"
        assert [(p["title"], clipped_texts(p)) for p in found if clipped_texts(p)] == []
        assert [(p["title"], texts_on_texts(p)) for p in found if texts_on_texts(p)] == []


@pytest.mark.parametrize("report", [crowded], indirect=True)
def test_each_base_model_is_one_jump_away_and_seeds_are_counted(browser, report):
    with opened(browser, report.as_uri(), 1280, "light") as (page, _):
        for model in (LONG, "tiny"):
            page.get_by_role("navigation", name="Base models").get_by_role("link", name=model, exact=True).click()
            heading = page.locator(f"[id='{model}']")
            assert heading.text_content() == f"base model: {model}"
            assert 0 <= heading.bounding_box()["y"] < 900
            page.evaluate("scrollTo(0, 0)")
        captions = [caption for caption in page.locator("figcaption").all_text_contents() if "per problem" in caption]
        counts = ["1 to 3 training seeds" in c if i < len(captions) // 2 else " 1 training seed" in c
                  for i, c in enumerate(captions)]  # fmt: skip
        assert captions and all(counts)
