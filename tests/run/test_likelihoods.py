"""Labels that hold or do not, classes at positions, several inputs by name: sampled, predicted and evaluated."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

import bayeslora
from bayeslora.errors import ConfigError, DataError
from bayeslora.evaluation.results import Results
from bayeslora.likelihood import Bernoulli, Categorical
from bayeslora.posterior import Posterior
from tests.cases import each
from tests.data.text_models import tiny_model
from tests.run.tools import Command

TINY = {"chains": 2, "draws": 4, "thin": 1, "burn_in": 2, "warmup": 3, "batch_size": 8, "progress": False}
ONE_STEP = TINY | {
    "warmup": 0, "burn_in": 0, "draws": 1, "temperature": 0.0, "batch_size": None, "prior": 1e12, "lr": 0.1,
    "sampler": "sghmc",
}  # fmt: skip
"""A step of plain gradient descent on the mean of −log p over examples."""
RANDOM = torch.Generator().manual_seed(0)
X = torch.randn(40, 3, generator=RANDOM)
LABELS = torch.stack([X[:, 0] > 0, X[:, 1] > 0.5, X[:, 2] > 1], 1).long()
LABELS[::5, 1] = -1
IMAGES = torch.randn(24, 1, 4, 4, generator=RANDOM)
PIXELS = (IMAGES[:, 0] > 0).long() + (IMAGES[:, 0] > 1).long()
PIXELS[:, 0, 0] = -100


def made(make: Any) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return make()


def labeller() -> nn.Module:
    return made(lambda: nn.Linear(3, 3))


def segmenter() -> nn.Module:
    return made(lambda: nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 3, 1)))


class Named(nn.Module):
    """Two inputs by name, and logits as transformers gives them."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.flag = nn.Linear(3, 2), nn.Linear(1, 2)

    def forward(self, features: Tensor, flag: Tensor) -> Any:
        logits = self.table(features) + self.flag(flag)
        return type("Output", (), {"logits": logits})()


NAMED = {"features": X, "flag": (X[:, :1] > 0).float()}


def nll_by_torch(kind: str, model: nn.Module, x: Any, y: Tensor) -> Tensor:
    """The mean over examples of −log p, by torch's own losses with their masks."""
    if kind == "labels":
        there = y >= 0
        loss = nn.functional.binary_cross_entropy_with_logits(model(x), y.clamp(min=0).to(x.dtype), reduction="none")
        return (loss * there).sum() / len(y)
    return nn.functional.cross_entropy(model(x), y, ignore_index=-100, reduction="sum") / len(y)


CASES: dict[str, tuple[Any, Tensor, Tensor, dict[str, Any]]] = {
    "labels": (labeller, X, LABELS, {"likelihood": "bernoulli"}),
    "positions": (segmenter, IMAGES, PIXELS, {}),
}


@each("parallel", ["sequential", "stacked"])
@each("kind", CASES)
def test_a_step_is_that_of_the_likelihood_with_n_examples_in_double_precision(kind: str, parallel: str) -> None:
    make, x, y, settings = CASES[kind]
    model = make().double()
    x = x.double() + 1e-10
    posterior = bayeslora.sample(model, (x, y), **settings, **ONE_STEP, parallel=parallel)
    names, params = zip(*model.named_parameters(), strict=True)
    slopes = dict(zip(names, torch.autograd.grad(nll_by_torch(kind, model, x, y), params), strict=True))
    for draw in posterior.draws():
        for name, p in model.named_parameters():
            torch.testing.assert_close(draw.tensors[name], p.detach() - 0.1 * slopes[name], rtol=0, atol=1e-12)
    assert posterior.predict(x).dtype == torch.float64


