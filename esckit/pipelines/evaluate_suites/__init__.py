"""The suites of ``esckit evaluate``: which cases there are, and how one of them is played. Metrics are elsewhere."""
