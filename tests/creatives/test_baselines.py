"""Baselines: each says what it is said to say, and none flips with the order."""

from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image

from moonshelf.creatives.backends import scores as baselines
from moonshelf.creatives.backends.base import PairInput
from moonshelf.creatives.backends.names import make_backend
from moonshelf.creatives.backends.scores import ByPlace, clip_score, coin, per_image, similarity, text_share
from moonshelf.creatives.schema import Creative, Pair
from moonshelf.creatives.selector import judge
from moonshelf.errors import UserError
from moonshelf.images import decode
from moonshelf.model.encoders.stock import ClipEncoder
from moonshelf.product import ImageRef, Product
from research.studies.injection import draw_words
from tiny import picture


def creative(seed, **more):
    return Creative(id=f"c{seed}", image=ImageRef(data=picture(seed)), **more)


def pair(a=1, b=2, title="red running shoe", interest=("shoe",)):
    return Pair(id=f"{a}-{b}", product_id="p", title=title, interest=interest, a=creative(a), b=creative(b))


def asks_of(pairs):
    """Each pair once, A first."""
    return [PairInput(p.id, p.title, p.interest, p.a, p.b, ("A", "B")) for p in pairs]


BROKEN = Creative(id="broken", image=ImageRef(data=b"no picture"))


@pytest.mark.parametrize("name", ["random", "bytes", "text", "title", "interest"])
def test_scores_do_not_depend_on_the_order(name, model):
    backend = make_backend(name, model)
    one = pair()
    for there, back in zip(
        judge(backend, [one, pair(3, 4)]), judge(backend, [one.swapped(), pair(3, 4).swapped()]), strict=True
    ):
        assert there.p + back.p == 1 and not there.flipped
        assert there.p_first == pytest.approx(there.p_second, abs=1e-6)


@pytest.mark.parametrize("name", ["random", "bytes", "text", "title", "interest"])
def test_an_unreadable_image_is_no_opinion(name, model):
    asks = [PairInput("x", "red shoe", (), creative(1), BROKEN, ("K", "M")), *asks_of([pair()])]
    first, second = make_backend(name, model).predict(asks)
    assert (first.p_first is None) == (name not in ("random", "bytes"))  # those read bytes, not pictures
    assert second.p_first is not None and 0 <= second.p_first <= 1


def test_a_place_is_believed_in_and_averages_to_nothing():
    for place, p in ((0, 0.8), (1, 0.2)):
        assert [o.p_first for o in ByPlace(place).predict(asks_of([pair(), pair(3, 4)]))] == [p, p]
    judged = judge(make_backend("second"), [pair()])[0]
    assert judged.flipped and judged.verdict is None and judged.p == 0.5


def test_the_coin_is_fair_and_follows_its_seed():
    pairs = [pair(i, i + 1) for i in range(1, 121)]
    won = [o.p_first > 0.5 for o in coin(0).predict(asks_of(pairs))]
    assert 35 < sum(won) < 85
    assert won == [o.p_first > 0.5 for o in coin(0).predict(asks_of(pairs))]
    assert won != [o.p_first > 0.5 for o in coin(1).predict(asks_of(pairs))]


def test_the_larger_file_wins():
    small, large = (Creative(id=str(n), image=ImageRef(data=picture(1, n, n))) for n in (40, 300))
    assert make_backend("bytes").predict([PairInput("x", "", (), large, small, ("K", "M"))])[0].p_first > 0.5


def test_words_on_a_plain_picture_are_a_share_of_text():
    plain = Image.new("RGB", (320, 320), (180, 60, 50))
    few, many = draw_words(plain, "Soft"), draw_words(plain, "Soft and warm wool, knitted by hand " * 3)
    assert text_share(plain) == 0 < text_share(few) < text_share(many) < 0.6


def test_similarity_is_the_cosine_of_our_vectors(model):
    one = pair(interest=("running", "sport shoe"))
    words = [Product(id="t", title=one.title), Product(id="q", title="running; sport shoe")]
    vectors = model.encode([Product(id="i", images=(one.a.image,)), *words]).vectors
    title, interest = similarity(model, "title"), similarity(model, "interest")
    assert title.scores(asks_of([one]))[0, 0] == pytest.approx(float(vectors[0] @ vectors[1]), abs=1e-4)
    assert interest.scores(asks_of([one]))[0, 0] == pytest.approx(float(vectors[0] @ vectors[2]), abs=1e-4)
    untold = asks_of([pair(title="", interest=())])
    assert title.predict(untold)[0].p_first == 0.5


def test_a_picture_is_encoded_once(model, monkeypatch):
    scored, counted = similarity(model), []
    encode = model.encode
    monkeypatch.setattr(
        model, "encode", lambda products, **o: counted.append(len(products)) or encode(products, **o)
    )
    broken = PairInput("x", "red shoe", (), pair().a, BROKEN, ("A", "B"))
    for _ in range(2):
        assert np.isfinite(scored.scores(asks_of([pair(), pair()]))).all()
        assert np.isnan(scored.scores([broken])[0, 1])
    assert counted == [2, 1, 1, 1]  # two pictures, then the words; the broken one, other words


@pytest.mark.parametrize("name", ["nothing", "clip:", "clip:/no/such/folder", "pointwise:/no/such/folder"])
def test_a_name_that_is_none_is_refused(name, model):
    with pytest.raises(UserError, match=r"there is no backend|takes the folder"):
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
    backend = make_backend(f"clip:{clip_folder}")
    assert backend.name == f"clip:{clip_folder.name}"
    asks = [
        *asks_of([pair(), pair(title="", interest=())]),
        PairInput("x", "red", (), creative(1), BROKEN, ("K", "M")),
    ]
    scores = backend.scale * backend.scores(asks)
    clip = ClipEncoder(clip_folder, "clip")
    image = clip.embed(None, [decode(picture(1))])[0]
    text = clip.embed(["red running shoe, shoe"], None)[0]
    wanted = float(clip.model.logit_scale.exp()) * image @ text
    assert scores[0, 0] == pytest.approx(wanted, rel=1e-3)
    assert scores[1].tolist() == [0, 0] and math.isnan(scores[2, 1])
    assert backend.scale * backend.scores(asks)[0, 0] == scores[0, 0]


def test_a_folder_of_pickles_is_refused(tmp_path, clip_folder):
    (tmp_path / "config.json").write_bytes((clip_folder / "config.json").read_bytes())
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(UserError, match="safetensors"):
        clip_score(tmp_path)


def test_memory_of_scores_is_bounded(monkeypatch):
    monkeypatch.setattr(baselines, "KEPT", 4)
    read = []
    backend = per_image("x", lambda data: read.append(data) or float(len(data)))
    asks = asks_of([pair(i, i + 1) for i in range(1, 12)])
    backend.predict(asks)
    backend.predict(asks[-2:])
    assert len(read) == 12
    backend.predict(asks[:1])
    assert len(read) == 14
