"""Two gloo processes give the losses and gradients of one, mined hard negatives and the queue included."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

KINDS = ("direct", "pair", "reasoned")


def worker(rank: int, world: int, port: int, shop: Path, out: Path) -> None:
    """One training process: three steps' losses and gradients on its share, saved by the first process."""
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true",
    }  # fmt: skip
    if world == 1:
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
            os.environ.pop(name)
    torch.set_num_threads(1)
    from moonshelf.training.cold_start import ColdStart, set_up
    from moonshelf.training.data import prepare
    from moonshelf.training.recipe import Recipe

    run = ColdStart(
        *set_up(
        Recipe(
            sources=[{"feed": "shop.jsonl"}], out=str(out / f"run{world}"), batch=8, hidden=64, layers=2,
            vision_hidden=64, vision_depth=2, vocabulary=500, precision="float32", memory=12, memory_from=0.0,
            prompt={"max_rationale_tokens": 12, "max_pixels": 96 * 96}, report_to=(),
        ),
        shop,
        )
    )  # fmt: skip
    run.moon.head.fusion.dropout = 0.0  # the processes draw theirs apart
    run.model_wrapped = run.accelerator.prepare(run.model)
    # Hard neighbours fill half of the batch, as `moonshelf mine` would list them.
    (items, _), *_ = run.sampler.pools
    neighbours = [*items[1:], items[0]]
    run.sampler.near = {(item.source, item.id): (near,) for item, near in zip(items, neighbours, strict=True)}
    found: dict[str, Any] = {}
    import random

    for step, kind in enumerate(KINDS):
        run.state.global_step = step
        items = run.sampler.draw(8, random.Random(step))
        start, stop = (len(items) * (rank + n) // world for n in (0, 1))
        draw = prepare(run.moon, items[start:stop], kind, f"key {step}", first=start)
        run.model.zero_grad(set_to_none=True)
        terms = run.losses(draw)
        found |= {f"{kind} loss {name}": term.cpu() for name, term in terms.items()}
        found |= {
            f"{kind} {name.removeprefix('module.')}": p.grad.clone()
            for name, p in run.model.named_parameters()
            if p.grad is not None
        }
    if rank == 0:
        save_file({name: value.contiguous() for name, value in found.items()}, out / f"{world}.safetensors")
    if world > 1:
        torch.distributed.destroy_process_group()


def test_two_processes_equal_one(tmp_path: Path) -> None:
    from moonshelf.feeds import write_jsonl
    from research.synthetic.shop import iter_products

    if not torch.distributed.is_gloo_available():
        pytest.skip("this build of torch has no gloo")
    write_jsonl(iter_products(16, seed=5, photos=2, size=96), tmp_path / "shop.jsonl")
    for world in (1, 2):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        torch.multiprocessing.spawn(worker, (world, port, tmp_path, tmp_path), nprocs=world)
    one, two = (load_file(tmp_path / f"{world}.safetensors") for world in (1, 2))
    assert {k for k in one if " loss " in k} == {k for k in two if " loss " in k}
    for name, value in one.items():
        if name in two:
            torch.testing.assert_close(two[name], value, atol=2e-4, rtol=2e-3, msg=name)
        else:  # DDP gives zeros where one process gives nothing, never the other way round
            pytest.fail(f"{name} has no gradient in two processes")
    assert all(not value.any() for name, value in two.items() if name not in one)
