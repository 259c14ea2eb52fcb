# One self-contained page a report, and targets that make a report with all of its tables.


rule report:
    input:
        plan=view_plan,
        manifests=view_manifests,
    output:
        report(
            "results/report.html",
            caption="../report/page.rst",
            category="Report",
        ),
    log:
        "logs/views/report.log",
    localrule: True
    params:
        digest=view_digest,
    message:
        "Report results/report.html"
    shell:
        make_view("report")


use rule report as named_report with:
    output:
        report(
            "results/reports/{name}.html",
            caption="../report/page.rst",
            category="Report",
            labels={"name": "{name}"},
        ),
    log:
        "logs/views/report-{name}.log",
    message:
        "Report results/reports/{wildcards.name}.html"


# One figure or table of a report, for a paper; an unknown name stops with a list of the known ones.
rule report_part:
    input:
        plan=part_plan,
        manifests=part_manifests,
    output:
        "results/{parts}/{report}/{part}.{format}",
    log:
        "logs/views/{parts}-{report}-{part}-{format}.log",
    wildcard_constraints:
        parts="figures|tables",
        report=NAME,
        part=r"[a-z0-9_-]+",
        format="svg|pdf|md|tex",
    localrule: True
    params:
        digest=part_digest,
    message:
        "Part of a report: {output}"
    shell:
        make_view("{wildcards.parts}")


# `snakemake NAME`, for every NAME of the config's `reports`.
for report_name in PLAN.report_names if workflow.is_main_process else ():

    rule:
        name:
            report_name
        input:
            PLAN.report_targets(report_name),
        localrule: True
