"""The machine: Python, torch, CUDA, versions of packages, disk, a way to W&B."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from bayeslora.counts import counted
from bayeslora.doctor.finding import Finding, failure, ok, warning
from bayeslora.loggers import has_wandb_account

GIB = 2**30
PACKAGE = Path(__file__).resolve().parents[1]
LOCK = PACKAGE.parent / "requirements.lock"
"""The tested versions; there only in a checkout."""
REINSTALL = "make install (or pip install --force-reinstall bayeslora)"


def python(version: str = platform.python_version(), needed: str = "") -> Iterator[Finding]:
    """Whether this Python is one that the package is made for; `needed` is a specifier, by default the package's."""
    from packaging.specifiers import SpecifierSet

    needed = needed or str(metadata.metadata("bayeslora")["Requires-Python"])
    if SpecifierSet(needed).contains(version, prereleases=True):
        yield ok("python", f"{version} at {sys.executable}")
    else:
        yield failure(
            "python", f"{version}, but bayeslora needs {needed}", "make clean; make PYTHON=python3.12 install"
        )


def torch_works() -> Iterator[Finding]:
    """Whether torch and torchvision can be imported and multiply."""
    try:
        import torch
        import torchvision
    except (ImportError, OSError, RuntimeError) as error:  # torchvision raises the last beside a torch of another build
        yield failure("torch", f"cannot be imported: {error}", REINSTALL)
        return
    product = torch.full((64, 64), 0.5) @ torch.ones(64, 64)
    if not bool((product == 32.0).all()):
        yield failure("torch", f"{torch.__version__} multiplies matrices wrongly", REINSTALL)
        return
    capability = torch.backends.cpu.get_cpu_capability()
    cores = f"{counted(torch.get_num_threads(), 'thread')}, {capability}"
    yield ok("torch", f"{torch.__version__} with torchvision {torchvision.__version__}; {cores}")


def cuda() -> Iterator[Finding]:
    """Which GPUs torch sees, how much memory is free, and whether they compute."""
    import torch

    if not torch.cuda.is_available():
        if Path("/dev/nvidiactl").exists() or shutil.which("nvidia-smi"):
            yield warning(
                "cuda",
                "an NVIDIA driver is here, but torch sees no GPU: runs go on the CPU",
                "compare nvidia-smi's CUDA version with torch.version.cuda, and update the driver",
            )
        else:
            yield ok("cuda", "no GPU: runs go on the CPU (trainer=cpu, the default)")
        return
    for index in range(torch.cuda.device_count()):
        yield _gpu(index)


def _gpu(index: int) -> Finding:
    """One GPU's line."""
    import torch

    name, title = f"cuda {index}", torch.cuda.get_device_name(index)
    try:
        free, total = torch.cuda.mem_get_info(index)
        works = bool((torch.ones(64, 64, device=f"cuda:{index}").sum() == 4096).item())
    except RuntimeError as error:
        message = str(error).splitlines()[0]
        return failure(name, f"{title} does not compute: {message}", "free it or reboot; nvidia-smi shows who uses it")
    memory = f"{title}, {free / GIB:.1f} of {total / GIB:.1f} GiB free, CUDA {torch.version.cuda}"
    if not works:
        return failure(name, f"{memory}: a sum comes out wrong", "use another GPU (CUDA_VISIBLE_DEVICES)")
    if free < total / 4:
        return warning(name, memory, "nvidia-smi shows who uses the rest; CUDA_VISIBLE_DEVICES chooses another")
    return ok(name, f"{memory}; use trainer=gpu")


