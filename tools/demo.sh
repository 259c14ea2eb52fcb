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
echo
sed -n 's/^finding: //p' logs/views/report.log
cat <<END

Done in $((SECONDS / 60)) min $((SECONDS % 60)) s. Next:
  xdg-open $report                         the report ($PWD/$report)
  selfdistill show toy_sdpo --diff toy_grpo              what they wrote   (with .venv/bin in PATH)
  selfdistill compare toy_grpo toy_sdpo                  two experiments, side by side
  make mlflow                                            the runs
END
