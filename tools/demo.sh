#!/usr/bin/env bash
# Runs the study (the report of config/config.yaml), writes it to MLflow, and prints where to look.
set -euo pipefail
cd "$(dirname "$0")/.."

report=results/report.html
age() { stat -c %Y "$report" 2>/dev/null || echo none; }

before=$(age)
snakemake --profile local
selfdistill track
if [ "$(age)" = "$before" ]; then
    echo "Nothing to do: the report is up to date."
fi
printf 'Done in %d min %02d s. The report: %s   (open it: xdg-open %s; the runs: make mlflow)\n' \
    $((SECONDS / 60)) $((SECONDS % 60)) "$PWD/$report" "$report"
