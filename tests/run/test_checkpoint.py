"""Chains that begin with trained weights: a module's own, or those of a file."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import bayeslora
from bayeslora.app.compose import to_experiment
from bayeslora.errors import ConfigError, DataError
from bayeslora.evaluation.results import Results
from bayeslora.models.checkpoint import Checkpoint
from bayeslora.models.starts import Starts
from bayeslora.posterior import Posterior
from bayeslora.runs.directory import RunDirectory
from tests.cases import each
from tests.run.tools import Command, composed, run

X = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()
STILL = {"chains": 2, "draws": 2, "thin": 1, "burn_in": 0, "warmup": 0, "lr": 1e-9, "batch_size": 8, "progress": False}
RUN = (
    "experiment=template", "dataset.limit_train=64", "dataset.limit_test=40", "model.hidden=[4]", "chain.num_chains=2",
    "chain.batch_size=16", "chain.warmup.steps=0", "chain.burn_in=2", "chain.num_draws=3", "chain.thin=1",
    "chain.probe_size=32", "evaluate.batch_size=16",
)  # fmt: skip


def weights() -> dict[str, Tensor]:
    """Of the network of `RUN`."""
    return to_experiment(composed(*RUN, "seed=7")).model().state_dict()


@each("parallel", ["sequential", "stacked"])
def test_a_trained_module_is_where_chains_begin_and_map(parallel: str) -> None:
    trained = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(trained.parameters(), lr=0.1)
    for _ in range(50):
        optimizer.zero_grad()
        nn.functional.cross_entropy(trained(X), Y).backward()
        optimizer.step()
    posterior = bayeslora.sample(trained, (X, Y), parallel=parallel, test_dataset=(X, Y), report=False, **STILL)
    for draw in posterior.draws():
        torch.testing.assert_close(draw.tensors["weight"], trained.weight.detach(), rtol=0, atol=1e-2)
    by_map = posterior.predict_map(lambda: [(X, Y)])
    torch.testing.assert_close(by_map, trained(X).log_softmax(-1).detach())
    assert posterior.metrics is not None
    assert posterior.metrics["map"]["accuracy"] == (trained(X).argmax(1) == Y).float().mean().item() > 0.9


def test_a_function_without_a_warm_up_has_no_map() -> None:
    assert bayeslora.sample(lambda: nn.Linear(3, 2), (X, Y), **STILL).map_model() is None


@each(("kind", "parallel"), [("safetensors", "stacked"), ("state dict", "sequential"), ("lightning", "stacked")])
def test_a_file_is_where_a_run_begins_and_its_map(kind: str, parallel: str, tmp_path: Path) -> None:
    state, file = weights(), tmp_path / ("weights.safetensors" if kind == "safetensors" else "weights.pt")
    if kind == "safetensors":
        save_file(state, file)
    elif kind == "state dict":
        torch.save(state, file)
    else:
        torch.save({"epoch": 3, "state_dict": {f"model.{name}": tensor for name, tensor in state.items()}}, file)
    folder = tmp_path / "run"
    metrics = run(folder, f"model.checkpoint={file}", f"chain.parallel={parallel}", base=RUN)
    assert metrics is not None
    assert metrics["map"]["accuracy"] is not None
    kept = load_file(folder / "chains" / "0" / "map.safetensors")
    assert kept.keys() == state.keys()
    assert all(torch.equal(kept[name], tensor) for name, tensor in state.items())
    recorded = RunDirectory(folder).config["model"]
    assert recorded["checkpoint"] == str(file)
    assert len(recorded["checkpoint_digest"]) == 16
    config = Posterior.load(folder).experiment
    assert all(torch.equal(tensor, state[name]) for name, tensor in config.model(1).state_dict().items())


def test_a_run_is_of_its_weights_and_is_evaluated_without_their_file(command: Command, tmp_path: Path) -> None:
    file, state = tmp_path / "weights.safetensors", weights()
    save_file(state, file)
    arguments = [*RUN, f"run_dir={tmp_path / 'run'}", f"model.checkpoint={file}"]
    assert command("train", *arguments).code == 0
    first = {f: f.read_bytes() for f in (tmp_path / "run").rglob("*.safetensors")}
    assert command("train", *arguments, "chain.num_draws=5").code == 0  # goes on
    assert all(f.read_bytes() == content for f, content in first.items() if "resume" not in str(f))
    save_file({name: tensor + 1 for name, tensor in state.items()}, file)
    other = command("train", *arguments, "chain.num_draws=5")
    assert other.code == 2
    assert "already holds a run with another configuration: model.checkpoint_digest (here" in other.err
    again = command("evaluate", f"run_dir={tmp_path / 'run'}")
    assert again.code == 2
    assert "has other contents than when the run began" in again.err
    file.unlink()
    assert command("evaluate", f"run_dir={tmp_path / 'run'}").code == 0
    assert len(Posterior.load(tmp_path / "run").predict(torch.randn(2, 1, 8, 8))) == 2


def test_resume_finds_the_run_that_began_so(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_file(weights(), tmp_path / "weights.safetensors")
    arguments = [*RUN, "model.checkpoint=weights.safetensors"]
    assert command("train", *arguments, f"run_dir={tmp_path / 'outputs' / 'template' / '2026'}").code == 0
    found = command("train", *arguments, "resume=true")
    assert found.code == 0
    assert f"resume=true goes on with {Path('outputs', 'template', '2026')}" in found.out


def test_a_model_of_somebodys_own_begins_there_too(tmp_path: Path) -> None:
    """Frozen parameters that the file lacks stay as the model made them; a run's own draw is such a file."""
    base = ("model.p=0.0", "model._target_=tests.run.tools.DropoutNet", "~model.hidden", "~model.activation")
    own = (*(one for one in RUN if not one.startswith("model.")), *base)
    state = to_experiment(composed(*own, "seed=7")).model().state_dict()
    torch.save(state, tmp_path / "weights.pt")
    run(tmp_path / "run", f"model.checkpoint={tmp_path / 'weights.pt'}", base=own)
    kept = load_file(tmp_path / "run" / "chains" / "0" / "map.safetensors")
    assert all(torch.equal(kept[name], tensor) for name, tensor in state.items())
    draw = tmp_path / "run" / "chains" / "0" / "draws" / "000000.safetensors"
    begun = to_experiment(composed(*own, f"model.checkpoint={draw}")).model()
    assert all(torch.equal(tensor, begun.state_dict()[name]) for name, tensor in load_file(draw).items())


