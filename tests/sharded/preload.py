"""What every rank needs, imported once in the server that the ranks are forked from."""

import os

os.environ.update({"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "DS_ACCELERATOR": "cpu"})

import accelerate  # noqa: F401
import datasets  # noqa: F401
import deepspeed  # noqa: F401
import peft  # noqa: F401
import torch  # noqa: F401
from transformers import AutoModelForCausalLM, Trainer  # noqa: F401
from trl import DPOTrainer, GRPOTrainer  # noqa: F401