@each("parallel", ["sequential", "stacked"])
def test_labels_are_predicted_and_scored_one_by_one(parallel: str, tmp_path: Path) -> None:
    names = ("red", "round", "<old>")
    posterior = bayeslora.sample(
        labeller(), (X, LABELS), likelihood="bernoulli", class_names=names, parallel=parallel, val_dataset=(X, LABELS),
        test_dataset=(X, LABELS), run_dir=tmp_path / "run", **TINY,
    )  # fmt: skip
    p = posterior.predict(X).exp()
    by_hand = torch.stack([m(X).sigmoid().detach() for m in posterior.models()]).mean(0)
    torch.testing.assert_close(p, by_hand)
    found = posterior.metrics
    assert found is not None
    assert found.task == "multilabel"
    there = LABELS >= 0
    right = (p > 0.5) == (LABELS == 1)
    assert found["ensemble"]["accuracy"] == pytest.approx(right[there].float().mean().item(), abs=1e-6)
    log_p = torch.where(LABELS == 1, p, 1 - p).log()
    assert found["ensemble"]["nll"] == pytest.approx(-log_p[there].mean().item(), rel=1e-4)
    assert list(found["labels"]) == list(names)
    of_label = found["labels"]["round"]
    assert of_label["known"] == 32
    assert of_label["holds"] == pytest.approx(LABELS[there[:, 1], 1].float().mean().item())
    assert of_label["ensemble"]["nll"] == pytest.approx(-log_p[there[:, 1], 1].mean().item(), rel=1e-4)
    average = np.mean([found["labels"][name]["ensemble"]["accuracy"] for name in names])
    assert found["label_average"]["ensemble"]["accuracy"] == pytest.approx(average)
    assert found["predicted"] == {"of": "labels", "predictions": int(there.sum()), "examples": 40}
    assert "validation/accuracy" in posterior.diagnostics()
    page = (tmp_path / "run" / "report" / "index.html").read_text()
    assert "&lt;old&gt;" in page
    assert "nats per label" in page
    assert f"means over the {int(there.sum())} known labels in 40 examples" in page
    assert not re.search(r"\b(dataset|chain|sampler)\.\w", page.partition('<h2 id="settings">')[0])  # arguments
    again = Posterior.load(tmp_path / "run", labeller())
    torch.testing.assert_close(again.predict(X).exp(), p)


def test_one_binary_label_is_the_same_with_floats_and_gaps() -> None:
    model, y = made(lambda: nn.Linear(3, 1)), LABELS[:, 1]
    floats = y.float().where(y >= 0, float("nan"))
    by_whole, by_float = (
        bayeslora.sample(model, (X, one), likelihood=Bernoulli(), **TINY).predict(X) for one in (y, floats)
    )
    assert by_whole.shape == (40, 1)
    assert torch.equal(by_whole, by_float)
    mean, sd = bayeslora.sample(model, (X, y), likelihood="bernoulli", **TINY).predict(X, return_std=True)
    torch.testing.assert_close(mean.float(), by_whole.exp())
    assert sd.shape == (40, 1)


@each("parallel", ["sequential", "stacked"])
def test_classes_at_positions_are_predicted_and_scored(parallel: str, tmp_path: Path) -> None:
    posterior = bayeslora.sample(
        segmenter(), (IMAGES, PIXELS), parallel=parallel, test_dataset=(IMAGES, PIXELS), val_dataset=(IMAGES, PIXELS),
        class_names=("low", "middle", "high"), run_dir=tmp_path / "run", **TINY,
    )  # fmt: skip
    assert isinstance(posterior.likelihood, Categorical)
    assert posterior.likelihood.axes == 2
    p = posterior.predict(IMAGES).exp()
    by_hand = torch.stack([m(IMAGES).softmax(1).detach() for m in posterior.models()]).mean(0)
    torch.testing.assert_close(p, by_hand)
    there = PIXELS >= 0
    found = posterior.metrics
    assert found is not None
    assert found["predicted"] == {"of": "positions", "predictions": 24 * 15, "examples": 24}
    accuracy = (p.argmax(1) == PIXELS)[there].float().mean().item()
    assert found["ensemble"]["accuracy"] == pytest.approx(accuracy)
    nll = nn.functional.nll_loss(p.log(), PIXELS, ignore_index=-100).item()
    assert found["ensemble"]["nll"] == pytest.approx(nll, rel=1e-4)
    page = (tmp_path / "run" / "report" / "index.html").read_text()
    assert all(word in page for word in ("high", "Positions</", "most confident part of the positions"))
    assert 'id="examples"' not in page
    torch.testing.assert_close(Posterior.load(tmp_path / "run", segmenter()).predict(IMAGES).exp(), p)


