"""Every configuration in `conf/` composes, holds no key that means nothing, and makes what it names."""

from __future__ import annotations

import inspect
import pickle
import pkgutil
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from omegaconf import DictConfig, OmegaConf
from torch import nn

from bayeslora.app.cli import forced
from bayeslora.app.commands import command_settings
from bayeslora.app.compose import plain, to_experiment
from bayeslora.app.config import CONF_DIR, PARTS, RootConfig, check_config, factory, instantiate, listed_settings
from bayeslora.chain.plan import Plan
from bayeslora.datasets import Cifar10, Cifar100, Digits, Glue
from bayeslora.errors import ConfigError
from bayeslora.evaluate import EvaluateSettings
from bayeslora.factories import INJECTED, offer, settings_of
from bayeslora.parts import with_numbers
from bayeslora.potential import Prior
from bayeslora.samplers import BY_NAME, Sampler, schedules
from bayeslora.settings import AUTO, SCHEDULES
from tests.cases import each
from tests.data.text_models import tiny_model
from tests.data.text_tools import mrpc
from tests.run.tools import composed

CONF = Path(CONF_DIR)
EXPERIMENTS = sorted(file.stem for file in (CONF / "experiment").glob("*.yaml"))
OPTIONS = {
    folder.name: sorted(file.stem for file in folder.glob("*.yaml"))
    for folder in sorted(CONF.iterdir())
    if folder.is_dir() and folder.name not in ("experiment", "hydra")
}


