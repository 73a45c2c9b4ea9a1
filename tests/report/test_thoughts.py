"""Reasoning that records keep is visible in the report."""

from pathlib import Path

from esckit.records import write_line
from esckit.report.blocks import Table
from esckit.report.source import Run
from esckit.report.thoughts import thoughts
