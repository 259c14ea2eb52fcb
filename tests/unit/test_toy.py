"""The toy world: its problems, its tokenizer, its pretraining text, its base model."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from selfdistill.prompts import chat, encode_chat
from selfdistill.schema.errors import UserError
from selfdistill.schema.sources import ToySource
from selfdistill.schema.stages import PretrainSpec
from selfdistill.schema.toy import ToyArchitecture, ToyMixture
from selfdistill.toy.mixture import REPROMPT, SwitchedTextMaker, Text, TextMaker, without_thought
from selfdistill.toy.problems import FAMILIES, Problem, draw
from selfdistill.toy.source import generate
from selfdistill.toy.tokenizer import END, EPISTEMIC_WORDS, START, build_tokenizer, vocabulary
from selfdistill.training.pretrain import IGNORED, build_model, encode, pretrain

QUESTION = re.compile(r"which (?:\+ (\d+) )?mod (\d+) = r(\d+) : ((?:[A-H] \d+ ?)+)$")
ANSWER = re.compile(r"<think> (.+) (\d+) </think> \\boxed\{ (\d+) \} <\|im_end\|>")


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(512)


def solutions(question: str) -> list[int]:
    """Brute force, from the question's text alone."""
    shift, modulus, residue, listed = QUESTION.fullmatch(question).groups()
    numbers = [int(number) for number in re.findall(r"[A-H] (\d+)", listed)]
    assert [line.split()[0] for line in re.findall(r"[A-H] \d+", listed)] == list("ABCDEFGH"[: len(numbers)])
    return [z for z in numbers if (z + int(shift or 0)) % int(modulus) == int(residue)]


@pytest.mark.parametrize("family", FAMILIES)
def test_exactly_one_candidate_satisfies_the_congruence_and_it_is_the_answer(family):
    for row in generate(ToySource(families=[family], count=200, seed=3)):
        assert solutions(row["question"]) == [int(row["answer"])]
        assert row["family"] == family and row["solution"] is None


def test_families_differ_as_described():
    text = {family: generate(ToySource(families=[family], count=100))[7]["question"] for family in FAMILIES}
    counts = {family: len(re.findall(r"[A-H] \d+", question)) for family, question in text.items()}
    assert counts == {"id": 4, "long": 8, "mod": 6, "sum": 5}
    assert [family for family, question in text.items() if "+" in question] == ["sum"]


def test_the_rows_of_a_family_do_not_depend_on_the_other_families():
    both = generate(ToySource(families=["mod", "long"], count=20))
    assert [row["family"] for row in both] == ["mod"] * 20 + ["long"] * 20
    assert both[20:] == generate(ToySource(families=["long"], count=20))


def test_questions_are_distinct_and_a_larger_count_keeps_the_first_rows():
    small, large = (generate(ToySource(families=["id"], count=count, seed=1)) for count in (50, 3000))
    assert len({row["question"] for row in large}) == 3000
    assert large[:50] == small
    assert generate(ToySource(families=["id"], count=50, seed=2)) != small


def test_problems_load_neither_torch_nor_transformers():
    code = "import sys, selfdistill.toy.source; print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


def test_every_problem_and_its_teacher_prompt_lie_in_the_vocabulary(tokenizer):
    for family in FAMILIES:
        for row in generate(ToySource(families=[family], count=300)):
            solution = REPROMPT.solution.format(
                successful_previous_attempt=f"<think> so 0 </think> \\boxed{{ {row['answer']} }}"
            )
            prompt = REPROMPT.frame.format(prompt=row["question"], solution=solution, feedback="")
            assert tokenizer.unk_token_id not in tokenizer(prompt)["input_ids"]


def test_an_unknown_word_is_detectable(tokenizer):
    assert tokenizer("which banana")["input_ids"][1] == tokenizer.unk_token_id


def test_the_vocabulary_holds_the_papers_ten_words_once_each():
    expected = {"wait", "hmm", "perhaps", "maybe", "actually", "alternatively", "seems", "might", "likely", "check"}
    assert set(EPISTEMIC_WORDS) == expected and len(EPISTEMIC_WORDS) == 10
    words = vocabulary()
    assert len(words) == len(set(words))
    # The paper counts substrings: no other word may hold one of the ten.
    assert [word for word in words if any(epistemic in word for epistemic in expected)] == list(EPISTEMIC_WORDS)