class Items(Dataset):
    """Dictionaries of inputs, with the label among them or beside them."""

    def __init__(self, inside: bool) -> None:
        self.inside = inside

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, row: int) -> Any:
        inputs, label = {name: held[row] for name, held in NAMED.items()}, int(X[row, 0] > 0)
        return inputs | {"labels": label} if self.inside else (inputs, label)


@each("parallel", ["sequential", "stacked"])
def test_several_inputs_go_to_the_model_as_keywords(parallel: str) -> None:
    """Whatever form they come in; the step is that of the model called by hand."""
    model, y = made(Named).double(), (X[:, 0] > 0).long()
    wide = {name: held.double() for name, held in NAMED.items()}
    forms: list[Any] = [Items(inside=True), Items(inside=False), (NAMED, y), (wide, y)]
    posteriors = [bayeslora.sample(model, data, **ONE_STEP, parallel=parallel) for data in forms]
    loss = nn.functional.cross_entropy(model(**wide).logits, y)
    slope = torch.autograd.grad(loss, [model.table.weight])[0]
    for posterior in posteriors:
        for draw in posterior.draws():
            moved = model.table.weight.detach() - 0.1 * slope
            torch.testing.assert_close(draw.tensors["table.weight"], moved, rtol=0, atol=1e-12)
    assert "logits" not in str(model(**wide).__class__)  # the user's own is left alone
    found = posteriors[0].predict(NAMED)
    with_loader = torch.utils.data.DataLoader(Items(inside=True), batch_size=7)
    for inputs in (Items(inside=False), with_loader, [(NAMED, y)], [NAMED]):
        torch.testing.assert_close(posteriors[0].predict(inputs), found)


@each("parallel", ["sequential", "stacked"])
def test_a_classifier_of_transformers_with_the_items_of_a_tokenizer(parallel: str) -> None:
    """As it comes: dictionaries of ids, mask and label; its head is sampled, its body frozen."""
    from transformers import BertConfig, BertForSequenceClassification

    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = made(lambda: BertForSequenceClassification(BertConfig(vocab_size=20, max_position_embeddings=8, **size)))
    model.bert.requires_grad_(False)
    ids = torch.randint(1, 20, (12, 6), generator=torch.Generator().manual_seed(3))
    mask = (torch.arange(6) < torch.arange(12)[:, None] % 5 + 2).long()
    items = [
        {"input_ids": a, "attention_mask": m, "labels": i % 2} for i, (a, m) in enumerate(zip(ids, mask, strict=True))
    ]
    posterior = bayeslora.sample(model, items, parallel=parallel, test_dataset=items, report=False, **TINY)
    assert all(name.startswith("classifier.") for draw in posterior.draws() for name in draw.tensors)
    inputs = {"input_ids": ids, "attention_mask": mask}
    by_hand = [m(**inputs) for m in posterior.models()]  # as the user calls it, too
    torch.testing.assert_close(
        posterior.predict(inputs).exp(), torch.stack([logits.softmax(-1).detach() for logits in by_hand]).mean(0)
    )


def test_several_inputs_are_evaluated_saved_and_loaded(tmp_path: Path) -> None:
    data = Items(inside=True)
    posterior = bayeslora.sample(made(Named), data, test_dataset=data, run_dir=tmp_path / "run", report=False, **TINY)
    assert posterior.metrics is not None
    assert posterior.metrics["ensemble"]["accuracy"] > 0
    torch.testing.assert_close(Posterior.load(tmp_path / "run", made(Named)).predict(NAMED), posterior.predict(NAMED))
    with pytest.raises(ConfigError, match=r"another configuration: dataset.in_memory.digest"):
        bayeslora.sample(
            made(Named), ({**NAMED, "flag": NAMED["flag"] + 1}, LABELS[:, 0]), run_dir=tmp_path / "run", **TINY
        )


