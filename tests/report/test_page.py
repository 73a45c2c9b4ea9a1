import base64
import hashlib
import json
import re
from html.parser import HTMLParser

from hypothesis import given
from hypothesis import strategies as st

from esckit.report.blocks import Part, Report, Section, Table
from esckit.report.render import embedded, render_page
from esckit.report.run import build_report
from esckit.report.source import open_run
from tests.report.run_folders import HOSTILE, evaluate_run, search_run, simulate_run, training_run


class Reader(HTMLParser):
    """Collects what a browser would load or run."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.raw: dict[str, list[str]] = {"script": [], "style": []}
        self._inside: str | None = None

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._inside = tag if tag in self.raw else None
        if self._inside:
            self.raw[tag].append("")

    def handle_endtag(self, tag):
        self._inside = None

    def handle_data(self, data):
        if self._inside:
            self.raw[self._inside][-1] += data


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    return reader


def hostile_page(tmp_path) -> str:
    runs = [simulate_run(tmp_path / "s", text=HOSTILE), search_run(tmp_path / "t", text=HOSTILE),
            evaluate_run(tmp_path / "e", text=HOSTILE)]  # fmt: skip
    return render_page(build_report([open_run(run) for run in runs], against=open_run(runs[2])))


def test_the_policy_allows_only_the_pages_own_script_and_style(tmp_path):
    reader = read(render_page(build_report([open_run(training_run(tmp_path / "r"))])))
    policy = next(a["content"] for t, a in reader.tags if t == "meta" and a.get("http-equiv"))
    for kind in ("script", "style"):
        digest = base64.b64encode(hashlib.sha256(reader.raw[kind][-1].encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy


def test_a_hostile_dialogue_adds_no_element_and_no_attribute(tmp_path):
    reader = read(hostile_page(tmp_path))
    executable = [a for t, a in reader.tags if t == "script" and a.get("type") != "application/json"]
    assert len(executable) == 1
    assert not any(tag in ("img", "iframe", "object", "embed", "form", "base") for tag, _ in reader.tags)
    names = {name for _, attributes in reader.tags for name in attributes}
    assert not any(name.startswith("on") or name == "style" for name in names)
    assert not {"src", "srcset", "action"} & names
    links = {a["href"] for t, a in reader.tags if "href" in a}
    assert all(link.startswith("#") or link == "data:," for link in links)


def test_the_page_names_no_other_place(tmp_path):
    page = hostile_page(tmp_path)
    assert set(re.findall(r"https?://[^\s\"'<)]+", page)) == {"http://www.w3.org/2000/svg"}
    assert "@import" not in page
    assert "url(" not in page


def test_embedded_records_come_back_as_they_were(tmp_path):
    reader = read(hostile_page(tmp_path))
    texts = [json.loads(text) for text in reader.raw["script"][:-1]]
    assert texts[0]["items"][0]["situation"] == HOSTILE


@given(
    st.recursive(
        st.text() | st.integers() | st.none(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_embedding_leaves_nothing_that_html_reads(value):
    text = embedded(value)
    assert not set(text) & set("<>&\u2028\u2029")
    assert json.loads(text) == value


def test_lone_surrogates_do_not_stop_the_page(tmp_path):
    run = evaluate_run(tmp_path / "e", text="half \ud83d emoji")
    page = render_page(build_report([open_run(run)]))
    assert "half ? emoji" in page
    page.encode("utf-8")


def test_equal_runs_give_equal_pages(tmp_path):
    run = search_run(tmp_path / "t")
    assert render_page(build_report([open_run(run)])) == render_page(build_report([open_run(run)]))


def test_ids_are_unique_and_the_contents_lead_to_them(tmp_path):
    reader = read(hostile_page(tmp_path))
    ids = [a["id"] for _, a in reader.tags if "id" in a]
    assert len(ids) == len(set(ids))
    assert {a["href"][1:] for t, a in reader.tags if t == "a"} <= set(ids)
    sources = [a["data-source"] for _, a in reader.tags if "data-source" in a]
    assert set(sources) <= set(ids)


def test_a_metric_has_a_plain_name_and_shows_its_own(tmp_path):
    page = render_page(build_report([open_run(evaluate_run(tmp_path / "e"))]))
    assert '<abbr title="dialogue.rlff7.sr_strict">Success rate, strict · rlff7 ↑</abbr>' in page


def test_names_may_break_between_their_words_only():
    table = Table(("name",), (("rlff7.sr_strict",),))
    page = render_page(Report("r", (Part("p", "k", "", (Section("s", (table,)),)),)))
    assert "<bdi>rlff7.<wbr>sr_<wbr>strict</bdi>" in page
    assert "&lt;wbr" not in page
