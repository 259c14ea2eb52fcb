"""A reward of one's own as docs/configuration.md 13 shows it: trained with, and evaluated by."""

from __future__ import annotations

import pandas as pd

from workflow_helpers import shown_files

TABLE = "results/ood/mine_brief.csv"
OVERLAY = "config/brief.yaml"


def test_a_reward_of_ones_own_trains_and_grades(project, project_root, stages_computed):
    files = dict(shown_files(project_root / "docs/configuration.md", section=13))
    assert set(files) == {"my_rewards.py", OVERLAY}
    for name, text in files.items():
        (project.root / name).write_text(text)
    run = ("--configfile", OVERLAY, "--", TABLE)
    project.run(*run)
    done = stages_computed()
    assert (done["train"], done["evaluate"]) == (1, 2)
    assert len(pd.read_csv(project.root / TABLE)) > 0
    trained = next(a for a in project.artifacts("train") if "my_rewards" in (a / "spec.json").read_text())
    rows = pd.concat(pd.read_parquet(path) for path in (trained / "payload/rollouts").glob("*.parquet"))
    is_boxed = rows["completion"].str.contains(r"\\boxed\{[^{}]*\}")
    is_cut = rows["stop_reason"] == "length"
    assert (rows["outcome"][~is_boxed & ~is_cut] == "unparsed").all()
    right = rows[rows["outcome"] == "correct"]
    words = right["completion"].str.split().str.len()
    assert len(right) and ((right["reward"] - (1 - words / 1000)).abs() < 1e-9).all()

    own = project.root / "my_rewards.py"
    own.write_text(own.read_text().replace("/ 1000", "/ 500"))
    assert "on_policy.grader.code" in project.cli("explain", "mine_brief", "--configfile", OVERLAY)
    (project.root / "my_rewards.py").write_text("def brief(completion): return True\n")
    output = project.run(*run, expect=2)
    assert "brief must take (completion, answer), or (completion, answer, question)" in output
    assert "Traceback" not in output
