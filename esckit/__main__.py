"""``python -m esckit`` and ``accelerate launch -m esckit``: the same program as the ``esckit`` command."""

from __future__ import annotations

from esckit.cli.app import main

if __name__ == "__main__":
    main()
