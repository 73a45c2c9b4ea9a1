"""A table for a paper, before and after it is Markdown or LaTeX.

What a number needs to be read stands in the caption, or in numbered notes below the table.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from esckit.report.render import escaped


@dataclass(frozen=True, slots=True)
class Cell:
    """One value of a grid.

    Attributes:
        value: As shown; ``–`` where there is none.
        ends: Its interval as shown, may be empty.
        mark: † or ‡ where it differs from the baseline.
        notes: Numbers of the notes that belong to it.
    """

    value: str
    ends: str = ""
    mark: str = ""
    is_best: bool = False
    notes: tuple[int, ...] = ()


Line = tuple[str, tuple[int, ...], tuple[Cell, ...]]
"""A row: its name, the numbers of its notes, and its cells."""


@dataclass(frozen=True, slots=True)
class Grid:
    """A table before it is Markdown or LaTeX.

    Attributes:
        blocks: Rows in groups that a rule separates.
        caption: Sentences.
        notes: By number from 1.
        label: What LaTeX refers to the table by, after ``tab:``.
    """

    columns: tuple[str, ...]
    blocks: tuple[tuple[Line, ...], ...]
    caption: tuple[str, ...]
    notes: tuple[str, ...] = ()
    label: str = "systems"


@dataclass(slots=True)
class Notes:
    """Notes in the order in which they come up, each once."""

    texts: dict[str, int] = field(default_factory=dict)

    def number(self, text: str) -> int:
        """Return the number of a note, a new one if its text is new."""
        return self.texts.setdefault(text, len(self.texts) + 1)


# ---------------------------------------------------------------- Markdown and LaTeX


def markdown(grid: Grid) -> str:
    """Return a grid as Markdown; its caption and notes stand below."""

    def cell(each: Cell) -> str:
        value = f"**{escaped(each.value)}**" if each.is_best else escaped(each.value)
        notes = f"<sup>{','.join(map(str, each.notes))}</sup>" if each.notes else ""
        return f"{value}{each.mark}{f' {escaped(each.ends)}' if each.ends else ''}{notes}"

    lines = ["| " + " | ".join(map(escaped, grid.columns)) + " |"]
    lines.append("|:--" + "|--:" * (len(grid.columns) - 1) + "|")
    for block in grid.blocks:
        for name, notes, cells in block:
            label = escaped(name) + (f"<sup>{','.join(map(str, notes))}</sup>" if notes else "")
            lines.append("| " + " | ".join([label, *map(cell, cells)]) + " |")
    lines += ["", " ".join(map(escaped, grid.caption))]
    if grid.notes:
        lines += ["", *(f"{place}. {escaped(text)}" for place, text in enumerate(grid.notes, start=1))]
    return "\n".join(lines) + "\n"


_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$", "−": "$-$", "–": "--", "—": "---",
    "↑": r"$\uparrow$", "↓": r"$\downarrow$", "†": r"$^{\dagger}$", "‡": r"$^{\ddagger}$",
    "≥": r"$\geq$", "≤": r"$\leq$", "·": r"$\cdot$", "α": r"$\alpha$", "δ": r"$\delta$", "κ": r"$\kappa$",
    "ρ": r"$\rho$", "→": r"$\rightarrow$",
    "\u202f": r"\,", "\u00a0": "~",
}  # fmt: skip
"""Characters that LaTeX reads otherwise, or that pdfLaTeX's fonts may lack."""


def latex_escaped(text: str) -> str:
    """Return a text that LaTeX sets as it is, on one line."""
    one_line = re.sub(r"[\x00-\x1f\x7f]+", " ", text)
    return "".join(_LATEX.get(character, character) for character in one_line)


def latex(grid: Grid) -> str:
    """Return a grid as a floating table that compiles as it is, with the package booktabs."""

    def raised(notes: Sequence[int]) -> str:
        return f"$^{{{','.join(map(str, notes))}}}$" if notes else ""

    def cell(each: Cell) -> str:
        value = latex_escaped(each.value)
        value = rf"\textbf{{{value}}}" if each.is_best else value
        ends = rf" {{\scriptsize {latex_escaped(each.ends)}}}" if each.ends else ""
        return f"{value}{latex_escaped(each.mark)}{ends}{raised(each.notes)}"

    caption = " ".join(map(latex_escaped, grid.caption))
    lines = [
        r"% \usepackage{booktabs}",
        r"\begin{table*}[t]",
        r"  \centering",
        r"  \small",
        rf"  \begin{{tabular}}{{l{'r' * (len(grid.columns) - 1)}}}",
        r"    \toprule",
        "    " + " & ".join(map(latex_escaped, grid.columns)) + r" \\",
    ]
    for block in grid.blocks:
        lines.append(r"    \midrule")
        for name, notes, cells in block:
            lines.append("    " + " & ".join([latex_escaped(name) + raised(notes), *map(cell, cells)]) + r" \\")
    lines += [r"    \bottomrule", r"  \end{tabular}"]
    if grid.notes:
        lines.append(r"  \par\smallskip\footnotesize\raggedright")
        lines += [f"  {raised([place])} {latex_escaped(text)}" for place, text in enumerate(grid.notes, start=1)]
    lines += [rf"  \caption{{{caption}}}", rf"  \label{{tab:{grid.label}}}", r"\end{table*}"]
    return "\n".join(lines) + "\n"
