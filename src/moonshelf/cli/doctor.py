"""`moonshelf doctor`: is this installation sound, and does this model give the vectors it was saved with?

Without a model it reports the environment, for a bug report, and checks the shipped starter if there is
one. The report names versions and settings, never paths, hosts or the contents of variables that hold
addresses. Every check runs even if one before it failed, as far as that makes sense.
"""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from moonshelf import __version__
from moonshelf.errors import EXIT_OK, EXIT_USAGE, UserError

Level = Literal["ok", "warning", "error", "skipped"]
PACKAGES = (
    "torch", "transformers", "tokenizers", "safetensors", "huggingface-hub", "numpy", "pillow", "pyarrow",
    "lancedb", "faiss-cpu", "pydantic", "typer", "sentence-transformers", "torchvision",
)  # fmt: skip
VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "TOKENIZERS_PARALLELISM", "HF_HUB_OFFLINE", "DO_NOT_TRACK")


@dataclass(frozen=True)
class Check:
    """One question that was asked, and the answer in a sentence."""

    name: str
    level: Level
    detail: str


@dataclass
class Report:
    """What `moonshelf doctor` prints."""

    environment: dict[str, str]
    model: str | None = None
    checks: list[Check] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        return EXIT_USAGE if any(check.level == "error" for check in self.checks) else EXIT_OK

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "exit_code": self.exit_code}


def environment() -> dict[str, str]:
    """Versions and settings that change a result or its speed."""
    found = {
        "moonshelf": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpus": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
    }
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    found |= {name: os.environ[name] for name in VARIABLES if name in os.environ}
    try:
        import torch
    except (ImportError, OSError) as error:
        found["torch"] += f" (does not import: {type(error).__name__})"
    else:
        found["torch threads"] = str(torch.get_num_threads())
        found["instructions"] = torch.backends.cpu.get_cpu_capability()
        found["accelerator"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return found


def examine(model: str | None = None, download: bool = False) -> Report:
    """Report on the environment and on `model`; on the shipped starter where none is named."""
    from moonshelf.model import files

    report = Report(environment(), None if model is None else Path(model).name)
    if model is None:
        if not (files.STARTER / "moon.json").is_file():
            report.checks.append(Check("starter", "skipped", "no starter is shipped with this installation"))
            return report
        model = report.model = "starter"
    try:
        folder = files.find(model, download)
    except UserError as error:
        report.checks.append(Check("folder", "error", str(error)))
        return report
    sound = [
        _ask(report, "files", lambda: files.check_safety(folder), "only kinds that cannot run code"),
        _ask(
            report,
            "manifest",
            lambda: files.verify_manifest(folder),
            "every file has the hash it was saved with",
        ),
        _ask(report, "configuration", lambda: files.check_config(folder), "a known type, known keys"),
    ]
    if all(sound):
        _examine_weights(report, folder)
    else:
        report.checks.append(Check("weights", "skipped", "not loaded, since a check before it failed"))
    return report


def show(report: Report) -> None:
    """Print the report: the environment as a table, then one line a check."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(box=None, show_header=False)
    for name, value in report.environment.items():
        table.add_row(name, value)
    console.print(table)
    if report.checks:
        console.print(f"\nmodel: {report.model or 'none'}", markup=False)
    colours = {"ok": "green", "warning": "yellow", "error": "red", "skipped": "dim"}
    for check in report.checks:
        console.print(f"{check.level:>8}", style=colours[check.level], end="  ")
        console.print(f"{check.name}: {check.detail}", markup=False, highlight=False)


def _ask(report: Report, name: str, check: Any, detail: str) -> bool:
    try:
        check()
    except UserError as error:
        report.checks.append(Check(name, "error", str(error)))
        return False
    report.checks.append(Check(name, "ok", detail))
    return True


def _examine_weights(report: Report, folder: Path) -> None:
    import torch

    from moonshelf.model.encoders.base import EncodingError
    from moonshelf.model.golden import TOLERANCE, compare, read_golden
    from moonshelf.model.modeling import MoonModel

    try:
        model = MoonModel.from_pretrained(folder, verify=False)  # verified a moment ago
        golden = read_golden(folder)
    except UserError as error:
        report.checks.append(Check("weights", "error", str(error)))
        return
    broken = [name for name, tensor in model.named_parameters() if not torch.isfinite(tensor).all()]
    if broken:
        detail = f"{broken[0]} and {len(broken) - 1} other tensors hold values that are not finite"
        report.checks.append(Check("weights", "error", detail))
        return
    size = sum(tensor.numel() for tensor in model.parameters())
    detail = f"{size:,} parameters, all finite; fingerprint {model.fingerprint}"
    report.checks.append(Check("weights", "ok", detail))
    if golden is None:
        detail = "the model was saved without golden vectors: save it with golden=True"
        report.checks.append(Check("golden", "warning", detail))
        return
    try:
        worst, differences = compare(model, golden)
    except EncodingError as error:
        report.checks.append(Check("golden", "error", str(error)))
        return
    report.checks += [Check("golden", found.level, found.message) for found in differences]
    if not any(found.level == "error" for found in differences):
        detail = f"{len(golden.items)} products, 1 - cosine at most {worst:.1e} (tolerance {TOLERANCE:.0e})"
        report.checks.append(Check("golden", "ok", detail))
