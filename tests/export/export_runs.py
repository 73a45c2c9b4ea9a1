"""Runs to export (those of 0.1.0, and trainings on other backbones), and a process in which there is no esckit."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

OLD = Path(__file__).parents[1] / "old_runs" / "runs"

TURNS = (("seeker", "I failed my exam."), ("supporter", "I am sorry."), ("seeker", "I do not know what to do now."))
REPLY = "That sounds hard. What did you hope for?"

_CARD = """
import json, os, re, sys
sys.modules["esckit"] = None  # whoever imports it fails
folder, turns, reply = json.loads(sys.argv[1])
os.chdir(folder)
code = re.search(r"```python\\n(.*?)```", open("README.md", encoding="utf-8").read(), re.DOTALL)[1]
names = {"__name__": "card"}
exec(compile(code, "README.md", "exec"), names)
"""

_ASK = {
    "reward": "found = names['score'](names['tokenizer'], names['model'], turns, reply)",
    "flow": "found = names['read'](names['policy'], [(*turn, None) for turn in turns], 'work', 'I lost my job.')",
    "policy": """
import torch
tokenizer, model, facts = names["policy"]
ids = names["prompt_ids"](tokenizer, facts, turns)
found = {
    "ids": ids,
    "ends": model.generation_config.eos_token_id,
    "kind": type(model).__name__,
    "log_p": model(input_ids=torch.tensor([ids])).logits[0, -1].double().log_softmax(-1).tolist(),
}
""",
}


def without_esckit(folder: Path, kind: str) -> Any:
    """Run the code of a card and ask it about one dialogue, in a fresh process that cannot import esckit.

    Args:
        folder: The export.
        kind: What to ask: ``reward``, ``flow`` or ``policy``.
    """
    code = f"{_CARD}\n{_ASK[kind]}\nprint(json.dumps(found))"
    words = [sys.executable, "-I", "-W", "ignore", "-c", code, json.dumps([str(folder), TURNS, REPLY])]
    done = subprocess.run(words, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
