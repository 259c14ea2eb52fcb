# Uncertainty words, and the tables of the paper.


rule epistemics:
    input:
        upstream("epistemics"),
    output:
        artifact("epistemics"),
    log:
        "logs/epistemics/{run}.log",
    threads: cores("epistemics")
    resources:
        **needs("epistemics"),
    params:
        label=label("epistemics"),
    message:
        "Count uncertainty words: {params.label}"
    shell:
        launch("epistemics")


rule ood_table:
    input:
        **behind("ood"),
    output:
        "results/ood/{name}.csv",
    log:
        "logs/views/ood-{name}.log",
    localrule: True
    params:
        digest=digest("ood"),
    message:
        "Table results/ood/{wildcards.name}.csv"
    shell:
        make_view("ood")


rule epistemic_table:
    input:
        **behind("epistemic"),
    output:
        "results/epistemic/{name}.csv",
    log:
        "logs/views/epistemic-{name}.log",
    localrule: True
    params:
        digest=digest("epistemic"),
    message:
        "Table results/epistemic/{wildcards.name}.csv"
    shell:
        make_view("epistemic")


rule curves_table:
    input:
        **behind("curves"),
    output:
        "results/curves/{name}.csv",
    log:
        "logs/views/curves-{name}.log",
    localrule: True
    params:
        digest=digest("curves"),
    message:
        "Table results/curves/{wildcards.name}.csv"
    shell:
        make_view("curves")


rule richness_table:
    input:
        **behind("richness"),
    output:
        "results/richness/{name}.csv",
    log:
        "logs/views/richness-{name}.log",
    localrule: True
    params:
        digest=digest("richness"),
    message:
        "Table results/richness/{wildcards.name}.csv"
    shell:
        make_view("richness")


rule sft_table:
    input:
        **behind("sft"),
    output:
        "results/sft/{name}.csv",
    log:
        "logs/views/sft-{name}.log",
    localrule: True
    params:
        digest=digest("sft"),
    message:
        "Table results/sft/{wildcards.name}.csv"
    shell:
        make_view("sft")


rule coverage_table:
    input:
        **behind("coverage"),
    output:
        "results/coverage/{name}.csv",
    log:
        "logs/views/coverage-{name}.log",
    localrule: True
    params:
        digest=digest("coverage"),
    message:
        "Table results/coverage/{wildcards.name}.csv"
    shell:
        make_view("coverage")
