# One self-contained page.


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
