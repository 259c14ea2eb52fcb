# Problems, prompts and base models.


rule dataset:
    input:
        upstream("dataset"),
    output:
        artifact("dataset"),
    log:
        "logs/dataset/{run}.log",
    threads: cores("dataset")
    resources:
        **needs("dataset"),
    params:
        label=label("dataset"),
    message:
        "Load problems: {params.label}"
    shell:
        launch("dataset")


rule sample:
    input:
        upstream("sample"),
    output:
        artifact("sample"),
    log:
        "logs/sample/{run}.log",
    threads: cores("sample")
    resources:
        **needs("sample"),
    params:
        label=label("sample"),
    message:
        "Sample task coverage: {params.label}"
    shell:
        launch("sample")


rule prompts:
    input:
        upstream("prompts"),
    output:
        artifact("prompts"),
    log:
        "logs/prompts/{run}.log",
    threads: cores("prompts")
    resources:
        **needs("prompts"),
    params:
        label=label("prompts"),
    message:
        "Render prompts: {params.label}"
    shell:
        launch("prompts")


rule model:
    input:
        upstream("model"),
    output:
        artifact("model"),
    log:
        "logs/model/{run}.log",
    threads: cores("model")
    resources:
        **needs("model"),
    params:
        label=label("model"),
    message:
        "Link model files: {params.label}"
    shell:
        launch("model")


rule pretrain:
    input:
        upstream("pretrain"),
    output:
        artifact("pretrain"),
    log:
        "logs/pretrain/{run}.log",
    threads: cores("pretrain")
    resources:
        **needs("pretrain"),
    params:
        label=label("pretrain"),
    message:
        "Pretrain a base model: {params.label}"
    shell:
        launch("pretrain")
