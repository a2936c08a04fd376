"""The log of a run: one JSON line a record in `out/log.jsonl`, and whichever services the recipe names.

`log.jsonl` is the record that everything else is drawn from (see `plot`): it is always written, it needs no
package, and a resumed run cuts it back to the step that it resumes from, so that no step is there twice.
TensorBoard is used by default where it is installed, since it writes to the run's own folder. W&B and trackio
only see a run whose recipe names them. W&B stays offline unless WANDB_MODE says otherwise: a recipe may be
somebody else's, so a name in it is not yet leave to upload; `wandb sync` does so later. Accelerate's tracker
classes are not used: what they add to each service's own three calls is a dependency on its global state.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from moonshelf.errors import UserError
from moonshelf.files import write_atomic

SERVICES = ("tensorboard", "wandb", "trackio")

# Read by the packages when they are imported; what the user has set wins.
_QUIET = {
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",  # huggingface_hub, transformers, datasets, and TRL's ping a trainer
    "HF_UPDATE_DOWNLOAD_COUNTS": "0",  # datasets
    "GRADIO_ANALYTICS_ENABLED": "False",  # trackio's dashboard
    "WANDB_ERROR_REPORTING": "false",  # W&B sends its own crashes to Sentry
    "RAY_USAGE_STATS_ENABLED": "0",
    "VLLM_NO_USAGE_STATS": "1",
}


def quiet_dependencies() -> None:
    """Turn off the telemetry of what training imports. Call it before the heavy imports.

    A variable that is already set is left alone. huggingface_hub reads its own once, when it is imported, so
    the constant is changed too where that has happened.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    constants = sys.modules.get("huggingface_hub.constants")
    if constants is not None and os.environ["HF_HUB_DISABLE_TELEMETRY"].lower() in ("1", "on", "yes", "true"):
        constants.HF_HUB_DISABLE_TELEMETRY = True  # type: ignore[attr-defined]


class Tracker:
    """Where a run's figures go. In a process other than the first it does nothing.

    `report_to` names services; None means TensorBoard if it is installed, an empty sequence none. `config`
    is stored with the run where the service has a place for it. `resumed_step` is the last step that the run
    has done: records of later steps are dropped from the log.

    Raises `UserError` for an unknown service and for one that is not installed.
    """

    def __init__(
        self,
        out: Path,
        report_to: Sequence[str] | None = None,
        config: Mapping[str, Any] | None = None,
        run_name: str | None = None,
        resumed_step: int = 0,
    ) -> None:
        self.path = Path(out) / "log.jsonl"
        self._services: list[_Service] = []
        self.active = _is_main_process()
        if not self.active:
            return
        names = _chosen(report_to)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        _cut(self.path, resumed_step)
        name = run_name or self.path.parent.name
        values = json.loads(json.dumps(_plain(config or {}), default=str))
        for service in names:
            self._services.append(_MAKERS[service](self.path.parent, values, name, resumed_step))

    def log(self, record: Mapping[str, Any], step: int) -> None:
        """Append `record` with its step as one line; services get its numbers, but not text and NaN.

        Tensors and numpy scalars of one element are taken as numbers; what is not finite becomes null.
        """
        if not self.active:
            return
        values = {"step": int(step), **_plain({k: v for k, v in record.items() if k != "step"})}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(values, ensure_ascii=False, allow_nan=False, default=str) + "\n")
        numbers = {
            key: float(value)
            for key, value in values.items()
            if key != "step" and isinstance(value, int | float)
        }
        for service in self._services:
            if numbers:
                service.log(numbers, values["step"])

    def close(self) -> None:
        """Flush and end every service's run; a second call does nothing."""
        while self._services:
            self._services.pop().close()


class Bar:
    """Progress on stderr: share of the budget, step, loss, time left. Nothing where that is no terminal."""

    def __init__(self, name: str, shown: bool = True) -> None:
        console = Console(stderr=True)
        self.bar = Progress(
            TextColumn(name, markup=False), BarColumn(), TextColumn("step {task.fields[step]:,}"),
            TextColumn("loss {task.fields[loss]:.3f}"), TimeElapsedColumn(), TextColumn("left"),
            TimeRemainingColumn(), console=console, speed_estimate_period=600,
            disable=not (shown and console.is_terminal),
        )  # fmt: skip
        self.task = self.bar.add_task(name, total=1.0, step=0, loss=0.0)

    def __enter__(self) -> Bar:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def update(self, share: float, step: int, loss: float) -> None:
        self.bar.update(self.task, completed=min(1.0, share), step=step, loss=loss)


