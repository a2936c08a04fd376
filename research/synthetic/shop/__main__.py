"""Draw products into a Parquet feed, for training or for a test of one's own.

    python -m research.synthetic.shop --out DATA/sampleshop.parquet

Product k follows from the seed and from k alone, so a feed of 50 is the beginning of one of 5,000. The
starter was trained on 2,500 products of seed 1000 with photos of 224 pixels, which are the defaults.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from research.synthetic.feeds import write_products
from research.synthetic.shop import iter_products


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw products into a Parquet feed.")
    parser.add_argument("--out", type=Path, required=True, help="file to write")
    parser.add_argument("-n", "--products", type=int, default=2500)
    parser.add_argument("--seed", type=int, default=1000)
    parser.add_argument("--photos", type=int, default=3, help="of a product")
    parser.add_argument("--size", type=int, default=224, help="pixels a side")
    options = parser.parse_args()
    drawn = iter_products(options.products, options.seed, options.photos, options.size)
    print(f"{write_products(options.out, drawn):,} products drawn into {options.out}")


if __name__ == "__main__":
    main()
