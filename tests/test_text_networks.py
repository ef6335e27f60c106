"""Networks and families that attend to texts: what is missing has no influence, what is there has."""

import math

import pytest
import torch
from torch import nn

import probgen as pg
from probgen.core.contexts import dropped, encoder_of
from probgen.heads import Categorical, Gaussian
from probgen.nn import (
    DCGANCritic,
    DCGANGenerator,
    DiT,
    Pooled,
    PretrainedEncoder,
    SequenceEncoder,
    SideBySide,
    TextEncoder,
    TimeMLP,
    Tokens,
    UNet,
)
from probgen.nn.transformer import Attention, CrossAttention

LEVELS = 9
LENGTH = 5
PADDING = 2  # not the first token, so that nothing hides behind zeros


def encoder(**options):
    options = {"layers": 1, "heads": 2, "padding": PADDING} | options
    return TextEncoder(LEVELS, LENGTH, 8, **options)


def disturbed(net, by=0.3):
    """The network with every parameter away from its start, where many are zero."""
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(by * torch.randn_like(parameter))
    return net.eval()


def tokens(*batch):
    """Texts of one to all tokens, none of which is the padding."""
    found = torch.randint(3, LEVELS, (*batch, LENGTH))
    ends = torch.randint(1, LENGTH + 1, (*batch, 1))
    return torch.where(torch.arange(LENGTH) < ends, found, PADDING)


# networks called with x, a time and a text, and the shape of x
NETWORKS = {
    "UNet": (
        lambda c: UNet((1, 4, 4), width=8, multipliers=(1, 1), heads=2, context=c),
        (1, 4, 4),
    ),
    "DiT of images": (lambda c: DiT((1, 4, 4), 2, 8, layers=2, heads=2, context=c), (1, 4, 4)),
    "DiT of sequences": (lambda c: DiT((4, 2), 2, 8, layers=1, heads=2, context=c), (4, 2)),
    "TimeMLP": (lambda c: TimeMLP(3, [8, 8], context=c), (3,)),
}
ATTENDING = [name for name in NETWORKS if name != "TimeMLP"]


def built(name, context=None):
    torch.manual_seed(0)
    make, shape = NETWORKS[name]
    return disturbed(make(encoder() if context is None else context)), shape


def attention_written_out(attention, h, sequence, mask):
    size = h.shape[-1] // attention.heads
    keys, values = attention.inputs(sequence).chunk(2, -1)
    mixed = []
    for head in range(attention.heads):
        part = slice(head * size, (head + 1) * size)
        scores = attention.queries(h)[..., part] @ keys[..., part].mT / math.sqrt(size)
        weights = scores.masked_fill(~mask.unsqueeze(1), -math.inf).softmax(-1)
        mixed.append(weights @ values[..., part])
    return attention.out(torch.cat(mixed, -1))


def test_cross_attention_is_its_formula_and_starts_at_zero():
    torch.manual_seed(0)
    attention = CrossAttention(6, 4, heads=2)
    h, sequence = torch.randn(3, 5, 6), torch.randn(3, 7, 4)
    mask = torch.rand(3, 7) < 0.5
    mask[:, 0] = True
    assert (attention(h, sequence, mask) == 0).all()
    disturbed(attention)
    expected = attention_written_out(attention, h, sequence, mask)
    torch.testing.assert_close(attention(h, sequence, mask), expected)
    order = torch.randperm(7)
    torch.testing.assert_close(attention(h, sequence[:, order], mask[:, order]), expected)
    with pytest.raises(ValueError, match="divisible by heads 4, got 6; choose another number"):
        CrossAttention(6, 4, heads=4)


def test_masked_attention_is_that_over_the_others():
    torch.manual_seed(0)
    attention, h = Attention(6, 2), torch.randn(1, 5, 6)
    mask = torch.tensor([[True, False, True, True, False]])
    torch.testing.assert_close(attention(h, mask)[:, mask[0]], attention(h[:, mask[0]]))


def test_padding_has_no_influence_on_the_encoder():
    torch.manual_seed(0)
    net = disturbed(encoder(layers=2))
    texts = torch.tensor([[3, 4, PADDING, PADDING, PADDING], [5, 6, 7, 8, 3]])
    told = net(texts)
    torch.testing.assert_close(told[:1, :2], net(texts[:1, :2]))
    floats = texts.float().masked_fill(texts == PADDING, torch.nan)
    torch.testing.assert_close(net(floats), told)
    mask = torch.tensor([[True, True, False, False, False], [True] * 5])
    others = torch.where(mask, texts, 8)  # real tokens where a mask says that there are none
    torch.testing.assert_close(net(others, mask)[mask], told[mask])
    assert net(torch.full((2, LENGTH), PADDING)).isfinite().all()


