"""Model cards of exported draws: what one is, and the program that loads it."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from bayeslora.counts import counted
from bayeslora.datasets.text import local_folder
from bayeslora.models.bi_encoder import BiEncoder
from bayeslora.models.lora import LoraClassifier
from bayeslora.posterior.store import Draw

HEAD = "head.safetensors"
"""A file beside the adapter of a bi-encoder: `weight` [C, 2 H + 1] and `bias` [C] of its head."""
REST = "rest.safetensors"
"""A file beside the adapter of a model of one's own: what else was sampled, by its name in that model."""

CARD = """---
{base}library_name: peft
tags: [lora, bayesian, bayeslora]
---

# Draw {index} of chain {chain}: {title}

One draw from a posterior over LoRA adapters, not a point estimate: average the *probabilities* of many draws.

```python
{load}
```

{loads}

| | |
|---|---|
{facts}
"""

CLASSIFIER = """{imports}from peft import PeftModel
from transformers import AutoModelForSequenceClassification

base = AutoModelForSequenceClassification.from_pretrained(
    {name}, num_labels={labels}, pad_token_id={padding}, ignore_mismatched_sizes=True
)
model = PeftModel.from_pretrained(base, {folder}).eval()"""

CLASSIFIER_LOADS = """The adapter goes onto `AutoModelForSequenceClassification` (`{kind}`) and brings the head. Two
arguments matter for some checkpoints only: `ignore_mismatched_sizes=True` where the checkpoint has a head of other
classes, which the adapter's replaces, and `pad_token_id` where it names no token to pad with."""

BI_ENCODER = """{imports}import torch
import torch.nn.functional as F
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

base, folder = {name}, {folder}
pair = "A cat sat on the mat.", "A cat was sitting on the mat."

tokenizer = AutoTokenizer.from_pretrained(base)
encoder = PeftModel.from_pretrained(AutoModel.from_pretrained(base), folder).eval()
head = load_file(f"{{folder}}/{head}")
u, v = (F.normalize(encoder(**tokenizer(x, return_tensors="pt")).last_hidden_state[0].mean(0), dim=0) for x in pair)
features = torch.cat([(u - v).abs(), len(u) ** 0.5 * u * v, len(u) ** 0.5 * (1 - u @ v)[None]])
probabilities = (head["weight"] @ features + head["bias"]).softmax(-1)"""

BI_ENCODER_LOADS = """The adapter goes onto `AutoModel` (`{kind}`), each text is encoded by itself, and the head that
compares the two is in `{head}`. The adapter fits no `AutoModelForSequenceClassification`: PEFT finds none of its layers
there and says so."""

OWN = """from peft import PeftModel

base = ...  # the {kind} under the adapter, with the weights that it had when it was sampled
model = PeftModel.from_pretrained(base, {folder}).eval()"""

OWN_LOADS = """The adapter goes onto a `{kind}`. `bayeslora.models.adapters.load_adapter(base, {folder})` refuses one of
other weights."""

OWN_REST = """

What was sampled outside the adapter ({names}) is in `{rest}`, by its name in the model that was given."""


def card(
    model: nn.Module, peft_model: Any, rest: Collection[str], draw: Draw, folder: str, facts: dict[str, str]
) -> str:
    """The model card.

    Args:
        model: what was sampled.
        peft_model: the model with the adapter in it.
        rest: what was sampled outside the adapter, by name.
        draw: which.
        folder: its name.
        facts: label and text of the card's lines; `title` is its heading.
    """
    base, (config,) = peft_model.get_base_model(), peft_model.peft_config.values()
    name = getattr(base, "name_or_path", None) or config.base_model_name_or_path
    words = {"folder": json.dumps(folder), "head": HEAD, "rest": REST, "kind": type(base).__name__}
    if not isinstance(model, LoraClassifier):
        load, loads = OWN, OWN_LOADS + (OWN_REST if rest else "")
        words |= {"names": ", ".join(sorted(rest))}
    elif isinstance(base, BiEncoder):
        load, loads = BI_ENCODER, BI_ENCODER_LOADS
        words |= _name_in_program(name) | {"kind": type(base.encoder).__name__}
    else:
        load, loads = CLASSIFIER, CLASSIFIER_LOADS
        words |= _name_in_program(name) | {"labels": str(model.num_classes), "padding": str(base.config.pad_token_id)}
    rows = {"Base model": f"`{name}`" if name else type(base).__name__}
    rows |= {"Chain, draw, step": f"{draw.chain}, {draw.index}, {draw.step:,}"}
    rows |= {label: text for label, text in facts.items() if label != "title"}
    rows |= {f"This draw's {scalar.replace('_', ' ')}": f"{value:.6g}" for scalar, value in draw.scalars.items()}
    return CARD.format(
        # the hub refuses a card that names a folder
        base="" if not name or local_folder(name) else f"base_model: {name}\n",
        title=facts.get("title", "a LoRA posterior"),
        index=draw.index,
        chain=draw.chain,
        load=load.format(**words),
        loads=loads.format(**words),
        facts="\n".join(f"| {label} | {text.replace('|', '/')} |" for label, text in rows.items()),
    )


def _name_in_program(name: str) -> dict[str, str]:
    """Where a base is loaded from, and what must be imported for that."""
    package, _, inside = name.removeprefix("package:").partition("/")
    if name.startswith("package:"):
        return {"imports": "from importlib.resources import files\n\n", "name": f'str(files("{package}") / "{inside}")'}
    return {"imports": "", "name": json.dumps(name)}


def repository_card(repo: str, folders: Sequence[Path], title: str) -> str:
    """The page of a repository that has none yet."""
    return f"""---
library_name: peft
tags: [lora, bayesian, bayeslora]
---

# {title}

{counted(len(folders), "draw")} from a posterior over LoRA adapters, a PEFT adapter each. Every folder has a
model card that says what was sampled, how, and how to load it; with the base of that card,
`PeftModel.from_pretrained(base, "{repo}", subfolder="{folders[0].name}")` loads one.
Average the *probabilities* of many.
"""
