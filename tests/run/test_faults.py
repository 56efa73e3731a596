"""Faults, each caused for real: what the user is told, and that the same command then ends with the same draws."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.run.tools import TINY, digests, ended, manifest, process
from tests.run.zygote import LINE, OPEN, STEP, WRITE, Reference, Stop, Zygote, killed, left

SETTINGS = (*TINY, "chain.resume_every=0", "logger=none", "chain.probe_size=4")


def ends_well(zygote: Zygote, folder: Path, reference: Reference, *more: str) -> None:
    """The same command ends as if nothing had been."""
    result = zygote("train", *SETTINGS, *more, f"run_dir={folder}")
    assert result.code == 0, result
    assert left(folder) == reference(*SETTINGS, *more)[0]


@pytest.fixture
def run_dir(zygote: Zygote, reference: Reference, tmp_path: Path) -> Path:
    """A finished run, a copy."""
    reference(*SETTINGS)
    shutil.copytree(reference.place(*SETTINGS), tmp_path / "run")
    return tmp_path / "run"


# The disk


FULL = {
    "a draw": Stop(WRITE, 3, "full", "draws/"),
    "a line of the manifest": Stop(OPEN, 3, "full", LINE),
    "a resume point": Stop(WRITE, 9, "full", "resume/"),
    "the baseline": Stop(WRITE, 1, "full", "map.safetensors"),
    "the metrics": Stop(WRITE, 1, "full", "metrics.json"),
}


@pytest.mark.parametrize("what", FULL)
def test_a_full_disk_loses_nothing_that_was_kept(
    what: str, zygote: Zygote, reference: Reference, tmp_path: Path
) -> None:
    result = zygote("train", *SETTINGS, f"run_dir={tmp_path / 'run'}", stop=FULL[what])
    assert result.code == 1, result
    assert result.err.startswith("bayeslora: cannot write ")
    assert "No space left on device. Nothing kept so far is lost: make room" in result.err
    assert "Traceback" not in result.err
    ends_well(zygote, tmp_path / "run", reference)


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own; the test is skipped where none may be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if (
        shutil.which("mount") is None
        or subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], check=False).returncode
    ):
        pytest.skip("no file system may be mounted here")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_file_system_that_is_really_full(mounted: Path, zygote: Zygote, reference: Reference, run_dir: Path) -> None:
    needed = sum(file.stat().st_size for file in run_dir.rglob("*") if file.is_file())
    subprocess.run(["mount", "-o", f"remount,size={needed // 2}", mounted], check=True)
    result = zygote("train", *SETTINGS, f"run_dir={mounted / 'run'}")
    assert (result.code, "No space left on device" in result.err) == (1, True), result
    assert "Traceback" not in result.err
    subprocess.run(["mount", "-o", f"remount,size={needed * 4}", mounted], check=True)
    ends_well(zygote, mounted / "run", reference)


def test_a_file_system_that_is_read_only(mounted: Path, zygote: Zygote, reference: Reference, run_dir: Path) -> None:
    shutil.move(run_dir, mounted / "run")
    subprocess.run(["mount", "-o", "remount,ro", mounted], check=True)
    for folder in (mounted / "run", mounted / "new"):
        result = zygote("train", *SETTINGS, f"run_dir={folder}")
        assert result.code == 2, result
        assert f"run_dir={folder} cannot be written to" in result.err
    subprocess.run(["mount", "-o", "remount,rw", mounted], check=True)
    ends_well(zygote, mounted / "run", reference)


# Damage


@pytest.mark.parametrize("damage", ["cut", "flipped", "removed", "emptied"])
def test_a_damaged_draw_is_named_and_made_again(
    damage: str, zygote: Zygote, reference: Reference, run_dir: Path
) -> None:
    file = run_dir / "chains/1/draws/000002.safetensors"
    content = bytearray(file.read_bytes())
    if damage == "removed":
        file.unlink()
    else:
        content[len(content) // 2] ^= 4
        file.write_bytes({"cut": content[:-9], "flipped": content, "emptied": b""}[damage])
    result = zygote("evaluate", f"run_dir={run_dir}")
    assert result.code == 2
    assert str(file) in result.err
    assert "repeat the training command" in result.err
    ends_well(zygote, run_dir, reference)


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_damaged_baseline_is_named_and_made_again(
    damage: str, zygote: Zygote, reference: Reference, run_dir: Path
) -> None:
    file = run_dir / "chains/0/map.safetensors"
    content = bytearray(file.read_bytes())
    content[-len(content) // 4] ^= 4
    file.write_bytes(content[:-9] if damage == "cut" else content)
    result = zygote("evaluate", f"run_dir={run_dir}")
    assert result.code == 2
    assert str(file) in result.err
    ends_well(zygote, run_dir, reference)


@pytest.mark.parametrize("damage", ["cut", "cut at once", "spoilt inside", "emptied", "removed"])
def test_a_damaged_manifest_is_written_again(damage: str, zygote: Zygote, reference: Reference, run_dir: Path) -> None:
    file = run_dir / "chains/1/manifest.jsonl"
    content = file.read_bytes()
    if damage == "removed":
        file.unlink()
    elif damage == "spoilt inside":
        lines = content.splitlines(keepends=True)
        file.write_bytes(b"".join([*lines[:2], lines[2].replace(b'"index": 2', b'"index": x'), *lines[3:]]))
    else:
        file.write_bytes({"cut": content[:-40], "cut at once": content[:1], "emptied": b""}[damage])
    result = zygote("train", *SETTINGS, f"run_dir={run_dir}")
    assert result.code == 0, result
    assert digests_by_index(run_dir) == digests_by_index(reference.place(*SETTINGS))
    if damage != "spoilt inside":  # that line stays where it is, and is passed over
        assert left(run_dir) == reference(*SETTINGS)[0]


def digests_by_index(folder: Path) -> list[dict[int, str]]:
    """The checksums that the manifests' readable lines give, each draw's last."""
    from bayeslora.posterior import DrawStore

    stores = [DrawStore(folder / "chains" / str(chain), chain) for chain in (0, 1)]
    assert all(store.intact(record) for store in stores for record in store.records())
    return [{record.index: record.sha256 for record in store.records()} for store in stores]


@pytest.mark.parametrize("damaged", [0, 1])
def test_a_corrupt_resume_point_is_passed_over_for_the_one_before(
    damaged: int, zygote: Zygote, reference: Reference, tmp_path: Path
) -> None:
    """Killed in step 12 of 15; the thread that writes points may be a few steps behind."""
    folder = tmp_path / "run"
    killed(zygote, *SETTINGS, "chain.num_chains=1", f"run_dir={folder}", stop=Stop(STEP, 12))
    points = sorted((folder / "chains/0/resume").glob("*.safetensors"), reverse=True)
    assert len(points) >= 2
    steps = 15 - int(points[damaged].name[:12])  # still to come
    assert steps <= 7
    for file in points[:damaged]:
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
    killed(zygote, *SETTINGS, "chain.num_chains=1", f"run_dir={folder}", stop=Stop(STEP, steps))  # the last step
    result = zygote("train", *SETTINGS, "chain.num_chains=1", f"run_dir={folder}", stop=Stop(STEP, 4))
    assert result.code == 0, result  # one step was left to take, and those of which no point was written yet
    assert left(folder, 1) == reference(*SETTINGS, "chain.num_chains=1", chains=1)[0]


def test_without_any_good_resume_point_a_chain_begins_anew(
    zygote: Zygote, reference: Reference, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    killed(zygote, *SETTINGS, f"run_dir={folder}", stop=Stop(STEP, 12))
    for file in (folder / "chains/0/resume").iterdir():
        file.write_bytes(file.read_bytes()[:100])
    ends_well(zygote, folder, reference)


# Other processes


@pytest.mark.parametrize("parallel", ["sequential", "stacked"])
def test_a_second_process_is_refused_while_the_first_runs(
    parallel: str, zygote: Zygote, reference: Reference, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    killed(zygote, *SETTINGS, f"run_dir={folder}", f"chain.parallel={parallel}", stop=Stop(STEP, 8))
    lock = folder / "chains/0/lock"
    with lock.open("rb+") as held:  # what the process that was killed left there holds nothing
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        result = zygote("train", *SETTINGS, f"run_dir={folder}", f"chain.parallel={parallel}")
    assert result.code == 2
    assert result.err == (
        f"bayeslora: run_dir={folder}: another process runs chain 0; wait for it, or choose another run_dir\n"
    )
    if parallel == "sequential":
        ends_well(zygote, folder, reference)


def test_a_worker_that_is_killed_leaves_the_others_and_the_report_says_so(
    zygote: Zygote, tmp_path: Path, reference: Reference
) -> None:
    folder, marker = tmp_path / "run", tmp_path / "marker"
    dying = ("sampler._target_=tests.run.tools.Dying", "sampler.at=6", "sampler.only=1", f"sampler.marker={marker}")
    arguments = (*SETTINGS, *dying, "~sampler.control_variates", "~sampler.integrator", f"run_dir={folder}")
    arguments += ("chain.parallel=processes",)
    result = zygote("train", *arguments, "evaluate.report=true")
    assert result.code == 1, result
    assert "chain 1: killed by SIGKILL. The other chains are finished" in result.err
    whole, kept = (len(manifest(folder, chain)) for chain in (0, 1))
    assert whole == 5
    assert kept <= 2, "a kill may lose points that were still being written"
    report = (folder / "report" / "index.html").read_text()
    assert f"Chain 1 has {kept} of 5 draws: the run is not finished." in report
    assert zygote("train", *arguments).code == 0
    assert digests(folder) == reference(*SETTINGS)[0]["draws"]


def test_a_chain_that_is_tried_again_may_be_killed_too(zygote: Zygote, tmp_path: Path, reference: Reference) -> None:
    """It diverges in step 11, goes on from step 9 at half the step size, and is killed in step 12."""
    exploding = (
        "sampler._target_=tests.run.tools.Exploding",
        "sampler.at=7",
        "sampler.above=0.0075",
        "chain.num_chains=1",
    )
    settings = (*SETTINGS, *exploding, "chain.on_divergence=retry")
    expected = reference(*settings, chains=1)[0]
    killed(zygote, *settings, f"run_dir={tmp_path / 'run'}", stop=Stop(STEP, 14))  # 11 steps, then 10 to 12 again
    assert zygote("train", *settings, f"run_dir={tmp_path / 'run'}").code == 0
    assert left(tmp_path / "run", 1) == expected
    assert [line for line in manifest(tmp_path / "run", 0) if "event" in line] == [
        {"event": "retry", "from": 9, "lr_scale": 0.5, "step": 11}
    ]


def test_a_home_that_cannot_be_written_costs_a_cache_and_not_the_run(tmp_path: Path) -> None:
    """In a process of its own: libraries look at the home when they are imported."""
    nowhere = dict.fromkeys(("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "BAYESLORA_CACHE"), "/proc/nope")
    result = ended(
        process("train", *TINY, "logger=none", "evaluate.report=true", f"run_dir={tmp_path / 'run'}", env=nowhere),
        timeout=600,
    )
    assert result.code == 0, result.err
    assert "Traceback" not in result.err
    assert (tmp_path / "run" / "diagnostics.nc").is_file()
    assert (tmp_path / "run" / "report" / "index.html").is_file()
