"""The page in a real browser: no errors, no network, pointer and keyboard, and a dialogue that wants to run."""

import json

import pytest

from esckit.report.run import write_report
from tests.report.browser import Browser, find_chromium
from tests.report.run_folders import HOSTILE, evaluate_run, search_run, simulate_run, training_run

CHROMIUM = find_chromium()
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium found; set ESCKIT_CHROMIUM")
DETAIL = "document.querySelector('.detail').innerText"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(CHROMIUM, tmp_path_factory.mktemp("profile")) as found:
        found.resize(1280, 900)
        yield found


def opened(browser, *runs, **options):
    page = write_report(runs, **options).page
    browser.open(page)
    return page


@pytest.mark.parametrize("make", [simulate_run, search_run, evaluate_run, training_run])
@pytest.mark.parametrize("width", [1280, 360])
def test_every_kind_of_page_is_silent_fits_and_asks_for_nothing(browser, tmp_path, make, width):
    browser.resize(width, 800, mobile=width < 500)
    page = opened(browser, make(tmp_path / "run"))
    assert browser.complaints() == []
    assert browser.requests() == [page.as_uri()]
    assert browser.run("document.documentElement.scrollWidth") == width
    browser.resize(1280, 900)


def test_clicking_a_node_shows_its_path_and_text(browser, tmp_path):
    run = search_run(tmp_path / "run", n_trees=2)
    opened(browser, run)
    tree = json.loads((run / "trees.jsonl").read_text().splitlines()[0])
    node = next(node for node in tree["nodes"] if node["depth"] == 2)
    index = tree["nodes"].index(node)
    browser.click(f".node[data-node='{index}'] .body")
    said = browser.run(DETAIL)
    assert node["strategy"] in said
    assert node["turns"][0]["text"] in said
    crumbs = browser.run("[...document.querySelectorAll('.crumbs bdi')].map(e => e.textContent)")
    assert crumbs == ["root", *node["id"].split(".")[1:]]
    assert browser.run("document.querySelectorAll('.edge.on').length") == 2
    assert browser.run("document.activeElement.dataset.node") == str(index)


def test_the_tree_can_be_walked_with_the_keyboard(browser, tmp_path):
    opened(browser, search_run(tmp_path / "run", n_trees=2))
    browser.run("document.querySelector('.node[tabindex=\"0\"]').focus()")
    depths = []
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft", "ArrowDown", "Home", "End"):
        browser.key(key)
        assert browser.run("document.activeElement.getAttribute('aria-selected')") == "true"
        depths.append(browser.run("+document.activeElement.getAttribute('aria-level') - 1"))
    assert depths[:5] == [1, 2, 1, 1, 0]
    assert depths[5] >= 2
    browser.run("document.querySelector('.forest .item').focus()")
    browser.key("ArrowRight")
    assert browser.run("document.activeElement.getAttribute('aria-selected')") == "true"
    assert "esconv-000000000001" in browser.run(DETAIL)


def test_outcomes_filter_trees_and_futures(browser, tmp_path):
    opened(browser, search_run(tmp_path / "search"))
    browser.click(".chip:nth-child(2)")
    assert 0 < browser.run("document.querySelectorAll('.node.dim').length") < 21
    assert browser.run("document.querySelector('.node').classList.contains('dim')") is False
    opened(browser, simulate_run(tmp_path / "simulate"))
    browser.click(".chip:last-child")
    assert browser.run("[...document.querySelectorAll('.list .item')].filter(e => !e.hidden).length") == 1
    assert "Failed" in browser.run(DETAIL)


def test_reasoning_is_folded_and_readings_open_to_counts(browser, tmp_path):
    opened(browser, simulate_run(tmp_path / "run"))
    assert browser.run("document.querySelectorAll('.why[open]').length") == 0
    browser.click(".why summary")
    assert browser.run("document.querySelectorAll('.why[open]').length") == 1
    browser.click(".reading summary")
    assert "Significantly Better" in browser.run("document.querySelector('.reading[open]').innerText")


def test_two_evaluations_are_read_side_by_side(browser, tmp_path):
    runs = evaluate_run(tmp_path / "one"), evaluate_run(tmp_path / "two", seed=8)
    opened(browser, runs[0], against=runs[1])
    assert browser.run("[...document.querySelectorAll('.side h4')].map(e => e.textContent)") == ["one", "two"]
    first, second = browser.run("[...document.querySelectorAll('.side')].map(e => e.getBoundingClientRect().top)")
    assert first == second


@pytest.mark.parametrize("make", [simulate_run, search_run, evaluate_run])
def test_a_hostile_dialogue_is_text(browser, tmp_path, make):
    opened(browser, make(tmp_path / "run", text=HOSTILE))
    browser.run("document.querySelectorAll('.item').forEach(e => e.click())")
    browser.run("document.querySelectorAll('.node').forEach(e => e.dispatchEvent(new MouseEvent('click')))")
    browser.run("document.querySelectorAll('details').forEach(e => { e.open = true; })")
    assert browser.run("window.broken === undefined")
    assert browser.run("document.querySelectorAll('img, iframe, script:not([type])').length") == 1
    assert "</script><script>window.broken" in browser.run("document.querySelector('.detail').textContent")
    assert browser.complaints() == []
    assert browser.run("document.documentElement.scrollWidth") == 1280


def test_on_paper_a_table_stands_for_the_explorer(browser, tmp_path):
    opened(browser, search_run(tmp_path / "run"))
    shown = "[...document.querySelectorAll('.explorer, .paper')].map(e => getComputedStyle(e).display)"
    assert browser.run(shown) == ["block", "none"]
    browser.resize(794, 1123, media="print")
    assert browser.run(shown) == ["none", "block"]
    assert browser.run("document.documentElement.scrollWidth") == 794
    browser.resize(1280, 900)


def test_eight_trees_of_sixty_simulations_open_quickly(browser, tmp_path):
    run = search_run(
        tmp_path / "run", n_trees=8, n_simulations=60, text="It makes sense that this keeps you awake. " * 4
    )
    page = write_report([run]).page
    assert page.stat().st_size < 3_000_000
    assert browser.open(page) < 2.0
    assert browser.run("document.querySelectorAll('.forest .item').length") == 8
