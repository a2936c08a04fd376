"""Baselines by folder, on tiny models with random weights: what they read, how they pool, what not.

No baseline was ever run with the weights of a hub here.
"""

from __future__ import annotations

import json

import numpy as np
import pytest

from moonshelf import images
from moonshelf.errors import UserError
from moonshelf.evaluation.encoders.baselines import Concat, make_baselines
from moonshelf.evaluation.encoders.cache import EmbeddingCache
from moonshelf.evaluation.runner import evaluate
from moonshelf.model.encoders.stock import load, unit
from moonshelf.product import ImageRef, Product
from stock_models import SIZE, TOWER, VISION, clip_tokenizer, lively, make_bert, make_clip
from tiny import pictures

FULL = Product(id="full", title="Red shoe", images=pictures(1, 2))
WORDS = Product(id="words", title="lamp")
PHOTO = Product(id="photo", images=pictures(3))
EMPTY = Product(id="empty")
BROKEN = Product(id="broken", title="x", images=(ImageRef(data=b"no picture"),))
ALL = [FULL, WORDS, PHOTO, EMPTY, BROKEN]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return make_clip(tmp_path_factory.mktemp("baselines") / "clip")


@pytest.fixture(scope="module")
def siglip(tmp_path_factory):
    from transformers import SiglipConfig, SiglipModel
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    folder = tmp_path_factory.mktemp("baselines") / "siglip"
    config = SiglipConfig(text_config={**TOWER, "projection_size": 32}, vision_config=VISION)
    lively(SiglipModel(config)).save_pretrained(folder)
    clip_tokenizer().save_pretrained(folder)
    SiglipImageProcessorPil(size=SIZE).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    from transformers import ViTConfig, ViTModel
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    folder = tmp_path_factory.mktemp("baselines") / "vit"
    lively(ViTModel(ViTConfig(**VISION))).save_pretrained(folder)
    ViTImageProcessorPil(size=SIZE).save_pretrained(folder)
    return folder


def one(spec):
    return make_baselines([spec])[0]


def vector(encoder, product):
    return encoder.encode([product]).vectors[0]


def checked(encoder, readable):
    """Encodes ALL; what is `readable` is of unit length and not the same, the rest has a problem."""
    out = encoder.encode(ALL)
    assert [p.id for p, ok in zip(ALL, out.ok, strict=True) if ok] == readable
    assert {p.id for p in out.problems} == {p.id for p in ALL} - set(readable)
    np.testing.assert_allclose(np.linalg.norm(out.vectors[out.ok], axis=1), 1, atol=1e-5)
    assert not out.vectors[~out.ok].any() and out.vectors.shape[1] == encoder.dim
    np.testing.assert_allclose(out.vectors[0], vector(encoder, FULL), atol=1e-5)  # whatever the batch
    second = FULL.model_copy(update={"images": FULL.images[:1]})
    np.testing.assert_allclose(out.vectors[0], vector(encoder, second), atol=1e-5)  # the first photo alone
    return out


def test_clip_gives_the_features_of_the_library_and_their_mean_direction(clip):
    import torch
    from transformers import CLIPModel
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    encoder = one(f"clip:{clip}")
    out = checked(encoder, ["full", "words", "photo"])
    model = CLIPModel.from_pretrained(clip).eval()
    picture = images.load(FULL.images[0], max_side=encoder.model.max_side)
    pixels = CLIPImageProcessorPil.from_pretrained(clip)(images=[picture], return_tensors="pt")
    tokens = clip_tokenizer()(["Red shoe"], return_tensors="pt")
    with torch.no_grad():
        seen = unit(model.get_image_features(**pixels).pooler_output)
        read = unit(model.get_text_features(**tokens).pooler_output)
    np.testing.assert_allclose(out.vectors[0], unit(seen + read)[0], atol=1e-4)
    assert encoder.name == "clip:clip" and encoder.one_space and encoder.reads == {"text", "image"}
    assert not np.allclose(out.vectors[1], vector(encoder, Product(id="w", title="oak table")), atol=1e-3)


def test_siglip_reads_lower_case_text_padded_to_its_length(siglip):
    import torch
    from transformers import SiglipModel

    encoder = one(f"clip:{siglip}")
    out = checked(encoder, ["full", "words", "photo"])
    tokens = clip_tokenizer()(["lamp"], padding="max_length", max_length=32, return_tensors="pt")
    model = SiglipModel.from_pretrained(siglip).eval()
    with torch.no_grad():
        read = model.get_text_features(**tokens).pooler_output
    np.testing.assert_allclose(out.vectors[1], unit(read)[0], atol=1e-5)
    shouted = vector(encoder, Product(id="w", title="LAMP"))
    np.testing.assert_allclose(out.vectors[1], shouted, atol=1e-6)