class _Service(Protocol):
    def __init__(self, out: Path, config: dict[str, Any], name: str, resumed_step: int) -> None: ...
    def log(self, numbers: dict[str, float], step: int) -> None: ...
    def close(self) -> None: ...


class _TensorBoard:
    def __init__(self, out: Path, config: dict[str, Any], name: str, resumed_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # Events of steps that will be done again are hidden from `resumed_step` on.
        purge = resumed_step + 1 if resumed_step else None
        self.writer = SummaryWriter(str(out / "tensorboard"), purge_step=purge)
        if not resumed_step:
            text = json.dumps(config, indent=1, ensure_ascii=False)
            self.writer.add_text("recipe", "\n".join(f"    {line}" for line in text.splitlines()))

    def log(self, numbers: dict[str, float], step: int) -> None:
        for key, value in numbers.items():
            self.writer.add_scalar(key, value, step)

    def close(self) -> None:
        self.writer.close()


class _Wandb:
    def __init__(self, out: Path, config: dict[str, Any], name: str, resumed_step: int) -> None:
        os.environ.setdefault("WANDB_MODE", "offline")
        wandb = importlib.import_module("wandb")
        part = _part(name, resumed_step)
        self.run = wandb.init(project="moonshelf", name=part, group=name, config=config, dir=str(out))

    def log(self, numbers: dict[str, float], step: int) -> None:
        self.run.log(numbers, step=step)

    def close(self) -> None:
        self.run.finish()


class _Trackio:
    def __init__(self, out: Path, config: dict[str, Any], name: str, resumed_step: int) -> None:
        os.environ.setdefault("TRACKIO_DIR", str(out / "trackio"))
        trackio = importlib.import_module("trackio")
        part = _part(name, resumed_step)
        self.run = trackio.init(project="moonshelf", name=part, group=name, config=config, embed=False)

    def log(self, numbers: dict[str, float], step: int) -> None:
        self.run.log(numbers, step=step)

    def close(self) -> None:
        self.run.finish()


_MAKERS: dict[str, type[_Service]] = {"tensorboard": _TensorBoard, "wandb": _Wandb, "trackio": _Trackio}


def _part(name: str, resumed_step: int) -> str:
    """These two cannot take steps back, so a resumed run goes on as another run of the same group."""
    return f"{name} from {resumed_step}" if resumed_step else name


def _chosen(report_to: Sequence[str] | None) -> list[str]:
    """Names of the services to use, each once; every one of them is installed."""
    if report_to is None:
        return ["tensorboard"] if _installed("tensorboard") else []
    for name in report_to:
        if name not in SERVICES:
            raise UserError(f"report_to: there is no reporter {name!r}: choose from {', '.join(SERVICES)}.")
        if not _installed(name):
            raise UserError(
                f"report_to: {name} is not installed: `pip install {name}`, or take it out of report_to."
            )
    return list(dict.fromkeys(report_to))


def _installed(name: str) -> bool:
    return name in sys.modules or importlib.util.find_spec(name) is not None


def _is_main_process() -> bool:
    """Also before torch.distributed is up: torchrun and accelerate launch set RANK."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank() == 0
    return int(os.environ.get("RANK", "0")) == 0


def _cut(path: Path, step: int) -> None:
    """Drop records of later steps, and a last line that a killed run left half written."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            continue
    write_atomic(path, "".join(kept).encode())


def _plain(value: Any) -> Any:
    """What JSON can say: numbers out of tensors and numpy scalars, null for what is not finite."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(inner) for inner in value]
    if isinstance(value, str | bool) or value is None:
        return value
    if not isinstance(value, int | float) and getattr(value, "size", None) is not None:
        size = value.numel() if hasattr(value, "numel") else value.size
        value = value.item() if size == 1 else value.tolist()
        return _plain(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value
