"""Readers of what may be somebody else's, on thousands of damaged and hostile files: the documented error or none.

Each input is a valid file changed at random, from a fixed seed; nothing is run and nothing is written outside.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForSequenceClassification

from bayeslora.chain.snapshot import Snapshot
from bayeslora.engine.callbacks.resume import ResumePoints
from bayeslora.errors import BayesloraError
from bayeslora.models import lora_classifier
from bayeslora.models.adapters import export_adapters, load_adapter
from bayeslora.posterior import DrawStore, Posterior
from bayeslora.posterior.store import Draw, load_into, serialise
from bayeslora.runs.directory import RunDirectory
from bayeslora.runs.trust import _walk
from tests.cases import each
from tests.data.text_models import TARGETS, tiny_model
from tests.run.tools import TINY, composed

FULL = {"manifest": 4_000, "draw": 3_000, "resume point": 2_000, "config.yaml": 1_000, "adapter": 200}
"""10,200 in all, as `docs/reliability.md` says, with `BAYESLORA_FUZZ=full`; else the first fifth of each."""
INPUTS = FULL if os.environ.get("BAYESLORA_FUZZ") == "full" else {kind: count // 5 for kind, count in FULL.items()}

NASTY = (
    b"", b"\x00", b"\n", b'"', b"{", b"[" * 3_000, b"}", b"-1", b"1e999", b"NaN", b"9" * 5_000, b"null", b"true",
    b"../", b"/etc/passwd", b"${oc.env:HOME}", b"!!python/object/apply:os.system ['touch hacked']", b"&a [*a, *a]",
    b"\xff\xfe", b"_target_: os.system", b"__import__('os').system('touch hacked')", b"\\u0000", b": ", b"- ",
    b"2001-13-45", b"F64",
    b"cposix\nsystem\n(S'touch hacked'\ntR.",
)  # fmt: skip


def mutated(content: bytes, source: random.Random) -> bytes:
    """A file with one to four damages: bits, pieces cut, doubled, moved or put in, numbers changed, a hostile piece."""
    data = bytearray(content)
    for _ in range(source.randint(1, 4)):
        at, to = sorted(source.randint(0, len(data)) for _ in range(2))
        kind = source.randrange(7)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << source.randrange(8)
        elif kind == 1:
            del data[at : source.choice([to, at + 1, len(data)])]
        elif kind == 2:
            data[at:at] = data[at : min(to, at + 200)]
        elif kind == 3:
            data[at:at] = source.choice(NASTY)
        elif kind == 4:
            data[at : at + 8] = source.choice([0, 1, 2**31, 2**63 - 1, 2**64 - 1]).to_bytes(8, "little")
        elif kind == 5:
            digits = [i for i, byte in enumerate(data[:4_000]) if 48 <= byte <= 57]
            if digits:
                data[source.choice(digits)] = source.choice(b"0123456789-.e")
        else:
            data[at : at + source.randint(1, 30)] = source.randbytes(source.randint(1, 30))
    return bytes(data)


@pytest.fixture(scope="module")
def watched() -> list[str]:
    """What ran or was opened to be written while a reader was at work (see `reading`)."""
    seen: list[str] = []
    dangerous = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "pickle.find_class", "socket.connect")
    main = threading.get_ident()

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if not WATCH.on or threading.get_ident() != main:
            return
        if event in dangerous or (event == "open" and set(str(arguments[1])) & set("wax+")):
            seen.append(f"{event} {arguments[:2]}")

    sys.addaudithook(hook)
    return seen


class WATCH:
    """Whether the audit hook looks; hooks cannot be taken away."""

    on = False


def reading(read: Callable[[], Any], seen: list[str]) -> bool:
    """Whether a reader takes an input; it must do so, or raise the documented error, and do nothing else."""
    seen.clear()
    WATCH.on = True
    try:
        read()
        return True
    except BayesloraError:
        return False
    finally:
        WATCH.on = False
        assert seen == []


def fuzz(kind: str, content: bytes, write: Callable[[bytes], Any], read: Callable[[], Any], seen: list[str]) -> float:
    """The share of the inputs of a kind that a reader takes."""
    source = random.Random(kind)
    taken = 0
    for number in range(INPUTS[kind]):
        changed = mutated(content, source)
        write(changed)
        try:
            taken += reading(read, seen)
        except BaseException:
            print(f"{kind} number {number}: {changed[:2_000]!r}")
            raise
    return taken / INPUTS[kind]


def state(seed: int) -> dict[str, torch.Tensor]:
    source = torch.Generator().manual_seed(seed)
    return {"weight": torch.randn(3, 2, generator=source), "bias": torch.randn(3, generator=source)}


def test_manifests(tmp_path: Path, watched: list[str]) -> None:
    """Whatever a manifest says, draws that are listed wrongly are refused, and reading follows no path of it."""
    store = DrawStore(tmp_path / "chains" / "0", 0)
    for i in range(3):
        store.append(state(i), step=10 * (i + 1), scalars={"potential": 1.5 * i})
    store.note({"event": "retry", "from": 10, "lr_scale": 0.5, "step": 12})
    model = torch.nn.Linear(2, 3)

    def read() -> None:
        loaded = Posterior.load(tmp_path)
        for draw in loaded.draws():
            load_into(model, draw.tensors, "draw")
        store.events()

    share = fuzz("manifest", store.manifest.read_bytes(), store.manifest.write_bytes, read, watched)
    assert 0.2 < share < 1  # a line that is lost leaves those before it


def test_draws(tmp_path: Path, watched: list[str]) -> None:
    """Also those whose checksum is right: somebody made them so."""
    store = DrawStore(tmp_path, 0)
    store.append(state(0), step=10)
    content, line = store.path(0).read_bytes(), json.loads(store.manifest.read_bytes())
    model = torch.nn.Linear(2, 3)

    def write(changed: bytes) -> None:
        store.path(0).write_bytes(changed)
        honest = {"sha256": hashlib.sha256(changed).hexdigest(), "size": len(changed)}
        store.manifest.write_bytes(json.dumps(line | honest).encode() + b"\n")

    def read() -> None:
        for draw in store:
            load_into(model, draw.tensors, "draw")

    share = fuzz("draw", content, write, read, watched)
    assert 0 < share < 0.7


def test_resume_points(tmp_path: Path, watched: list[str]) -> None:
    points = ResumePoints(tmp_path)
    file = points.write(Snapshot(7, {f"model/{n}": t for n, t in state(0).items()}, {"step": 4, "lr_scale": 1.0}))
    content = file.read_bytes()
    file.unlink()

    def write(changed: bytes) -> None:
        for old in tmp_path.iterdir():
            old.unlink()
        name = hashlib.sha256(changed).hexdigest()[:16]
        (tmp_path / f"{7:012d}-{name}.safetensors").write_bytes(changed)

    def read() -> None:
        assert points.steps() == [7]
        snapshot = points.read(7)
        assert snapshot.values["lr_scale"] * 2 + snapshot.values["step"] is not None

    share = fuzz("resume point", content, write, read, watched)
    assert 0 < share < 0.7


def test_configurations(tmp_path: Path, watched: list[str]) -> None:
    """What is taken names known parts only, however it was changed."""
    run = RunDirectory(tmp_path / "run")
    config = _plain(composed(*TINY, f"run_dir={run.root}"))
    run.open(config)

    def read() -> None:
        taken = run.trusted()
        targets = [node["_target_"] for _, node in _walk(taken) if isinstance(node, dict) and "_target_" in node]
        assert all(target.startswith(("bayeslora.", "torch.optim.", "lightning.")) for target in targets)
        run.check(taken | {"chain": config["chain"]})

    share = fuzz("config.yaml", run.config_file.read_bytes(), run.config_file.write_bytes, read, watched)
    assert 0 < share < 0.9


def _plain(cfg: Any) -> dict[str, Any]:
    from bayeslora.app.compose import plain

    return plain(cfg)


def test_adapters(tmp_path: Path, watched: list[str]) -> None:
    """Each of an adapter's files in turn; the base model is left out of it by a fingerprint that fits."""
    base = tiny_model(tmp_path / "base", "roberta")
    made = lora_classifier(2, str(base), rank=2, targets=TARGETS["roberta"])
    held = {name: p.detach() for name, p in made.named_parameters() if p.requires_grad}
    (folder,) = export_adapters(made, [Draw(0, 0, 10, held, {})], tmp_path / "out")
    files = [folder / name for name in ("adapter_config.json", "adapter_model.safetensors", "bayeslora.json")]
    before = {file: file.read_bytes() for file in files}
    source, taken = random.Random("adapter"), 0
    plain = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)
    weights = {name: t.clone() for name, t in plain.state_dict().items()}
    for _ in range(INPUTS["adapter"]):
        file = source.choice(files)
        file.write_bytes(mutated(before[file], source))
        model = AutoModelForSequenceClassification.from_config(plain.config)
        model.load_state_dict(weights)
        taken += reading(lambda model=model: load_adapter(model, folder), watched)
        file.write_bytes(before[file])
    assert 0 < taken < INPUTS["adapter"]


