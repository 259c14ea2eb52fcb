# The workflow is workflow/Snakefile; this file lets `snakemake` find it from the top of the checkout as well.


include: "workflow/Snakefile"


# An included file's default target does not count, so it is named here once more.
rule default:
    default_target: True
    input:
        rules.all.input,
