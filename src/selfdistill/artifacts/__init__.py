"""Artifact folders: content, tables, provenance, lineage, and the code behind each stage."""
