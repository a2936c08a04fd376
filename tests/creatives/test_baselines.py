"""Baselines: each says what it is said to say, none flips with the order, and the link is fitted."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from moonshelf.creatives import baselines
from moonshelf.creatives.baselines import (
    ByPlace,
    ClipScore,
    Coin,
    PerImage,
    Scored,
    Similarity,
    Vectors,
    asks_of,
    fit_scale,
    make_backend,
    make_baseline,
    text_share,
)  # fmt: skip
from moonshelf.creatives.judging import Ask
from moonshelf.creatives.pair import Campaign, Creative, Pair
from moonshelf.creatives.pointwise import CARD, PointwiseHead
from moonshelf.creatives.selector import judge
from moonshelf.errors import UserError
from moonshelf.images import decode
from moonshelf.product import ImageRef, Product
from research.studies.injection import draw_words
from tiny import picture


def creative(seed, **more):
    return Creative(id=f"c{seed}", image=ImageRef(data=picture(seed)), **more)


def pair(a=1, b=2, title="red running shoe", interest=("shoe",)):
    return Pair(id=f"{a}-{b}", product_id="p", title=title, interest=interest, a=creative(a), b=creative(b))


BROKEN = Creative(id="broken", image=ImageRef(data=b"no picture"))


@pytest.mark.parametrize("name", ["random", "bytes", "text", "title", "interest"])
def test_scores_do_not_depend_on_the_order(name, model):
    backend = make_baseline(name, model)
    one = pair()
    for there, back in zip(
        judge(backend, [one, pair(3, 4)]), judge(backend, [one.swapped(), pair(3, 4).swapped()]), strict=True
    ):
        assert there.p + back.p == 1 and not there.flipped
        assert there.p_first == pytest.approx(there.p_second, abs=1e-6)


@pytest.mark.parametrize("name", ["random", "bytes", "text", "title", "interest"])
def test_an_unreadable_image_is_no_opinion(name, model):
    asks = [Ask("x", "red shoe", (), creative(1), BROKEN, ("K", "M")), *asks_of([pair()])]
    first, second = make_baseline(name, model).opinions(asks)
    assert (first.p_first is None) == (name not in ("random", "bytes"))  # those read bytes, not pictures
    assert second.p_first is not None and 0 <= second.p_first <= 1


def test_a_place_is_believed_in_and_averages_to_nothing():
    for place, p in ((0, 0.8), (1, 0.2)):
        assert [o.p_first for o in ByPlace(place).opinions(asks_of([pair(), pair(3, 4)]))] == [p, p]
    judged = judge(make_baseline("second"), [pair()])[0]
    assert judged.flipped and judged.verdict is None and judged.p == 0.5


def test_the_coin_is_fair_and_follows_its_seed():
    pairs = [pair(i, i + 1) for i in range(1, 121)]
    won = [o.p_first > 0.5 for o in Coin(0).opinions(asks_of(pairs))]
    assert 35 < sum(won) < 85
    assert won == [o.p_first > 0.5 for o in Coin(0).opinions(asks_of(pairs))]
    assert won != [o.p_first > 0.5 for o in Coin(1).opinions(asks_of(pairs))]


def test_the_larger_file_wins():
    small, large = (Creative(id=str(n), image=ImageRef(data=picture(1, n, n))) for n in (40, 300))
    assert make_baseline("bytes").opinions([Ask("x", "", (), large, small, ("K", "M"))])[0].p_first > 0.5


def test_words_on_a_plain_picture_are_a_share_of_text():
    plain = Image.new("RGB", (320, 320), (180, 60, 50))
    few, many = draw_words(plain, "Soft"), draw_words(plain, "Soft and warm wool, knitted by hand " * 3)
    assert text_share(plain) == 0 < text_share(few) < text_share(many) < 0.6


def test_similarity_is_the_cosine_of_our_vectors(model):
    one = pair(interest=("running", "sport shoe"))
    words = [Product(id="t", title=one.title), Product(id="q", title="running; sport shoe")]
    vectors = model.encode([Product(id="i", images=(one.a.image,)), *words]).vectors
    shared = Vectors(model)
    title, interest = Similarity(shared, "title"), Similarity(shared, "interest")
    assert title.scores(asks_of([one]))[0, 0] == pytest.approx(float(vectors[0] @ vectors[1]), abs=1e-4)
    assert interest.scores(asks_of([one]))[0, 0] == pytest.approx(float(vectors[0] @ vectors[2]), abs=1e-4)
    untold = asks_of([pair(title="", interest=())])
    assert title.opinions(untold)[0].p_first == 0.5


def test_a_picture_is_encoded_once(model, monkeypatch):
    vectors, counted = Vectors(model), []
    encode = model.encode
    monkeypatch.setattr(
        model, "encode", lambda products, **o: counted.append(len(products)) or encode(products, **o)
    )
    for _ in range(2):
        assert vectors([pair().a.image, "red shoe", pair().a.image]).shape == (3, model.config.dim)
    assert counted == [2]
    assert np.isnan(vectors([BROKEN.image, ""])).all() and vectors([]).shape == (0, model.config.dim)


# ------------------------------------------------------------------------------------------------ the link


class Given(Scored):
    name = "given"

    def __init__(self, gaps):
        self.gaps = gaps

    def scores(self, asks):
        return np.stack([self.gaps, np.zeros(len(self.gaps))], 1)


@given(st.floats(0.05, 50))
def test_the_scale_that_made_the_posteriors_is_found(scale):
    gaps = np.linspace(-2, 2, 41) / scale
    backend = Given(gaps)
    found = fit_scale(backend, [pair()] * 41, list(1 / (1 + np.exp(-scale * gaps))))
    assert found == backend.scale == pytest.approx(scale, rel=1e-3)


def test_a_score_that_misleads_is_not_turned_round():
    gaps = np.linspace(-1, 1, 21)
    backend = Given(gaps)
    assert 0 < fit_scale(backend, [pair()] * 21, list(gaps < 0)) < 0.01
    with pytest.raises(UserError, match="can score none"):
        fit_scale(Given(np.full(2, math.nan)), [pair()] * 2, [0.5, 0.5])


@pytest.mark.parametrize("name", ["nothing", "clip:", "clip:/no/such/folder", "pointwise:/no/such/folder"])
def test_a_name_that_is_none_is_refused(name, model):
    with pytest.raises(UserError):
        make_baseline(name, model)
    with pytest.raises(UserError, match=r"there is no backend|takes the folder|no pointwise head"):
        make_backend(name, model)


# ---------------------------------------------------------------------------------------------------- clip


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    """A CLIP of random weights, saved as such models are."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    side = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={
            **side,
            "vocab_size": 40,
            "max_position_embeddings": 16,
            "eos_token_id": 1,
            "pad_token_id": 1,
        },
        vision_config={**side, "image_size": 32, "patch_size": 16},
        projection_dim=8,
    )
    CLIPModel(config).eval().save_pretrained(folder)
    words = {
        "<bos>": 0,
        "<eos>": 1,
        "<unk>": 2,
        **{w: i + 3 for i, w in enumerate(["red", "blue", "shoe", "running"])},
    }
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", unk_token="<unk>", pad_token="<eos>"
    )
    fast.save_pretrained(folder)
    size = {"height": 32, "width": 32}
    try:
        CLIPImageProcessor(size=size, crop_size=size).save_pretrained(folder)
    except ImportError:
        from transformers import CLIPImageProcessorPil

        CLIPImageProcessorPil(size=size, crop_size=size).save_pretrained(folder)
    return folder