def leaves(node: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values by dotted key."""
    found: dict[str, Any] = {}
    for key, value in node.items():
        found |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def plan(cfg: DictConfig) -> Plan:
    """The plan of a chain."""
    chain = cfg.chain
    lengths = (chain.warmup.steps, chain.burn_in, chain.num_draws, chain.thin)
    return Plan(
        *(1 if steps == AUTO else steps for steps in lengths),
        *(chain[key] for key in ("cycles", "exploration") if key in chain),
    )


def test_the_experiments_of_the_project_are_there() -> None:
    wanted = {
        "digits_resnet",
        "quickstart",
        "cifar10_resnet18_map",
        "cifar10_resnet18_sgld",
        "cifar100_wrn_sgld",
        "cifar100_wrn_samsgld",
    }
    assert wanted <= set(EXPERIMENTS)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """What lets experiments on texts do without a hub: a tiny RoBERTa and a tiny MRPC."""
    root = tmp_path_factory.mktemp("texts")
    model, data = tiny_model(root / "model", "roberta"), mrpc(root / "mrpc", train=70, test=40)
    return f"model.name_or_path={model}", f"dataset.path={data}", "dataset.max_length=60"


def of(experiment: str, texts: tuple[str, ...], *overrides: str) -> DictConfig:
    """An experiment as it can be composed and built here."""
    return composed(f"experiment={experiment}", *overrides, *(texts if experiment.startswith("mrpc") else ()))


@each("experiment", EXPERIMENTS)
def test_every_experiment_makes_its_parts(experiment: str, texts: tuple[str, ...]) -> None:
    cfg = of(experiment, texts)
    assert check_config(cfg) == []
    assert cfg.name == experiment
    assert isinstance(instantiate(cfg.prior), Prior)
    dataset = instantiate(cfg.dataset)
    assert isinstance(dataset, Cifar10 | Digits | Glue)
    classes = 2 if isinstance(dataset, Glue) else 100 if isinstance(dataset, Cifar100) else 10
    with torch.device("meta"):
        sizes = {"num_classes": classes, "num_outputs": classes, "in_channels": 3, "in_features": 3 * 32 * 32}
        model = offer(factory(cfg.model), **sizes)
        if not isinstance(dataset, Glue):
            assert model(torch.empty(2, 3, 32, 32)).shape == (2, classes)
    weight = nn.Parameter(torch.zeros(3))
    sampler = with_numbers(factory(cfg.sampler))([weight], kT=1e-3, seed=0, chain=0)
    assert isinstance(sampler, Sampler)
    assert sampler.param_groups[0]["lr"] == (1e-3 if cfg.sampler.lr == AUTO else cfg.sampler.lr)
    warmup = instantiate(cfg.chain.warmup.optimizer)([weight])
    assert warmup.param_groups[0]["lr"] == cfg.chain.warmup.optimizer.lr


@each(
    ("experiment", "size"),
    [*((name, "full") for name in EXPERIMENTS), ("cifar10_resnet18_csghmc", "smoke"), ("mrpc_minilm_map", "smoke")],
)
def test_every_experiment_passes_all_checks_of_values(experiment: str, size: str, texts: tuple[str, ...]) -> None:
    """On digits or a tiny MRPC, without download: plan, sampler, schedules, batches and model fit each other."""
    images: tuple[str, ...] = ()
    if not experiment.startswith("mrpc"):
        left = composed(
            f"experiment={experiment}", "dataset=digits"
        ).dataset  # what an experiment sets of its own images
        images = ("dataset=digits", *(f"~dataset.{key}" for key in ("mean", "std") if key in left))
    few = ("dataset.validation_size=0",) if experiment.startswith("mrpc") else ()  # of the 70 of a tiny MRPC
    cfg = of(experiment, texts, f"size={size}", "trainer=cpu", *images, *few)
    setup = to_experiment(cfg)
    assert setup.plan == plan(cfg)
    assert setup.potential.num_data == (64 if size == "smoke" else 1437 if images else 70)


@each("experiment", EXPERIMENTS)
def test_smoke_wins_over_the_experiment_and_the_command_line_over_both(experiment: str) -> None:
    smoke = leaves(yaml.safe_load((CONF / "size" / "smoke.yaml").read_text()))
    cfg, full = composed(f"experiment={experiment}", "size=smoke"), composed(f"experiment={experiment}")
    numbers = {key: value for key, value in smoke.items() if isinstance(value, int)}
    assert len(numbers) >= 7
    assert {key: OmegaConf.select(cfg, key) for key in numbers} == numbers
    assert {key for key in numbers if OmegaConf.select(full, key) == numbers[key]} <= {"chain.num_draws"}
    assert cfg.chain.batch_size <= cfg.dataset.limit_train
    assert plan(cfg).total <= 24
    assert plan(full).total > 600
    assert composed(f"experiment={experiment}", "size=smoke", "chain.thin=7").chain.thin == 7


@each("number", range(max(map(len, OPTIONS.values()))))
def test_every_option_of_every_group_composes(number: int) -> None:
    """One of each group at a time."""
    chosen = {group: options[number % len(options)] for group, options in OPTIONS.items()}
    warmup = f"optimizer@chain.warmup.optimizer={chosen.pop('optimizer')}"
    assert check_config(composed(warmup, *(f"{group}={option}" for group, option in chosen.items()))) == []


def test_each_key_of_the_schema_has_a_default_in_conf_and_the_other_way_round() -> None:
    def keys(node: DictConfig, schema: DictConfig, prefix: str = "") -> set[str]:
        found = set()
        for key in node:
            inner = schema.get(key)
            nested = isinstance(inner, DictConfig) and isinstance(node[key], DictConfig)
            found |= keys(node[key], inner, f"{prefix}{key}.") if nested else {f"{prefix}{key}"}
        return found

    schema = OmegaConf.structured(RootConfig)
    assert keys(composed(), schema) == keys(schema, schema)


def test_the_predecessors_plan_is_the_default_of_the_cifar_experiments() -> None:
    for experiment in ("cifar10_resnet18_sgld", "cifar100_wrn_sgld", "cifar100_wrn_samsgld"):
        chain = composed(f"experiment={experiment}").chain
        assert (chain.batch_size, chain.burn_in, chain.thin, chain.num_draws) == (128, 2000, 200, 100)


def test_the_predecessors_plan_is_the_default_of_the_mrpc_experiments() -> None:
    for experiment in ("mrpc_roberta_sgld", "mrpc_roberta_samsgld_r1"):
        cfg = composed(f"experiment={experiment}")
        chain, model = cfg.chain, cfg.model
        plan = (chain.num_chains, chain.batch_size, chain.burn_in, chain.thin, chain.num_draws)
        assert plan == (4, 32, 8000, 50, 60)
        assert chain.warmup.optimizer._target_ == "torch.optim.AdamW"
        assert (chain.warmup.optimizer.lr, cfg.dataset.max_length) == (2e-4, 256)
        assert (model.name_or_path, model.rank, model.alpha) == ("roberta-base", 8, 16.0)
        assert model.targets == ["query", "key", "value", "attention.output.dense"]
    online = composed("experiment=mrpc_roberta_samsgld_r1_online")
    assert online.callbacks.online.milestones == [1000, 10_000, 50_000, 100_000, 150_000]
    assert (online.chain.num_chains, online.chain.num_draws * online.chain.thin) == (1, 150_000)


def test_posteriors_are_at_temperature_one_without_augmentation_and_map_at_zero() -> None:
    for experiment in EXPERIMENTS:
        cfg = composed(f"experiment={experiment}")
        assert cfg.temperature == (0.0 if experiment.endswith("_map") else 1.0)
        assert not cfg.dataset.get("augment", False)


def test_the_target_of_the_hmc_reference_is_that_of_its_experiment() -> None:
    """Izmailov et al. 2021: N(0, 1/5) on every parameter, T = 1, these constants, ResNet-20-FRN with swish."""
    cfg = composed("experiment=cifar10_resnet20frn_sgld")
    prior, data = instantiate(cfg.prior), instantiate(cfg.dataset)
    assert (prior.variance, prior.vectors, prior.scaling, prior.overrides) == (0.2, 0.2, "constant", {})
    assert (cfg.temperature, data.augment, data.limit_train, data.validation_size) == (1.0, False, None, 0)
    assert (list(data.mean), list(data.std)) == ([0.49, 0.48, 0.44], [0.2, 0.2, 0.2])
    assert (cfg.model._target_, cfg.model.norm, cfg.model.activation) == ("bayeslora.models.resnet20", "frn", "swish")
    assert composed("experiment=cifar10_resnet20frn_sgld", "evaluate.reference=x.npz").evaluate.reference == "x.npz"


@each(
    ("argument", "expected"),
    [
        ("chain.thin=3", "++chain.thin=3"),
        ("seed=0,1", "++seed=0,1"),
        ("run_dir=/a b/c=d", "++run_dir=/a b/c=d"),
        ("name=", "++name="),
        ("nonsense=1", "++nonsense=1"),
        ("model.norm=batch", "++model.norm=batch"),
        ("model=resnet18", "model=resnet18"),
        ("experiment=quickstart", "experiment=quickstart"),
        ("size=smoke", "size=smoke"),
        ("hydra.sweep.dir=x", "hydra.sweep.dir=x"),
        ("hydra/launcher=joblib", "hydra/launcher=joblib"),
        ("+seed=1", "+seed=1"),
        ("++seed=1", "++seed=1"),
        ("~logger", "~logger"),
        ("~logger.csv=1", "~logger.csv=1"),
        ("-m", "-m"),
        ("--config-dir=/x", "--config-dir=/x"),
        ("quickstart", "quickstart"),
    ],
)
def test_settings_are_forced_and_groups_and_flags_left(argument: str, expected: str) -> None:
    assert forced(argument) == expected


@each(
    ("override", "problem"),
    [
        ("chain.thn=3", "unknown key chain.thn: did you mean thin?"),
        ("chain.warmup.step=3", "unknown key chain.warmup.step: did you mean steps?"),
        ("sampler.lrr=1", "unknown key sampler.lrr: did you mean lr?"),
        ("prior.varianc=1", "unknown key prior.varianc: did you mean variance?"),
        ("dataset.limit=1", "unknown key dataset.limit: did you mean limit_"),
        ("model.hiden=[8]", "unknown key model.hiden: did you mean hidden?"),
        ("model.num_clases=3", "unknown key model.num_clases: known here: hidden, activation"),
        (
            "chain.warmup.optimizer.weight_decy=0",
            "unknown key chain.warmup.optimizer.weight_decy: did you mean weight_",
        ),
        ("callbacks.progress.evry=1", "unknown key callbacks.progress.evry: did you mean every?"),
        ("temprature=1", "unknown key temprature: did you mean temperature?"),
        ("experimnt=quickstart", "unknown key experimnt: did you mean experiment?"),
        ("xyz=1", "unknown key xyz: known here: name, seed"),
        ("chain.from_prior=fc", "chain.from_prior=fc must be a list: 'chain.from_prior=[fc]'"),
        ("seed=a", "seed: Value 'a' of type 'str' could not be converted to Integer"),
        ("chain.num_draws=1.5", "chain.num_draws: Value '1.5' of type 'float' could not be converted to Integer"),
        ("dataset.augment=no", "dataset.augment=no must be true or false"),
        ("model.activation=1.5", "model.activation=1.5 must be text"),
        ("sampler.lr=fast", "sampler.lr=fast must be a number"),
        ("sampler.lr=null", "sampler.lr=null must be a number"),
        ("prior.variance=true", "prior.variance=true must be a number"),
        ("sampler._target_=bayeslora.samplers.SGDL", "sampler._target_=bayeslora.samplers.SGDL cannot be imported"),
        ("sampler._target_=no.such.module", "cannot be imported (No module named 'no')"),
        ("model._target_=3", "model._target_=3 cannot be imported"),
        ("dataset._target_=os.sep", "dataset._target_=os.sep is a str; name a class or function"),
        ("logger.csv=3", "logger.csv needs a _target_: choose one of the logger configs"),
        ("callbacks.mine=3", "callbacks.mine needs a _target_"),
    ],
)
def test_what_means_nothing_is_named_with_the_fix(override: str, problem: str) -> None:
    found = check_config(composed(override))
    assert len(found) == 1
    assert problem in found[0]


def test_a_part_that_is_no_part_is_named() -> None:
    cfg = composed()
    OmegaConf.set_struct(cfg, False)
    cfg.chain, cfg.sampler = 3, None
    found = check_config(cfg)
    assert [problem.split()[0].rstrip(":") for problem in found] == ["chain", "sampler", "chain.warmup.optimizer"]


def test_values_of_the_right_kind_pass() -> None:
    assert check_config(composed("sampler.lr=1", "seed=-1", "temperature=0", "chain.batch_size=null")) == []
    assert check_config(composed("dataset.limit_train=null", "prior.overrides={head.*:0.5}")) == []
    assert check_config(composed("logger=csv", "logger.csv.flush_logs_every_n_steps=5")) == []
    net = "model._target_=bayeslora.models.wide_resnet"  # the name of a module, too
    assert check_config(composed("experiment=cifar100_wrn_sgld", net, "+model.depth=16", "+model.width=2")) == []


def test_a_targets_own_message_is_passed_on() -> None:
    with pytest.raises(ConfigError, match=r"model\.norm='none' is unknown"):
        instantiate(composed("model=resnet_small", "model.norm=none").model, num_classes=2)


@each("experiment", EXPERIMENTS)
def test_the_composed_configuration_is_plain_data(experiment: str) -> None:
    values = plain(composed(f"experiment={experiment}", "run_dir=here"))
    assert values["logger"]["csv"]["save_dir"] == "here/logs"
    assert values["run_dir"] == "here"


def test_evaluate_composes() -> None:
    cfg = composed("run_dir=here", config="evaluate")
    assert command_settings(EvaluateSettings, cfg, "evaluate") == EvaluateSettings(run_dir="here", trust=[])
    assert {*cfg} == {field.name for field in fields(EvaluateSettings)}


@each("part", PARTS)
def test_the_files_of_a_part_list_all_that_it_takes(part: str) -> None:
    """A mistyped key is found by them, without an import."""
    for target, listed in listed_settings()[part].items():
        parameters = inspect.signature(pkgutil.resolve_name(target)).parameters.values()
        taken = {p.name for p in parameters if p.kind != p.VAR_KEYWORD} - INJECTED
        taken |= {"checkpoint"} if part == "model" else set()  # of the experiment, not of what it names
        assert taken == {*listed}, target


def test_samplers_by_name_are_those_of_the_files_with_the_same_settings() -> None:
    assert {*BY_NAME} == {file.stem for file in (CONF / "sampler").glob("*.yaml")}
    for name, make in BY_NAME.items():
        node = plain(composed(f"sampler={name}").sampler)
        weight = [nn.Parameter(torch.zeros(2))]
        own = {key: value for key, value in node.items() if key not in ("_target_", "_partial_")}
        theirs = factory(composed(f"sampler={name}").sampler)
        assert {key: settings_of(make).get(key) == AUTO for key in own} == {key: own[key] == AUTO for key in own}
        own = {key: value for key, value in own.items() if value != AUTO}
        ours, theirs = (with_numbers(one)(weight, kT=1.0, seed=0, chain=0) for one in (make, theirs))
        assert type(ours) is type(theirs)
        assert {key: getattr(ours, key, None) for key in own} == {key: getattr(theirs, key, None) for key in own}
        assert ours.param_groups == theirs.param_groups


def test_the_schedules_that_settings_know_are_those_there_are() -> None:
    assert {*SCHEDULES} == {*schedules.SCHEDULES}


def test_an_experiment_goes_to_another_process_without_its_data() -> None:
    here = to_experiment(composed("experiment=quickstart", "size=smoke", "dataset.limit_train=64"))
    sent = pickle.dumps(here)
    there = pickle.loads(sent)  # noqa: S301
    assert len(sent) < 20_000
    assert "data" not in vars(there)
    for one, other in zip(here.batches(1)(3), there.batches(1)(3), strict=True):
        assert torch.equal(one, other)
    assert all(torch.equal(p, q) for p, q in zip(here.model(1).parameters(), there.model(1).parameters(), strict=True))
    assert (there.record, there.chain, there.trainer) == (here.record, here.chain, here.trainer)
