"""Random damage for a time, in processes that may die: nothing but our errors, in bounded time and memory.

`MOONSHELF_FUZZ_SECONDS` is how long each target is tried; `fuzz_child.py` says what is done to it. What was
tried last, or longest, lies in the folder that a failure names.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

SECONDS = float(os.environ.get("MOONSHELF_FUZZ_SECONDS", "30"))
BOUNDS = {  # processor seconds of one try, and MB of the whole process
    "decoder": (2.0, 500),
    "model": (20.0, 3_000),
    "selector": (10.0, 3_000),
    "catalogue": (10.0, 3_000),
}


@pytest.mark.slow
@pytest.mark.parametrize("target", BOUNDS)
def test_random_damage_is_refused_or_harmless(target: str, tmp_path: Path) -> None:
    seed = int(time.time())
    command = [sys.executable, str(Path(__file__).parent / "fuzz_child.py"), target, str(SECONDS), str(seed)]
    done = subprocess.run(
        [*command, str(tmp_path / "work")],
        text=True,
        errors="replace",
        capture_output=True,
        timeout=3 * SECONDS + 300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (12 << 30, 12 << 30)),
    )
    assert done.returncode == 0, f"seed {seed}, {tmp_path}/work/try: {done.stderr[-2_000:]}"
    record = json.loads(done.stdout.splitlines()[-1])
    seconds, megabytes = BOUNDS[target]
    assert record["tries"] > 1
    assert record["seconds"] < seconds and record["mb"] < megabytes, f"seed {seed}, {tmp_path}/work/slowest"
