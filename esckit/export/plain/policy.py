"""Talk with this policy; needs torch and transformers, and peft if it is an adapter."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.utils import cached_file


def load(folder: str) -> tuple[Any, Any, dict[str, Any]]:
    """Return tokenizer, model and facts of a folder or a model id on the hub; of an adapter its base is loaded too."""
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)
    model.generation_config = GenerationConfig.from_pretrained(folder)
    facts = json.loads(Path(str(cached_file(folder, "esckit.json"))).read_text(encoding="utf-8"))
    return tokenizer, model.eval(), facts


def prompt_ids(tokenizer: Any, facts: dict[str, Any], turns: Sequence[tuple[str, str]]) -> list[int]:
    """Return the prompt for the next supporter turn after turns (speaker, text), the seeker's first."""
    messages = [{"role": "system", "content": facts["system_prompt"]}]
    for speaker, text in turns:
        role = "assistant" if speaker == "supporter" else "user"
        if messages[-1]["role"] == role:  # templates want the roles to alternate
            messages[-1]["content"] += f"\n{text}"
        else:
            messages.append({"role": role, "content": text})
    if not facts["system_role"]:
        system, first, *rest = messages
        messages = [{"role": "user", "content": f"{system['content']}\n\n{first['content']}"}, *rest]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


@torch.no_grad()
def reply(policy: tuple[Any, Any, dict[str, Any]], turns: Sequence[tuple[str, str]], **settings: Any) -> str:
    """Return the next supporter turn; of an output in the agreed form only what stands in ``<response>``."""
    tokenizer, model, facts = policy
    ids = torch.tensor([prompt_ids(tokenizer, facts, turns)], device=model.device)
    out = model.generate(ids, attention_mask=torch.ones_like(ids), **settings)
    text = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
    return str(text).rpartition("<response>")[2].partition("</response>")[0].strip()
