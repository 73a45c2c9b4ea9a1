import json
import logging
import math
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from esckit import __version__
from esckit.cli import app as cli
from esckit.cli.common import Settings, StderrHandler, configure_logging, echo_facts
from esckit.errors import BudgetError, ConfigError, DataError, EsckitError, NotFiniteError
from esckit.registry import load_attr

HEAVY = (
    "torch",
    "transformers",
    "numpy",
    "datasets",
    "aiohttp",
    "peft",
    "trl",
    "accelerate",
    "evaluate",
    "scipy",
    "ray",
)
HERE = list(cli.COMMANDS)


def esckit(*args: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "esckit", *args], capture_output=True, text=True, timeout=120, check=False, **options
    )


def leaves_with(monkeypatch, raised: BaseException, argv: tuple[str, ...] = ("recipes", "list")) -> int:
    """Return the exit code of ``main`` when a command raises."""

    def fail(*_: object, **__: object) -> None:
        raise raised

    monkeypatch.setattr(sys, "argv", ["esckit", *argv])
    monkeypatch.setattr("esckit.config.load.shipped_recipes", fail)
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return caught.value.code


def test_all_six_commands_and_three_groups_are_in_the_table():
    assert {"search", "train-flow", "simulate", "train-reward", "train-sft", "train-rl", "evaluate"} <= set(HERE)
    assert {"simulate", "data", "recipes", "backbones"} <= set(HERE)
    for target in cli.COMMANDS.values():
        load_attr(target)


@pytest.mark.parametrize(
    ("argv", "option"),
    [
        (("evaluate", "smoke/evaluate_scripted", "--against", "a", "--against", "b"), "--against"),
        (("report", "a", "--against", "b", "--out", "c.html", "--out", "d.html"), "--out"),
        (("data", "inspect", "sample:esconv", "--format", "esconv", "--format", "auto"), "--format"),
    ],
    ids=["evaluate", "report", "data"],
)
def test_of_an_option_given_twice_neither_value_is_dropped(argv, option):
    done = esckit(*argv)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"{option} given 2 times" in done.stderr


def test_help_shows_every_command():
    shown = esckit("--help")
    assert shown.returncode == 0
    assert all(f" {name} " in shown.stdout for name in HERE)


@pytest.mark.smoke
@pytest.mark.parametrize("argv", [("--help",), ("--version",), *((name, "--help") for name in HERE)], ids=" ".join)
def test_help_is_light_and_works(argv):
    # For the help of one command typer itself loads pydantic.
    heavy = (*HEAVY, "pydantic") if argv[0].startswith("--") else HEAVY
    code = f"""
        import sys
        from esckit.cli.app import main
        sys.argv = ["esckit", *{argv!r}]
        try:
            main()
        except SystemExit as leaving:
            heavy = sorted(set({heavy!r}) & set(sys.modules))
            sys.exit(leaving.code or ", ".join(heavy) or None)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.parametrize(
    ("command", "recipe"),
    [
        ("evaluate", "smoke/evaluate_scripted"),
        ("predict", "smoke/predict_scripted"),
        ("search", "smoke/search_scripted"),
        ("simulate", "smoke/simulate_scripted"),
        ("train-flow", "smoke/train_flow_tiny"),
        ("train-reward", "smoke/train_reward_scripted"),
        ("train-rl", "smoke/train_rl_scripted"),
        ("train-sft", "smoke/train_sft_tiny"),
    ],
)
def test_a_wrong_recipe_is_told_before_anything_heavy_is_imported(command, recipe):
    code = f"""
        import sys
        from esckit.cli.app import main
        sys.argv = ["esckit", {command!r}, {recipe!r}, "--set", "x=1"]
        try:
            main()
        except SystemExit as leaving:
            sys.exit(10 * leaving.code + any(name in sys.modules for name in ("torch", "transformers", "datasets")))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 20, done.stderr
    assert "x (--set): unknown field" in done.stderr


def test_an_unknown_command_is_a_usage_error_with_a_suggestion():
    done = esckit("simulat")
    assert done.returncode == 2
    assert "simulate" in done.stderr


def test_the_version_is_printed():
    assert esckit("--version").stdout == f"esckit {__version__}\n"


def test_an_error_is_found_expected_and_what_to_do_on_stderr(monkeypatch, capsys):
    error = DataError("[red]3[/red] turns", path="a[b].json", record=4, expected="[5]", hint="Look at [it].")
    assert leaves_with(monkeypatch, error) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == ("error: a[b].json: record 4: found [red]3[/red] turns\n  expected: [5]\n  Look at [it].\n")


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (ConfigError("x"), 2),
        (EsckitError("x"), 2),
        (BudgetError("x"), 3),
        (KeyboardInterrupt(), 130),
    ],
)
def test_exit_codes(monkeypatch, raised, code):
    assert leaves_with(monkeypatch, raised) == code


def test_a_file_that_may_not_be_read_is_one_message(monkeypatch, capsys):
    assert leaves_with(monkeypatch, PermissionError(13, "Permission denied", "mine.jsonl")) == 2
    assert capsys.readouterr().err == "error: cannot open mine.jsonl: no permission\n"


