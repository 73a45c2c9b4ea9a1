"""Strict recipes: YAML plus ``--set a.b=c`` to one validated object, every error at once with a suggestion.

One file is one run; there is no inheritance and no interpolation. A recipe class is the only home of a default value.
Recipes enter :mod:`esckit.pipelines` and :mod:`esckit.cli` only: a component takes plain arguments.
"""