REFUSED: dict[str, dict[str, Any]] = {
    "choose likelihood=bernoulli|labels must be 1, 0": {"data": (X, LABELS + 1), "likelihood": "bernoulli"},
    "labels must be 1, 0, or -1": {"data": (X, X), "likelihood": "bernoulli"},
    "sample, train: no target is known": {"data": (X, LABELS * 0 - 1), "likelihood": "bernoulli"},
    "leave its sigmoid out": {
        "model": made(lambda: nn.Sequential(nn.Linear(X.shape[1], LABELS.shape[1]), nn.Sigmoid())),
        "data": (X, LABELS), "likelihood": "bernoulli",
    },
    "sample: no target is known": {
        "model": segmenter(), "data": (IMAGES, PIXELS * 0 - 100),
    },
    "gives \\[2, 3\\] for two examples of sample; it must give logits \\[2, 2\\]": {
        "data": (X, LABELS[:, :2]), "likelihood": "bernoulli",
    },
    "choose likelihood=bernoulli": {"data": (X, LABELS.clamp(min=0))},
    "likelihood.axes=0: the targets of sample are \\[24, 4, 4\\], .* set likelihood.axes=2": {
        "model": segmenter(), "data": (IMAGES, PIXELS), "likelihood": Categorical(),
    },
    "positions of sample without a class have the target -1; set likelihood.ignore_index": {
        "model": segmenter(), "data": (IMAGES, PIXELS.clamp(min=-1)),
    },
    "positions without a class have the targets -100, -1": {
        "model": segmenter(), "data": (IMAGES, PIXELS.where(IMAGES[:, 0] < 2, -1)),
    },
    "it must give logits \\[2, 3, 4, 4\\]": {"model": made(lambda: nn.Conv2d(1, 2, 1)), "data": (IMAGES, PIXELS)},
    "39 inputs flag and 40 targets": {
        "model": Named(), "data": ({**NAMED, "flag": NAMED["flag"][:-1]}, LABELS[:, 0]),
    },
    "NaN or infinite": {"model": Named(), "data": ({**NAMED, "flag": NAMED["flag"] / 0}, LABELS[:, 0])},
}  # fmt: skip


@each("message", REFUSED)
def test_what_does_not_fit_is_refused_with_the_fix(message: str, tmp_path: Path) -> None:
    settings = dict(REFUSED[message])
    with pytest.raises((ConfigError, DataError), match=message):
        bayeslora.sample(settings.pop("model", labeller()), settings.pop("data"), **settings, **TINY)


@each("make", [Bernoulli, Categorical])
@each(
    ("key", "words"),
    [("pos_weight", "class weights"), ("class_weights", "class weights"), ("label_smoothing", "label smoothing")],
)
def test_weights_and_smoothing_are_refused_with_the_reason(key: str, words: str, make: Any) -> None:
    with pytest.raises(ConfigError, match=f"likelihood.{key}: {words} would change the likelihood"):
        make(**{key: 0.1})
    with pytest.raises(ConfigError, match=r"likelihood.nothing is unknown"):
        make(nothing=1)


def test_runs_of_several_predictions_are_compared_on_the_same_examples(command: Command, tmp_path: Path) -> None:
    runs = [tmp_path / str(seed) for seed in (0, 1)]
    for seed, run in enumerate(runs):
        bayeslora.sample(
            labeller(), (X, LABELS), likelihood="bernoulli", test_dataset=(X, LABELS), run_dir=run, seed=seed,
            report=False, chain_settings={"probe_size": 8}, **TINY,
        )  # fmt: skip
    metrics = [Results.read(run / "metrics.json") for run in runs]
    difference = metrics[0]["differences"]["map"]["nll"]
    assert difference["value"] == pytest.approx(metrics[0]["ensemble"]["nll"] - metrics[0]["map"]["nll"], abs=1e-5)
    result = command("compare", f"run_dirs=[{','.join(map(str, runs))}]")
    assert result.code == 0, result.err


