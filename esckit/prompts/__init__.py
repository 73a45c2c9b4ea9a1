"""Prompts as YAML, one a role: declared variables, one-pass rendering, a digest for provenance."""
