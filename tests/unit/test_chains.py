"""Chain problems: one chain fits, dead ends pass their first check, and every written check is right."""

from __future__ import annotations

import itertools
import random
import re
from pathlib import Path

import pytest
import yaml

from selfdistill.epistemic import PAPER_WORDS
from selfdistill.plan.planner import Planner
from selfdistill.plan.settings import load_config, merge
from selfdistill.plan.views import plan_view
from selfdistill.schema.assets import read_assets
from selfdistill.schema.sources import ToySource
from selfdistill.schema.toy import ChainMixture
from selfdistill.toy.chain_text import ChainTextMaker, Search, _Knowledge
from selfdistill.toy.chains import CHAINS, Chain, complete, draw_chain
from selfdistill.toy.source import generate
from selfdistill.toy.tokenizer import END, build_tokenizer, vocabulary

STAGE = re.compile(r"mod (\d+) = r(\d+) : ((?:[A-H] \d+ ?)+)")
#: The problem of docs/toy.md 9: A and C pass the first check, only A goes on.
EXAMPLE = Chain("chain", (5, 7), (2, 1), ((7, 3, 2), (4, 8, 2, 9)), (0, 1))


def stages(question: str) -> list[tuple[int, int, list[int]]]:
    return [(int(m), int(r), [int(n) for n in re.findall(r"[A-H] (\d+)", listed)]) for m, r, listed in
            STAGE.findall(question)]  # fmt: skip


def fitting(question: str) -> list[tuple[int, ...]]:
    """Brute force, from the text of the question alone."""
    parts = stages(question)
    return [
        numbers
        for numbers in itertools.product(*(listed for _, _, listed in parts))
        if all(sum(numbers[: i + 1]) % modulus == residue for i, (modulus, residue, _) in enumerate(parts))
    ]


@pytest.mark.parametrize("family", CHAINS)
def test_one_chain_fits_and_some_numbers_pass_and_lead_nowhere(family):
    for row in generate(ToySource(families=[family], count=100, seed=2)):
        [chain] = fitting(row["question"])
        assert chain[-1] == int(row["answer"])
        modulus, residue, listed = stages(row["question"])[0]
        assert sum(number % modulus == residue for number in listed) == CHAINS[family].passing >= 2


def test_the_example_of_the_docs():
    assert EXAMPLE.question == "which mod 5 = r2 : A 7 B 3 C 2 now + mod 7 = r1 : D 4 E 8 F 2 G 9"
    assert complete(EXAMPLE) == [(0, 1)] and EXAMPLE.answer == 8
    words, answer = Search(EXAMPLE, _Knowledge(doubt=1.0), random.Random(0)).run()
    plain = re.sub(r"maybe|perhaps|might|alternatively", "?", " ".join(words))
    assert re.sub(r"hmm no|no wait|actually no", "x", plain) == (
        "? A 7 check r2 yes now 7 ? D 4 check 11 r4 x ? E 8 check 15 r1 yes so"
    )
    assert answer == 8


def test_a_dead_end_is_given_up_when_its_list_is_used_up():
    swapped = Chain("chain", (5, 7), (2, 1), ((2, 3, 7), (4, 8, 2, 9)), (2, 1))
    words, answer = Search(swapped, _Knowledge(doubt=1.0), random.Random(0)).run()
    said = re.sub(r"hmm no|no wait|actually no", "x", " ".join(words))
    said = re.sub(r"maybe|perhaps|might|alternatively", "?", said)
    assert re.sub(r"wait|actually", "back", said) == (
        "? A 2 check r2 yes now 2 ? D 4 check 6 r6 x ? E 8 check 10 r3 x ? F 2 check 4 r4 x ? G 9 check 11 r4 x back "
        "? B 3 check r3 x ? C 7 check r2 yes now 7 ? D 4 check 11 r4 x ? E 8 check 15 r1 yes so"
    )
    assert answer == 8


def test_without_doubt_nothing_is_checked():
    rng = random.Random(0)
    for _ in range(100):
        words, _ = Search(draw_chain("chain", rng), _Knowledge(doubt=0.0), rng).run()
        assert not set(words) & set(PAPER_WORDS)
        assert re.fullmatch(r"so [A-C] \d+ now \d+ so [D-G] \d+ so", " ".join(words))


