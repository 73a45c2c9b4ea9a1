"""The form in a real browser: silent, without the network, usable by keyboard and on a phone, and it keeps answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from esckit.study.key import FORMS
from tests.report.browser import Browser, find_chromium
from tests.study.studies import evaluations, study

CHROMIUM = find_chromium()
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium found; set ESCKIT_CHROMIUM")


def test_a_rater_fills_in_the_form_and_finds_it_again(tmp_path: Path) -> None:
    assert CHROMIUM is not None
    key = study(evaluations(tmp_path / "runs"), tmp_path / "study")
    page = tmp_path / "study" / FORMS / "r1.html"
    with Browser(CHROMIUM, tmp_path / "profile") as browser:
        browser.resize(360, 800, mobile=True)
        browser.open(page)
        assert browser.complaints() == []
        assert browser.requests() == [page.as_uri()]
        assert browser.run("document.documentElement.scrollWidth") == 360
        for name in key.dimensions:
            browser.click(f"input[name$='.{name}'][value='tie']")
        assert "1 answered" in browser.run("document.getElementById('progress').textContent")
        browser.click("#next")
        assert f"Question 2 of {len(key.raters['r1'])}" in browser.run(
            "document.getElementById('progress').textContent"
        )
        browser.open(page)
        assert "1 answered" in browser.run("document.getElementById('progress').textContent")
