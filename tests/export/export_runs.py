"""Runs of 0.1.0 to export, and a process in which there is no esckit."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

OLD = Path(__file__).parents[1] / "old_runs" / "runs"

TURNS = (("seeker", "I failed my exam."), ("supporter", "I am sorry."), ("seeker", "I do not know what to do now."))
REPLY = "That sounds hard. What did you hope for?"

_READER = """
import json, os, re, sys, traceback
sys.modules["esckit"] = None  # whoever imports it fails
turns, reply = json.loads(sys.argv[1])
for line in sys.stdin:
    folder, ask = json.loads(line)
    os.chdir(folder)
    try:
        code = re.search(r"```python\\n(.*?)```", open("README.md", encoding="utf-8").read(), re.DOTALL)[1]
        names = {"__name__": "card", "turns": turns, "reply_text": reply}
        exec(compile(code, "README.md", "exec"), names)
        exec(ask, names)
        answer = {"found": names["found"]}
    except BaseException:
        answer = {"error": traceback.format_exc()}
    print("\\nanswer " + json.dumps(answer), flush=True)
"""

_ASK = {
    "reward": "found = score(tokenizer, model, turns, reply_text)",
    "flow": "found = read(policy, [(*turn, None) for turn in turns], 'work', 'I lost my job.')",
    "policy": """
tokenizer, model, facts = policy
ids = prompt_ids(tokenizer, facts, turns)
found = {
    "ids": ids,
    "ends": model.generation_config.eos_token_id,
    "log_p": model(input_ids=torch.tensor([ids])).logits[0, -1].double().log_softmax(-1).tolist(),
}
""",
}

Ask = Callable[[Path, str], Any]


@contextmanager
def process_without_esckit() -> Iterator[Ask]:
    """Give a function that asks a fresh process, which cannot import esckit, about one dialogue.

    It takes an export and what to ask: ``reward``, ``flow`` or ``policy``. The process runs the code of the card,
    example included, and calls its functions.
    """
    words = [sys.executable, "-I", "-W", "ignore", "-c", _READER, json.dumps([TURNS, REPLY])]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        lines = process.stdout

        def ask(folder: Path, kind: str) -> Any:
            print(json.dumps([str(folder), _ASK[kind]]), file=process.stdin, flush=True)
            answer = next(json.loads(line.removeprefix("answer ")) for line in lines if line.startswith("answer "))
            assert "error" not in answer, answer["error"]
            return answer["found"]

        yield ask
        process.stdin.close()