def test_a_bug_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["esckit", "recipes", "list"])

    def bug() -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("esckit.config.load.shipped_recipes", bug)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        cli.main()


@pytest.mark.parametrize(("words", "code"), [(["--version"], 0), (["recipes", "show", "nothing"], 2)])
def test_a_thread_of_torch_that_outlives_the_command_does_not_abort_the_process(words, code, tmp_path):
    # It comes back for Python's lock while Python is taken apart, as one of gloo's may on a busy machine.
    done = tmp_path / "handled"
    script = f"""
        import atexit, datetime, pathlib, sys, threading, time
        import torch.distributed
        import esckit.__main__ as esckit
        inner = esckit.main
        def main():
            atexit.register(pathlib.Path({str(done)!r}).touch)
            inner()
        class Slow:
            def __del__(self, wait=time.sleep):
                wait(2)
        store, slow = torch.distributed.HashStore(), Slow()
        store.set_timeout(datetime.timedelta(seconds=1))
        threading.Thread(target=store.get, args=("never",), daemon=True).start()
        sys.argv, esckit.main = ["esckit", *{words!r}], main
        esckit.program()
    """
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == code, ended.stderr
    assert (__version__ in ended.stdout) if not code else ended.stderr.startswith("error: ")
    assert done.exists(), "Python's exit handlers run"


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("in_background", [False, True])
def test_ctrl_c_and_its_likes_leave_with_130(tmp_path, how, in_background):
    if in_background and how is signal.SIGINT:
        pytest.skip("a shell lets commands in the background ignore it")
    marker = tmp_path / "asleep"
    code = f"""
        import pathlib, signal, sys, time
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whoever runs the tests under nohup ignores it
        import esckit.config.load as recipes
        def wait():
            pathlib.Path({str(marker)!r}).touch()
            time.sleep(60)
        recipes.shipped_recipes = wait
        sys.argv = ["esckit", "recipes", "list"]
        from esckit.cli.app import main
        main()
    """
    ignoring = "trap '' INT; exec" if in_background else "exec"
    process = subprocess.Popen(
        ["sh", "-c", f'{ignoring} "$0" -c "$1"', sys.executable, textwrap.dedent(code)],
        stderr=subprocess.PIPE,
        text=True,
    )
    while not marker.exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(how)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err == "Interrupted.\n"


def test_a_reader_that_goes_away_has_a_code_of_its_own():
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as gone:
        done = subprocess.run(
            [sys.executable, "-m", "esckit", "recipes", "schema", "simulate"],
            stdout=gone,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.stderr == ""
    assert done.returncode == 141


@pytest.mark.parametrize(
    ("words", "stderr", "code"),
    [
        ("search smoke/search_scripted --out run", "&-", 0),
        ("search smoke/nonsense", "&-", 2),
        ("search smoke/nonsense", "/dev/full", 2),
    ],
)
def test_a_stderr_that_is_closed_or_full_changes_no_result(words, stderr, code, tmp_path):
    call = ["sh", "-c", f'"$0" -m esckit {words} 2>{stderr}', sys.executable]
    done = subprocess.run(call, cwd=tmp_path, stdout=subprocess.DEVNULL, check=False)
    assert done.returncode == code
    assert (tmp_path / "run/summary.json").is_file() is (code == 0)


@pytest.mark.parametrize(
    ("settings", "level"),
    [
        (Settings(), logging.WARNING),
        (Settings(verbose=1), logging.INFO),
        (Settings(verbose=5), logging.DEBUG),
        (Settings(quiet=True, verbose=2), logging.ERROR),
    ],
)
def test_logging_is_configured_once_on_stderr(settings, level, capsys):
    logger, root = logging.getLogger("esckit"), logging.getLogger()
    before = (tuple(root.handlers), logger.level)
    try:
        for _ in range(2):
            configure_logging(settings)
        assert (sum(isinstance(one, StderrHandler) for one in root.handlers), logger.level) == (1, level)
        logging.getLogger("esckit.models").error("careful")
        assert capsys.readouterr().err == "error: careful\n"
    finally:
        root.handlers[:], logger.level = before


HOSTILE = "\x1b]52;c;ZXZpbA==\x07 \x1b[31mred\x9b2J\rover\x7f \u202egnp \ud83d\nnext line"
SHOWN = "\\u001b]52;c;ZXZpbA==\\u0007 \\u001b[31mred\\u009b2J\\u000dover\\u007f \\u202egnp \\ud83d\nnext line"


def test_foreign_text_cannot_act_on_the_terminal(monkeypatch, capsys):
    root = logging.getLogger()
    before = (tuple(root.handlers), logging.getLogger("esckit").level)
    try:
        configure_logging(Settings())
        logging.getLogger("esckit.models").warning("%s", HOSTILE)
        logging.getLogger("a_library").error("%s", HOSTILE)
    finally:
        root.handlers[:], logging.getLogger("esckit").level = before
    echo_facts({"key": HOSTILE}, as_json=False)
    leaves_with(monkeypatch, DataError(HOSTILE, expected=HOSTILE, hint=HOSTILE))
    out, err = capsys.readouterr()
    assert out.count(SHOWN) == 1
    assert err.count(SHOWN) == 5


@pytest.mark.parametrize("verbose", [0, 1])
def test_a_library_that_logs_to_stdout_logs_to_stderr(verbose: int, capsys) -> None:
    root, library = logging.getLogger(), logging.getLogger("DeepSpeed")
    before = (tuple(root.handlers), logging.getLogger("esckit").level)
    configure_logging(Settings(verbose=verbose))
    own = logging.StreamHandler(sys.stdout)
    library.addHandler(own)
    try:
        library.warning("no accelerator")
    finally:
        root.handlers[:], logging.getLogger("esckit").level = before
        library.removeHandler(own)
        library.filters.clear()
    out, err = capsys.readouterr()
    assert (out, err) == ("", "warning: no accelerator\n" * verbose)


def test_printed_json_stays_json(capsys):
    echo_facts({"key": HOSTILE}, as_json=True)
    out = capsys.readouterr().out
    assert json.loads(out) == {"key": HOSTILE}
    assert not set("\x1b\x9b\x07\x7f") & set(out)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_printed_json_holds_finite_numbers_only(number: float, capsys):
    with pytest.raises(NotFiniteError):
        echo_facts({"rate": {"mean": number}}, as_json=True)
    assert capsys.readouterr().out == ""


def test_the_traceback_of_a_bug_passes_the_gate(tmp_path):
    code = f"""
        import sys
        from esckit.cli import app
        import esckit.config.load as recipes
        def bug(*args): raise ZeroDivisionError({HOSTILE!a})
        recipes.shipped_recipes = bug
        sys.argv = ["esckit", "recipes", "list"]
        app.main()
    """
    shown = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, check=False, timeout=60)
    assert shown.returncode == 1
    assert b"Traceback" in shown.stderr
    assert SHOWN.encode() in shown.stderr


