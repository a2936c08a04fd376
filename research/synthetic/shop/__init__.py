"""A shop whose every product is drawn, so that everything about it is known.

It is a part of the training data, and what `moonshelf.sample` ships was drawn by it: `python -m
research.synthetic.shop` writes more. `spec` says what can be sold,
`shapes_*` draw it on a `draw.Canvas` with the materials of `surface`, `photo` puts it into a studio, `words`
writes the titles, `queries` asks, `shop` puts it together.
"""

from research.synthetic.shop.photo import View, render
from research.synthetic.shop.queries import DrawnTruth
from research.synthetic.shop.shop import contact_sheet, iter_products, iter_truth, make_shop
from research.synthetic.shop.spec import Spec

__all__ = [
    "DrawnTruth",
    "Spec",
    "View",
    "contact_sheet",
    "iter_products",
    "iter_truth",
    "make_shop",
    "render",
]
