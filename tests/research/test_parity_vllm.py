"""The starter's rationales by the real vLLM, in its own environment: `make parity-vllm`.

The variable VLLM_PYTHON names that environment's Python. Without it there is nothing to run: vLLM is no
dependency of ours. Its server is started as a module, since the program of the repackage asks for the version
of a package that it is not.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from moonshelf.cli.export import export_vllm, load
from moonshelf.model.modeling import MoonModel
from research.studies.parity import lines, parity
from research.synthetic.shop import iter_products

PYTHON = os.environ.get("VLLM_PYTHON", "")
PRODUCTS, MINUTES = 64, 8.0  # until the server has to be up
SETTINGS = {
    "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_HOST_IP": "127.0.0.1",
}  # fmt: skip
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not PYTHON, reason="VLLM_PYTHON is not set")]


@pytest.fixture(scope="module")
def starter() -> MoonModel:
    return load("starter")


@pytest.fixture(scope="module")
def server(starter: MoonModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """vLLM with the exported starter on loopback, as `export` says, in float32 and without compiling."""
    folder = tmp_path_factory.mktemp("vllm")
    _, _, model, *arguments = shlex.split(export_vllm(starter, folder / "model", "starter"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [PYTHON, "-m", "vllm.entrypoints.openai.api_server", "--model", model, *arguments]
    settings = ["--port", str(port), "--dtype", "float32", "--max-model-len", "1024", "--enforce-eager"]
    environment = os.environ | SETTINGS
    log = folder / "server.log"
    with open(log, "wb") as output:
        process = subprocess.Popen(
            [*command, *settings], stdout=output, stderr=subprocess.STDOUT, env=environment,
            start_new_session=True,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 60 * MINUTES
        while not answers(port):
            assert process.poll() is None and time.monotonic() < deadline, tail(log)
            time.sleep(1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        for end in (signal.SIGTERM, signal.SIGKILL):  # its workers are of its group
            with suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(process.pid, end)
                process.wait(20)


def answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as reply:
            return reply.status == 200
    except (urllib.error.URLError, OSError):
        return False


def tail(log: Path) -> str:
    return "vLLM did not start:\n" + "\n".join(log.read_text(errors="replace").splitlines()[-40:])


def test_vllm_writes_what_our_engine_writes(starter: MoonModel, server: str) -> None:
    report = parity(starter, list(iter_products(PRODUCTS, photos=1)), ["ours", f"vllm:{server}"])
    print("\n" + "\n".join(lines(report)))
    print(json.dumps([vars(d) for d in report.comparisons[0].differences], indent=1))
    [found] = report.comparisons
    agrees(found.equal, found.compared)


def agrees(equal: dict[str, int], compared: dict[str, int]) -> None:
    assert equal["prompt"] == PRODUCTS
    # A rationale is a chain of arg-max choices: other kernels may tip a near-tie.
    assert equal["rationale"] >= 0.95 * PRODUCTS
    assert equal["reasoned vector"] == compared["reasoned vector"]


IN_ONE_PROCESS = """
import json, sys
from moonshelf.cli.export import load
from moonshelf.model import writers
from research.studies.parity import parity
from research.synthetic.shop import iter_products

def main(folder, products):
    made = writers.Offline.__init__
    smaller = {"dtype": "float32", "max_model_len": 1024, "enforce_eager": True}
    writers.Offline.__init__ = lambda self, *a, **options: made(self, *a, **options, **smaller)
    model, shop = load("starter"), list(iter_products(products, photos=1))
    [found] = parity(model, shop, ["ours", f"vllm:{folder}"]).comparisons
    print("FOUND", json.dumps([found.equal, found.compared]))

if __name__ == "__main__":  # vLLM starts further processes
    main(sys.argv[1], int(sys.argv[2]))
"""


def test_vllm_in_one_process_with_our_engine(starter: MoonModel, tmp_path: Path) -> None:
    """Both in vLLM's environment, which has what our engine needs."""
    export_vllm(starter, tmp_path / "export", "starter")
    (tmp_path / "both.py").write_text(IN_ONE_PROCESS)
    source = str(Path(__file__).parents[1] / "src")
    done = subprocess.run(
        [PYTHON, str(tmp_path / "both.py"), str(tmp_path / "export"), str(PRODUCTS)],
        env=os.environ | SETTINGS | {"PYTHONPATH": source}, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    told = [line for line in done.stdout.splitlines() if line.startswith("FOUND")]
    assert told, done.stderr[-3000:]
    agrees(*json.loads(told[0].removeprefix("FOUND ")))
