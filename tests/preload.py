"""What a command may need, imported once in the server that commands are forked from: libraries and the package."""

import os
from importlib import import_module
from pkgutil import walk_packages

os.environ.update({"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "DS_ACCELERATOR": "cpu"})

import accelerate  # noqa: F401
import aiohttp  # noqa: F401
import datasets  # noqa: F401
import deepspeed  # noqa: F401
import peft  # noqa: F401
import pytest  # noqa: F401
import torch  # noqa: F401
from transformers import AutoModelForCausalLM, Trainer  # noqa: F401
from trl import DPOTrainer, GRPOTrainer  # noqa: F401

import esckit

for module in walk_packages(esckit.__path__, "esckit."):
    if not module.name.endswith("__main__"):
        import_module(module.name)
