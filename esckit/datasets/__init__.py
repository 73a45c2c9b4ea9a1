"""Corpora in, dialogues out: loaders, splits, merging and contexts.

:func:`esckit.datasets.corpus.read_corpus` is the way in. A corpus passes three stages: a container (JSON array, JSON
lines, zip, hub) gives raw records, a layout (``esconv``, ``extes``, ``jsonl``) turns each into a
:class:`~esckit.types.Dialogue`, and the corpus joins the files and drops duplicates. Not here: what a strategy label
means (:mod:`esckit.strategies`).
"""
