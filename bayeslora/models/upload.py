"""Exported adapters on the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from bayeslora.errors import DataError, Problems


def check_upload(repo: str) -> None:
    """Raise `ConfigError` where an upload to `repo` cannot succeed: before anything is written.

    Args:
        repo: `OWNER/NAME`, of a model of the hub.
    """
    from huggingface_hub import constants, get_token

    problems = Problems()
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(repo)):
        problems.add(f"push_to_hub={repo} must be OWNER/NAME of a model of the hub, e.g. push_to_hub=me/mrpc-posterior")
    if constants.HF_HUB_OFFLINE:
        problems.add("push_to_hub needs the network, and HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) forbids it; unset it")
    if get_token() is None:
        problems.add("push_to_hub needs a token of the hub that may write: run `hf auth login`, or set HF_TOKEN")
    problems.raise_if_any()


def upload(folders: Sequence[Path], repo: str, title: str) -> str:
    """Commit adapter folders to a model repository of the hub, under their names; returns its address.

    The repository is made if there is none, as a private one. A README.md that it has is left as it is.

    Raises:
        DataError: the hub cannot be reached, or refuses; nothing of it is there then.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HTTPError  # of the hub's HTTP library, whichever that is

    files = [(file, f"{folder.name}/{file.name}") for folder in folders for file in sorted(folder.iterdir())]
    try:
        api = HfApi()
        url = api.create_repo(repo, private=True, exist_ok=True)
        additions = [CommitOperationAdd(path, str(file)) for file, path in files]
        if not api.file_exists(repo, "README.md"):
            additions.append(CommitOperationAdd("README.md", _card(repo, folders, title).encode()))
        api.create_commit(repo, additions, commit_message=f"{len(folders)} draws of {title}")
    except (OSError, ValueError, HTTPError) as error:
        reason = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        raise DataError(
            f"{repo} could not be written on the hub ({reason}); the adapters are in {folders[0].parent}: repeat the"
            f" command, or run `hf upload {repo} {folders[0].parent}`"
        ) from error
    return str(url)


def _card(repo: str, folders: Sequence[Path], title: str) -> str:
    """The page of a repository that has none yet."""
    return f"""---
library_name: peft
tags: [lora, bayesian, bayeslora]
---

# {title}

{len(folders)} draws from a posterior over LoRA adapters, a PEFT adapter each. Every folder has a model card that says
what was sampled, how, and how to load it; with the base of that card,
`PeftModel.from_pretrained(base, "{repo}", subfolder="{folders[0].name}")` loads one.
Average the *probabilities* of many.
"""
