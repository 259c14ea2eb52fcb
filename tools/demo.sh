#!/usr/bin/env bash
# Runs the study that config/config.yaml's report asks for, indexes it in MLflow, and says where to look.
set -euo pipefail
cd "$(dirname "$0")/.."

report=results/report.html
age() { stat -c %Y "$report" 2>/dev/null || echo none; }

before=$(age)
snakemake --profile local
selfdistill track
if [ "$(age)" = "$before" ]; then
    echo "Nothing to do: everything in the report was up to date."
fi
printf 'Done in %d min %02d s. The report: %s   (open it: xdg-open %s; the runs: make mlflow)\n' \
    $((SECONDS / 60)) $((SECONDS % 60)) "$PWD/$report" "$report"
