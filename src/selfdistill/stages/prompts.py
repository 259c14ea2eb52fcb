"""Problems as chat prompts: wording, chat template, token ids, length filter.

The system message of a problem, if any, replaces that of the model.
"""

from __future__ import annotations

import json
from typing import Any

from selfdistill.artifacts.tables import prompt_columns, read_rows, write_rows
from selfdistill.generation.loading import load_tokenizer
from selfdistill.prompts import chat, encode_chat, render_question
from selfdistill.run.job import Job
from selfdistill.schema.errors import UserError
from selfdistill.schema.stages import PromptsSpec
from selfdistill.stages.shared.models import model_folder


def main(job: Job) -> dict[str, Any]:
    spec = job.artifact.spec(PromptsSpec)
    tokenizer = load_tokenizer(model_folder(job.artifact.input("model")))
    problems = read_rows(job.artifact.input("problems").payload / "problems.parquet")
    unknown_id = unknown_token_id(tokenizer)
    prompts, too_long, unknown = [], 0, 0
    for problem in problems:
        system = problem.get("system") or spec.system
        messages = chat(render_question(spec.question_template, problem["question"]), system, spec.examples)
        ids = encode_chat(tokenizer, messages, spec.thinking)
        too_long += len(ids) > spec.max_prompt_tokens
        unknown += unknown_id is not None and unknown_id in ids
        if len(ids) <= spec.max_prompt_tokens:
            prompts.append({**problem, "messages": json.dumps(messages, ensure_ascii=False), "prompt_ids": ids})
    if not prompts:
        raise UserError(f"max_prompt_tokens: all {len(problems)} prompts are longer than {spec.max_prompt_tokens}.")
    if unknown:
        raise UserError(f"{unknown} of {len(problems)} prompts contain words that the tokenizer does not know.")
    write_rows(job.artifact.payload / "prompts.parquet", prompts, prompt_columns(prompts))
    lengths = [len(p["prompt_ids"]) for p in prompts]
    return {"prompts": len(prompts), "dropped": {"too long": too_long}, "longest_prompt_tokens": max(lengths)}


def unknown_token_id(tokenizer: Any) -> int | None:
    """The token of unknown words; None where it has another role, too, in which every prompt may hold it."""
    roles = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
    return None if tokenizer.unk_token_id in roles else tokenizer.unk_token_id