def test_a_clip_folder_is_a_scorer_of_image_and_words(clip_folder):
    backend = make_baseline(f"clip:{clip_folder}")
    assert isinstance(backend, ClipScore) and backend.name == f"clip:{clip_folder.name}"
    asks = [
        *asks_of([pair(), pair(title="", interest=())]),
        Ask("x", "red", (), creative(1), BROKEN, ("K", "M")),
    ]
    scores = backend.scores(asks)
    image = backend.clip.embed_pictures([decode(picture(1))])[0]
    text = backend.clip.embed_texts(["red running shoe, shoe"])[0]
    wanted = backend.factor * image @ text / np.linalg.norm(image) / np.linalg.norm(text)
    assert scores[0, 0] == pytest.approx(wanted, rel=1e-3)
    assert scores[1].tolist() == [0, 0] and math.isnan(scores[2, 1])
    assert backend.scores(asks)[0, 0] == scores[0, 0]


def test_a_folder_of_pickles_is_refused(tmp_path, clip_folder):
    (tmp_path / "config.json").write_bytes((clip_folder / "config.json").read_bytes())
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(UserError, match="safetensors"):
        ClipScore(tmp_path)


# ----------------------------------------------------------------------------------------------- pointwise


def campaigns(n=24, seed=0):
    """Bright pictures are clicked twice as often as dark ones; products differ far more than that."""
    rng = np.random.default_rng(seed)
    found = []
    for k in range(n):
        base = 0.01 * 2 ** rng.normal(0, 1.5)
        arms = []
        for i, level in enumerate((60, 230)):
            pixels = rng.integers(-40, 25, (48, 48, 3)) + level
            buffer = io.BytesIO()
            Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(buffer, "PNG")
            shown = int(rng.integers(3000, 9000))
            clicks = int(rng.binomial(shown, min(base * (1 + i), 0.5)))
            arms.append(
                Creative(id=f"{i}", image=ImageRef(data=buffer.getvalue()), impressions=shown, clicks=clicks)
            )
        if k % 2:
            arms.reverse()
        found.append(
            Campaign(id=f"k{k}", product_id=f"p{k}", title=f"shoe {k}", creatives=tuple(arms), source="test")
        )
    return found


