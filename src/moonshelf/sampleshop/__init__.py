"""A shop whose every product is drawn, so that everything about it is known.

It is the demo's data, the tests' ground truth and a part of the training data. `spec` says what can be sold,
`shapes_*` draw it on a `draw.Canvas` with the materials of `surface`, `photo` puts it into a studio, `words`
writes the titles, `queries` asks, `shop` puts it together.
"""

from moonshelf.sampleshop.photo import View, render
from moonshelf.sampleshop.queries import Query, Truth
from moonshelf.sampleshop.shop import Shop, contact_sheet, iter_products, iter_truth, make_shop, write_shop
from moonshelf.sampleshop.spec import Spec

__all__ = [
    "Query",
    "Shop",
    "Spec",
    "Truth",
    "View",
    "contact_sheet",
    "iter_products",
    "iter_truth",
    "make_shop",
    "render",
    "write_shop",
]
