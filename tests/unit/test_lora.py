"""LoRA classifiers of every family: what is sampled, what is frozen, prefixes, stacks, and drafts of bad settings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from data.text_models import FAMILIES, TARGETS, tiny_model
from data.text_tools import mrpc
from torch import nn

from bayeslora.chains.stack import Stack, StackedBatches
from bayeslora.datasets import Data, Glue
from bayeslora.datasets.batches import Batches
from bayeslora.errors import ConfigError, DataError
from bayeslora.models import LoraClassifier, load_base, lora_classifier, set_sampling_mode
from bayeslora.models.prefix import with_prefix
from bayeslora.rng import seeded

CASES = [(family, "pair") for family in FAMILIES] + [("bert", "separate"), ("roberta", "separate")]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny models by family, and a tiny MRPC."""
    root = tmp_path_factory.mktemp("models")
    return {family: tiny_model(root / family, family) for family in FAMILIES} | {"mrpc": mrpc(root / "mrpc")}


@pytest.fixture
def make(folders: dict[str, Path]) -> Callable[..., LoraClassifier]:
    """Makes a LoRA classifier of a family, in sampling mode, whose adapter has left its start."""

    def build(family: str, layout: str = "pair", chain: int = 0, **settings: object) -> LoraClassifier:
        settings = {"targets": TARGETS[family], "rank": 2} | settings
        with seeded(0, chain, 0, "init"):
            model = lora_classifier(2, str(folders[family]), layout=layout, **settings)
            for p in model.parameters():
                if p.requires_grad:
                    p.data.add_(0.3 * torch.randn(p.shape))
        set_sampling_mode(model)
        return model

    return build


def data(folders: dict[str, Path], family: str, layout: str) -> Data:
    return Glue(folders["mrpc"], tokenizer=str(folders[family]), layout=layout, max_length=60, validation_size=4).load()


@pytest.mark.parametrize(("family", "layout"), CASES)
def test_adapter_and_head_are_sampled_and_the_base_is_frozen(family: str, layout: str, make, folders):
    model = make(family, layout)
    sampled = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    assert all("lora_" in name or "modules_to_save" in name for name in sampled)
    targets, hidden, rank, layers = TARGETS[family], 16, 2, 3
    narrow = {"k_proj": 8, "v_proj": 8}  # one key and value head of two
    adapter = layers * sum(rank * (hidden + narrow.get(target, hidden)) for target in targets)
    head = {"pair": {"roberta": 17 * 16 + 17 * 2, "bert": 17 * 2}.get(family, 16 * 2), "separate": 33 * 2 + 2}[layout]
    assert sum(sampled.values()) == adapter + head
    x, _ = Batches(data(folders, family, layout), 4, 0, 0)(0)
    model(x).sum().backward()
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())


def test_the_head_can_be_left_out_and_is_then_the_same_in_every_chain(make):
    models = [make("roberta", chain=chain, sample_head=False) for chain in (0, 1)]
    sampled = {name for name, p in models[0].named_parameters() if p.requires_grad}
    assert sampled
    assert all("lora_" in name for name in sampled)
    first, second = (dict(model.named_parameters()) for model in models)
    heads = [name for name in first if "modules_to_save" in name and name.endswith("weight")]
    assert heads
    assert all(torch.equal(first[name], second[name]) for name in heads)
    assert not any(torch.equal(first[name], second[name]) for name in sampled)


def test_frozen_weights_are_equal_in_all_chains_and_sampled_ones_are_not(make):
    """Also those that the checkpoint lacks, like the pooler of a BERT saved without one."""
    first, second = (dict(make("bert", chain=chain).named_parameters()) for chain in (0, 1))
    for name, p in first.items():
        if not p.requires_grad and "original_module" not in name:
            assert torch.equal(p, second[name]), name
        elif p.requires_grad:
            assert not torch.equal(p, second[name]), name


def test_nothing_is_dropped_while_sampling(folders):
    with seeded(0, 0, 0, "init"):
        model = lora_classifier(2, str(folders["roberta"]), targets=["query"])
    assert model.base.config.attention_probs_dropout_prob > 0
    x, _ = Batches(data(folders, "roberta", "pair"), 8, 0, 0)(0)
    model.train()
    assert not torch.equal(model(x), model(x))
    set_sampling_mode(model)
    assert torch.equal(model(x), model(x))


@pytest.mark.parametrize(("family", "layout"), CASES)
def test_a_remembered_prefix_gives_the_same_logits_and_gradients(family: str, layout: str, make, folders):
    model, plain = make(family, layout, top_layers=1), data(folders, family, layout)
    assert model.prefix.depth == 2
    remembered = with_prefix(plain, model, "cpu", batch_size=3)
    for step in range(2):
        (x, y), (z, same) = (Batches(d, 5, 0, 0)(step) for d in (plain, remembered))
        assert torch.equal(y, same)
        gradients = []
        for inputs in (x, z):
            model.zero_grad()
            logits = model(inputs)
            logits.square().sum().backward()
            gradients.append([logits.detach(), *(p.grad for p in model.parameters() if p.requires_grad)])
        for a, b in zip(*gradients, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("family", "layout"), CASES)
def test_attention_of_another_implementation_gives_the_same_logits_and_gradients(family, layout, make, folders):
    x, _ = Batches(data(folders, family, layout), 5, 0, 0)(0)
    models = [make(family, layout, attention=name) for name in ("sdpa", "eager")]
    assert [model.base.config._attn_implementation for model in models] == ["sdpa", "eager"]
    for model in models:
        model(x).square().sum().backward()
    one, other = ({n: p.grad for n, p in model.named_parameters() if p.requires_grad} for model in models)
    assert relative_error(models[1](x), models[0](x)) < 1e-5
    assert all(relative_error(other[name], gradient) < 1e-4 for name, gradient in one.items())


