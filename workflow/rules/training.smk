# GRPO, SDPO and SFT: one rule, one engine.


rule train:
    input:
        upstream("train"),
    output:
        artifact("train"),
    log:
        "logs/train/{run}.log",
    threads: cores("train")
    resources:
        **needs("train"),
    params:
        label=label("train"),
    message:
        "Train {params.label}"
    shell:
        launch("train")
