"""The composition root: one ``run`` per command, and the builders that they share.

Only this floor and the CLI know recipes. A pipeline turns a recipe into objects, runs them, and leaves a run folder.
"""