@pytest.fixture(scope="module")
def head(model):
    return PointwiseHead.fit(campaigns(), model)


def test_the_head_learns_how_creatives_of_a_product_differ(head):
    assert head.card.agreement > 0.9 and head.card.campaigns == 24 and head.card.sources == ("test",)
    right = 0
    for campaign in campaigns(12, seed=5):
        a, b = campaign.creatives
        p = head.opinions([Ask("x", campaign.title, (), a, b, ("K", "M"))])[0].p_first
        right += (p > 0.5) == (a.id == "1")
    assert right >= 11


def test_a_saved_head_is_the_same_and_belongs_to_its_model(head, model, model_2_5, tmp_path):
    head.scale = 2.5
    head.save(tmp_path / "head")
    again = make_baseline(f"pointwise:{tmp_path / 'head'}", model)
    asks = asks_of([pair(), pair(3, 4)])
    np.testing.assert_allclose(again.scores(asks), head.scores(asks), rtol=1e-4, atol=1e-5)
    assert again.scale == 2.5 and again.card.sources == head.card.sources
    with pytest.raises(UserError, match="another model"):
        PointwiseHead.load(tmp_path / "head", model_2_5)
    (tmp_path / "head" / CARD).write_text("{}")
    with pytest.raises(UserError, match="holds no pointwise head"):
        PointwiseHead.load(tmp_path / "head", model)


def test_too_few_campaigns_are_said(model):
    bare = [Campaign(id="k", product_id="p", creatives=(creative(1), creative(2)))]
    with pytest.raises(UserError, match="at least 5 products"):
        PointwiseHead.fit([*bare, *campaigns(3)], model)


def test_memory_of_scores_is_bounded(monkeypatch):
    monkeypatch.setattr(baselines, "_KEPT", 4)
    backend = PerImage("x", lambda data: float(len(data)))
    backend.opinions(asks_of([pair(i, i + 1) for i in range(1, 12)]))
    assert len(backend._known) == 4
