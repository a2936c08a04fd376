"""The saved folder as a SentenceTransformer: the same vectors, by the one way that the docs name."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from moonshelf.model.modeling import MoonModel
from moonshelf.product import ImageRef, Product
from tiny import picture

st = pytest.importorskip("sentence_transformers")

TOLERANCE = 1e-5  # of a cosine


@pytest.fixture(scope="module")
def transformer(saved: MoonModel) -> Any:
    return st.SentenceTransformer(str(saved.source), trust_remote_code=True, device="cpu")


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))  # noqa: TID251 - a user's own picture


def test_the_flag_is_needed_and_said_so(saved: MoonModel) -> None:
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        st.SentenceTransformer(str(saved.source))


def test_products_get_the_vectors_of_the_model(
    transformer: Any, saved: MoonModel, products: list[Product]
) -> None:
    vectors = transformer.encode(products, batch_size=4)
    assert vectors.dtype == np.float32
    assert cosines(vectors, saved.encode(products).vectors).min() > 1 - TOLERANCE


def test_every_form_of_input_and_a_mixed_batch(transformer: Any, saved: MoonModel, tmp_path: Path) -> None:
    data = [picture(i) for i in range(4)]
    path = tmp_path / "shoe.png"
    path.write_bytes(data[1])
    uri = "data:image/png;base64," + base64.b64encode(data[2]).decode()
    refs = [ImageRef(data=d) for d in data]
    content = [{"type": "image", "image": opened(data[0])}, {"type": "text", "text": "mug"}]
    pairs: list[tuple[Any, Product]] = [
        ("red shoe", Product(id="a", title="red shoe")),
        (opened(data[0]), Product(id="b", images=(refs[0],))),
        (str(path), Product(id="c", images=(refs[1],))),
        (uri, Product(id="d", images=(refs[2],))),
        (np.asarray(opened(data[3])), Product(id="e", images=(refs[3],))),
        ({"text": "mug"}, Product(id="f", title="mug")),
        ({"image": str(path)}, Product(id="g", images=(refs[1],))),
        ({"text": "mug", "image": opened(data[0])}, Product(id="h", title="mug", images=(refs[0],))),
        (
            {"text": "mug", "image": [opened(data[0]), str(path)]},
            Product(id="i", title="mug", images=(refs[0], refs[1])),
        ),
        ([{"role": "user", "content": content}], Product(id="j", title="mug", images=(refs[0],))),
        (opened(data[0]).convert("RGBA"), Product(id="k", images=(refs[0],))),
    ]
    expected = saved.encode([product for _, product in pairs]).vectors
    mixed = transformer.encode([sample for sample, _ in pairs])
    assert cosines(mixed, expected).min() > 1 - TOLERANCE
    for (sample, _), vector in zip(pairs[:8], expected, strict=False):
        assert cosines(transformer.encode(sample)[None], vector[None])[0] > 1 - TOLERANCE


def test_an_upright_picture_is_what_counts(transformer: Any) -> None:
    """A PIL picture with an EXIF rotation gives the vector of the picture as it is shown."""
    upright = opened(picture(1, 160, 96)).convert("RGB")
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    upright.transpose(Image.Transpose.ROTATE_90).save(buffer, "PNG", exif=exif)
    turned = opened(buffer.getvalue())
    assert turned.size == (96, 160)
    assert cosines(*transformer.encode([turned, upright])[:, None]).min() > 1 - TOLERANCE


def test_similarity_and_dimension(transformer: Any, saved: MoonModel) -> None:
    texts = ["red shoe", "blue mug", "leather heels"]
    vectors = transformer.encode(texts)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(transformer.similarity(vectors, vectors), vectors @ vectors.T, atol=1e-5)
    assert transformer.get_embedding_dimension() == saved.dim
    assert transformer.supports("image") and transformer.supports(("image", "text"))


@pytest.mark.parametrize("dim", [128, 64])
def test_matryoshka_prefixes(transformer: Any, saved: MoonModel, dim: int) -> None:
    vectors = transformer.encode(["red shoe", "mug"], truncate_dim=dim, normalize_embeddings=True)
    full = saved.encode([Product(id=t, title=t) for t in ("red shoe", "mug")]).vectors
    assert vectors.shape == (2, dim)
    assert cosines(vectors, full[:, :dim]).min() > 1 - TOLERANCE


def test_reasoned_vectors(transformer: Any, saved: MoonModel, products: list[Product]) -> None:
    vectors = transformer.encode(products, reason="on")
    assert cosines(vectors, saved.encode(products, reason="on").vectors).min() > 1 - TOLERANCE
    with pytest.raises(ValueError, match="off or on"):
        transformer.encode(products, reason="auto")


def test_a_prompt_goes_before_the_text(transformer: Any) -> None:
    given = transformer.encode(["shoe", {"text": "shoe", "image": opened(picture(1))}], prompt="red ")
    written = transformer.encode(["red shoe", {"text": "red shoe", "image": opened(picture(1))}])
    assert cosines(given, written).min() > 1 - TOLERANCE


WRONG = [
    ("", "no text and no picture"),
    ({"text": ""}, "no text and no picture"),
    ({"video": "x"}, "not understood"),
    (3.5, "not understood"),
    ({"image": "absent.png"}, "absent.png"),
    ("https://example.com/shoe.png", "fetching is off"),
    ("data:image/png;base64,@@", "base64"),
    (np.zeros((4, 4, 3), np.float32), "uint8"),
    ([{"role": "system", "content": "x"}], "message of the user"),
]


@pytest.mark.parametrize(("sample", "message"), WRONG, ids=[m for _, m in WRONG])
def test_a_wrong_input_is_one_clear_sentence(transformer: Any, sample: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        transformer.encode(["fine", sample])


def test_saving_as_a_sentence_transformer_keeps_a_model(
    transformer: Any, products: list[Product], tmp_path: Path
) -> None:
    transformer.save_pretrained(str(tmp_path))
    expected = transformer.encode(products)
    again = st.SentenceTransformer(str(tmp_path), trust_remote_code=True, device="cpu")
    np.testing.assert_allclose(again.encode(products), expected, atol=1e-6)
    np.testing.assert_allclose(
        MoonModel.from_pretrained(tmp_path).encode(products).vectors, expected, atol=1e-5
    )


def test_a_spoilt_folder_is_refused(transformer: Any, tmp_path: Path) -> None:
    transformer.save_pretrained(str(tmp_path))
    (tmp_path / "modeling.py").write_text("raise SystemExit\n")
    with pytest.raises(Exception, match=r"modeling\.py"):
        st.SentenceTransformer(str(tmp_path), trust_remote_code=True)


def test_a_model_in_memory_can_be_trained(fresh: MoonModel) -> None:
    from moonshelf.model.sentence_transformer import MoonModule

    model = st.SentenceTransformer(modules=[MoonModule(fresh)], device="cpu")
    features = model.preprocess(["red shoe", "mug"])
    vectors = model(features)["sentence_embedding"]
    (vectors[0] @ vectors[1]).backward()
    grad = fresh.head.project.weight.grad
    assert grad is not None and torch.isfinite(grad).all() and grad.abs().sum() > 0