# Each chain from its own


@each("parallel", ["sequential", "stacked"])
def test_each_chain_begins_with_its_own_file_which_is_its_map(parallel: str, command: Command, tmp_path: Path) -> None:
    """A deep ensemble, sampled around each of its members; the rows go on where they were, and know another file."""
    files = [tmp_path / "0.pt", tmp_path / "1.safetensors"]
    states = [{name: tensor + chain for name, tensor in weights().items()} for chain in range(2)]
    torch.save(states[0], files[0])
    save_file(states[1], files[1])
    arguments = [*RUN, f"run_dir={tmp_path / 'run'}", f"model.checkpoint=[{files[0]},{files[1]}]", "sampler.lr=1e-9"]
    assert command("train", *arguments, f"chain.parallel={parallel}").code == 0
    for chain, state in enumerate(states):
        folder = tmp_path / "run" / "chains" / str(chain)
        kept, draw = load_file(folder / "map.safetensors"), load_file(folder / "draws" / "000000.safetensors")
        assert all(torch.equal(kept[name], tensor) for name, tensor in state.items())
        assert all((draw[name] - tensor).abs().max() < 0.01 for name, tensor in state.items())
    results = Results.read(tmp_path / "run" / "metrics.json")
    assert results.map_ensemble is not None
    assert results.map_ensemble.members == 2
    digests = RunDirectory(tmp_path / "run").config["model"]["checkpoint_digest"]
    assert len(set(digests)) == 2
    save_file(states[0], files[1])
    other = command("train", *arguments)
    assert other.code == 2
    assert "already holds a run with another configuration: model.checkpoint_digest (here" in other.err
    files[1].unlink()
    assert command("evaluate", f"run_dir={tmp_path / 'run'}").code == 0


@each("parallel", ["sequential", "stacked"])
def test_each_chain_begins_with_its_own_module(parallel: str) -> None:
    ensemble = [nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)) for _ in range(2)]
    for number, member in enumerate(ensemble):
        member[1].running_mean.fill_(number)
    still = {key: value for key, value in STILL.items() if key != "chains"}  # as many as there are modules
    posterior = bayeslora.sample(ensemble, (X, Y), parallel=parallel, test_dataset=(X, Y), report=False, **still)
    assert posterior.metrics is not None
    assert posterior.metrics["map_ensemble"]["members"] == 2
    for draw in posterior.draws():
        for name, parameter in ensemble[draw.chain].named_parameters():
            torch.testing.assert_close(draw.tensors[name], parameter.detach(), rtol=0, atol=1e-2)
    again = bayeslora.sample([*ensemble], (X, Y), parallel=parallel, **STILL)
    assert all(
        torch.equal(a.tensors["0.weight"], b.tensors["0.weight"])
        for a, b in zip(posterior.draws(), again.draws(), strict=True)
    )


def test_other_members_are_another_run(tmp_path: Path) -> None:
    ensemble = [nn.Linear(3, 2) for _ in range(2)]
    bayeslora.sample(ensemble, (X, Y), run_dir=tmp_path / "run", **STILL)
    with pytest.raises(ConfigError, match=r"another configuration: model.state \(here"):
        bayeslora.sample(ensemble[::-1], (X, Y), run_dir=tmp_path / "run", **STILL)