@pytest.mark.parametrize(("doubt", "low", "high"), [(0.0, 0.20, 0.32), (0.75, 0.43, 0.56), (1.0, 1.0, 1.0)])
def test_accuracy_of_a_policy_that_makes_no_errors(doubt, low, high):
    """The numbers of docs/toy.md 9."""
    rng = random.Random(1)
    right = 0
    for _ in range(500):
        problem = draw_chain("chain", rng)
        right += Search(problem, _Knowledge(doubt), rng).run()[1] == problem.answer
    assert low <= right / 500 <= high


def texts(count: int, **mixture: float) -> list:
    maker = ChainTextMaker(ChainMixture(**mixture), lambda text: f"( {text} )", END, set(), random.Random(0))
    return [maker.draw() for _ in range(count)]


def test_every_text_is_in_the_vocabulary_and_every_check_in_it_is_right():
    known = set(vocabulary()) | {"(", ")"}
    checked = 0
    for text in texts(600):
        assert set(text.prompt.split()) | set(text.target.split()) <= known
        moduli = [modulus for modulus, _, _ in stages(text.prompt.partition(" correct solution ")[0])]
        for total, residue in re.findall(r"check (\d+) r(\d+)", text.target):
            assert int(residue) in {int(total) % modulus for modulus in moduli[1:]}
            checked += 1
        for number, residue in re.findall(r"[A-D] (\d+) check r(\d+)", text.target):
            assert int(number) % moduli[0] == int(residue)
            checked += 1
    assert checked > 2000


def test_with_a_solution_the_answer_is_right_and_doubt_is_rarer():
    found = texts(1500)

    def density(kind: str) -> float:
        words = [word for text in found if text.kind == kind for word in text.target.split()]
        return sum(word in PAPER_WORDS for word in words) / len(words)

    for text in found:
        if text.kind in ("full_solution", "answer_only"):
            [chain] = fitting(text.prompt.partition(" correct solution ")[0].removeprefix("( "))
            assert f"\\boxed{{ {chain[-1]} }}" in text.target
    assert density("full_solution") < 0.5 * density("search") < density("answer_only")


def test_full_solutions_are_followed_by_right_numbers_alone_where_the_mixture_says_so():
    for text in texts(300, textbook=0.0, with_solution=1.0, full_solution_direct=1.0):
        if text.kind == "full_solution":
            chain = fitting(text.prompt.partition(" correct solution ")[0].removeprefix("( "))[0]
            assert [int(n) for n in re.findall(r"(?:maybe|perhaps|might|so) [A-H] (\d+)", text.target)] == list(chain)


def test_evaluation_problems_are_in_no_text():
    excluded = {text.prompt for text in texts(200, textbook=1.0)}
    maker = ChainTextMaker(ChainMixture(textbook=1.0), str, END, excluded, random.Random(0))
    assert not excluded & {maker.draw().prompt for _ in range(200)}


def test_the_shipped_study_of_chains_can_be_planned():
    root = Path(__file__).resolve().parents[2]
    shipped, chains = (yaml.safe_load((root / "config" / name).read_text()) for name in ("config.yaml", "chains.yaml"))
    planner = Planner(load_config(merge(shipped, chains)), read_assets(root))
    plan = plan_view(planner, "report", "chains_toy")
    made = {node.stage: node for node in plan.nodes.values()}
    assert {"train", "evaluate", "epistemics", "rollouts", "diagnostics"} <= set(made)
    base = planner.model("toy_chains")
    assert {node.spec.source.seed for node in base.inputs.values()} == {1000}
    for experiment in ("chain_grpo", "chain_sdpo", "chain_sdpo_nothink", "chain_sft_guided", "chain_sft_unguided"):
        assert planner.experiments[experiment].seeds == (0, 1, 2)


def test_prompts_with_a_solution_fit_the_shipped_limits():
    tokenizer = build_tokenizer(512)
    assert max(len(tokenizer(f"{text.prompt} {text.target}")["input_ids"]) for text in texts(500)) < 512
