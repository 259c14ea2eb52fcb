"""Views: tables, figures and the report. A view reads its plan and the artifacts it names, nothing else."""
