"""esckit: a toolkit for emotional support conversation research.

Importing this package loads nothing heavy; the work is done by the commands of :mod:`esckit.cli`.
"""

from __future__ import annotations

__version__ = "0.1.0"
