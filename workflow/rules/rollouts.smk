# Completions of base models, and the data derived from them.


rule rollouts:
    input:
        upstream("rollouts"),
        shards("rollouts"),
    output:
        artifact("rollouts"),
    log:
        "logs/rollouts/{run}.log",
    threads: cores("rollouts")
    resources:
        **needs("rollouts"),
    params:
        label=label("rollouts"),
    message:
        "Sample rollouts: {params.label}"
    shell:
        launch("rollouts")


rule select:
    input:
        upstream("select"),
    output:
        artifact("select"),
    log:
        "logs/select/{run}.log",
    threads: cores("select")
    resources:
        **needs("select"),
    params:
        label=label("select"),
    message:
        "Select problems by solve rate: {params.label}"
    shell:
        launch("select")


rule contexts:
    input:
        upstream("contexts"),
    output:
        artifact("contexts"),
    log:
        "logs/contexts/{run}.log",
    threads: cores("contexts")
    resources:
        **needs("contexts"),
    params:
        label=label("contexts"),
    message:
        "Build teacher contexts: {params.label}"
    shell:
        launch("contexts")


rule sft_data:
    input:
        upstream("sft_data"),
    output:
        artifact("sft_data"),
    log:
        "logs/sft_data/{run}.log",
    threads: cores("sft_data")
    resources:
        **needs("sft_data"),
    params:
        label=label("sft_data"),
    message:
        "Pair SFT completions: {params.label}"
    shell:
        launch("sft_data")