def test_the_encoder_sees_all_words_and_their_order_in_any_leading_dims():
    torch.manual_seed(0)
    net = disturbed(encoder(layers=2))
    texts = tokens(3, 4)
    torch.testing.assert_close(net(texts)[1, 2], net(texts[1, 2]))
    first = torch.tensor([[3, 4, 5, 6, 7]])
    for place in range(LENGTH):
        other = first.clone()
        other[0, place] = 8
        assert ((net(other) - net(first)).abs().amax(-1) > 1e-4).all()
    assert ((net(first.flip(1)).flip(1) - net(first)).abs() > 1e-4).any()
    with pytest.raises(ValueError, match="at most 5 steps, got 6; build the encoder with length=6"):
        net(torch.zeros(1, 6))


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_missing_has_no_influence(name):
    net, shape = built(name)
    x, t, texts = torch.randn(6, *shape), torch.rand(6), tokens(6)
    texts[0] = PADDING
    told = net(x, t, texts)
    torch.testing.assert_close(told[:1], net(x, t)[:1])  # nothing is known: no context
    torch.testing.assert_close(
        net(x, t, texts.float().masked_fill(texts == PADDING, torch.nan)), told
    )
    with torch.no_grad():
        net.context_encoder.embed.weight[PADDING] += 10.0
    torch.testing.assert_close(net(x, t, texts), told)


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_told_has_influence_on_its_own_row(name):
    net, shape = built(name)
    x, t, texts = torch.randn(6, *shape), torch.rand(6), torch.randint(3, LEVELS, (6, LENGTH))
    told = net(x, t, texts)
    for place in range(LENGTH):
        other = texts.clone()
        other[2, place] = 3 + (other[2, place] - 2) % 6
        change = (net(x, t, other) - told).abs().flatten(1).amax(1)
        assert change[2] > 1e-5
        assert change[[0, 1, 3, 4, 5]].max() < 1e-6


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_reach_the_tokens_that_are_there(name):
    net, shape = built(name)
    texts = torch.tensor(
        [[3, 4, PADDING, PADDING, PADDING], [5, PADDING, PADDING, PADDING, PADDING]]
    )
    net(torch.randn(2, *shape), torch.rand(2), texts).square().sum().backward()
    reached = net.context_encoder.embed.weight.grad.abs().sum(1) > 0
    assert reached.nonzero().flatten().tolist() == [3, 4, 5]


