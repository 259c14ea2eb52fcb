# One self-contained page.


rule report:
    input:
        **behind("report"),
    output:
        "results/report.html",
    log:
        "logs/views/report.log",
    localrule: True
    params:
        digest=digest("report"),
    message:
        "Report results/report.html"
    shell:
        make_view("report")