def test_an_image_encoder_gives_the_mean_of_its_states_and_never_random_pooling(tmp_path):
    import torch
    from transformers import ViTConfig, ViTForImageClassification
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    model = lively(ViTForImageClassification(ViTConfig(**VISION))).eval()
    model.save_pretrained(tmp_path)
    processor = ViTImageProcessorPil(size=SIZE)
    processor.save_pretrained(tmp_path)
    first, second = one(f"st:{tmp_path}"), one(f"st:{tmp_path}")
    checked(first, ["full", "photo"])
    np.testing.assert_array_equal(vector(first, PHOTO), vector(second, PHOTO))
    pixels = processor(images=[images.load(PHOTO.images[0], max_side=128)], return_tensors="pt")
    with torch.no_grad():
        states = model.vit(**pixels).last_hidden_state
    np.testing.assert_allclose(vector(first, PHOTO), unit(states.mean(1))[0], atol=1e-4)


def test_sentence_transformers_reads_a_plain_clip_folder_and_leaves_siglip_to_clip(clip, siglip):
    encoder = one(f"st:{clip}")
    checked(encoder, ["full", "words", "photo"])
    np.testing.assert_allclose(vector(encoder, PHOTO), vector(one(f"clip:{clip}"), PHOTO), atol=1e-4)
    with pytest.raises(UserError, match="name it with clip:"):
        one(f"st:{siglip}")


@pytest.mark.parametrize("kind", ["clip", "st"])
def test_weights_that_are_not_whole_are_no_baseline(clip, tmp_path, kind):
    from safetensors.torch import load_file, save_file

    for file in clip.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="not whole: 1 are missing, such as visual_projection"):
        one(f"{kind}:{tmp_path}")


def test_a_sentence_transformer_uses_its_own_prompts_for_both_sides(tmp_path):
    model = make_bert(tmp_path / "plain")
    make_bert(tmp_path / "prompted", {"query": "find: ", "document": "page: "})
    plain, prompted = one(f"st:{tmp_path / 'plain'}"), one(f"st:{tmp_path / 'prompted'}")
    out = checked(plain, ["full", "words", "broken"])  # a broken picture is nothing to a reader
    assert plain.queries is None and plain.reads == {"text"} and not plain.one_space
    np.testing.assert_allclose(out.vectors[1], unit(model.encode(["lamp"], prompt=""))[0], atol=1e-5)
    for side, text in ((prompted, "page: lamp"), (prompted.queries, "find: lamp")):
        wanted = unit(model.encode([text], prompt=""))[0]
        np.testing.assert_allclose(vector(side, WORDS), wanted, atol=1e-5)
    assert len({plain.fingerprint, prompted.fingerprint, prompted.queries.fingerprint}) == 3


def test_a_sentence_transformer_is_scored_in_place_of_the_model(tmp_path):
    make_bert(tmp_path / "theirs", {"query": "find: ", "document": "page: "})
    model = load(f"st:{tmp_path / 'theirs'}")
    report = evaluate(model, suite="sampleshop", limit=24, tasks=["text → product"], against=["bm25"])
    ours, bm25 = report.encoders
    assert (ours["name"], ours["ours"], ours["writes"], bm25["name"]) == ("st:theirs", True, False, "bm25")
    assert ours["fingerprint"].startswith(model.fingerprint) and report.baseline == "st:theirs"
    assert {r.value is not None for r in report.results if r.encoder == "st:theirs"} == {True}


def test_a_sentence_transformer_of_pictures_is_shown_them(clip, tmp_path):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    from sentence_transformers.sentence_transformer.modules import Transformer
    from transformers import AutoImageProcessor, CLIPProcessor

    processor = CLIPProcessor(AutoImageProcessor.from_pretrained(clip), clip_tokenizer())
    inner = tmp_path / "inner"
    for file in clip.iterdir():
        inner.mkdir(exist_ok=True)
        (inner / file.name).write_bytes(file.read_bytes())
    processor.save_pretrained(inner)
    model = sentence_transformers.SentenceTransformer(modules=[Transformer(str(inner))], device="cpu")
    model.save_pretrained(str(tmp_path / "st"))
    encoder = one(f"st:{tmp_path / 'st'}")
    assert encoder.reads == {"text", "image"} and encoder.one_space
    checked(encoder, ["full", "words", "photo"])
    np.testing.assert_allclose(vector(encoder, PHOTO), vector(one(f"clip:{clip}"), PHOTO), atol=1e-4)