def test_the_chat_template_opens_the_assistants_turn(tokenizer):
    messages = [{"role": "user", "content": "which mod 7 = r0 : A 6 B 3 C 0 D 8"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == "<|im_start|> user which mod 7 = r0 : A 6 B 3 C 0 D 8 <|im_end|> <|im_start|> assistant"
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert ids == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert len(ids) == len(text.split())


def test_decoding_keeps_think_tags_and_box_and_drops_chat_tokens(tokenizer):
    text = f"{START} <think> maybe A 6 check r6 hmm no so 0 </think> \\boxed{{ 0 }} {END}"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == (
        "<think> maybe A 6 check r6 hmm no so 0 </think> \\boxed{ 0 }"
    )
    assert tokenizer.decode(ids) == text


def test_switching_thinking_off_is_refused(tokenizer):
    with pytest.raises(Exception, match="thinking"):
        tokenizer.apply_chat_template(
            [{"role": "user", "content": "which"}], add_generation_prompt=True, enable_thinking=False
        )


def texts(count: int, excluded: frozenset[str] = frozenset(), **mixture: float) -> list[Text]:
    maker = TextMaker(
        ToyMixture(**mixture), lambda content: f"user {content} assistant", END, excluded, random.Random(5)
    )
    return [maker.draw() for _ in range(count)]


def test_all_kinds_of_text_appear_in_the_asked_shares():
    made = texts(4000)
    kinds = ("textbook", "direct", "search", "full_solution", "answer_only")
    share = {kind: sum(text.kind == kind for text in made) / len(made) for kind in kinds}
    assert share["textbook"] == pytest.approx(0.35, abs=0.03)
    assert share["full_solution"] + share["answer_only"] == pytest.approx(0.25, abs=0.03)
    assert share["direct"] / (share["direct"] + share["search"]) == pytest.approx(0.4, abs=0.04)


def test_every_check_in_every_text_is_true():
    for text in texts(1500):
        shift, modulus, residue = re.search(r"which (?:\+ (\d+) )?mod (\d+) = r(\d+)", text.prompt).groups()
        shift = int(shift or 0)
        checks = re.findall(r"(\d+) check (?:(\d+) )?r(\d+) (?:hmm |actually )?(yes|no)", text.target)
        assert len(checks) == text.target.count("check")
        for number, total, found, verdict in checks:
            assert int(found) == (int(number) + shift) % int(modulus)
            assert (total == "") == (shift == 0) and total in ("", str(int(number) + shift))
            assert (verdict == "yes") == (found == residue)


def test_a_search_that_is_not_given_up_and_every_shown_solution_are_right():
    for text in texts(1500):
        if text.kind == "textbook":
            continue
        question = re.search(r"user (which .+?)(?: correct solution : (.+) now solve)? assistant", text.prompt)
        thought, in_thought, boxed = ANSWER.fullmatch(text.target).groups()
        assert in_thought == boxed
        right = solutions(question[1])
        if text.kind in ("full_solution", "answer_only"):
            assert int(re.search(r"\\boxed\{ (\d+) \}$", question[2])[1]) == right[0]
            assert ("<think>" in question[2]) == (text.kind == "full_solution")
        if text.kind in ("full_solution", "answer_only") or thought.endswith("yes so"):
            assert int(boxed) == right[0]


def test_excluded_questions_never_appear():
    excluded = frozenset(
        text.prompt.split("user ")[1].split(" assistant")[0] for text in texts(200, textbook=0, with_solution=0)
    )
    asked = {text.prompt for text in texts(200, excluded, textbook=0, with_solution=0)}
    assert len(excluded) > 150
    assert not any(question in prompt for question in excluded for prompt in asked)


def switched_texts(count: int, **off: float) -> list[Text]:
    chats = (lambda content: f"user {content} assistant", lambda content: f"user {content} assistant <think> </think>")
    mixture = ToyMixture(thinking_off=off, direct=0.1, textbook=0.2)
    maker = SwitchedTextMaker(mixture, *chats, END, frozenset(), random.Random(6))
    return [maker.draw() for _ in range(count)]


def test_what_a_completion_says_without_its_thought():
    thought = (
        "<think> maybe A 6 check r6 hmm no alternatively B 3 check r3 no wait perhaps C 0 check r0 yes so 0 </think>"
    )
    assert without_thought(f"{thought} \\boxed{{ 0 }} {END}") == (
        f"A 6 check r6 no B 3 check r3 no C 0 check r0 yes so 0 \\boxed{{ 0 }} {END}"
    )
    assert without_thought("<think> so 8 </think> \\boxed{ 8 }") == "so 8 \\boxed{ 8 }"


def test_texts_with_thinking_off_have_an_empty_block_before_them_and_no_word_of_doubt_but_check():
    asked = [text for text in switched_texts(4000, share=0.3, direct=0.8) if text.kind != "textbook"]
    off = [text for text in asked if text.prompt.endswith("<think> </think>")]
    assert len(off) / len(asked) == pytest.approx(0.3, abs=0.03)
    doubt = set(EPISTEMIC_WORDS) - {"check"} | {"<think>", "</think>"}
    assert not any(doubt & set(text.target.split()) for text in off)
    assert all(text.target.startswith("<think> ") for text in asked if text not in off)
    plain = [text for text in off if text.kind in ("direct", "search")]
    assert sum(text.kind == "direct" for text in plain) / len(plain) == pytest.approx(0.8, abs=0.04)
    # A prompt of either mode shows solutions of both modes.
    for mode in (off, [text for text in asked if text not in off]):
        shown = [
            "<think>" in text.prompt.removesuffix("<think> </think>") for text in mode if text.kind == "full_solution"
        ]
        assert sum(shown) / len(shown) == pytest.approx(0.7, abs=0.08)


def test_a_model_with_the_switch_is_asked_as_it_was_pretrained(tmp_path):
    spec = small_spec(mixture={"thinking_off": {}})
    pretrain(spec, set(), tmp_path / "model", lambda _: None)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    asked = {
        thinking: tokenizer.decode(encode_chat(tokenizer, chat("which mod 7", None), thinking))
        for thinking in (None, True, False)
    }
    assert asked[None] == asked[True] and asked[True].endswith("<|im_start|> assistant")
    assert asked[False] == asked[True] + " <think> </think>"


def test_only_the_answer_is_learned_and_targets_are_the_next_tokens(tokenizer):
    words = tokenizer.get_vocab()
    ids, targets = encode(Text("direct", "which mod 7", "<think> so 8", frozenset({2})), words)
    assert ids == [words[word] for word in ["which", "mod", "7", "<think>", "so"]]
    assert targets == [IGNORED, IGNORED, words["<think>"], words["so"], IGNORED]


def test_problem_text_follows_the_worlds_grammar():
    assert Problem("id", 7, 0, 0, (6, 3, 0, 8), 2).question == "which mod 7 = r0 : A 6 B 3 C 0 D 8"
    assert Problem("sum", 5, 1, 2, (0, 4), 1).question == "which + 2 mod 5 = r1 : A 0 B 4"
    assert draw("sum", random.Random(0)).shift in (1, 2, 3)


def small_spec(**changes) -> PretrainSpec:
    settings = {
        "architecture": {
            "hidden_size": 16,
            "layers": 1,
            "heads": 2,
            "kv_heads": 1,
            "head_dim": 8,
            "intermediate_size": 24,
        },
        "mixture": {},
        "seed": 0,
        "steps": 6,
        "batch_size": 8,
        "optimiser": {"learning_rate": 1e-2, "warmup_steps": 2, "schedule": "cosine"},
        "max_final_loss": 10.0,
    }
    return PretrainSpec.model_validate(settings | changes)


def test_pretraining_writes_an_ordinary_model_folder(tmp_path):
    reports = []
    summary = pretrain(small_spec(), set(), tmp_path / "model", reports.append)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert model.config.model_type == "qwen3" and model.config.vocab_size == len(tokenizer)
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == tokenizer.get_vocab()[END]
    assert tokenizer.apply_chat_template([{"role": "user", "content": "which"}], tokenize=False).startswith(START)
    assert reports[-1]["step"] == 6 and reports[-1]["running_loss"] == summary["final_loss"]
    assert sum(summary["texts"].values()) == 6 * 8 and summary["target_tokens"] > 0
    json.dumps(summary)


def test_the_same_seed_gives_the_same_weights_and_another_seed_does_not(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        pretrain(small_spec(seed=seed), set(), tmp_path / name, lambda _: None)
    weights = {name: (tmp_path / name / "model.safetensors").read_bytes() for name in "abc"}
    assert weights["a"] == weights["b"] != weights["c"]


def test_a_loss_above_the_gate_is_an_error_and_writes_nothing(tmp_path):
    with pytest.raises(UserError, match="max_final_loss"):
        pretrain(small_spec(max_final_loss=0.1), set(), tmp_path / "model", lambda _: None)
    assert not (tmp_path / "model").exists()


def test_the_first_loss_is_that_of_a_uniform_guess(tmp_path):
    reports = []
    pretrain(small_spec(steps=1), set(), tmp_path / "model", reports.append)
    assert reports[0]["loss"] == pytest.approx(torch.tensor(float(len(vocabulary()))).log().item(), abs=0.3)


def test_the_recommended_size_has_about_139_thousand_parameters(tokenizer):
    model = build_model(ToyArchitecture(), tokenizer)
    assert 130_000 < sum(parameter.numel() for parameter in model.parameters()) < 150_000