SHORT = (
    "experiment=template", "chain.num_chains=2", "chain.batch_size=8", "chain.warmup.steps=3", "chain.burn_in=2",
    "chain.num_draws=4", "chain.thin=1", "chain.probe_size=16", "evaluate.report=false",
)  # fmt: skip


def write_table(folder: Path) -> Path:
    rows = [
        f"{a:.3f},{b:.3f},{int(a > 0)},{'' if b < -0.5 else int(b > 0)},{'yes' if a > b else 'no'}" for a, b, _ in X
    ]
    (folder / "table.csv").write_text("\n".join(["a,b,red,round,sure", *rows]))
    return folder / "table.csv"


def test_a_table_of_labels_by_the_command(command: Command, tmp_path: Path) -> None:
    arguments = [*SHORT, "dataset=csv", f"dataset.path={write_table(tmp_path)}", "model=mlp", "model.hidden=[4]"]
    several = [*arguments, "dataset.target=[red,round]", "dataset.leave_out=[sure]", f"run_dir={tmp_path / 'run'}"]
    wrong = command("train", *several)
    assert wrong.code == 2
    assert "the targets of table are labels; choose likelihood=bernoulli" in wrong.err
    done = command("train", *several, "likelihood=bernoulli")
    assert done.code == 0, done.err
    posterior = Posterior.load(tmp_path / "run")
    data = posterior.experiment.data
    assert data.labels == ("red", "round")
    p = posterior.predict(data.test).exp()
    assert p.shape == (len(data.test), 2)
    metrics = Results.read(tmp_path / "run" / "metrics.json")
    there = data.test.targets >= 0
    right = (p > 0.5) == (data.test.targets == 1)
    assert metrics["ensemble"]["accuracy"] == pytest.approx(right[there].float().mean().item(), abs=1e-6)
    assert command("evaluate", f"run_dir={tmp_path / 'run'}", "ood=digits", "corruptions=true", "report=true").code == 0
    again = Results.read(tmp_path / "run" / "metrics.json")
    assert again["ensemble"] == metrics["ensemble"]
    assert "several predictions" in again["corruptions"]["reason"]
    assert "several predictions" in again["ood"]["reason"]
    checked = command("bias_check", f"run_dir={tmp_path / 'run'}")
    assert checked.code == 0, checked.err
    two = [*arguments, "dataset.target=sure", "dataset.leave_out=[red,round]", "likelihood=bernoulli"]
    assert command("train", *two, f"run_dir={tmp_path / 'two'}").code == 0  # two classes are one label
    assert Posterior.load(tmp_path / "two").experiment.data.labels == ("yes",)


def test_lists_of_labels_with_adapters_by_the_command(command: Command, tmp_path: Path) -> None:
    """Texts in the hub's form, each with the names of the labels that hold, and a tiny transformer."""
    lists = [["red"], [], ["red", "round"], ["round"]] * 4
    for split in ("train", "test"):
        rows = [{"text": f"some words {i}", "labels": labels} for i, labels in enumerate(lists)]
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    arguments = [
        *SHORT, "dataset=hub", f"dataset.path={tmp_path / 'data'}", "dataset.max_length=32", "model=roberta_lora",
        "model.rank=2", "chain.parallel=stacked",
        f"model.name_or_path={tiny_model(tmp_path / 'bert', 'bert')}", "model.targets=[query,value]",
        "likelihood=bernoulli", "prior=lora", "sampler.lr=0.01", "sampler.momentum=0.9", f"run_dir={tmp_path / 'run'}",
    ]  # fmt: skip
    done = command("train", *arguments)
    assert done.code == 0, done.err
    metrics = Results.read(tmp_path / "run" / "metrics.json")
    assert {name: label["holds"] for name, label in metrics["labels"].items()} == {"red": 0.5, "round": 0.5}
    posterior = Posterior.load(tmp_path / "run")
    assert posterior.predict(posterior.experiment.data.test).shape == (16, 2)


