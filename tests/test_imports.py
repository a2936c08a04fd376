"""What gets imported, and what gets dialled: the command line stays light, the model stays at home."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "pyarrow", "lancedb", "faiss", "PIL", "numpy", "pydantic", "rich")

OFFLINE = """
import socket, sys, tempfile

def refuse(*_, **__):
    raise AssertionError("the network was touched")

socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = socket.create_connection = refuse

from moonshelf.prompts import PromptSpec
from moonshelf.product import ImageRef, Product
from moonshelf.training.starter import build_starter, build_tokenizer
from moonshelf.model.golden import built_in
from moonshelf.model.modeling import MoonModel

tokenizer = build_tokenizer(["red shoe"] * 20, vocabulary=320)
prompt = PromptSpec(max_rationale_tokens=4)
built = build_starter(tokenizer, hidden=64, layers=1, vision_hidden=64, vision_depth=1, prompt=prompt)
with tempfile.TemporaryDirectory() as folder:
    built.save_pretrained(folder, golden=True)
    model = MoonModel.from_pretrained(folder)
products = [item.product() for item in built_in()]
for reason in ("off", "on", "auto"):
    assert len(model.encode(products, reason=reason).ids) == len(products)
print([name for name in ("torchvision", "sentence_transformers", "trl") if name in sys.modules])
"""


def run(code: str) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


def test_the_command_line_imports_nothing_heavy() -> None:
    code = f"import sys, moonshelf.cli; print([m for m in {HEAVY} if m in sys.modules])"
    assert run(code) == "[]"


def test_help_is_quick() -> None:
    """Processor time, since a test machine is busy; half a second is the aim on a quiet one."""
    code = (
        "import resource, subprocess, sys\n"
        "command = [sys.executable, '-m', 'moonshelf.cli', '--help']\n"
        "subprocess.run(command, check=True, stdout=subprocess.DEVNULL)\n"
        "used = resource.getrusage(resource.RUSAGE_CHILDREN)\n"
        "print(used.ru_utime + used.ru_stime)"
    )
    if sys.platform == "win32":
        pytest.skip("no resource module")
    assert min(float(run(code)) for _ in range(3)) < 1.0


def test_a_model_runs_without_network_and_torchvision() -> None:
    assert run(OFFLINE) == "[]"
