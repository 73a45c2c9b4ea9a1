"""A small right recipe that tests bend."""

from pathlib import Path

RIGHT = """\
command: simulate
seed: 7
data: {dataset: esconv, path: somewhere, scheme: hub, split: train}
models:
  supporter: {scripted: supporter}
  seeker: {scripted: seeker}
  critic: {scripted: critic}
"""


def write_recipe(folder: Path, text: str = RIGHT, name: str = "mine.yaml") -> str:
    """Write a recipe and return its path as a user would give it."""
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)