def test_what_is_frozen_must_be_the_same_for_all_chains(tmp_path: Path) -> None:
    """Else chain 0's would be put into all of them, and each would sample a model that was never trained."""
    ensemble = [nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)) for _ in range(2)]
    for number, member in enumerate(ensemble):
        member[0].requires_grad_(False)
        save_file(member.state_dict(), tmp_path / f"{number}.safetensors")
    save_file(ensemble[1][1].state_dict(prefix="1."), tmp_path / "head.safetensors")
    with pytest.raises(
        ConfigError, match=r"^model\[1\] is not the model that model\[0\] is: 0.weight, which is not sam"
    ):
        bayeslora.sample(ensemble, (X, Y), **STILL)
    for others in (("0", "1"), ("head", "1"), ("1", "head")):
        starts = Starts(tuple(Checkpoint(str(tmp_path / f"{name}.safetensors")) for name in others))
        with pytest.raises(
            ConfigError, match=rf"{others[1]}.safetensors: 0.weight; 0.bias, which is not sampled, is not"
        ):
            starts.check(ensemble[0], 2)
        one = Starts((starts.weights[1], starts.weights[1]))
        one.check(ensemble[0], 2)


def test_so_many_weights_as_chains(tmp_path: Path) -> None:
    save_file(weights(), tmp_path / "a.safetensors")
    three = ",".join(3 * [str(tmp_path / "a.safetensors")])
    with pytest.raises(ConfigError, match=r"a.safetensors and so on are weights for 3 chains, and chain.num_chains=2"):
        run(tmp_path / "run", f"model.checkpoint=[{three}]", base=RUN)
    with pytest.raises(ConfigError, match=r"^model\[0\] and so on are weights for 3 chains, and chains=2; give those"):
        bayeslora.sample([nn.Linear(3, 2)] * 3, (X, Y), **STILL)
    with pytest.raises(ConfigError, match=r"model.checkpoint=\[\] names no file"):
        run(tmp_path / "run", "model.checkpoint=[]", base=RUN)
    with pytest.raises(ConfigError, match="no module is given"):
        bayeslora.sample([], (X, Y), **STILL)
    with pytest.raises(ConfigError, match=r"model\[1\] is not the model that model\[0\] is: .*ReLU.*Tanh"):
        bayeslora.sample([nn.Sequential(nn.Linear(3, 2), act) for act in (nn.Tanh(), nn.ReLU())], (X, Y), **STILL)
    with pytest.raises(ConfigError, match=r"is no torch\.nn\.Module"):
        bayeslora.sample([nn.Linear(3, 2), "net"], (X, Y), **STILL)  # type: ignore[list-item]


def test_what_is_frozen_may_be_missing_but_not_what_is_sampled(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    model[0].requires_grad_(False)
    save_file({name: t + 1 for name, t in model[1].state_dict(prefix="1.").items()}, tmp_path / "head.safetensors")
    before = model[0].weight.clone()
    Starts((Checkpoint(str(tmp_path / "head.safetensors")),)).load_into(model)
    assert torch.equal(model[0].weight, before)
    model[0].requires_grad_(True)
    with pytest.raises(ConfigError, match=r"it lacks 0.weight, 0.bias\."):
        Checkpoint(str(tmp_path / "head.safetensors")).fitting(model)


def bad(name: str, file: Path) -> None:
    state: dict[str, Any] = weights()
    if name == "keys":
        state["extra.weight"] = state.pop("head.weight")
        state["head.bias"] = state["head.bias"][:3]
    elif name == "nan":
        state["head.bias"] = state["head.bias"] / 0 * 0
    elif name == "code":
        file.write_bytes(pickle.dumps(nn.Linear(1, 1)))
        return
    elif name == "numbers":
        state = {"epoch": 3}
    elif name == "garbage":
        file.write_bytes(b"garbage")
        return
    if name != "missing":
        torch.save(state, file)


MESSAGES = {
    "keys": r"does not fit Mlp: it lacks head.weight; the model has no extra.weight; of other shapes: head.bias \[3\]"
    r" where the model has \[10\]. Choose the settings",
    "nan": "head.bias holds NaN",
    "code": "cannot be read as tensors alone",
    "numbers": "is no state dict: it holds epoch: int",
    "garbage": "cannot be read as tensors alone",
    "missing": "weights.pt does not exist; give a file of weights",
}


@each("name", MESSAGES)
def test_what_is_no_checkpoint_of_the_model_is_refused(name: str, tmp_path: Path) -> None:
    file = tmp_path / "weights.pt"
    bad(name, file)
    with pytest.raises((ConfigError, DataError), match=MESSAGES[name]):
        run(tmp_path / "run", f"model.checkpoint={file}", base=RUN)
    assert not (tmp_path / "run").exists()


def test_problems_of_a_checkpoint_are_told_with_the_others(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        run(tmp_path / "run", "model.checkpoint=nowhere", "temperature=-1", "sampler.lr=-1", base=RUN)
    assert len(caught.value.problems) == 3
