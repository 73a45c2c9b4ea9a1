import re

from esckit.report.blocks import Code, Explorer, Note, Part, Report, Section, Table
from esckit.report.render import escaped, render_markdown
from esckit.report.run import build_report
from esckit.report.source import open_run
from tests.report.run_folders import HOSTILE, evaluate_run, search_run, simulate_run, training_run


def test_text_is_shown_as_it_is_on_one_line():
    assert escaped("a|b\n# c") == "a\\|b # c"
    assert escaped("# c") == "\\# c"
    assert escaped("pass_rate [82.6, 98.6]") == "pass_rate [82.6, 98.6]"
    assert escaped("_a_ *b* [x](http://y) <i> `c` &lt;") == "\\_a\\_ \\*b\\* [x\\](http://y) \\<i\\> \\`c\\` \\&lt;"
    assert escaped("\u202eabc\x00\u2028d") == "abc d"


def test_every_row_of_a_table_has_as_many_cells_as_its_head(tmp_path):
    runs = [evaluate_run(tmp_path / "e", text=HOSTILE), simulate_run(tmp_path / "s", text=HOSTILE),
            search_run(tmp_path / "t", text=HOSTILE), training_run(tmp_path / "r")]  # fmt: skip
    text = render_markdown(build_report([open_run(run) for run in runs]))
    widths = [len(re.findall(r"(?<!\\)\|", line)) for line in text.splitlines() if line.startswith("|")]
    heads = [i for i, line in enumerate(filter(lambda x: x.startswith("|"), text.splitlines())) if line[:4] == "|---"]
    for head, following in zip(heads, [*heads[1:], len(widths) + 1], strict=True):
        assert set(widths[head - 1 : following - 1]) == {widths[head]}
    assert not re.search(r"(?<!\\)<", text)


def test_long_tables_are_cut_and_say_so():
    table = Table(("a",), tuple((str(i),) for i in range(75)))
    report = Report("r", (Part("p", "k", "", (Section("s", (table,)),)),))
    assert "15 further rows" in render_markdown(report)


def test_code_cannot_close_its_block_and_explorers_are_tables():
    blocks = (Code("c", "```\n# x"), Note("n", "warning"), Explorer("trees", {}, (Table(("tree",), (("t1",),)),)))
    text = render_markdown(Report("r", (Part("p", "k", "", (Section("s", blocks),)),)))
    assert "    ```\n    # x" in text
    assert "> ⚠ n" in text
    assert "| t1 |" in text
