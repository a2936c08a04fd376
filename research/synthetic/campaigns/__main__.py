"""Draw campaigns with known truth: images, impressions, clicks, true rates; all marked as simulated.

    python -m research.synthetic.campaigns --out DATA/drawn-sft.parquet -n 8000 --seed 1 --other-interest 0.5
    python -m research.synthetic.campaigns --out tuning -n 1200 --split validation --seed 2

A name that ends in .parquet is one file with the images inside; any other is a folder with the images beside
`campaigns.jsonl`. `moonshelf creative evaluate` and recipes take both.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

from moonshelf.creatives.io.readers import write_campaigns
from moonshelf.creatives.schema import Campaign, Pair
from research.synthetic.campaigns.claims import SPLITS
from research.synthetic.campaigns.simulator import pairs, simulate
from research.synthetic.feeds import write_creatives


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Draw campaigns with known truth.")
    parser.add_argument("--out", type=Path, required=True, help="folder, or a file NAME.parquet")
    parser.add_argument("-n", "--campaigns", type=int, default=100)
    parser.add_argument("--split", choices=SPLITS, default="train", help="they share no product")
    parser.add_argument("--creatives", type=int, default=2, help="of a campaign")
    parser.add_argument("--pairs", action="store_true", help="write pairs with their true reasons")
    parser.add_argument(
        "--other-interest", type=float, default=0.0, help="share of every second campaign that repeats the "
        "creatives of the one before, for shoppers who ask for something else",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    drawn = simulate(
        options.campaigns, creatives=options.creatives, seed=options.seed, split=options.split,
        other_interest=options.other_interest,
    )  # fmt: skip
    rows: Iterable[Campaign | Pair] = drawn
    if options.pairs:
        rows = (pair for campaign in drawn for pair in pairs(campaign))
    write = write_creatives if options.out.suffix == ".parquet" else write_campaigns
    what = "pairs" if options.pairs else "campaigns"
    print(f"{write(options.out, rows):,} simulated {what} written to {options.out}")


if __name__ == "__main__":
    main()
