"""A caller in a process of his own: searches by words until its input ends, then says how it went.

    python another_caller.py http://127.0.0.1:8765 PID

A machine that is busy with other things makes everybody wait. So of each wait no more counts than the service
of that process id was computing meanwhile. Prints a line when the first reply has come, and at the end
{"wall": longest wait in seconds, "counted": the same of what counts, "statuses": […]}.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path

import httpx


def computed(pid: str) -> float:
    """Seconds that all threads of a process have computed."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main(address: str, pid: str) -> None:
    over, waits, statuses = threading.Event(), list[tuple[float, float]](), set[int]()
    threading.Thread(target=lambda: (sys.stdin.read(), over.set()), daemon=True).start()
    with httpx.Client(base_url=address, timeout=60) as client:
        while not over.is_set():
            begun, before = time.monotonic(), computed(pid)
            reply = client.post("/v1/search", json={"text": f"red shoe {begun}"})
            wall = time.monotonic() - begun
            waits.append((wall, min(wall, computed(pid) - before)))
            statuses.add(reply.status_code)
            if len(waits) == 1:
                print("begun", flush=True)
            time.sleep(0.05)
    wall, counted = (max(one) for one in zip(*waits[1:], strict=True))
    print(json.dumps({"wall": wall, "counted": counted, "statuses": sorted(statuses)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
