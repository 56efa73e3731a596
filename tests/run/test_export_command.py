"""`python -m bayeslora.export`: which draws it writes, and what it uploads to a stand-in for the hub."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from huggingface_hub import constants

from bayeslora.counts import counted
from bayeslora.errors import DataError
from bayeslora.models.adapters import upload
from tests.data.text_models import tiny_model
from tests.data.text_tools import mrpc
from tests.run.tools import Command, run

SIZES = (
    "trainer.num_threads=1", "logger=none", "chain.num_chains=2", "chain.batch_size=4", "chain.bucket=2",
    "chain.warmup.steps=2", "chain.burn_in=1", "chain.num_draws=2", "chain.thin=1", "chain.probe_size=8",
    "dataset.max_length=32", "dataset.validation_size=4", "evaluate.batch_size=8", "model.top_layers=1",
)  # fmt: skip


@pytest.fixture(scope="module")
def sampled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two draws of each of two chains of a bi-encoder."""
    folder = tmp_path_factory.mktemp("sampled")
    encoder, pairs = tiny_model(folder / "encoder", "bert"), mrpc(folder / "mrpc")
    base = ("experiment=mrpc_minilm_sgld", f"model.name_or_path={encoder}", f"dataset.path={pairs}", *SIZES)
    run(folder / "run", "model.targets=[query,value]", base=base)
    return folder / "run"


