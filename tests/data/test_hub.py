"""Texts and tokenizers from the hub: its own client runs, against a server with the hub's addresses."""

from __future__ import annotations

import http.server
import json
import logging
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch

from bayeslora.datasets import Glue
from bayeslora.errors import DataError
from tests.data.text_tools import bert_tokenizer, mrpc


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(bert_tokenizer(tmp_path_factory.mktemp("bert")))


SHA = "0123456789abcdef0123456789abcdef01234567"


class HubHandler(http.server.BaseHTTPRequestHandler):
    """Serves repositories from folders `datasets/OWNER/NAME` and `OWNER/NAME` below `root`."""

    root: Path
    asked: list[str]

    def log_message(self, *args: Any) -> None:
        pass

    def answer(self, body: bytes, status: int = 200) -> None:
        self.send_response(status)
        for header, value in {"ETag": f'"{hash(body):x}"', "X-Repo-Commit": SHA, "Content-Length": len(body)}.items():
            self.send_header(header, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_GET(self) -> None:
        self.asked.append(self.path)
        path = self.path.partition("?")[0].removeprefix("/api/models/").removeprefix("/api/").removeprefix("/")
        for word in ("revision", "tree", "resolve"):
            name, found, rest = path.partition(f"/{word}/")
            if found and (self.root / name).is_dir():
                return self.repository(word, self.root / name, rest.partition("/")[2])
        return self.answer(b"{}", 404)

    do_HEAD = do_GET  # noqa: N815

    def repository(self, word: str, folder: Path, name: str) -> None:
        files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
        if word == "revision":
            return self.answer(json.dumps({"id": folder.name, "sha": SHA, "siblings": []}).encode())
        if word == "tree":
            entry = [
                {"type": "file", "path": str(file.relative_to(folder)), "size": file.stat().st_size, "oid": "0"}
                for file in files
            ]
            return self.answer(json.dumps(entry).encode())
        return self.answer((folder / name).read_bytes())


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubHandler]:
    """A hub with GLUE (MRPC only) and a model's tokenizer, and an empty cache."""
    served = type("Served", (HubHandler,), {"root": tmp_path / "served", "asked": []})
    mrpc(served.root / "datasets/nyu-mll/glue/mrpc")
    card = "---\nconfigs:\n- config_name: cola\n- config_name: mrpc\n---\n# GLUE\n"
    (served.root / "datasets/nyu-mll/glue/README.md").write_text(card)
    bert_tokenizer(served.root / "some/encoder")
    (served.root / "some/encoder/model.safetensors").touch()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), served) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        use_hub(monkeypatch, server.server_port)
        yield served
        server.shutdown()


def use_hub(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    address = f"http://127.0.0.1:{port}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)


def closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


def test_data_and_tokenizer_come_from_the_hub_once(hub: type[HubHandler], monkeypatch: pytest.MonkeyPatch) -> None:
    first = Glue(tokenizer="some/encoder").load()
    assert len(first.train) == 20
    fetched = {path.rpartition("/")[2] for path in hub.asked if "/resolve/" in path}
    assert {"train-00000-of-00001.parquet", "validation-00000-of-00001.parquet", "tokenizer.json"} <= fetched
    assert "model.safetensors" not in fetched
    asked = len(hub.asked)
    assert torch.equal(Glue(tokenizer="some/encoder").load().train.inputs, first.train.inputs)
    assert len(hub.asked) == asked
    use_hub(monkeypatch, closed_port())
    assert torch.equal(Glue(tokenizer="some/encoder").load().train.inputs, first.train.inputs)


def test_a_cache_that_lacks_what_is_not_needed_is_enough(
    hub: type[HubHandler], monkeypatch: pytest.MonkeyPatch
) -> None:
    huggingface_hub.snapshot_download("nyu-mll/glue", repo_type="dataset", allow_patterns=["mrpc/*"])
    huggingface_hub.hf_hub_download("some/encoder", "tokenizer.json")
    huggingface_hub.hf_hub_download("some/encoder", "tokenizer_config.json")
    use_hub(monkeypatch, closed_port())
    assert len(Glue(tokenizer="some/encoder").load().train) == 20


def test_a_task_that_the_hub_does_not_have_is_answered_with_those_it_has(hub: type[HubHandler], bert: str) -> None:
    with pytest.raises(DataError, match=r"nyu-mll/glue has no parquet files of a task 'mprc'; its tasks: cola, mrpc"):
        Glue(tokenizer=bert, task="mprc").load()


def test_a_repository_that_does_not_exist_is_named(hub: type[HubHandler], bert: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nobody/glue is neither a folder nor in the hub's cache.*404"):
        Glue(tokenizer=bert, hub="nobody/glue").load()
    for name, fault in (
        ("no/model", "no/model is neither a folder nor in the hub's cache.*Fetch tokenizer"),
        ("./nowhere", "model.name_or_path=./nowhere: there is no such folder"),
        ("/no/where/at/all", "model.name_or_path=/no/where/at/all: there is no such folder"),
    ):
        with pytest.raises(DataError, match=fault) as caught:
            Glue(mrpc(tmp_path / "mrpc"), tokenizer=name).load()
        assert "https://huggingface.co//" not in str(caught.value)


@pytest.mark.parametrize("offline", [False, True])
def test_without_a_network_the_files_to_fetch_are_named_at_once(
    hub: type[HubHandler],
    bert: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    offline: bool,
) -> None:
    use_hub(monkeypatch, closed_port())
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
    logger = logging.getLogger("huggingface_hub")
    monkeypatch.setattr(logger, "propagate", True)
    reason = "offline mode is enabled" if offline else "refused"
    with pytest.raises(DataError, match=f"nyu-mll/glue is neither .*{reason}") as caught:
        Glue(tokenizer=bert).load()
    message = str(caught.value)
    assert "Fetch train-00000-of-00001.parquet and validation-00000-of-00001.parquet of https://hugg" in message
    assert "glue/tree/main/mrpc" in message
    assert "set dataset.path=FOLDER" in message
    with pytest.raises(DataError, match=rf"some/encoder is neither .*{reason}.*Fetch tokenizer\.json, .*=FOLDER"):
        Glue(mrpc(tmp_path / "mrpc"), tokenizer="some/encoder").load()
    assert "Retrying" not in caplog.text
    assert not hub.asked
