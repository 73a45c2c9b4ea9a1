"""Evaluation: metric families as small pure functions, statistics, suites and the report."""
