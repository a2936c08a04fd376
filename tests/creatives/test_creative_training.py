"""The selector's model: rows, batch invariance, adapters and their files, and both stages in small."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from judging_fakes import pair
from scipy.stats import entropy

from moonshelf import MoonModel
from moonshelf.creatives.backends import describe as describing_first
from moonshelf.creatives.backends.base import PairInput
from moonshelf.creatives.backends.describe import Form, choices, compare, describe, sides
from moonshelf.creatives.backends.model import CreativeConfig, CreativeModel, Pixels
from moonshelf.creatives.backends.names import make_backend
from moonshelf.creatives.evidence import readable
from moonshelf.creatives.io.readers import write_campaigns
from moonshelf.creatives.labels import posterior
from moonshelf.creatives.prompt import (
    CreativePrompt,
    read_assessment,
    read_description,
    write_assessment,
    write_comparison,
    write_description,
)
from moonshelf.creatives.schema import KEYS
from moonshelf.creatives.selector import judge
from moonshelf.creatives.training.data import (
    Example,
    PairRow,
    draw,
    load_examples,
    make_descriptions,
    make_pair_rows,
)
from moonshelf.creatives.training.grpo import (
    DescriptionTrainer,
    RolledPairs,
    token_questions,
    train_grpo,
)
from moonshelf.creatives.training.policy import (
    ScoredPairs,
    Taught,
    VerdictPolicy,
    answer_loss,
    label_targets,
    order_gap,
    reasons_loss,
    wholly,
)
from moonshelf.creatives.training.recipe import STAGES, GrpoRecipe, PairSource, SftRecipe
from moonshelf.creatives.training.rewards import REWARDS
from moonshelf.creatives.training.sft import export, reason_tokens, resume_from, start, train_sft
from moonshelf.errors import UserError
from moonshelf.model.decode import Decoded
from moonshelf.model.processing import Batch
from moonshelf.product import ImageRef
from moonshelf.training.recipe import Lora, load_recipe
from research.synthetic.campaigns.simulator import pairs, simulate
from research.synthetic.campaigns.simulator import told as truth_of
from tiny import tiny_qwen3

PROMPT = CreativePrompt(max_pixels=64 * 64, min_pixels=32 * 32, max_rationale_tokens=12)
DESCRIBING = PROMPT.model_copy(update={"overlays": True})
LORA = Lora(r=4, alpha=8, vision=("qkv", "proj", "linear_fc1", "linear_fc2"))


@pytest.fixture(scope="module")
def base(tokenizer: object, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tiny_qwen3(tokenizer).save_pretrained(folder)  # type: ignore[arg-type]
    return folder


@pytest.fixture(scope="module")
def feed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    write_campaigns(folder, simulate(12, seed=3))
    return folder


@pytest.fixture(scope="module")
def examples(feed: Path) -> list[Example]:
    return load_examples(PairSource(feed=feed), Path())


@pytest.fixture(scope="module")
def selector(base: Path) -> CreativeModel:
    return CreativeModel(MoonModel.from_pretrained(base), CreativeConfig(prompt=PROMPT))


def settings(kind: type, base: Path, feed: Path, out: Path, **more: object) -> object:
    fields = {
        "sources": [{"feed": feed}], "out": str(out), "pairs": 2, "steps": 3, "save_every": 2,
        "report_to": (), "precision": "float32", "warmup": 1,
    }  # fmt: skip
    start_at = (
        {"base": str(base), "prompt": DESCRIBING, "lora": LORA} if kind is SftRecipe else {"model": str(base)}
    )
    return kind(**{**fields, **start_at, **more})


def test_a_row_reads_as_the_chat_template_writes_it(selector: CreativeModel, examples: list[Example]) -> None:
    work = make_pair_rows(selector, examples[:1], "k")
    ask, prepare = work[0].ask, selector.moon.prepare
    ids, kinds = selector.row(ask, [2, 3], [prepare.think])
    tokenizer, image = prepare.processor.tokenizer, prepare.processor.image_token
    words = selector.prompt.words(ask.title, ask.interest)
    pictures = "".join(
        f"{label}:<|vision_start|>{image * n}<|vision_end|>\n"
        for label, n in zip(ask.labels, (2, 3), strict=True)
    )
    named = f"first {ask.labels[0]}, second {ask.labels[1]}\n"
    text = f"<|im_start|>user\n{words}{pictures}{named}<|im_end|>\n<|im_start|>assistant\n<think>"
    assert tokenizer.decode(ids) == text
    assert kinds.count(1) == 5 and kinds[-1] == 3


def test_words_on_an_image_stand_after_it(selector: CreativeModel, examples: list[Example]) -> None:
    asks = [row.ask for row in make_pair_rows(selector, examples, "k", no_overlays=0.5)]
    ask = next(ask for ask in asks if ask.overlays[0] and ask.overlays[1] != ask.overlays[0])
    assert any(not any(ask.overlays) for ask in asks)  # a share goes without
    for one, other in zip(asks[::2], asks[1::2], strict=True):
        assert one.overlays == other.overlays[::-1]
    assert ask.overlays[0] == ask.first.text
    prompt = PROMPT.model_copy(update={"overlays": True, "max_overlay_chars": 9})
    told = CreativeModel(selector.moon, CreativeConfig(prompt=prompt))
    ids, kinds = told.row(ask, [2, 3], [])
    image = selector.moon.prepare.processor.image_token
    pictures = "".join(
        f"{label}:<|vision_start|>{image * n}<|vision_end|>\n"
        + (f"says: {words[:9].lower()}\n" if words else "")
        for label, n, words in zip(ask.labels, (2, 3), ask.overlays, strict=True)
    )
    assert pictures in selector.moon.processor.tokenizer.decode(ids)
    assert kinds.count(2) > selector.row(ask, [2, 3], [])[1].count(2)


def test_an_opinion_does_not_depend_on_the_batch(selector: CreativeModel) -> None:
    asked = [p for c in simulate(6, seed=8) for p in pairs(c)]
    together = judge(selector, asked)
    alone = [judge(selector, [one])[0] for one in asked]
    for one, other in zip(together, alone, strict=True):
        assert one.p == pytest.approx(other.p, abs=1e-5)
        assert one.abstained == other.abstained


def test_what_rounding_could_turn_is_decided_without_company(
    selector: CreativeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many tokens are level, and logits differ a little by the shape of the batch, as kernels' do."""
    model = describing(selector)
    asked = [p for c in simulate(3, creatives=3, seed=8, same=0, alike=0) for p in pairs(c)]
    asks = [PairInput(p.id, p.title, p.interest, p.a, p.b, ("K", "M"), (p.a.text, p.b.text)) for p in asked]
    weight = model.moon.backbone.lm_head.weight

    def logits(states: torch.Tensor) -> torch.Tensor:
        level = weight[torch.arange(len(weight)) // 64 * 64]
        noise = torch.sin(torch.arange(len(weight)) * (1.0 + 7 * seen[0]))
        noise[model.moon.prepare.end_think] = -1e7  # it writes as much as it may
        return states @ level.T + 1e-5 * noise

    seen = [0]
    read = model.moon.read

    def reading(batch: Batch, *rest: object, **more: object) -> object:
        seen[0] = len(batch.emb)
        return read(batch, *rest, **more)

    monkeypatch.setattr(model.moon, "logits", logits)
    monkeypatch.setattr(model.moon, "read", reading)
    written: list[list[str]] = []
    for size in (1, 2, len(asks)):
        parts = [asks[i : i + size] for i in range(0, len(asks), size)]
        written.append([one.raw for part in parts for one in model.predict(part)])
    assert written[0] == written[1] == written[2]


def test_the_complement_is_exact_for_the_model_too(selector: CreativeModel) -> None:
    (one,) = [p for c in simulate(1, seed=9) for p in pairs(c)]
    assert judge(selector, [one])[0].p + judge(selector, [one.swapped()])[0].p == 1.0


def test_rows_of_a_step_mirror(selector: CreativeModel, examples: list[Example]) -> None:
    work = make_pair_rows(selector, examples[:4], "key")
    assert len(work) == 8
    decode = selector.moon.processor.tokenizer.decode
    for one, other in zip(work[::2], work[1::2], strict=True):
        assert one.target + other.target == pytest.approx(1.0)
        assert one.ask.first == other.ask.second and one.pictures == other.pictures[::-1]
        here, there = (read_assessment(decode(row.body), row.ask.labels) for row in (one, other))
        assert here is not None and there is not None and here == there.swapped()


def test_a_description_is_one_side_of_the_reasons(selector: CreativeModel, examples: list[Example]) -> None:
    work = make_descriptions(selector, examples[:3], "key")
    decode = selector.moon.processor.tokenizer.decode
    assert len(work) == 6 and all(len(row.pictures) == 1 for row in work)
    for i, example in enumerate(examples[:3]):
        assert example.pair.assessment is not None
        for side, row in (("reason_a", 2 * i), ("reason_b", 2 * i + 1)):
            said = dict(part.split(": ", 1) for part in decode(work[row].body).split("; "))
            told = {f.question: getattr(f, side) for f in example.pair.assessment.findings}
            # what it says of the queries is about those that were drawn for this row
            query, ask = said.pop("query"), work[row].ask
            assert query == truth_of(ask.first, ask.interest)["query"].reason
            del told["query"]
            assert said == {question: reason for question, reason in told.items() if reason}
    assert any(work[i].ask.interest != examples[i // 2].pair.interest for i in range(6))
    scored = scored_by(VerdictPolicy(selector, torch.float32), work)
    assert scored.logps.shape[0] == 6 and torch.isfinite(scored.logps).all()
    bare = [Example(example.pair.model_copy(update={"assessment": None}), 0.5) for example in examples[:1]]
    with pytest.raises(UserError, match="describe_steps"):
        make_descriptions(selector, bare, "key")


def test_words_beside_the_point_change_what_is_read_and_nothing_else(
    selector: CreativeModel, examples: list[Example]
) -> None:
    plain, beside = (make_pair_rows(selector, examples, "key", distractors=share) for share in (0.0, 1.0))
    assert all(one.ask.title != other.ask.title for one, other in zip(plain, beside, strict=True))
    for one, other in zip(plain, beside, strict=True):
        assert (one.target, one.known, one.body) == (other.target, other.known, other.body)
    some = make_pair_rows(selector, examples, "key", distractors=0.5)
    changed = [one.ask.title != other.ask.title for one, other in zip(plain, some, strict=True)]
    assert any(changed) and not all(changed)
    assert changed[::2] == changed[1::2]  # both orders of a pair read the same
    plain, beside = (make_descriptions(selector, examples, "key", distractors=share) for share in (0.0, 1.0))
    assert all(one.ask.title != other.ask.title for one, other in zip(plain, beside, strict=True))
    assert [one.body for one in plain] == [one.body for one in beside]


def scored_by(policy: VerdictPolicy, rows: list[PairRow], *bodies: list[int]) -> ScoredPairs:
    """Whole bodies, the rows' own or other ones."""
    end, given = policy.moon.prepare.end_think, bodies or [row.body for row in rows]
    return policy([wholly(row, end, body) for row, body in zip(rows, given, strict=True)])


def describing(selector: CreativeModel) -> CreativeModel:
    return CreativeModel(selector.moon, CreativeConfig(prompt=DESCRIBING))


def answering(selector: CreativeModel) -> CreativeModel:
    """The same weights answering at once: an untrained model describes nothing to compare by."""
    return CreativeModel(selector.moon, CreativeConfig(prompt=PROMPT))


def test_a_comparison_is_the_greedy_one_with_its_evidence_in_place(
    selector: CreativeModel, examples: list[Example]
) -> None:
    model = describing(selector)
    work, prepare = make_pair_rows(model, examples[:3], "key"), model.moon.prepare
    decode = model.moon.processor.tokenizer.decode
    known = [read_assessment(decode(row.body), row.ask.labels) for row in work]
    asks = [row.ask for row in work]
    forms = [Form(model, ask, sides(one)) for ask, one in zip(asks, known, strict=True) if one is not None]
    assert len(forms) == 6
    with model.moon.inferring():
        picked, final = compare(model, forms)
    bodies = [form.fill(row)[0] for form, row in zip(forms, picked.tolist(), strict=True)]
    policy = VerdictPolicy(model, torch.float32)
    work = make_pair_rows(model, examples[:3], "key", shown=False)  # what is compared are words alone
    assert [row.pictures for row in work] == [()] * 6
    for r, (body, given) in enumerate(zip(bodies, known, strict=True)):
        written = read_assessment(decode(body), asks[r].labels)
        assert written is not None and given is not None
        assert body == prepare.ids(decode(body))  # put together from pieces, the same tokens all the same
        for mine, theirs in zip(written.findings, given.findings, strict=True):
            assert (mine.reason_a, mine.reason_b) == (theirs.reason_a, theirs.reason_b)
        # no other answer to any one question is likelier where it stands
        likely = scored_by(policy, [work[r]], body).logps[0]
        for finding in written.findings[2:]:
            for other in ("A>B", "A=B", "A<B"):
                changed = write_assessment(
                    written.model_copy(
                        update={
                            "findings": tuple(
                                f.model_copy(update={"answer": other}) if f is finding else f
                                for f in written.findings
                            )
                        }
                    ),
                    asks[r].labels,
                )
                ids = prepare.ids(changed)
                at = next((i for i, (x, y) in enumerate(zip(ids, body, strict=False)) if x != y), None)
                if at is not None:
                    assert scored_by(policy, [work[r]], ids).logps[0, at] <= likely[at] + 1e-5
        with model.moon.inferring():
            logits = model.answer_logits(final[r : r + 1], [asks[r]]).log_softmax(-1)
        both = scored_by(policy, [work[r]], body).answers.log_softmax(-1)
        assert torch.allclose(logits, both, atol=1e-4)


def test_the_answers_taught_are_the_true_ones_whatever_was_picked(
    selector: CreativeModel, examples: list[Example]
) -> None:
    """A form filled with the truth is the known reasons; the loss of its answers is that of these tokens."""
    model = describing(selector)
    decode = model.moon.processor.tokenizer.decode
    work = make_pair_rows(model, examples[:3], "key", shown=False)
    known, asks = [row.known for row in work if row.known is not None], [row.ask for row in work]
    forms = [Form(model, ask, sides(one)) for ask, one in zip(asks, known, strict=True)]
    true = torch.tensor([choices(one) for one in known])
    wanted = label_targets(work, forms, true, known)
    bodies = [one.body for one in wanted]
    assert bodies == [row.body for row in work]
    for body, one, assessment in zip(bodies, wanted, known, strict=True):
        assert [body[place] for place in one.places] == one.tokens
        # … and, of the evidence, what follows from queries, title and the words before
        told = re.findall(r"(?:wants|titled) (.+?) (yes|no)\b", decode(body))
        assert decode(one.tokens[7:]).replace(" ", "") == "".join(f"{x}{y}" for x, y in told).replace(" ", "")
        assert len(told) == sum(
            reason.count("wants ") + reason.count("titled ")
            for finding in assessment.findings for reason in (finding.reason_a, finding.reason_b)
        )  # fmt: skip
    assert any(len(one.tokens) > 7 for one in wanted)
    policy = VerdictPolicy(model, torch.float32)
    scored, full = policy(wanted), scored_by(policy, work, *bodies)
    counts = [len(one.tokens) for one in wanted]
    for r, one in enumerate(wanted):
        assert torch.allclose(scored.logps[r, : counts[r]], full.logps[r, one.places], atol=1e-5)
    assert torch.allclose(scored.answers, full.answers)
    mean = -scored.logps.sum().item() / sum(counts)
    assert reasons_loss(scored.logps, counts).item() == pytest.approx(mean)
    # After other choices the same answers are wanted; of a row that is not known, none.
    asked = label_targets(work, forms, 1 - true.clamp(max=1), [*known[:5], None])
    assert [one.body for one in asked] != bodies and [one.tokens for one in asked[:5]] == [
        one.tokens for one in wanted[:5]
    ]
    assert not asked[5].tokens
    some = policy(asked)
    assert not some.logps[5].any()
    counts = [len(one.tokens) for one in asked]
    assert counts[5] == 0
    mean = -some.logps[:5].sum().item() / sum(counts)
    assert reasons_loss(some.logps, counts).item() == pytest.approx(mean)
    # After other evidence than the known one nothing of it is taught.
    foreign = [Form(model, ask, sides(one)[::-1]) for ask, one in zip(asks, known, strict=True)]
    taught = label_targets(work, foreign, true, known)
    assert [len(one.tokens) > 7 for one in taught] == [
        sides(one)[0] == sides(one)[1] and len(two.tokens) > 7 for one, two in zip(known, wanted, strict=True)
    ]
    assert label_targets(work[2:4], forms[2:4], true[2:4], known[2:4]) == wanted[2:4]


def test_what_is_said_of_an_image_does_not_depend_on_its_partner_or_place(selector: CreativeModel) -> None:
    model = describing(selector)
    (campaign,) = simulate(1, creatives=3, seed=9, same=0, alike=0)
    asked = list(pairs(campaign))
    asks = [
        PairInput(p.id, p.title, p.interest, p.a, p.b, ("K", "M"), (p.a.text, p.b.text))
        for pair in asked for p in (pair, pair.swapped())
    ]  # fmt: skip
    pictures = model.patchify(one.image for one in campaign.creatives)
    with model.moon.inferring():
        told = describe(model, asks, [(pictures[a.first.image], pictures[a.second.image]) for a in asks])
    by_creative = {(ask.first.id, ask.second.id): both for ask, both in zip(asks, told, strict=True)}
    for (first, second), both in by_creative.items():  # three creatives, each described once
        assert both == by_creative[second, first][::-1]
    assert all(opinion.assessment is None for opinion in model.predict(asks))  # untaught
    assert all(j.assessment is None and 0 <= j.p <= 1 for j in judge(model, asked))
    (there,), (back,) = (judge(model, [one]) for one in (asked[0], asked[0].swapped()))
    assert there.p + back.p == 1.0


def test_each_image_is_described_once_and_compared_by_that(
    selector: CreativeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opinions of six asks of three creatives, the descriptions being given."""
    model = describing(selector)
    (campaign,) = simulate(1, creatives=3, seed=9, same=0, alike=0)
    asked = [one for pair in pairs(campaign) for one in (pair, pair.swapped())]
    asks = [PairInput(p.id, p.title, p.interest, p.a, p.b, ("K", "M"), (p.a.text, p.b.text)) for p in asked]
    known = {one.a.id: write_description(one.assessment) for one in asked if one.assessment}
    shown: list[str] = []

    def write(alone: list[PairInput], pictures: list[tuple[Pixels, ...]], *_: object) -> list[Decoded]:
        assert all(len(row) == 1 for row in pictures)
        shown.extend(ask.first.id for ask in alone)
        none, ids = torch.zeros(2, 64), model.moon.prepare.ids
        return [Decoded(ids(known[ask.first.id]), True, none, none[0], []) for ask in alone]

    monkeypatch.setattr(model, "write", write)
    monkeypatch.setattr(describing_first, "TIE", 0.0)  # nothing was chosen here
    predictions = model.predict(asks)
    assert sorted(shown) == sorted(known)
    for one, opinion in zip(asked, predictions, strict=True):
        assert opinion.assessment is not None and one.assessment is not None
        assert sides(opinion.assessment) == sides(readable(one.assessment))
    alone = [model.predict([ask])[0] for ask in asks]
    assert [one.p_first for one in alone] == pytest.approx([one.p_first for one in predictions], abs=1e-5)
    assert len(shown) == 3 + 12  # nothing is remembered while weights may change
    model.told = {}
    assert [one.assessment for one in model.predict(asks)] == [one.assessment for one in predictions]
    assert [model.predict([ask])[0].assessment for ask in asks] == [one.assessment for one in predictions]
    assert len(shown) == 15 + 3
    broken = replace(
        asks[0], second=asks[0].second.model_copy(update={"image": ImageRef(data=b"x"), "sha256": ""})
    )
    assert [one.p_first is None for one in model.predict([broken, asks[0]])] == [True, False]
    unknown = replace(asks[0], first=asks[0].first.model_copy(update={"sha256": ""}))
    model.predict([unknown])  # what lies at its address may change
    assert len(model.told) == 3


def test_a_description_is_read_as_it_was_written(examples: list[Example]) -> None:
    for example in examples:
        assert example.pair.assessment is not None
        told = read_description(write_description(example.pair.assessment))
        assert told == {f.question: f.reason_a for f in example.pair.assessment.findings if f.reason_a}
    for broken in ("", "query", "query:", "query: says; taste: good", "query: says; query: says"):
        assert read_description(broken) is None
    assert write_comparison({"query": "shows red;"}, {})[2] == "; query: shows red / nothing,"


def test_every_token_that_is_taught_has_a_trained_row(
    selector: CreativeModel, examples: list[Example]
) -> None:
    """A frozen row keeps its word rare, whatever the rest learns: a description's first word is one more."""
    tokens = set(reason_tokens(selector, examples))
    for work in (make_pair_rows(selector, examples, "k"), make_descriptions(selector, examples, "k")):
        used = {token for row in work for token in row.body}
        assert len(used - tokens) <= 0.2 * len(used)  # a few words of queries that were drawn anew
        assert {row.body[0] for row in work} <= tokens


def test_targets_are_posteriors_and_copies_are_ties(examples: list[Example]) -> None:
    for example in examples:
        same = example.pair.a.sha256 == example.pair.b.sha256
        assert example.target == (0.5 if same else posterior(example.pair))


def test_every_epoch_draws_every_example_once(examples: list[Example]) -> None:
    n = len(examples)
    drawn = [e.pair.id for step in range(n) for e in draw(examples, 2, 5, step)]
    assert len(drawn) == 2 * n
    assert sorted(drawn[:n]) == sorted(drawn[n:]) == sorted(e.pair.id for e in examples)
    assert drawn[:n] != drawn[n:]


def test_scores_are_those_of_a_plain_forward_pass(selector: CreativeModel, examples: list[Example]) -> None:
    """Log-probabilities and answers against logits taken one row at a time."""
    policy = VerdictPolicy(selector, torch.float32).eval()
    work = make_pair_rows(selector, examples[:2], "x")
    scored = scored_by(policy, work)
    moon, prepare = selector.moon, selector.moon.prepare
    for r in range(4):
        one = scored_by(policy, [work[r]])
        n = len(work[r].body) + 1
        assert torch.allclose(scored.logps[r, :n], one.logps[0], atol=1e-4)
        assert scored.logps[r, n:].abs().sum() == 0
        tail = [prepare.think, *work[r].body, prepare.end_think, *selector.after]
        batch, visual = selector.batch([work[r].ask], [tail], [work[r].pictures])
        every = moon.logits(moon.read(batch, visual).states[0]).float().log_softmax(-1)
        label = selector.label_ids[work[r].ask.labels[0]]
        assert every[-1, label].item() == pytest.approx(scored.answers[r, 0].item(), abs=1e-4)
    targets = [row.target for row in work]
    q = torch.tensor(targets)
    expected = -(q * scored.answers[:, 0] + (1 - q) * scored.answers[:, 1]).mean()
    assert torch.isclose(answer_loss(scored.answers, targets), expected)


def test_the_gap_of_two_orders_is_their_divergence() -> None:
    """Against SciPy's relative entropy; none where both orders say the same of the same creative."""
    drawn = np.random.default_rng(0).normal(size=(8, 2))
    p = np.exp(drawn) / np.exp(drawn).sum(1, keepdims=True)
    one, other = p[0::2], p[1::2, ::-1]
    expected = (entropy(one, other, axis=1) + entropy(other, one, axis=1)).mean() / 2
    assert order_gap(torch.tensor(drawn)).item() == pytest.approx(expected)
    agreed = torch.tensor([[0.2, -1.0], [-1.0, 0.2], [3.0, 2.0], [12.0, 13.0]], dtype=torch.float64)
    assert order_gap(agreed).item() == pytest.approx(0, abs=1e-12)


def test_an_adapter_is_saved_as_peft_reads_it_and_merges_to_the_same(
    base: Path, examples: list[Example], tmp_path: Path
) -> None:
    creative = start(settings(SftRecipe, base, base, tmp_path))  # type: ignore[arg-type]
    with torch.no_grad():
        for name, weight in creative.moon.backbone.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.05)
    asked = [example.pair for example in examples[:3]]
    beside = judge(answering(creative), asked)
    export(creative, tmp_path / "selector")
    assert not list((tmp_path / "selector").glob("*.bin"))
    loaded = CreativeModel.from_pretrained(tmp_path / "selector", precision="float32")
    merged = judge(answering(loaded), asked)
    for one, other in zip(beside, merged, strict=True):
        assert one.p == pytest.approx(other.p, abs=1e-4)
    again = resume_from(settings(SftRecipe, base, base, tmp_path), str(tmp_path / "selector"))
    assert judge(answering(again), asked)[0].p == pytest.approx(beside[0].p, abs=1e-4)

    from peft import PeftModel

    plain = MoonModel.from_pretrained(base)
    wrapped = PeftModel.from_pretrained(copy.deepcopy(plain.backbone), tmp_path / "selector")
    loaded = {k: v for k, v in wrapped.state_dict().items() if "lora_" in k}
    assert len(loaded) == sum("lora_" in n for n, _ in creative.moon.backbone.named_parameters())
    assert all(v.abs().sum() > 0 for k, v in loaded.items() if "lora_B" in k)


def test_an_adapter_of_another_base_is_refused(base: Path, tmp_path: Path) -> None:
    creative = start(settings(SftRecipe, base, base, tmp_path))  # type: ignore[arg-type]
    export(creative, tmp_path / "selector")
    file = tmp_path / "selector" / "creative.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "base_fingerprint": "0" * 16}))
    with pytest.raises(UserError, match="belongs to the model"):
        CreativeModel.from_pretrained(tmp_path / "selector")
    with pytest.raises(UserError, match=r"no creative\.json"):
        CreativeModel.from_pretrained(base)


def test_both_stages_run_resume_and_can_be_judged_with(base: Path, feed: Path, tmp_path: Path) -> None:
    sft = settings(
        SftRecipe,
        base,
        feed,
        tmp_path / "sft",
        self_generated_from=0.0,
        self_generated_every=2,
        describe_steps=1,
        order_weight=0.5,
    )
    folder = train_sft(sft, Path())  # type: ignore[arg-type]
    records = [json.loads(line) for line in (tmp_path / "sft" / "log.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records if "answer" in r and "loss" in r] == [2, 3]
    assert [r["step"] for r in records if "reasons" in r and "loss" in r] == [1, 2, 3]
    assert all(r["gap"] >= 0 for r in records if "answer" in r)
    grpo = settings(
        GrpoRecipe, folder, feed, tmp_path / "grpo", rollouts=2, cot_weight=0.5,
        validation={"feed": feed}, validation_pairs=4,
    )  # fmt: skip
    chosen = train_grpo(grpo, Path())  # type: ignore[arg-type]
    records = [json.loads(line) for line in (tmp_path / "grpo" / "log.jsonl").read_text().splitlines()]
    assert any("score" in r for r in records)
    assert {*(f"rewards/{name}" for name in REWARDS), "known reasons"} <= set().union(*records)
    selector = CreativeModel.from_pretrained(chosen)
    assert selector.temperature != 1.0  # fitted on the validation pairs
    assert selector.config.trained_on == "" and selector.config.base == str(base)
    (judged,) = judge(selector, [pair()])
    assert 0 <= judged.p <= 1
    # a run that was stopped goes on
    longer = settings(
        SftRecipe, base, feed, tmp_path / "sft", self_generated_from=0.0, self_generated_every=2, steps=5
    )
    train_sft(longer, Path())  # type: ignore[arg-type]
    records = [json.loads(line) for line in (tmp_path / "sft" / "log.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records if "answer" in r and "loss" in r] == [2, 3, 4, 5]
    assert [r["step"] for r in records if "reasons" in r and "loss" in r] == [1, 2, 3, 4, 5]


def test_without_reasons_the_answer_alone_is_taught(base: Path, tmp_path: Path) -> None:
    told = [p for c in simulate(3, seed=4) for p in pairs(c)]
    write_campaigns(
        tmp_path / "bare", [p.model_copy(update={"assessment": None, "source": "shop"}) for p in told]
    )
    recipe = settings(SftRecipe, base, tmp_path / "bare", tmp_path / "out", steps=2)
    train_sft(recipe, Path())  # type: ignore[arg-type]
    records = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert {(r["reasons"], r["answer"] > 0) for r in records if "answer" in r} == {(0, True)}


def test_a_selector_that_describes_first_is_trained_after_its_own_descriptions(
    base: Path, feed: Path, tmp_path: Path
) -> None:
    recipe = settings(
        SftRecipe,
        base,
        feed,
        tmp_path / "sft",
        describe_every=2,
        self_generated_from=0.0,
        self_generated_every=1,
    )
    folder = train_sft(recipe, Path())  # type: ignore[arg-type]
    records = [json.loads(line) for line in (tmp_path / "sft" / "log.jsonl").read_text().splitlines()]
    steps = [r for r in records if "grad_norm" in r]
    assert ["answer" in r for r in steps] == [False, True, False]
    assert all(r["reasons"] > 0 for r in steps)  # after its own descriptions the answers are still taught
    assert CreativeModel.from_pretrained(folder).prompt == DESCRIBING
    grpo = settings(
        GrpoRecipe,
        folder,
        feed,
        tmp_path / "grpo",
        rollouts=2,
        cot_weight=0.5,
        accumulate=2,
        compare_pairs=1,
        describe_pairs=1,
        order_weight=0.5,
    )
    chosen = train_grpo(grpo, Path())  # type: ignore[arg-type]
    records = [json.loads(line) for line in (tmp_path / "grpo" / "log.jsonl").read_text().splitlines()]
    logged = {*(f"rewards/{name}" for name in REWARDS), "known reasons", "known answers"}
    assert logged <= set().union(*records)
    assert all(r["answer"] > 0 <= r["gap"] for r in records if "answer" in r)
    assert CreativeModel.from_pretrained(chosen).prompt == DESCRIBING


def untrained(base: Path, feed: Path, tmp_path: Path) -> Path:
    """A selector that describes first, not trained."""
    export(start(settings(SftRecipe, base, feed, tmp_path)), tmp_path / "selector")  # type: ignore[arg-type]
    return tmp_path / "selector"


def test_a_description_is_paid_for_its_own_claims_and_for_the_comparison(
    base: Path, feed: Path, tmp_path: Path, examples: list[Example]
) -> None:
    """Rollout g of a creative meets rollout g of its rival; each form has its own creative first."""
    selector = untrained(base, feed, tmp_path)
    assert not make_backend(f"{selector}:pixels").prompt.overlays  # type: ignore[attr-defined]
    recipe = settings(GrpoRecipe, selector, feed, tmp_path / "grpo", rollouts=3, pairs=2, cot_weight=0.5)
    assert isinstance(recipe, GrpoRecipe)
    creative = resume_from(recipe, str(selector))
    trainer = DescriptionTrainer(creative, recipe, examples)
    policy = trainer.model
    rows = trainer.pairs = make_pair_rows(creative, examples[:2], "key")
    known = [row.known for row in rows if row.known is not None]
    texts = [
        sides(known[r // 3])[0] if r % 3 != 1 else None for r in range(12)
    ]  # the second of each is broken
    ids = policy.creative.moon.prepare.ids
    true = [write_description(one) for one in known]
    none = torch.zeros(1)
    written = [
        Decoded(ids(true[r // 3] if texts[r] else "query"), texts[r] is not None, none[:, None], none, [])
        for r in range(12)
    ]
    policy.write = lambda *_, **__: written  # type: ignore[method-assign,assignment]
    rolled = trainer._roll()
    assert [one is not None for one in rolled.found] == [r % 3 != 1 for r in range(12)]
    for r in range(12):
        rival = (r // 3 ^ 1) * 3 + r % 3
        assert rolled.other[r].item() == pytest.approx(1 - rolled.p[rival].item())
        if texts[r]:
            counts = list(rolled.checked[r].values())
            assert (
                sum(n for _, n in counts) > 0 == sum(wrong for wrong, _ in counts)
            )  # the truth is never refuted
            found = rolled.found[r]
            assert found is not None and found[KEYS[2]].reason_a == texts[r][KEYS[2]]
    for one, row in zip(trainer.alone, rows, strict=True):
        assert one.ask.first == one.ask.second == row.ask.first and one.pictures == row.pictures[:1]
    # Comparing is taught once a pair, in both orders, with its first rollout: never after a sampled one.
    beside = trainer._beside([3, 4, 5])
    assert not beside.compared and [one.row for one in beside.texts] == [trainer.alone[1]]
    beside = trainer._beside([6, 7])
    assert asked(beside.compared) == [row.ask for row in rows[2:]] and not beside.own
    assert all(not one.row.pictures and len(one.tokens) >= 7 for one in beside.compared)
    assert [one.body for one in beside.texts] == [ids(true[2])]
    # One pair in `self_generated_every` is compared by the policy's own description (untrained: of no use),
    # the others by the known evidence.
    forms, _ = trainer.taught
    assert [form.evidence for form in forms[2:]] == [sides(one) for one in known[2:]]
    assert [form.evidence for form in forms[:2]] != [sides(one) for one in known[:2]]
    # Further pairs are compared by words alone, after known evidence, with the first rollout of a pair.
    more = recipe.model_copy(update={"compare_pairs": 2, "order_weight": 0.0})
    trainer = DescriptionTrainer(creative, more, examples)
    policy = trainer.model
    trainer.model.write = lambda *_, **__: written
    trainer.pairs, trainer.step = rows, 0
    trainer._roll()
    further = trainer.more[4:]
    assert len(further) == 8 and all(row.known is not None and not row.pictures for row in further)
    for one, other in zip(further[::2], further[1::2], strict=True):
        assert one.target + other.target == pytest.approx(1.0) and one.ask.first == other.ask.second
    assert asked(trainer._beside([0, 1]).compared) == [row.ask for row in rows[:2] + further[:4]]
    beside = trainer._beside([6, 7])
    assert asked(beside.compared) == [row.ask for row in rows[2:] + further[4:]]
    decode = policy.creative.moon.processor.tokenizer.decode
    for one in beside.compared[2:]:
        said = read_assessment(decode(one.body), one.row.ask.labels)
        assert said is not None and one.row.known is not None and sides(said) == sides(one.row.known)
    # Both orders are to agree after what was sampled, too; there nothing else is taught.
    trainer.recipe = more.model_copy(update={"order_weight": 1.0})
    beside = trainer._beside([6, 7])
    assert asked(beside.own) == [row.ask for row in rows[2:]] * 3
    assert all(not one.tokens for one in beside.own)
    read = [read_assessment(decode(one.body), one.row.ask.labels) for one in beside.own]
    for g in (0, 2):  # the second rollout of each has no reasons
        one, other = read[2 * g], read[2 * g + 1]
        assert one is not None and other is not None and sides(one) == sides(other)[::-1] == sides(known[2])
    assert not trainer._beside([7, 8]).own
    # The known descriptions of the creatives of yet more pairs are taught, with their pictures.
    trainer.recipe = more.model_copy(update={"describe_pairs": 1})
    trainer.pairs, trainer.step = rows, 0
    trainer._roll()
    assert len(trainer.reading) == 4 and all(len(row.pictures) == 1 for row in trainer.reading)
    beside = trainer._beside([0, 1])
    assert [one.row for one in beside.texts] == [trainer.alone[0], *trainer.reading[::2]]
    mixed = [further[0], trainer.alone[0], trainer.reading[1]]  # one of words alone, and two with pictures
    scored = scored_by(policy, mixed)
    for i, row in enumerate(mixed):
        alone = scored_by(policy, [row]).logps[0]
        assert torch.allclose(scored.logps[i, : len(alone)], alone, atol=1e-4)


def asked(taught: list[Taught]) -> list[PairInput]:
    return [one.row.ask for one in taught]


def test_a_claim_is_credited_to_the_words_of_its_own_question(
    base: Path, feed: Path, tmp_path: Path, examples: list[Example]
) -> None:
    selector = untrained(base, feed, tmp_path)
    weights = {"format": 0.5, "claims": 2.0}
    recipe = settings(GrpoRecipe, selector, feed, tmp_path / "grpo", rollouts=3, pairs=1, rewards=weights)
    trainer = DescriptionTrainer(resume_from(recipe, str(selector)), recipe, examples)  # type: ignore[arg-type]
    tokenizer = trainer.moon.processor.tokenizer
    text = "title: shown large; text: faint words and badge; props: clutter"
    ids = trainer.moon.prepare.ids(text)
    asked = token_questions(tokenizer, ids)
    for name in ("title", "text", "props"):
        said = tokenizer.decode([i for i, key in zip(ids, asked, strict=True) if key == name])
        assert said.strip(" ;") in text and said.strip(" ;").startswith(f"{name}:")
    # Of a group of three: what each question's claims came to; the third kept no format and made none.
    checked = [{"title": (0, 1), "text": (1, 3)}, {"title": (1, 1), "text": (1, 3)}, {}]
    none = torch.zeros(1)
    rolled = RolledPairs([Decoded(ids, True, none[:, None], none, [])] * 3, none, none, [None] * 3, checked)
    gain = trainer._credit(rolled, len(ids) + 1)
    told = torch.tensor([name == "title" for name in asked] + [False])
    assert torch.allclose(gain[0, told], 2.0 * torch.tensor(0.5 / 0.5**0.5), atol=1e-3)
    assert torch.equal(gain[1], -gain[0]) and not gain[2].any()
    assert not gain[:, ~told].any()  # all say the same of the words: nobody gains


def test_descriptions_beside_need_a_weight() -> None:
    with pytest.raises(UserError, match="describe_pairs are taught"):
        load_recipe(
            Path(__file__).parents[2] / "recipes" / "creative-grpo-starter.yaml",
            STAGES,
            cot_weight=0.0,
            describe_pairs=2,
        )


def test_recipes_of_the_starter_are_valid_and_a_wrong_field_is_named(tmp_path: Path) -> None:
    folder = Path(__file__).parents[2] / "recipes"
    for name in ("creative-sft-starter", "creative-grpo-starter"):
        assert load_recipe(folder / f"{name}.yaml", STAGES).stage.startswith("creative-")
    with pytest.raises(UserError, match="sources"):
        load_recipe(folder / "creative-sft-starter.yaml", STAGES, sources=[{"feed": "a", "simulated": 3}])


def test_a_feed_without_outcomes_says_so(tmp_path: Path) -> None:
    bare = [p.model_copy(update={"a": p.a.model_copy(update={"impressions": None, "clicks": None})})
            for c in simulate(2, seed=4) for p in pairs(c)]  # fmt: skip
    write_campaigns(tmp_path, [p.model_copy(update={"source": "shop"}) for p in bare])
    with pytest.raises(UserError, match="no pair has counts"):
        load_examples(PairSource(feed=tmp_path), Path())


def test_rewards_pay_the_posterior_and_nothing_for_broken_reasons() -> None:
    p = [0.0, 0.3, 0.6, 1.0]
    columns = {"valid": [True] * 4, "p": p, "posterior": [0.6] * 4, "other": [0.6] * 4}
    paid = REWARDS["verdict"]([""] * 4, **columns)
    assert paid[2] == 1.0 and paid[2] == max(paid)  # type: ignore[type-var]
    assert REWARDS["consistency"]([""] * 4, **columns)[2] == 1.0
    broken = {**columns, "valid": [False] * 4}
    assert all(
        REWARDS[name]([""] * 4, **broken) == [0.0] * 4 for name in ("format", "verdict", "consistency")
    )
    assert REWARDS["claims"](["", "", ""], refuted=[0, 1, 0], claimed=[4, 4, 0]) == [0.0, -0.25, None]
    # an empty answer, and one that says nothing checkable, gain nothing from saying nothing
    assert REWARDS["claims"]([""], refuted=[0], claimed=[0]) == [None]