@each("key", ["pos_weight", "label_smoothing", "class_weights"])
def test_the_command_says_why_a_likelihood_has_no_weights(key: str, command: Command, tmp_path: Path) -> None:
    for likelihood in ("categorical", "bernoulli"):
        result = command(
            "train", *SHORT, f"likelihood={likelihood}", f"likelihood.{key}=0.1", f"run_dir={tmp_path / 'run'}"
        )
        assert result.code == 2
        assert "would change the likelihood into one of other data than yours" in result.err


class Pixels:
    """Images with a class a pixel, in the place of the digits."""

    def __init__(self, **settings: Any) -> None:
        pass

    def load(self) -> Any:
        examples = list(zip(IMAGES, PIXELS, strict=True))
        return examples[:16], examples[16:]


class PixelNet(nn.Module):
    """A class a pixel, in the place of the MLP."""

    def __init__(self, num_classes: int, in_channels: int, **settings: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, num_classes, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


@each("parallel", ["sequential", "stacked"])
def test_a_class_a_pixel_by_a_configuration(parallel: str, command: Command, tmp_path: Path) -> None:
    own = [
        *SHORT, "dataset._target_=tests.run.test_likelihoods.Pixels",
        "model._target_=tests.run.test_likelihoods.PixelNet", f"chain.parallel={parallel}",
        f"run_dir={tmp_path / 'run'}",
    ]  # fmt: skip
    wrong = command("train", *own)
    assert wrong.code == 2
    assert "set likelihood.axes=2" in wrong.err
    done = command("train", *own, "likelihood.axes=2")
    assert done.code == 0, done.err
    posterior = Posterior.load(tmp_path / "run", trust="tests")
    p = posterior.predict(IMAGES[16:]).exp()
    there = PIXELS[16:] >= 0
    accuracy = (p.argmax(1) == PIXELS[16:])[there].float().mean().item()
    assert Results.read(tmp_path / "run" / "metrics.json")["ensemble"]["accuracy"] == pytest.approx(accuracy)


class Records:
    """Dictionaries of two inputs and a label, in double precision, in the place of the digits."""

    def __init__(self, **settings: Any) -> None:
        pass

    def load(self) -> Any:
        items = [
            {"features": x.double() + 1e-10, "flag": x[:1].double(), "label": int(y[0])}
            for x, y in zip(X, LABELS, strict=True)
        ]
        return items[:24], items[24:]


class DoubleNet(Named):
    """A model of them in double precision, in the place of the MLP."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.double()

    def forward(self, features: Tensor, flag: Tensor) -> Any:
        return {"logits": super().forward(features, flag).logits}


def test_dictionaries_in_double_precision_by_a_configuration(command: Command, tmp_path: Path) -> None:
    own = [
        *SHORT, "dataset._target_=tests.run.test_likelihoods.Records",
        "model._target_=tests.run.test_likelihoods.DoubleNet",
    ]  # fmt: skip
    draws = {}
    for parallel in ("sequential", "stacked", "processes"):  # a worker process loads the data itself
        folder = tmp_path / parallel
        page = f"evaluate.report={str(parallel == 'processes').lower()}"
        done = command("train", *own, f"chain.parallel={parallel}", f"run_dir={folder}", page)
        assert done.code == 0, done.err
        posterior = Posterior.load(folder, trust="tests")
        draws[parallel] = [draw.tensors for draw in posterior.draws()]
        torch.testing.assert_close(draws[parallel], draws["sequential"], rtol=1e-12, atol=1e-12)
    assert {tensor.dtype for draw in posterior.draws() for tensor in draw.tensors.values()} == {torch.float64}
    test = posterior.experiment.data.test
    assert torch.equal(test.inputs["features"], X[24:].double() + 1e-10)  # never rounded to single precision
    each_draw = torch.stack([model(**test.inputs).softmax(-1) for model in posterior.models()])
    torch.testing.assert_close(posterior.predict(test).exp(), each_draw.mean(0).detach(), rtol=1e-12, atol=1e-12)
    nll = -each_draw.mean(0).log()[torch.arange(len(test)), test.targets].mean().item()
    assert Results.read(folder / "metrics.json")["ensemble"]["nll"] == pytest.approx(nll, rel=1e-6)
    assert "64-true on cpu" in (folder / "report" / "index.html").read_text()