def test_any_text_and_any_image_baseline_can_be_put_side_by_side(clip, vit):
    encoder = one(f"concat:clip:{clip}+st:{vit}")
    assert isinstance(encoder, Concat) and encoder.name == "concat:clip:clip+st:vit"
    text, image = encoder.text, encoder.image
    out = encoder.encode([FULL, WORDS, PHOTO])
    alone = vector(text, FULL.model_copy(update={"images": ()}))  # the text half does not see the photo
    np.testing.assert_allclose(out.vectors[0, : text.dim] * np.sqrt(2), alone, atol=1e-4)
    np.testing.assert_allclose(out.vectors[0, text.dim :] * np.sqrt(2), vector(image, FULL), atol=1e-4)
    assert not out.vectors[1, text.dim :].any() and not out.vectors[2, : text.dim].any()
    cache = EmbeddingCache()
    encoder.part_encode = cache.encode
    np.testing.assert_allclose(cache.encode(encoder, [FULL]).vectors[0], out.vectors[0], atol=1e-6)
    assert cache.timings[image.name].encoded == 1
    for spec, message in (
        (f"concat:st:{vit}+st:{vit}", "cannot be the text half"),
        (f"concat:tfidf+st:{vit}", "'tfidf' cannot be the text half"),
        ("concat:minilm", "takes TEXT[+]IMAGE"),
    ):
        with pytest.raises(UserError, match=message):
            one(spec)


def test_two_folders_of_one_name_keep_their_figures_apart(vit, tmp_path):
    import shutil

    other = tmp_path / "vit"
    shutil.copytree(vit, other)
    (other / "config.json").write_text(
        json.dumps({**json.loads((vit / "config.json").read_text()), "note": 1})
    )
    first, second = make_baselines([f"st:{vit}", f"st:{other}"])
    assert first.name == "st:vit" and second.name == f"st:{other}"
    assert first.fingerprint != second.fingerprint


@pytest.mark.parametrize(
    ("key", "value"),
    [("attn_implementation", "owner/kernel"), ("quantization_config", {"quant_method": "x"})],
)
def test_a_configuration_that_chooses_code_is_refused(vit, tmp_path, key, value):
    import shutil

    shutil.copytree(vit, tmp_path / "vit")
    config = json.loads((vit / "config.json").read_text())
    (tmp_path / "vit" / "config.json").write_text(json.dumps({**config, "inner": {key: value}}))
    with pytest.raises(UserError, match=f"'{key}', which can choose code"):
        one(f"st:{tmp_path / 'vit'}")


def test_pickles_and_other_folders_are_refused(vit, tmp_path):
    (tmp_path / "config.json").write_bytes((vit / "config.json").read_bytes())
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(UserError, match="no weights as safetensors"):
        one(f"st:{tmp_path}")
    (tmp_path / "modules.json").write_text(
        json.dumps([{"path": "", "type": "x.Y"}, {"path": "dense", "type": "x"}])
    )
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "dense").mkdir()
    (tmp_path / "dense" / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(UserError, match="as a pickle, which can run code"):
        one(f"st:{tmp_path}")
    with pytest.raises(UserError, match="it is not the folder of such a model"):
        one(f"clip:{tmp_path / 'dense'}")


def test_code_of_a_folder_is_never_run(vit, tmp_path):
    import shutil

    folder = tmp_path / "vit"
    shutil.copytree(vit, folder)
    config = {**json.loads((vit / "config.json").read_text()), "auto_map": {"AutoModel": "evil.Evil"}}
    config["model_type"] = "evil"
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(UserError, match="cannot be loaded"):
        one(f"st:{folder}")
    assert not (tmp_path / "ran").exists()


def test_nothing_is_fetched_unless_asked(monkeypatch):
    import huggingface_hub

    asked = []

    def snapshot(name, **options):
        asked.append((name, options))
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    with pytest.raises(UserError, match="no download was allowed"):
        one("clip:openai/clip-vit-base-patch32")  # what was fetched before is looked for here alone
    assert asked.pop()[1]["local_files_only"]
    with pytest.raises(UserError, match=r"could not be fetched \(OSError"):
        make_baselines(["clip:openai/clip-vit-base-patch32"], download=True)
    name, options = asked[0]
    assert name == "openai/clip-vit-base-patch32" and not options["local_files_only"]
    assert not any(".py" in pattern or ".bin" in pattern for pattern in options["allow_patterns"])


def test_mteb_is_asked_only_where_a_download_is_allowed():
    with pytest.raises(UserError, match="allow it with --download"):
        one("mteb:openai/clip-vit-base-patch32")


@pytest.mark.parametrize("spec", ["clap", "clip:", "word2vec:x"])
def test_an_unknown_baseline_gets_the_list(spec):
    with pytest.raises(UserError, match=r"there is no baseline .*tfidf, bm25.*mteb"):
        one(spec)