# Hostile on purpose


class Bomb:
    """A pickle that would leave a file behind."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


def test_pickles_are_not_loaded(tmp_path: Path, watched: list[str]) -> None:
    import pickle

    store, hacked = DrawStore(tmp_path / "chains" / "0", 0), tmp_path / "hacked"
    store.append(state(0), step=10)
    line = json.loads(store.manifest.read_bytes())
    torch.save({"weight": Bomb(hacked)}, tmp_path / "zipped")
    for content in (pickle.dumps(Bomb(hacked)), (tmp_path / "zipped").read_bytes()):
        store.path(0).write_bytes(content)
        honest = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
        store.manifest.write_bytes(json.dumps(line | honest).encode())
        assert not reading(lambda: list(store), watched)
        (tmp_path / "map.safetensors").write_bytes(content)
        posterior = Posterior.load(tmp_path, torch.nn.Linear(2, 3))
        assert not reading(lambda p=posterior: p.predict_map(list), watched)
    assert not hacked.exists()


@each(
    "header",
    [
        b"\xff" * 8,
        (2**40).to_bytes(8, "little") + b"{}",
        (99_000_000).to_bytes(8, "little") + b" " * 1_000,
        b'{"w":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]}}',
        b'{"w":{"dtype":"F32","shape":[1000000,1000000],"data_offsets":[0,4]}}',
        b'{"w":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}',
        b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,400]}}',
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        b'{"w":{"dtype":"F4","shape":[2],"data_offsets":[0,1]}}',
        b"[" * 100_000,
    ],
)
def test_headers_that_lie_are_refused(header: bytes, tmp_path: Path, watched: list[str]) -> None:
    store = DrawStore(tmp_path, 0)
    content = header if header[-1:] in (b"}", b" ", b"\xff") and header[:1] != b"{" else b""
    content = content or len(header).to_bytes(8, "little") + header + b"\x00" * 4
    store.append(state(0), step=10)
    line = json.loads(store.manifest.read_bytes())
    store.path(0).write_bytes(content)
    honest = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
    store.manifest.write_bytes(json.dumps(line | honest).encode())
    assert not reading(lambda: list(store), watched)


@each(
    "shape",
    [(2, 3), (3, 2, 1), (0,), (6,)],
)
def test_tensors_of_another_shape_are_refused(shape: tuple[int, ...], tmp_path: Path, watched: list[str]) -> None:
    store = DrawStore(tmp_path, 0)
    store.append({"weight": torch.zeros(shape), "bias": torch.zeros(3)}, step=10)
    (draw,) = store
    model = torch.nn.Linear(2, 3)
    assert not reading(lambda: load_into(model, draw.tensors, "draw"), watched)


def test_paths_that_climb_out_of_the_folder_are_not_followed(tmp_path: Path, watched: list[str]) -> None:
    outside = tmp_path / "outside.safetensors"
    outside.write_bytes(serialise(state(0), {}))
    store = DrawStore(tmp_path / "run" / "chains" / "0", 0)
    store.append(state(0), step=10)
    line = json.loads(store.manifest.read_bytes())
    for index in ("../../../../outside", "/etc/passwd", -1, 1.0, True, [0], None, 10**30):
        store.manifest.write_bytes(json.dumps(line | {"index": index}).encode() + b"\n")
        assert list(store) == []


@each("place", ["manifest.jsonl", "draws", "lock", "resume", "../../config.yaml", "../../report"])
def test_links_out_of_the_run_directory_are_refused(place: str, tmp_path: Path, watched: list[str]) -> None:
    """Through them resuming would write elsewhere."""
    run = RunDirectory(tmp_path / "run")
    config = _plain(composed(*TINY, f"run_dir={run.root}"))
    run.open(config)
    run.chain(0).mkdir(parents=True)
    link = run.chain(0) / place
    link.unlink(missing_ok=True)
    link.symlink_to(tmp_path / "outside")
    if place == "../../config.yaml":
        (tmp_path / "outside").write_text(yaml.safe_dump(config))
    for read in (run.trusted, lambda: run.check(config)):
        assert not reading(read, watched)


HOSTILE = {
    "model._target_": ["os.system", "subprocess.run", "bayeslora.atomic.write_atomically", "bayeslora.atomic.os.system",
                       "bayeslora.models.lora.torch.load", "torch.hub.load", "torch.load", "bayeslora.models.nothing",
                       "bayeslora", "", 3, "builtins.eval", "bayeslora.samplers.SGLD"],
    "dataset._target_": ["bayeslora.models.resnet18", "bayeslora.cache.write_atomically"],
    "prior._target_": ["bayeslora.potential.math.sqrt", "bayeslora.app.training.train"],
    "sampler._target_": ["bayeslora.samplers.sampler.torch.load", "hydra.utils.get_method"],
    "chain.warmup.optimizer._target_": ["torch.optim.os.system", "torch.load", "torch.hub.load"],
    "logger.csv._target_": ["logging.FileHandler", "lightning.pytorch.loggers.csv_logs.os.makedirs", "pathlib.Path"],
    "logger.csv.save_dir": ["/etc", "~/logs", "logs", "RUN/../elsewhere", None],
    "logger.csv.name": ["../../elsewhere", "/etc"],
    "callbacks.online.folders": [["/etc"], "/etc"],
    "callbacks.own": [{"_target_": "os.system", "command": "true"}],
    "model.backbone": [{"_target_": "os.system"}, {"_target_": "bayeslora.models.resnet18"}],
    "dataset.path": ["${oc.env:HOME}", "${run_dir}"],
    "model._args_": [["x"]],
    "name": ["${oc.env:SECRET}"],
}  # fmt: skip


@each(("key", "value"), [(key, value) for key, values in HOSTILE.items() for value in values])
def test_configurations_that_name_what_they_should_not_are_refused(
    key: str, value: Any, tmp_path: Path, watched: list[str]
) -> None:
    run = RunDirectory(tmp_path / "run")
    config = _plain(composed(*TINY, f"run_dir={run.root}"))
    run.open(config)
    assert reading(run.trusted, watched)
    node = config
    for part in key.split(".")[:-1]:
        node = node[part]
    node[key.rpartition(".")[2]] = value.replace("RUN", str(run.root)) if isinstance(value, str) else value
    run.config_file.write_text(yaml.safe_dump(config))
    assert not reading(run.trusted, watched)


def test_classes_of_ones_own_are_named_as_trusted(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.open(_plain(composed(*TINY, f"run_dir={run.root}", "sampler._target_=tests.run.tools.Exploding")))
    with pytest.raises(BayesloraError, match=r"sampler\._target_=tests\.run\.tools\.Exploding is not .*=\[tests\]"):
        run.trusted()
    for trusted in ("tests", "tests.run.tools", "tests.run.tools.Exploding"):
        assert run.trusted([trusted])["sampler"]["_target_"] == "tests.run.tools.Exploding"
    for other in ("test", "run", "tests.run.tool", "tests.run.tools.Explod", "os"):
        with pytest.raises(BayesloraError):
            run.trusted([other])


def test_a_trusted_package_does_not_lend_what_it_imports(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    config = _plain(composed(*TINY, f"run_dir={run.root}"))
    config["model"]["_target_"] = "tests.run.tools.subprocess.Popen"
    run.open(config)
    with pytest.raises(BayesloraError, match="trust"):
        run.trusted(["tests"])


@each(
    "text",
    [
        "a: &a [x, x]\nb: [*a, *a]\n",
        "!!python/object/apply:os.system ['true']",
        "a: !!set {x, y}",
        "a: 2001-01-01",
        "1: 2",
        "a: " + "[" * 2_000,
        "a: " + "x" * 2_000_000,
        "- a",
        "chain: [1]",
        "chain: {num_draws: x}",
        "a: 2001-13-45",
    ],
)
def test_yaml_that_is_no_configuration_is_refused(text: str, tmp_path: Path, watched: list[str]) -> None:
    (tmp_path / "config.yaml").write_text(text)
    config = _plain(composed(*TINY, f"run_dir={tmp_path}"))
    assert not reading(lambda: RunDirectory(tmp_path).check(config), watched)


@each(
    "change",
    [
        {"megatron_config": {"x": 1}, "megatron_core": "antigravity"},
        {"peft_type": "IA3"},
        {"peft_type": None},
        {"r": "2"},
        {"r": 10**9},
        {"r": 0},
        {"target_modules": ".*(a+)+$"},
        {"target_modules": "all-linear"},
        {"init_lora_weights": "eva"},
        {"corda_config": {"cache_file": "/etc/passwd"}},
        {"layer_replication": [[0, 10_000]]},
        {"modules_to_save": "classifier"},
        {"lora_alpha": float("inf")},
        {"task_type": "antigravity"},
        {"use_dora": 1},
        {"lora_dropout": "0.1"},
        {"rank_pattern": {"(a+)+$": 2}},
        {"rank_pattern": {"query": 10**9}},
        {"alpha_pattern": ["query"]},
        {"init_lora_weights": "pissa"},
    ],
)
def test_adapters_with_settings_that_none_of_ours_has_are_refused(
    change: dict[str, Any], tmp_path: Path, watched: list[str]
) -> None:
    from bayeslora.models.adapters import read_adapter_config

    fine = {"peft_type": "LORA", "r": 2, "lora_alpha": 16.0, "target_modules": ["query"], "task_type": "SEQ_CLS"}
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(fine))
    assert reading(lambda: read_adapter_config(tmp_path), watched)
    file.write_text(json.dumps(fine | change))
    assert not reading(lambda: read_adapter_config(tmp_path), watched)
