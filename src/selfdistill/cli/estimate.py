"""estimate: whether a training run fits in GPU memory, before it starts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from selfdistill.cli.console import MACHINE, ConfigFile, console, in_project, show_table, workspace
from selfdistill.estimate import (
    GPUS,
    PUBLISHED,
    Dimensions,
    Plan,
    Workload,
    dimensions_of,
    engine_copy,
    fewest_gpus,
    largest_fraction,
    largest_micro_batch,
    plan_memory,
    state_copy,
    step_cost,
    step_time,
    suggestions,
    workload_of,
)
from selfdistill.files import read_json
from selfdistill.plan.experiments import get
from selfdistill.plan.runtime import merged_settings
from selfdistill.plan.workspace import Workspace
from selfdistill.schema.errors import UserError
from selfdistill.schema.runtime import Resources, Sharding
from selfdistill.schema.toy import ToyArchitecture

_FLOPS = (("PFLOP", 1e15), ("TFLOP", 1e12), ("GFLOP", 1e9))


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel=MACHINE)(in_project(estimate))


def estimate(
    experiment: Annotated[str, typer.Argument(help="Name of an experiment.")],
    gpus: Annotated[
        int | None, typer.Option(min=1, help="GPUs of all nodes, one process each (default: as in the runtime file).")
    ] = None,
    gpu_memory: Annotated[float | None, typer.Option(min=0.1, help="Memory of one GPU in GB (1e9 bytes).")] = None,
    gpu: Annotated[
        Literal["A100", "H100", "H200", "B200"] | None,
        typer.Option(help="Kind of GPU: its memory, and time of a step."),
    ] = None,
    sharding: Annotated[
        Sharding | None,
        typer.Option(
            help="full: FSDP, weights spread over the GPUs; hybrid: over those of each node "
            "(default: as in the runtime file)."
        ),
    ] = None,
    completion_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens of the longest completion; required for sft, whose data does not exist yet."),
    ] = None,
    configfile: ConfigFile = None,
) -> None:
    """Show what a training run keeps in the memory of each GPU, whether it fits, and which settings would help."""
    project = workspace(configfile)
    work, resources = _workload(project, experiment, gpus, sharding, completion_tokens)
    if gpu is not None and gpu_memory is None:
        gpu_memory = GPUS[gpu].memory / 1e9
    capacity = None if gpu_memory is None else round(gpu_memory * 1e9)
    plan = plan_memory(work, capacity)
    _show_parts(experiment, work, plan)
    if work.device == "cuda":
        _show_host_memory(work, resources)
    console.print()
    _show_verdict(plan, gpu_memory)
    _show_suggestions(work, plan)
    _show_work(work)
    if gpu is not None and work.device == "cuda":
        _show_time(work, gpu)
    if capacity is not None and work.device == "cuda":
        _show_recommendations(work, capacity)


def _workload(
    project: Workspace, name: str, gpus: int | None, sharding: str | None, completion_tokens: int | None
) -> tuple[Workload, Resources]:
    """Recipe, machine settings and sizes of an experiment, and what its job requests."""
    chosen = get(project.planner.experiments, name)
    spec = chosen.train_spec(chosen.seeds[0])
    if spec.on_policy is None and completion_tokens is None:
        raise UserError(f"experiment {name} trains on given completions. Say how long they are: --completion-tokens N.")
    runtime, resources = merged_settings(project.runtime, "train", project.planner.model(chosen.entry.model).slug)
    processes, sharding = gpus or runtime.processes * resources.nodes, sharding or runtime.sharding
    work = workload_of(
        spec,
        runtime if gpus is None else runtime.model_copy(update={"device": "cuda"}),
        _dimensions(project, chosen.entry.model),
        max_prompt_tokens=chosen.model.max_prompt_tokens,
        processes=processes,
        is_sharded=sharding != "none",
        copies=_copies(processes, runtime.processes, project.runtime.file) if sharding == "hybrid" else 1,
        completion_tokens=completion_tokens,
    )
    return work, resources


def _copies(processes: int, on_node: int, runtime_file: str) -> int:
    """Nodes of `on_node` processes. UserError where there is no whole number of them, or each has one process."""
    on_node = min(processes, on_node)
    if processes > 1 == on_node or processes % on_node:
        raise UserError(
            f"sharding: hybrid spreads the weights over the GPUs of a node. {runtime_file} has processes: {on_node} "
            f"for this training, of {processes} in all. Set processes to the GPUs of a node, and --gpus to a "
            "multiple of it."
        )
    return processes // on_node


def _dimensions(project: Workspace, model: str) -> Dimensions:
    """Sizes of a model: from its config.json if it is on this machine, else from the settings or the published ones."""
    entry, node = project.planner.config.models[model], project.planner.model(model)
    made = node.folder(project.root) / "payload" / "model" / "config.json"
    if made.is_file():
        return _read(made)
    if entry.pretrain is not None:
        return _toy_dimensions(entry.pretrain.architecture)
    from selfdistill.assets import Assets

    assets = Assets.here()
    place = assets.model_place(entry.asset)
    if place is not None and (place / "config.json").is_file():
        return _read(place / "config.json")
    known = assets.lock.assets.get(entry.asset)
    if known is not None and known.repo in PUBLISHED:
        return PUBLISHED[known.repo]
    raise UserError(
        f"model {model}: its config.json is not on this machine, and its sizes are not in the built-in table. "
        f"Run: selfdistill assets fetch {entry.asset}"
    )


def _read(path: Path) -> Dimensions:
    try:
        return dimensions_of(read_json(path), str(path))
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}") from None


def _toy_dimensions(made: ToyArchitecture) -> Dimensions:
    from selfdistill.toy.tokenizer import vocabulary

    return Dimensions(
        vocabulary=len(vocabulary()),
        hidden=made.hidden_size,
        layers=made.layers,
        heads=made.heads,
        kv_heads=made.kv_heads,
        head_dim=made.head_dim,
        intermediate=made.intermediate_size,
        is_tied=True,
        query_norm="head",
    )


def _show_parts(experiment: str, work: Workload, plan: Plan) -> None:
    unit = "GPU" if work.device == "cuda" else "process"
    layout = "all weights on each" if work.processes > 1 else "one process"
    if work.is_sharded:
        layout = "sharded" + (", a copy on each node" if work.copies > 1 else "")
    console.print(f"{experiment}: {work.processes} {unit}{'s' * (work.processes > 1)}, {layout}. Peak memory of each:")
    console.print()
    rows = [(part.name, part.phase, _gb(part.bytes), part.how) for part in plan.parts]
    rows += [("total at the start", "", _gb(plan.starting), "")]
    rows += [("total while sampling", "", _gb(plan.total("sampling")), "")] if work.engine != "none" else []
    rows += [("total while updating", "", _gb(plan.total("updating")), "")]
    show_table(("part", "while", "GB", "what"), rows)


def _show_host_memory(work: Workload, resources: Resources) -> None:
    held = {"the weights of the sleeping engine": engine_copy(work), "the copy of a resume state": state_copy(work)}
    told = [f"{_gb(count)} GB for {what}" for what, count in held.items() if count]
    if told:
        total = work.processes * sum(held.values())
        several = f"; {_gb(total)} GB for all {work.processes}" if work.processes > 1 else ""
        console.print(f"Main memory of each process: {', '.join(told)}, beside all else{several}.")
        if total > 1e6 * resources.mem_mb * resources.nodes:
            console.print(
                f"[bold]Too little main memory[/bold]: the job requests {resources.mem_mb / 1000:g} GB a node. Raise "
                "`mem_mb` of `resources` in the runtime file."
            )


def _show_verdict(plan: Plan, gpu_memory: float | None) -> None:
    if plan.fits is None:
        console.print(f"Peak: {_gb(plan.peak)} GB. Give --gpu-memory GB to see whether it fits.")
    elif plan.fits:
        console.print(f"[bold]Fits[/bold]: {_gb(plan.peak)} of {gpu_memory:g} GB.")
    elif plan.peak <= plan.capacity:
        console.print("[bold]Does not fit[/bold]: vLLM's engine has no room for one completion of full length.")
    else:
        console.print(f"[bold]Does not fit[/bold]: needs {_gb(plan.peak)} GB of {gpu_memory:g} GB.")


def _show_suggestions(work: Workload, plan: Plan) -> None:
    found = suggestions(work, plan.capacity)
    if not found:
        return
    verdicts = {None: "", True: "fits", False: "does not fit"}
    console.print("\nWhat single changes would do (settings of config/runtime.yaml change neither results nor keys):\n")
    show_table(
        ("change", "peak GB", "", "belongs to"),
        [(s.change, _gb(s.peak), verdicts[s.fits], "recipe" if s.changes_results else "machine") for s in found],
    )


def _show_work(work: Workload) -> None:
    cost = step_cost(work)
    unit, scale = next((unit, scale) for unit, scale in _FLOPS if cost.flops >= scale or scale == 1e9)
    sampling, teacher, student, total = (
        f"{flops / scale:,.0f}" if flops >= 100 * scale else f"{flops / scale:.3g}"
        for flops in (cost.sampling_flops, cost.teacher_flops, cost.student_flops, cost.flops)
    )
    console.print(
        f"\nOne step, at most: {cost.completions:,} completions, {cost.sampled_tokens:,} sampled tokens, "
        f"{cost.student_tokens:,} trained tokens, {cost.teacher_tokens:,} tokens read by the teacher; "
        f"{total} {unit} (sampling {sampling}, teacher {teacher}, student {student}).\n"
        "This assumes that every completion reaches the token limit; --completion-tokens N shows a shorter case. "
        "How long it takes depends on the FLOP/s that the machine reaches, which must be measured."
    )


def _show_time(work: Workload, name: str) -> None:
    """Time of a step by the roofline, with the memory fraction as set and with the largest that fits."""
    gpu = GPUS[name]
    best = replace(work, engine_fraction=largest_fraction(work, gpu.memory))
    console.print(f"\nOne step on {work.processes} x {name}, from published peaks and assumed shares of them:\n")
    rows = []
    for each in (work, best) if work.engine == "vllm" and best.engine_fraction > 0 else (work,):
        found = step_time(each, step_cost(each), gpu)
        minutes = [f"{s / 60:.1f}" for s in (found.sampling_seconds, found.teacher_seconds, found.student_seconds)]
        rows.append(
            (f"{each.engine_fraction:g}", f"{found.running:,}", f"{found.tokens_per_second:,.0f}", *minutes,
             f"{found.seconds / 60:.1f}", f"{work.steps * found.seconds / 3600:.1f}")
        )  # fmt: skip
    show_table(
        ("gpu_memory_fraction", "running", "tokens/s", "sampling min", "teacher min", "student min", "step min",
         f"{work.steps} steps h"), rows,
    )  # fmt: skip


def _show_recommendations(work: Workload, capacity: int) -> None:
    """The settings of the machine that suit GPUs of this memory."""
    console.print()
    fewest = fewest_gpus(work, capacity)
    console.print(
        "It fits on no number of GPUs up to 64 with these settings."
        if fewest is None
        else f"Fewest GPUs on which it fits with these settings: {fewest}{', sharding: full' if fewest > 1 else ''}."
    )
    if work.engine == "vllm" and (fraction := largest_fraction(work, capacity)) > 0:
        console.print(f"Largest gpu_memory_fraction that fits on {work.processes}: {fraction:g}.")
    if (tokens := largest_micro_batch(work, capacity)) > work.micro_batch_tokens:
        console.print(f"Larger micro-batches fit, and take fewer passes: micro_batch_tokens: {tokens}.")


def _gb(count: int) -> str:
    return f"{count / 1e9:.2f}" if count < 100e9 else f"{count / 1e9:.0f}"
