"""Examples that `selfdistill COMMAND --help` ends with, by command; a test parses each of them."""

from __future__ import annotations

import typer

EXAMPLES: dict[str, tuple[str, ...]] = {
    "where": ("where toy_sdpo", "where results/ood/toy_sdpo.csv"),
    "explain": ("explain toy_sdpo", "explain toy_sdpo --configfile config/mine.yaml"),
    "status": ("status",),
    "lineage": ("lineage results/ood/toy_sdpo.csv:3", "lineage 0123456789ab --json"),
    "reproduce": ("reproduce train/0123456789ab", "reproduce toy_sdpo --scratch /tmp/again --present-code"),
    "export": ("export toy_sdpo study.tar.zst", "export toy_sdpo small.tar.zst --without-weights --without-rollouts"),
    "import": ("import study.tar.zst",),
    "push": ("push train/0123456789ab OWNER/toy-sdpo --step 60", "push rollouts/0123456789ab OWNER/rollouts"),
    "show": ("show toy_sdpo --which changed", "show toy_sdpo --diff toy_grpo --limit 3"),
    "compare": ("compare toy_grpo toy_sdpo", "compare toy_sdpo:0:50 toy_sdpo:0:100 --json"),
    "verify": ("verify", "verify train/0123456789ab"),
    "discard": ("discard 0123456789ab", "discard 0123456789ab --yes"),
    "gc": ("gc", "gc --older-than 30 --yes"),
    "undo": ("undo", "undo --list"),
    "pin": ('pin toy_sdpo --reason "table 2 of the paper"', "pin"),
    "unpin": ("unpin 0123456789ab",),
    "lock": ("lock", 'lock train --same-results --reason "log line"'),
    "track": ("track", "track --all"),
    "register": ("register 0123456789ab toy-sdpo --alias best",),
    "contamination": ("contamination train.jsonl test.parquet --question prompt.0.content", "contamination toy_id"),
    "count-epistemic": ("count-epistemic completions.jsonl", "count-epistemic completions.jsonl --mode word"),
    "grade": (
        "grade completions.jsonl",
        "grade completions.jsonl --gold-field reward_model.ground_truth --format csv",
        "grade completions.jsonl --function my_rewards:brief",
    ),
    "doctor": ("doctor", "doctor --resources toy_sdpo"),
    "estimate": ("estimate qwen3_sdpo", "estimate qwen3_grpo --gpus 8 --gpu-memory 80 --sharding full"),
    "assets fetch": ("assets fetch smollm2",),
    "assets check": ("assets check",),
    "assets add": ("assets add mine problems.jsonl", "assets add other --hub OWNER/NAME --revision COMMIT"),
}


def add_to(app: typer.Typer, group: str = "") -> None:
    """Give every registered command that has examples an epilogue that shows them."""
    for command in app.registered_commands:
        name = group + (command.name or command.callback.__name__)
        if name in EXAMPLES:
            command.epilog = "\n\n".join(["Examples:", *(f"selfdistill {example}" for example in EXAMPLES[name])])
    for entry in app.registered_groups:
        add_to(entry.typer_instance, f"{entry.name} ")