def test_the_prefix_is_not_run_again(make, folders):
    model = make("bert", top_layers=1)
    remembered = with_prefix(data(folders, "bert", "pair"), model, "cpu")
    x, _ = Batches(remembered, 4, 0, 0)(0)
    before = model(x)
    with torch.no_grad():
        model.base.bert.encoder.layer[0].layer.output.dense.weight.zero_()
    assert torch.equal(model(x), before)
    assert not torch.allclose(model(x["tokens"]), before)


def test_without_frozen_layers_or_when_not_wanted_nothing_is_remembered(make, folders):
    plain = data(folders, "bert", "pair")
    assert with_prefix(plain, make("bert"), "cpu") is plain
    assert with_prefix(plain, make("bert", top_layers=1, cache_prefix=False), "cpu") is plain


@pytest.mark.parametrize(("family", "layout"), CASES)
@pytest.mark.parametrize("prefix", [False, True])
def test_stacked_adapters_are_the_chains_run_alone(family: str, layout: str, prefix: bool, make, folders):
    alone = [make(family, layout, chain, top_layers=2) for chain in range(3)]
    stack = Stack(make(family, layout, chain, top_layers=2) for chain in range(3))
    assert stack.flat
    texts = data(folders, family, layout)
    texts = with_prefix(texts, alone[0], "cpu") if prefix else texts
    batches = [Batches(texts, 5, 0, chain) for chain in range(3)]
    x, y = StackedBatches(batches)(0)
    logits = stack(x)
    logits.square().sum().backward()
    for chain, model in enumerate(alone):
        inputs, targets = batches[chain](0)
        own = model(inputs)
        own.square().sum().backward()
        assert torch.equal(y[chain], targets)
        assert relative_error(logits[chain], own) < 1e-5
        for name, p in model.named_parameters():
            if p.requires_grad:
                assert relative_error(stack.sampled()[name].grad[chain], p.grad) < 1e-4, name


def relative_error(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).detach().norm() / other.detach().norm())


# Bad settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"targets": ["query", "q_proj"]}, r"no linear layer is called q_proj; this model's are .*query"),
        ({"rank": 0}, "model.rank=0 must be at least 1"),
        ({"alpha": 0.0}, "model.alpha=0.0 must be positive"),
        ({"top_layers": 4}, "the model has 3 layers"),
        ({"top_layers": 0}, "must be at least 1, or null"),
        ({"layout": "both"}, "choose one of pair, separate"),
        ({"attention": "fast"}, "choose one of eager, sdpa, flash_attention_2, or null"),
    ],
)
def test_impossible_settings_are_refused(settings: dict, message: str, folders):
    with pytest.raises(ConfigError, match=message):
        lora_classifier(2, str(folders["bert"]), **settings)


def test_all_is_checked_without_reading_weights(folders):
    with torch.device("meta"):
        model = lora_classifier(2, str(folders["bert"]), targets=["query"])
        assert all(p.is_meta for p in model.parameters())
        with pytest.raises(ConfigError, match="no linear layer is called qkv"):
            lora_classifier(2, str(folders["bert"]), targets=["qkv"])


def test_a_model_that_is_no_sequence_classifier_is_refused(tmp_path: Path):
    from transformers import CLIPVisionConfig, CLIPVisionModel

    small = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    CLIPVisionModel(CLIPVisionConfig(image_size=4, patch_size=2, **small)).save_pretrained(tmp_path)
    with pytest.raises(DataError, match="cannot be loaded as a sequence classifier"):
        load_base(str(tmp_path), "pair", 2)


def test_a_model_that_cannot_be_had_says_which_files_to_put_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(DataError, match=r"Fetch config.json and model.safetensors .*model.name_or_path=FOLDER"):
        load_base("nobody/no-such-model", "pair", 2)
    with pytest.raises(DataError, match="pip install --no-deps no-such-package"):
        load_base("package:no_such_package/model", "pair", 2)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="cannot be loaded as an encoder"):
        load_base(str(tmp_path / "empty"), "separate", 2)


def test_tokens_of_the_other_layout_are_refused(make, folders):
    pair, _ = Batches(data(folders, "bert", "pair"), 4, 0, 0)(0)
    separate, _ = Batches(data(folders, "bert", "separate"), 4, 0, 0)(0)
    with pytest.raises(ConfigError, match=r"set dataset\.layout=separate"):
        make("bert", "separate")(pair)
    with pytest.raises(ConfigError, match=r"set dataset\.layout=pair"):
        make("bert", "pair")(separate)


def test_decoders_without_a_padding_token_pad_with_their_end_of_text(make, folders):
    """The last real token decides: logits do not depend on how far a batch is padded."""
    model = make("llama")
    tokens, _ = Batches(data(folders, "llama", "pair"), 6, 0, 0)(0)
    assert model.base.config.pad_token_id == 2
    lengths = tokens[:, 0, 1].sum(-1)
    assert lengths.min() < lengths.max()
    row = int(lengths.argmin())
    torch.testing.assert_close(model(tokens)[row], model(tokens[row : row + 1, ..., : lengths[row]])[0])


def test_sampled_parameters_are_all_of_linear_maps(make):
    modules = dict(make("roberta").named_modules())
    for name, p in make("roberta").named_parameters():
        if p.requires_grad:
            assert isinstance(modules[name.rpartition(".")[0]], nn.Linear)