def test_commands_print_through_the_gate_only():
    for path in (Path(cli.__file__).parent).glob("*.py"):
        assert path.name == "common.py" or "typer.echo(" not in path.read_text(encoding="utf-8"), path.name


def test_a_wrong_recipe_is_one_message_without_traceback(tmp_path):
    done = esckit("simulate", "smoke/simulate_scripted", "--set", "data.pth=x", "--out", str(tmp_path / "run"))
    assert done.returncode == 2
    assert "data.pth (--set): unknown field; did you mean 'path'?" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.smoke
@pytest.mark.parametrize("more", [[], ["--set", "executor.kind=ray", "--set", "executor.workers=2"]], ids=["", "ray"])
def test_a_dry_run_is_light_and_prints_bounds(more, tmp_path):
    code = f"""
        import sys
        from esckit.cli.app import main
        sys.argv = ["esckit", "simulate", "smoke/simulate_scripted", "--dry-run", "--json", *{more}]
        try:
            main()
        except SystemExit as leaving:
            sys.exit(leaving.code or ", ".join(sorted(set({HEAVY!r}) & set(sys.modules))) or None)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[2])},
    )
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["futures"] == 2 * facts["contexts"]
    assert facts["calls_at_most"]["critic"] == facts["futures"] * 4 * 10
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
@pytest.mark.parametrize("argv", [("recipes", "list"), ("recipes", "schema", "simulate")], ids=" ".join)
def test_a_full_disk_behind_stdout_is_one_message(argv):
    with open("/dev/full", "w") as full:
        left = subprocess.run(
            [sys.executable, "-m", "esckit", *argv], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (left.returncode, left.stderr) == (2, "error: cannot write the results to stdout: the disk is full\n")


LOUD = """
import logging
import warnings

def seeker(messages, sampling, seed):
    warnings.warn("an old name", FutureWarning)
    logging.getLogger("a_library").warning("an old setting")
    return "I am tired."
"""


@pytest.mark.smoke
@pytest.mark.parametrize("verbose", [False, True])
def test_what_libraries_warn_of_is_shown_on_request_only(tmp_path: Path, verbose: bool) -> None:
    (tmp_path / "loud.py").write_text(LOUD)
    argv = ["simulate", "smoke/simulate_scripted", "--set", "models.seeker={scripted: 'loud:seeker'}"]
    # What scripted futures lack is no matter here.
    argv += ["--set", "data.limit=1", "--set", "max_failure_rate=1"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONWARNINGS"}
    done = esckit(*(["-v"] if verbose else []), *argv, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    assert [said in done.stderr for said in ("FutureWarning: an old name", "an old setting")] == [verbose, verbose]


def test_a_module_of_ones_own_is_found_in_the_working_folder(tmp_path: Path) -> None:
    (tmp_path / "my_talk.py").write_text("def seeker(messages, sampling, seed):\n    return 'I am tired.'\n")
    program = Path(sys.executable).with_name("esckit")
    if not program.exists():
        pytest.skip("the console script is not installed here")
    done = subprocess.run(
        [program, "simulate", "smoke/simulate_scripted", "--set", "models.seeker={scripted: 'my_talk:seeker'}",
         "--set", "data.limit=1", "--set", "max_failure_rate=1"],
        cwd=tmp_path, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
