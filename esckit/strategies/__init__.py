"""Support strategies: taxonomies and the mappings between them, as YAML."""
