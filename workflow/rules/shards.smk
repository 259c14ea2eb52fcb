# Rollouts and evaluations that config/runtime.yaml spreads over several cluster jobs: one job for each shard of the
# prompts. The rule of the stage itself then joins the shards. Their number is not part of any identity.


rule rollouts_shard:
    input:
        upstream("rollouts"),
    output:
        shard_marker("rollouts"),
    log:
        "logs/rollouts/{run}.{shard}.log",
    threads: cores("rollouts")
    resources:
        **needs("rollouts"),
    params:
        label=label("rollouts"),
    message:
        "Sample rollouts, shard {wildcards.shard}: {params.label}"
    shell:
        launch("rollouts", is_shard=True)


rule evaluate_shard:
    input:
        upstream("evaluate"),
    output:
        shard_marker("evaluate"),
    log:
        "logs/evaluate/{run}.{shard}.log",
    threads: cores("evaluate")
    resources:
        **needs("evaluate"),
    params:
        label=label("evaluate"),
    message:
        "Evaluate, shard {wildcards.shard}: {params.label}"
    shell:
        launch("evaluate", is_shard=True)
