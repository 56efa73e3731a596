"""The rows of docs/results.md: experiments of `conf/` with settings of their own, and their commands."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

RUNS = Path("outputs/results")
THREE = (0, 1, 2)


@dataclass(frozen=True)
class Row:
    """A row: an experiment of `conf/` with settings of its own.

    Attributes:
        experiment: its name.
        settings: overrides of the command line.
        seeds: those that are run.
        before: steps that other rows took to where its chains begin.
    """

    experiment: str
    settings: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0,)
    before: int = 0

    def command(self, name: str, seed: int, folder: Path | None = None) -> list[str]:
        """What runs one seed, as a command line; data lie in DATA."""
        where = folder or RUNS / name / str(seed)
        settings = [f"experiment={self.experiment}", f"name={name}", f"seed={seed}", f"run_dir={where}", "logger=none"]
        return ["python", "-m", "bayeslora.train", *settings, *self.settings]


def digits() -> Iterator[tuple[str, Row]]:
    """Handwritten digits, full batches, step sizes found by `auto`: every sampler at T = 1, and what cooling buys."""
    for sampler in ("baoab", "sghmc", "sgld", "sgnht", "sglrw", "asgld", "sam_sgld", "sam_sgld_r1", "fsgld"):
        chosen = () if sampler == "baoab" else (f"sampler={sampler}", "sampler.lr=auto", "chain.thin=150")
        yield f"digits-{sampler}", Row("quickstart", chosen, THREE)
    numbers = ("sampler.lr=1e-4", "chain.burn_in=8000", "chain.thin=150")  # its steps by coordinate leave auto no room
    yield "digits-psgld", Row("quickstart", ("sampler=psgld", *numbers), THREE)
    for cold in ("0.3", "0.1", "0.03"):
        yield f"digits-baoab-T{cold}", Row("quickstart", (f"temperature={cold}",), THREE)


def mrpc() -> Iterator[tuple[str, Row]]:
    """Paraphrases, LoRA on MiniLM, N = 3,302: samplers at T = 1, SGLD colder, the earlier rank-one rule.

    `-short`: 20 draws a chain. `-single`: one chain each of other seeds.
    """

    def online(draws: int) -> tuple[str, ...]:
        """One chain, with milestones after an eighth, three eighths and all of its draws, which are 40 steps apart."""
        milestones = f"callbacks.online.milestones=[{5 * draws},{15 * draws},{40 * draws}]"
        return "chain.num_chains=1", f"chain.num_draws={draws}", milestones

    walk = ("sampler=sglrw", "~sampler.integrator", "sampler.lr=0.5")
    momentum = ("sampler=sghmc", "~sampler.integrator", "sampler.lr=0.05")
    single = ("chain.num_chains=1",)
    own: dict[str, tuple[str, ...]] = {
        "map": (),
        "map-single": single,  # what mrpc_baselines.py is around
        "sgld": (),
        "sgld-single": single,
        "sglrw": walk,
        "sglrw-single": (*walk, *single),
        "sghmc": momentum,
        "sghmc-single": (*momentum, *single),
        "samsgld_r1": (),
        "samsgld_r1-rule": ("sampler.direction=adaptive", "sampler.drift=plain"),
        "sgld-online": online(240),
        "sgld-T0.3": ("temperature=0.3",),
        "sgld-T0.1": ("temperature=0.1",),
    }
    for name, settings in own.items():
        base = next((e for e in ("map", "samsgld_r1") if name.startswith(e)), "sgld")
        seeds = (1, 2) if name.endswith("-single") and name != "map-single" else (0,)
        yield f"mrpc-{name}", Row(f"mrpc_minilm_{base}", ("dataset.path=DATA/mrpc", *settings), seeds)
        if not name.startswith("map"):
            fewer = online(20) if name == "sgld-online" else (*settings, "chain.num_draws=20")
            yield f"mrpc-{name}-short", Row(f"mrpc_minilm_{base}", ("dataset.path=DATA/mrpc", *fewer), seeds)


EPOCH = 195
"""Steps of 256 of 50,000 images."""


def fidelity() -> Iterator[tuple[str, Row]]:
    """CIFAR-10, ResNet-20-FRN at T = 1 against the HMC reference: 30 epochs of gradients a chain, four chains.

    Convolutions begin at the prior's norm, where the posterior has them, or are put there after a warm-up by AdamW
    (`drawn-norms`). `sghmc-short`: what two cores do in an hour.
    """
    data = (
        "dataset.path=DATA/cifar10", "evaluate.reference=DATA/cifar10_hmc/predictive.npz",
        "chain.batch_size=256", "trainer.precision=bf16-mixed", "trainer.compile=true",
    )  # fmt: skip
    adam = ("optimizer@chain.warmup.optimizer=adamw", "chain.warmup.optimizer.lr=0.01", "chain.warmup.schedule=linear",
            "chain.warmup.schedule_settings={rise: 0.1}")  # fmt: skip
    prior = "chain.from_prior=[stem.0.weight,*conv?.weight,*shortcut.0.weight]"
    wide = (  # by SGD: AdamW would shrink them again, by the prior's gradient alone
        prior, "chain.warmup.optimizer.lr=0.5", "chain.warmup.schedule=linear",
        "chain.warmup.schedule_settings={rise: 0.1}",
    )  # fmt: skip
    start = (*wide, f"chain.warmup.steps={12 * EPOCH}")
    factors = "chain.lr_factors={head: 0.1, stem: 0.4}"  # of what noise would heat most (docs/step-size.md)
    scale_free = "chain.scale_free=[stem.0.weight,*conv?.weight,*shortcut.0.weight]"
    free = (  # norm parameters, held back, let convolutions take longer steps
        scale_free,
        "chain.lr_factors={blocks.0: 0.3, blocks.1: 0.3, blocks.2: 0.3, norm1: 0.1, norm2: 0.1, shortcut.1: 0.1,"
        " stem: 0.1, head: 0.05}",
    )  # fmt: skip
    maps = [f"{RUNS}/fidelity-sghmc-drawn-norms/0/chains/{chain}/map.safetensors" for chain in range(4)]
    draws = (factors, "chain.num_draws=14", f"chain.burn_in={4 * EPOCH}", f"chain.thin={EPOCH}")
    own: dict[str, tuple[str, ...]] = {
        "map": (
            *adam, f"chain.warmup.steps={30 * EPOCH - 1}", "sampler=map", "sampler.lr=1e-4", "temperature=0",
            "chain.burn_in=0", "chain.num_draws=1", "chain.thin=1",
        ),
        "sgld": (*start, *draws, "sampler.lr=2.0"),
        "sglrw": (*start, *draws, "sampler=sglrw", "sampler.lr=2.0"),
        "sghmc": (*start, *draws, "sampler=sghmc", "sampler.lr=0.2"),
        "cyclical": (
            prior, factors, "chain.warmup.steps=0", "chain.burn_in=0", "sampler=sghmc", "sampler.lr=0.5",
            "chain.schedule=cyclical", "chain.cycles=5", "chain.exploration=0.6", "chain.num_draws=15",
            "chain.thin=156",
        ),
        "sam_sgld": (  # two gradients a step
            *start, factors, "sampler=sam_sgld", "sampler.lr=2.0", "chain.num_draws=14", f"chain.burn_in={2 * EPOCH}",
            f"chain.thin={EPOCH // 2}",
        ),
        "sghmc-short": (
            *wide, f"chain.warmup.steps={9 * EPOCH}", f"chain.burn_in={3 * EPOCH}", "chain.num_draws=10",
            f"chain.thin={EPOCH}", "sampler=sghmc", "sampler.lr=0.2", "chain.num_chains=2", "chain.parallel=processes",
        ),
        "sghmc-drawn-norms": (
            *adam, *free, f"chain.warmup.steps={18 * EPOCH}", f"chain.burn_in={2 * EPOCH}", "chain.num_draws=10",
            f"chain.thin={EPOCH}", "sampler=sghmc", "sampler.lr=0.5", "chain.parallel=processes",
        ),
        "sghmc-near-maps": (  # short steps from the MAP of each of the same chains
            scale_free, factors, f"model.checkpoint=[{','.join(maps)}]", "chain.warmup.steps=0",
            f"chain.burn_in={EPOCH}", "chain.num_draws=8", f"chain.thin={5 * EPOCH // 8}", "sampler=sghmc",
            "sampler.lr=0.05", "chain.parallel=processes",
        ),
        "sglrw-drawn-norms": (  # from the MAP of the first chain of the row before
            *free, f"model.checkpoint={maps[0]}",
            "chain.warmup.steps=0", f"chain.burn_in={2 * EPOCH}", "chain.num_draws=10", f"chain.thin={EPOCH}",
            "sampler=sglrw", "sampler.lr=2.0", "chain.num_chains=1",
        ),
    }  # fmt: skip
    for name, settings in own.items():
        before = 18 * EPOCH if any("model.checkpoint" in setting for setting in settings) else 0
        yield f"fidelity-{name}", Row("cifar10_resnet20frn_sgld", (*data, *settings), before=before)
    yield "tuned-resnet20frn", Row("cifar10_resnet20frn_sgld", (  # what the tuner finds, and the temperature there
        *data, *wide, f"chain.warmup.steps={3 * EPOCH}", "chain.batch_size=64", "sampler=baoab", "sampler.lr=auto",
        "sampler.momentum=auto", "chain.burn_in=200", "chain.num_draws=20", "chain.thin=10", "chain.num_chains=1",
        "trainer.precision=32-true", "trainer.compile=false",
    ))  # fmt: skip


def resnet18() -> Iterator[tuple[str, Row]]:
    """CIFAR-10, ResNet-18 of full size with augmentation: 15 epochs to MAP, then 12 draws of each of two chains."""
    epoch = 195  # steps of 256 of 50,000 images
    data = (
        "dataset.path=DATA/cifar10", "dataset.augment=true", "evaluate.ood=cifar100", "evaluate.ood_path=DATA/cifar100",
        "evaluate.corruptions=true", "trainer.precision=bf16-mixed", "trainer.compile=true", "chain.num_chains=2",
        "chain.batch_size=256", f"chain.warmup.steps={15 * epoch}", "chain.warmup.optimizer.lr=0.005",
        "chain.warmup.schedule=linear", "chain.warmup.schedule_settings={rise: 0.2}",
    )  # fmt: skip
    draws = (f"chain.burn_in={2 * epoch}", "chain.num_draws=12", f"chain.thin={epoch // 2}")
    cycles = (
        "chain.burn_in=0", "chain.cycles=3", "chain.exploration=0.7", "chain.schedule=cyclical", "chain.num_draws=12",
        "chain.thin=60", "sampler.lr=0.005",
    )  # fmt: skip
    yield "resnet18-sgld", Row("cifar10_resnet18_sgld", (*data, *draws))
    yield "resnet18-sgld-T0.01", Row("cifar10_resnet18_sgld", (*data, *draws, "temperature=0.01"))
    yield "resnet18-cyclical-T0.01", Row("cifar10_resnet18_csghmc", (*data, *cycles, "temperature=0.01"))


def wide_resnet() -> Iterator[tuple[str, Row]]:
    """CIFAR-100, WideResNet-16-2 in place of 28-10, T = 1, four chains: 30 epochs to MAP, then 12 draws.

    Step sizes are the experiments' by fan-in: of 128 channels it is a fifth of that of 640. None is tuned or run yet.
    """
    data = (
        "dataset.path=DATA/cifar100", "model._target_=bayeslora.models.wide_resnet", "+model.depth=16",
        "+model.width=2", "trainer.precision=bf16-mixed", "trainer.compile=true", "chain.num_chains=4",
        "chain.batch_size=256", f"chain.warmup.steps={30 * EPOCH}", "chain.warmup.optimizer.lr=0.01",
        "chain.warmup.schedule=linear", "chain.warmup.schedule_settings={rise: 0.2}", "chain.num_draws=12",
    )  # fmt: skip
    single = (f"chain.burn_in={6 * EPOCH}", f"chain.thin={EPOCH}")
    double = (f"chain.burn_in={3 * EPOCH}", f"chain.thin={EPOCH // 2}")  # two gradients a step
    own = {
        "sgld": (*single, "sampler.lr=0.075"),
        "asgld": (*single, "sampler.lr=0.075"),
        "samsgld": (*double, "sampler.lr=0.075", "sampler.rho=0.035"),  # ρ: the experiment's share of the prior's norm
        "samsgld_r1": (*double, "sampler.lr=0.02", "sampler.rho=0.035"),
    }
    for name, settings in own.items():
        yield f"cifar100-{name}", Row(f"cifar100_wrn_{name}", (*data, *settings))


ROWS: dict[str, Row] = {name: row for group in (digits, mrpc, fidelity, resnet18, wide_resnet) for name, row in group()}