def versions(lock: Path = LOCK) -> Iterator[Finding]:
    """Whether the packages that bayeslora needs are there, and in the versions it was tested with."""
    from packaging.requirements import Requirement

    needed = [Requirement(line) for line in metadata.requires("bayeslora") or ()]
    needed = [one for one in needed if one.marker is None or one.marker.evaluate({"extra": ""})]
    wrong = [text for one in needed if (text := _unmet(one))]
    if wrong:
        yield failure("versions", "; ".join(wrong), REINSTALL)
        return
    if not lock.is_file():
        yield ok("versions", f"all {len(needed)} packages are here; no requirements.lock to compare with")
        return
    pinned = [Requirement(line) for line in lock.read_text().splitlines() if line.strip() and line[0] not in "#-"]
    pinned = [one for one in pinned if one.marker is None or one.marker.evaluate()]
    other = [text for one in pinned if _installed(one.name) and (text := _unmet(one))]
    if other:
        listed = "; ".join(other[:5]) + ("; …" if len(other) > 5 else "")
        yield warning("versions", f"{len(other)} other than in {lock.name}: {listed}", "make install")
    else:
        yield ok("versions", f"all {len(needed)} packages are here, as in {lock.name}")


def _installed(name: str) -> str | None:
    """The version of a distribution; None where it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _unmet(requirement: object) -> str:
    """What is wrong with an installed distribution, in words; empty where it meets the requirement."""
    from packaging.requirements import Requirement
    from packaging.version import Version

    assert isinstance(requirement, Requirement)
    installed = _installed(requirement.name)
    if installed is None:
        return f"{requirement.name} is not installed"
    public = Version(installed).public  # 2.9.0+cu128 is 2.9.0
    return (
        ""
        if requirement.specifier.contains(public, prereleases=True)
        else f"{requirement.name} {installed} is not {requirement.specifier}"
    )


def disk(
    outputs: Path | None = None, cache: Path | None = None, *, least: float = 1.0, enough: float = 10.0
) -> Iterator[Finding]:
    """Whether runs and caches can be written, and how much room there is.

    Args:
        outputs: where runs go; None: `outputs/` here.
        cache: where decoded data are kept; None: the package's own folder.
        least, enough: GiB below which a run will hardly end, and below which large ones may not.
    """
    from bayeslora.cache import cache_folder

    for name, folder in (("outputs", outputs or Path("outputs")), ("cache", cache or cache_folder())):
        yield _room(f"disk {name}", folder.absolute(), least, enough)


def _room(name: str, folder: Path, least: float, enough: float) -> Finding:
    """The line of a folder, which need not exist yet."""
    place = next(parent for parent in (folder, *folder.parents) if parent.exists())
    moved = "choose another with run_dir=…" if name == "disk outputs" else "choose another with BAYESLORA_CACHE=FOLDER"
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        return failure(name, f"{place} cannot be written: {os.strerror(error.errno or 0)}", moved)
    free = shutil.disk_usage(place).free / GIB
    message = f"{free:.1f} GiB free in {place}"
    if free < least:
        return failure(name, message, f"make room, or {moved}")
    if free < enough:
        return warning(name, message, f"100 draws of a WideResNet-28-10 take 14 GiB: make room, or {moved}")
    return ok(name, message)


TIMEOUT = 3.0
"""Seconds to wait for W&B."""


def wandb() -> Iterator[Finding]:
    """Whether `logger=wandb` would go online; without an account or by WANDB_MODE it works offline, unasked."""
    version = f"wandb {metadata.version('wandb')}"
    mode = os.environ.get("WANDB_MODE", "online")
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    later = "`wandb sync RUN_DIR/wandb` uploads later"
    if mode != "online":
        yield ok("wandb", f"{version}, WANDB_MODE={mode}: logger=wandb stays on this machine; {later}")
    elif not has_wandb_account():
        yield ok("wandb", f"{version}, no account here: logger=wandb works offline; {later}, after `wandb login`")
    elif problem := _unreachable(host):
        yield warning(
            "wandb",
            f"{version}, but {host} cannot be reached ({problem})",
            f"logger=wandb goes offline by itself, and {later}; WANDB_MODE=offline saves the wait",
        )
    else:
        yield ok("wandb", f"{version}, {host} can be reached: logger=wandb uploads as the run goes")


def _unreachable(host: str) -> str:
    """Why a host does not answer; empty where it does, with whatever status."""
    try:
        urllib.request.urlopen(host, timeout=TIMEOUT).close()
    except urllib.error.HTTPError:
        return ""
    except (OSError, ValueError) as error:
        return str(getattr(error, "reason", error))
    return ""