class StandIn(ThreadingHTTPServer):
    """The hub's interface for making a repository and committing files; large ones go by git-lfs.

    Attributes:
        files: what was committed, by path.
        requests: method, path and Authorization header of every request.
        refusal: the status that answers every attempt to make or write a repository; None: it succeeds.
        created: the body of the request that made the repository.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[tuple[str, str, str | None]] = []
        self.created: dict[str, Any] = {}
        self.refusal: int | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: StandIn

    def log_message(self, *_: Any) -> None:
        """Quiet."""

    def answer(self, content: Any = None, status: int = 200, **headers: str) -> None:
        body = b"" if content is None else json.dumps(content).encode()
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body)), "Content-Type": "application/json"} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def body(self) -> bytes:
        self.server.requests.append((self.command, self.path, self.headers.get("Authorization")))
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_HEAD(self) -> None:
        self.body()
        self.answer(status=404, **{"X-Error-Code": "EntryNotFound"})

    def do_GET(self) -> None:
        self.body()
        self.answer({"error": "not found"}, 404, **{"X-Error-Code": "RepoNotFound"})

    def do_PUT(self) -> None:
        content = self.body()
        self.server.objects[self.path.rpartition("/")[2]] = content
        self.answer()

    def do_POST(self) -> None:
        server, content = self.server, self.body()
        if self.path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if server.refusal is not None:
            return self.answer({"error": "You don't have the rights"}, server.refusal)
        if self.path == "/api/repos/create":
            server.created = json.loads(content)
            return self.answer({"url": f"{server.address}/me/posterior"})
        if self.path == "/api/models/me/posterior/preupload/main":
            files = [
                {"path": f["path"], "uploadMode": "lfs" if f["path"].endswith(".safetensors") else "regular"}
                for f in json.loads(content)["files"]
            ]
            return self.answer({"files": [f | {"shouldIgnore": False} for f in files]})
        if self.path == "/me/posterior.git/info/lfs/objects/batch":
            objects = [
                {
                    "oid": o["oid"],
                    "size": o["size"],
                    "actions": {"upload": {"href": f"{server.address}/lfs/{o['oid']}"}},
                }
                for o in json.loads(content)["objects"]
            ]
            return self.answer({"transfer": "basic", "objects": objects})
        assert self.path == "/api/models/me/posterior/commit/main", self.path
        for line in map(json.loads, content.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                server.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                server.files[value["path"]] = server.objects[value["oid"]]
        return self.answer(
            {"success": True, "commitUrl": f"{server.address}/me/posterior/commit/{'0' * 40}", "commitOid": "0" * 40}
        )


@pytest.fixture
def hub() -> Iterator[StandIn]:
    with StandIn() as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_the_draws_wanted_are_those_written(sampled: Path, tmp_path: Path, command: Command) -> None:
    for number, (wanted, written) in enumerate({
        (): [(0, 0), (0, 1), (1, 0), (1, 1)],
        ("last=1",): [(0, 1), (1, 1)],
        ("last=1", "chains=1"): [(1, 1)],
        ("last=9", "chains=[0,1]"): [(0, 0), (0, 1), (1, 0), (1, 1)],
    }.items()):  # fmt: skip
        ended = command("export", f"run_dir={sampled}", f"out_dir={tmp_path / str(number)}", *wanted)
        assert ended.code == 0, ended.err
        assert f"{counted(len(written), 'adapter')} for BertModel in" in ended.out
        assert names(tmp_path / str(number)) == [f"chain-{chain}_draw-{index:06d}" for chain, index in written]
    for wrong, problem in {
        "last=0": "last=0 must be a number of draws", "last=all": "last=all must be a number of draws",
        "chains=[1,7]": "no draws of chain 7", "chains=first": "chains=first must be the number of a chain",
    }.items():  # fmt: skip
        ended = command("export", f"run_dir={sampled}", f"out_dir={tmp_path / 'out'}", wrong)
        assert ended.code == 2
        assert problem in ended.err
    assert not (tmp_path / "out").exists()


def test_it_uploads_what_it_wrote(sampled: Path, tmp_path: Path, hub: StandIn) -> None:
    settings = [f"run_dir={sampled}", f"out_dir={tmp_path / 'out'}", "last=1", "push_to_hub=me/posterior"]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "private.txt").write_text("not an adapter")
    settings_of_hub = {
        "HF_ENDPOINT": hub.address,
        "HF_TOKEN": "hf_test",
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
    }
    ended = subprocess.run(
        [sys.executable, "-m", "bayeslora.export", *settings],
        env=os.environ | settings_of_hub,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert f"pushed to {hub.address}/me/posterior" in ended.stdout
    assert (hub.created["organization"], hub.created["name"]) == ("me", "posterior")
    assert hub.created.get("private") is True or hub.created.get("visibility") == "private"
    folders = [tmp_path / "out" / f"chain-{chain}_draw-000001" for chain in (0, 1)]
    written = {f"{folder.name}/{name}": (folder / name).read_bytes() for folder in folders for name in names(folder)}
    assert len(written) == 10
    page = hub.files.pop("README.md").decode()
    assert hub.files == written
    assert 'subfolder="chain-0_draw-000001"' in page
    assert {token for _, path, token in hub.requests if path.startswith(("/api/repos", "/api/models"))} == {
        "Bearer hf_test"
    }


@pytest.mark.parametrize("status", [401, 403, 500, None])
def test_a_hub_that_refuses_or_is_not_there_is_told_with_what_to_do(
    status: int | None, tmp_path: Path, hub: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.refusal = status
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", hub.address if status else "http://127.0.0.1:9")
    folder = tmp_path / "chain-0_draw-000000"
    folder.mkdir()
    (folder / "README.md").write_text("a card")
    with pytest.raises(
        DataError, match=rf"me/posterior could not be written .*; the adapters are in {tmp_path}: repeat"
    ):
        upload([folder], "me/posterior", "a posterior")
    assert not hub.files


def test_what_an_upload_lacks_is_told_before_anything_is_written(
    sampled: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    settings = (f"run_dir={sampled}", f"out_dir={tmp_path / 'out'}")
    ended = command("export", *settings, "push_to_hub=posterior")
    assert ended.code == 2
    for problem in ("must be OWNER/NAME", "HF_HUB_OFFLINE", "run `hf auth login`, or set HF_TOKEN"):
        assert problem in ended.err
    assert not (tmp_path / "out").exists()