@pytest.mark.parametrize("name", NETWORKS)
def test_leading_dims_of_draws_are_those_of_a_loop_and_texts_are_encoded_once(name):
    net, shape = built(name)
    x, t, texts = torch.randn(4, 3, *shape), torch.rand(3), tokens(3)
    seen = []
    net.context_encoder.register_forward_hook(lambda module, inputs, output: seen.append(output))
    whole = net(x, t, texts.expand(4, 3, LENGTH))
    assert [output.shape[:-2].numel() for output in seen] == [3]
    for draw in range(4):
        torch.testing.assert_close(whole[draw], net(x[draw], t, texts), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(whole, net(x, t, texts), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ATTENDING)
def test_networks_attend_to_words_and_not_to_their_mean_alone(name):
    """Two texts with the same mean of what the encoder gives are told apart."""

    class Signs(nn.Module):
        width, context_size, context_ndim, levels, padding = 1, 2, 1, 3, 0

        def forward(self, tokens, mask=None):
            return 2.0 * tokens.unsqueeze(-1) - 3  # -1 and 1

    net, shape = built(name, Signs())
    x, t = torch.randn(1, *shape), torch.rand(1)
    same = net(x, t, torch.tensor([[1, 2]])) - net(x, t, torch.tensor([[2, 1]]))
    assert same.abs().max() < 1e-5  # without places attention does not see the order
    one, both = torch.tensor([[1, 0]]), torch.tensor([[1, 1]])
    apart = net(x, t, one) - net(x, t, both)  # the mean is the same, the weights are not
    assert apart.abs().max() > 1e-5


@pytest.mark.parametrize("name", NETWORKS)
def test_what_encodes_no_sequences_is_refused(name):
    make, _ = NETWORKS[name]
    with pytest.raises(TypeError, match=r"encoder of sequences context, got Linear; pass TextEnco"):
        make(nn.Linear(3, 2))
    with pytest.raises(TypeError, match="got the class TextEncoder; call it"):
        make(TextEncoder)
    with pytest.raises(ValueError, match="expected context >= 0, got -1"):
        make(-1)


# -- networks from elsewhere


class Output:
    """As Hugging Face's models give it."""

    def __init__(self, last_hidden_state):
        self.last_hidden_state = last_hidden_state


class Pretrained(nn.Module):
    """A stand-in for a text model of another library, which takes rows alone."""

    def __init__(self, width=6, wraps=Output):
        super().__init__()
        self.embed = nn.Embedding(LEVELS, width)
        self.layer = nn.TransformerEncoderLayer(width, 2, 8, batch_first=True, dropout=0.5)
        self.wraps = wraps

    def forward(self, input_ids, attention_mask):
        assert input_ids.ndim == 2 and input_ids.dtype == torch.long
        assert attention_mask.shape == input_ids.shape
        return self.wraps(
            self.layer(self.embed(input_ids), src_key_padding_mask=~attention_mask.bool())
        )


@pytest.mark.parametrize("wraps", [Output, lambda found: found])
def test_a_network_from_elsewhere_encodes_texts(wraps):
    torch.manual_seed(0)
    net = PretrainedEncoder(Pretrained(wraps=wraps), LENGTH, 6, padding=PADDING)
    texts = tokens(3, 4)
    found = net(texts)
    assert found.shape == (3, 4, LENGTH, 6)
    torch.testing.assert_close(found[2, 1], net(texts[2, 1]))
    unet, shape = built("UNet", net)
    texts[0, 0] = PADDING
    told = unet(torch.zeros(3, 4, *shape), torch.rand(4), texts)
    assert told.isfinite().all()


@pytest.mark.parametrize("frozen", [True, False])
def test_a_frozen_network_stays_as_it_is(frozen):
    torch.manual_seed(0)
    net = PretrainedEncoder(Pretrained(), LENGTH, 6, padding=PADDING, frozen=frozen)
    gen = Gaussian(nn.Sequential(Pooled(net), nn.Linear(6, 4)))
    before = {name: value.clone() for name, value in net.net.state_dict().items()}
    assert net.train().net.training != frozen
    pg.fit(gen, (torch.randn(8, 2), tokens(8)), steps=3, progress=False, compile=False)
    after = net.net.state_dict()
    same = [torch.equal(value, after[name]) for name, value in before.items()]
    assert all(same) if frozen else not any(same)


def test_a_network_of_another_width_is_refused():
    net = PretrainedEncoder(Pretrained(), LENGTH, 7, padding=PADDING)
    with pytest.raises(ValueError, match=r"vectors of shape \(2, 5, 7\), got \(2, 5, 6\); set wid"):
        net(tokens(2))


# -- sequences of vectors


def test_a_network_without_a_mask_is_refused_and_the_advice_works():
    with pytest.raises(TypeError, match=r"got Embedding, which takes \(input.*wrap it in a module"):
        PretrainedEncoder(nn.Embedding(LEVELS, 6), LENGTH, 6)

    class Wrapped(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net

        def forward(self, tokens, mask):
            return self.net(tokens)

    tokens = torch.zeros(3, LENGTH, dtype=torch.long)
    encoder = PretrainedEncoder(Wrapped(nn.Embedding(LEVELS, 6)), LENGTH, 6)
    assert encoder(tokens).shape == (3, LENGTH, 6)


@pytest.mark.parametrize("dtype", [torch.bool, torch.long, torch.float])
def test_masks_of_zeros_and_ones_are_masks(dtype):
    """Steps that a mask leaves out are as missing as those of the padding."""
    net = disturbed(encoder())
    tokens = torch.tensor([[3, 4, 5, PADDING, PADDING], [3, 1, 8, 6, 7]])
    kept = torch.tensor([[1, 1, 0, 0, 0], [1, 0, 1, 1, 0]]).to(dtype)
    given = net(tokens, kept)
    wanted = net(tokens.masked_fill(kept == 0, PADDING))
    there = kept.bool()
    torch.testing.assert_close(given[there], wanted[there])


def test_steps_of_vectors_that_are_missing_have_no_influence():
    torch.manual_seed(0)
    net = SequenceEncoder(3, LENGTH, 8, layers=1, heads=2)
    gen = pg.Diffusion(
        disturbed(DiT((4, 2), 2, 8, layers=1, heads=2, context=net)),
        (4, 2),
        context_ndim=2,
        context_dropout=0.3,
        sampler=pg.diffusion.DDIM(2),
    )
    sequences = torch.randn(6, LENGTH, 3)
    sequences[1, 3:] = torch.nan
    sequences[2, 3:, 1] = torch.nan  # a step with a hole is missing
    x, t = torch.randn(6, 4, 2), torch.rand(6)
    told = gen.net(x, t, sequences)
    torch.testing.assert_close(gen.net(x[1:3], t[1:3], sequences[1:3, :3]), told[1:3])
    pg.fit(gen, (x, sequences), pg.objectives.Denoising(), steps=2, progress=False, compile=False)
    assert pg.sample(gen, 2, sequences, seed=0).shape == (2, 6, 4, 2)


# -- families


def diffusion():
    net = UNet((1, 4, 4), width=8, multipliers=(1,), heads=2, context=encoder())
    return pg.Diffusion(net, (1, 4, 4), context_dropout=0.3, sampler=pg.diffusion.DDIM(2))


def flow():
    net = DiT((1, 4, 4), 2, 8, layers=1, heads=2, context=encoder())
    solver = pg.flows.Euler(2)
    return pg.FlowMatching(net, (1, 4, 4), context_dropout=0.3, solver=solver)


def gan():
    net = DCGANGenerator(3 + 8, (1, 4, 4), hidden=(4,), norm=None)
    generator = SideBySide(net, encode=Pooled(encoder()))
    return pg.GAN(generator, pg.standard_normal(3), (1, 4, 4))


def critic():
    return pg.objectives.Adversarial(DCGANCritic((1, 4, 4), hidden=(4,), context=encoder()))


def transformer():
    head = Categorical(levels=4)
    return pg.Transformer((4,), head, Tokens(4, 8), layers=1, heads=2, context=encoder())


def head():
    return Gaussian(nn.Sequential(Pooled(encoder()), nn.Linear(8, 4)))


FAMILIES = {
    "Diffusion": (diffusion, (1, 4, 4), pg.objectives.Denoising),
    "FlowMatching": (flow, (1, 4, 4), pg.objectives.Denoising),
    "GAN": (gan, (1, 4, 4), critic),
    "Transformer": (transformer, (4,), lambda: None),
    "Gaussian": (head, (2,), lambda: None),
}


def family(name, rows=8):
    torch.manual_seed(0)
    make, event, objective = FAMILIES[name]
    x = torch.randint(4, (rows, *event)).float()
    return make(), x, tokens(rows), objective()


@pytest.mark.table(quick=2)
@pytest.mark.parametrize("name", FAMILIES)
def test_families_train_and_draw_given_texts(name):
    gen, x, texts, objective = family(name)
    assert encoder_of(gen).padding == PADDING
    before = [parameter.clone() for parameter in encoder_of(gen).embed.parameters()]
    pg.fit(gen, (x, texts), objective, steps=4, batch_size=4, progress=False, compile=False, seed=0)
    after = list(encoder_of(gen).embed.parameters())
    assert not any(map(torch.equal, before, after))
    assert pg.sample(gen, 3, texts[:2], seed=0).shape == (3, 2, *x.shape[1:])
    assert pg.sample(gen, 3, texts[0], seed=0).shape == (3, *x.shape[1:])
    assert gen.eval()(texts).batch_shape == (8,)
    assert gen(texts.float()).batch_shape == (8,)


@pytest.mark.parametrize("name", FAMILIES)
def test_other_tokens_and_texts_are_refused(name):
    gen, x, texts, _ = family(name)
    for wrong in (11, -1):
        other = texts.clone()
        other[1, 0] = wrong
        message = rf"expected tokens 0, 1, ..., 8, got {wrong}; encode texts by the vocabulary"
        with pytest.raises(ValueError, match=message):
            gen(other)
    with pytest.raises(ValueError, match=r"got 0.5; encode"):
        gen(torch.full((8, LENGTH), 0.5))
    with pytest.raises(ValueError, match=r"context of shape \(\*batch, 5\), got \(8, 4\)"):
        gen(texts[:, :4])
    with pytest.raises(
        TypeError, match=r"got the text 'two'; encode texts: vocabulary.encode\(tex"
    ):
        pg.fit(gen, (x, ["two"] * 8), steps=1, progress=False)
    with pytest.raises(TypeError, match="got the text 'two'; encode"):
        pg.sample(gen, 2, ["two"])


def test_a_dropped_text_is_one_of_padding():
    torch.manual_seed(0)
    gen, _, _, _ = family("Diffusion")
    texts = torch.randint(3, LEVELS, (200, LENGTH))
    for given, missing in ((texts, texts == PADDING), (texts.float(), texts.isnan())):
        seen = dropped(given, 1, 0.3, gen)
        lost = seen.isnan() if given.is_floating_point() else seen == PADDING
        assert seen.dtype == given.dtype and not missing.any()
        assert torch.equal(lost.any(1), lost.all(1))
        assert lost.all(1).float().mean().item() == pytest.approx(0.3, abs=0.1)
        assert torch.equal(seen[~lost], given[~lost])


def test_tokens_stay_integers_in_any_precision():
    """In bfloat16 the number 257 is 256, another word."""
    net = TimeMLP(2, [8], context=TextEncoder(300, 1, 8, layers=1, heads=2))
    gen = pg.Diffusion(disturbed(net), (2,)).to(torch.bfloat16)
    x, t = torch.ones(1, 2, dtype=torch.bfloat16), torch.ones(1, dtype=torch.bfloat16)
    contexts = [gen.settle((x, text))[1] for text in texts_apart()]
    assert not torch.equal(*(gen.net(x, t, context) for context in contexts))
    assert gen(contexts[0]).sample().shape == (1, 2)


def texts_apart():
    return torch.tensor([[256]]), torch.tensor([[257]])


def test_draws_one_by_one_are_those_of_the_whole_network():
    """Cached steps of the transformer see the same text as all positions at once."""
    gen, x, texts, _ = family("Transformer")
    disturbed(gen)
    steps = gen.net.walk(8, texts)
    raw = [next(steps)]
    for entry in x.unbind(1)[:-1]:
        raw.append(steps.send(entry))
    torch.testing.assert_close(torch.stack(raw, -1), gen.net(x, texts), atol=1e-5, rtol=1e-4)
    nothing = torch.full_like(texts, PADDING)
    assert (gen(texts).log_prob(x) - gen(nothing).log_prob(x)).abs().min() > 1e-4


@pytest.mark.slow
def test_a_transformer_learns_to_spell_the_text():
    torch.manual_seed(0)
    texts = torch.randint(3, LEVELS, (600, LENGTH))
    gen = pg.Transformer(
        (LENGTH,),
        Categorical(levels=LEVELS),
        Tokens(LEVELS, 32),
        layers=1,
        heads=4,
        context=TextEncoder(LEVELS, LENGTH, 32, layers=1, heads=2, padding=PADDING),
    )
    options = {"optimizer": pg.train.adam(5e-3), "batch_size": 100, "seed": 0, "compile": False}
    pg.fit(gen, (texts.float(), texts), steps=400, progress=False, **options)
    asked = torch.randint(3, LEVELS, (100, LENGTH))
    assert (pg.sample(gen, 1, asked, seed=0)[0] == asked).float().mean() > 0.9


@pytest.mark.slow
def test_resumed_training_is_uninterrupted_training(tmp_path):
    def run(steps, path, resume=False):
        gen, x, texts, objective = family("Diffusion")
        options = {"checkpoint": path, "resume": resume, "batch_size": 4, "compile": False}
        pg.fit(gen, (x, texts), objective, steps=steps, seed=0, progress=False, **options)
        return gen.state_dict()

    whole = run(6, tmp_path / "whole")
    run(3, tmp_path / "parts")
    parts = run(6, tmp_path / "parts", resume=True)
    assert whole.keys() == parts.keys()
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "really"),
    [("Diffusion", False), ("Transformer", True)],
    ids=["Diffusion", "Transformer"],
)
def test_the_compiled_step_is_the_eager_one(name, really, request):
    if not really:
        request.getfixturevalue("replayed")
    losses = []
    for compiled in (False, True):
        gen, x, texts, objective = family(name)
        options = {"steps": 6, "batch_size": 4, "seed": 0, "compile": compiled, "progress": False}
        losses.append(pg.fit(gen, (x, texts), objective, **options).loss)
    torch.testing.assert_close(
        torch.tensor(losses[0]), torch.tensor(losses[1]), rtol=1e-3, atol=1e-4
    )
