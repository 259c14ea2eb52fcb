"""Artifact directories and what is known of them: content, tables, provenance, lineage, the code behind a stage."""
