# Epistemic words, and the tables of the paper.


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
        "Count epistemic words: {params.label}"
    shell:
        launch("epistemics")


rule diagnostics:
    input:
        upstream("diagnostics"),
    output:
        artifact("diagnostics"),
    log:
        "logs/diagnostics/{run}.log",
    threads: cores("diagnostics")
    resources:
        **needs("diagnostics"),
    params:
        label=label("diagnostics"),
    message:
        "Measure tokens of stored completions: {params.label}"
    shell:
        launch("diagnostics")


rule table:
    input:
        plan=view_plan,
        manifests=view_manifests,
    output:
        report(
            "results/{view}/{name}.csv",
            caption="../report/table.rst",
            category="Tables",
            labels={"view": "{view}", "name": "{name}"},
        ),
    log:
        "logs/views/{view}-{name}.log",
    localrule: True
    params:
        digest=view_digest,
    message:
        "Table results/{wildcards.view}/{wildcards.name}.csv"
    shell:
        make_view("{wildcards.view}")
