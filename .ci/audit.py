"""Looks up which versions of the lock have known vulnerabilities, with pip-audit: ``make audit``.

Leaves with 0 if all were looked up and none is known, with 1 if one is, and with 3 if one could not be looked up: what
the service that knows them was not asked about is not called well.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

NONE_KNOWN, SOME_KNOWN, NOT_RUN = 0, 1, 3


def read(text: str) -> dict[str, Any] | None:
    """Return the report of pip-audit, None if it is none."""
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) and isinstance(found.get("dependencies"), list) else None


def audit(program: Sequence[str], lock: Path) -> tuple[int, str]:
    """Ask about every version of a lock.

    Args:
        program: The words that start pip-audit.
        lock: A requirements file in which every line names one version.

    Returns:
        The exit code, and what to say.
    """
    options = [
        "--requirement",
        str(lock),
        "--no-deps",
        "--disable-pip",
        "--format",
        "json",
        "--progress-spinner",
        "off",
    ]
    try:
        done = subprocess.run([*program, *options], capture_output=True, text=True, check=False)
    except OSError as error:
        return NOT_RUN, f"{lock}: not run: {error}"
    report = read(done.stdout)
    if report is None:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return NOT_RUN, f"{lock}: not run: {last}"
    asked = [one for one in report["dependencies"] if "skip_reason" not in one]
    skipped = [
        f"{one['name']}: not looked up: {one['skip_reason']}" for one in report["dependencies"] if "skip_reason" in one
    ]
    known = [
        f"{one['name']} {one['version']}: {each['id']}, repaired in {', '.join(each['fix_versions']) or 'no version'}"
        for one in asked
        for each in one["vulns"]
    ]
    if not asked:
        example = f", as {skipped[0]}" if skipped else ""
        return NOT_RUN, f"{lock}: not run: no version of {len(skipped)} was looked up{example}"
    head = f"{lock}: {len(asked)} versions looked up, {len(known)} vulnerabilities known"
    return SOME_KNOWN if known else NOT_RUN if skipped else NONE_KNOWN, "\n".join([head, *known, *skipped])


def main() -> int:
    """Audit the locks that are named."""
    parser = argparse.ArgumentParser(description="look up known vulnerabilities of the versions of locks")
    parser.add_argument("locks", nargs="+", type=Path)
    parser.add_argument("--pip-audit", nargs="+", default=["pip-audit"], help="the words that start pip-audit")
    asked = parser.parse_args()
    found = [audit(asked.pip_audit, lock) for lock in asked.locks]
    sys.stdout.write("".join(f"{said}\n" for _, said in found))
    # A known one is the news; a lock that could not be looked up comes second.
    codes = {code for code, _ in found}
    return next(code for code in (SOME_KNOWN, NOT_RUN, NONE_KNOWN) if code in codes)


if __name__ == "__main__":
    sys.exit(main())
