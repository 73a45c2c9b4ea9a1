"""`make audit`: what pip-audit said, read as it is; a service that cannot be asked calls nothing well."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.shell import ROOT

CLEAN = {"dependencies": [{"name": "jinja2", "version": "3.1.6", "vulns": []}], "fixes": []}
KNOWN = {
    "dependencies": [
        {"name": "jinja2", "version": "3.1.5", "vulns": [{"id": "GHSA-cpwx-vrp4-4pq7", "fix_versions": ["3.1.6"]}]},
        {"name": "own", "skip_reason": "not on the index"},
    ]
}
SKIPPED = {"dependencies": [{"name": name, "skip_reason": "not on the index"} for name in ("own", "other")]}
UNREACHED = "requests.exceptions.ConnectionError: no route"


@pytest.mark.parametrize(
    ("printed", "complained", "program_code", "code", "said"),
    [
        (json.dumps(CLEAN), "", 0, 0, "1 versions looked up, 0 vulnerabilities known"),
        (json.dumps(KNOWN), "", 1, 1, "jinja2 3.1.5: GHSA-cpwx-vrp4-4pq7, repaired in 3.1.6\nown: not looked up"),
        (
            json.dumps(SKIPPED),
            "",
            0,
            3,
            "not run: no version of 2 was looked up, as own: not looked up: not on the index\n",
        ),
        ("", f"Traceback\n{UNREACHED}", 1, 3, f"not run: {UNREACHED}"),
        ("", "", 0, 3, "not run: exit code 0"),
        ("<html>", "", 0, 3, "not run: exit code 0"),
        ('{"dependencies": null}', "", 0, 3, "not run: exit code 0"),
    ],
    ids=["clean", "known", "skipped", "unreached", "silent", "page", "odd"],
)
def test_an_audit_says_what_was_found(
    tmp_path: Path, printed: str, complained: str, program_code: int, code: int, said: str
) -> None:
    program = tmp_path / "pip_audit.py"
    program.write_text(
        f"import sys\nsys.stdout.write({printed!r})\nsys.stderr.write({complained!r})\nsys.exit({program_code})\n"
    )
    done = audit(tmp_path, sys.executable, str(program))
    assert (done.returncode, said in done.stdout) == (code, True), done.stdout + done.stderr
    assert len(done.stdout.splitlines()) <= 3


def test_an_audit_without_its_program_is_not_run(tmp_path: Path) -> None:
    done = audit(tmp_path, str(tmp_path / "nothing"))
    assert (done.returncode, "not run" in done.stdout) == (3, True)


def audit(folder: Path, *program: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-I", str(ROOT / ".ci/audit.py"), str(folder / "lock.txt"), "--pip-audit", *program]
    return subprocess.run(words, capture_output=True, text=True, check=False)
