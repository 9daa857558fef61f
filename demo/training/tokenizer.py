"""A vocabulary of its own for CLIP's tokenizer: byte pairs learned from the captions.

Words the captions know become one token each; any other word falls apart into known pieces.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

from transformers import CLIPTokenizer

from demo.training.scenes import draw

POSITIONS = 77
START, END = "<|startoftext|>", "<|endoftext|>"
# Words a visitor may use that no caption has: known as words, to be read as something.
VISITORS = """
    grey sky landscape scene houses cat dog car bright dark light simple middle corner backdrop
    circles squares triangles stars hearts hill lake beach sunny sunrise morning smiley emoji icon
    logo shape city forest flower bird fish woman man person robot portrait
""".split()  # noqa: SIM905 - a list of words is easier to read


def byte_letters() -> list[str]:
    """GPT-2's printable stand-ins for the 256 bytes, in CLIP's order."""
    plain = [*range(33, 127), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(b) for b in plain] + [chr(256 + k) for k in range(256 - len(plain))]


def learn_merges(captions: Iterable[str]) -> list[tuple[str, str]]:
    """Byte-pair merges, most frequent first, until every word is one token."""
    word = re.compile(r"[a-z]+|[0-9]|[^\sa-z0-9]+")
    counts = Counter(w for c in captions for w in word.findall(c.lower()))
    counts.update({word: 20 for word in VISITORS})
    words = {w: ([*w[:-1], w[-1] + "</w>"], n) for w, n in counts.items()}
    merges = []
    while True:
        pairs = Counter()
        for parts, n in words.values():
            for pair in pairwise(parts):
                pairs[pair] += n
        if not pairs:
            return merges
        best = max(pairs, key=lambda p: (pairs[p], p))
        merges.append(best)
        for word, (parts, n) in words.items():
            words[word] = _merge(parts, best), n


def _merge(parts: list[str], pair: tuple[str, str]) -> list[str]:
    merged = []
    for part in parts:
        if merged and (merged[-1], part) == pair:
            merged[-1] += part
        else:
            merged.append(part)
    return merged


def build(folder: Path, seed: int, captions: int = 20_000) -> CLIPTokenizer:
    """Learns the vocabulary from so many captions, writes it and loads it."""
    merges = learn_merges(draw(seed, k, 32)[1] for k in range(captions))
    letters = byte_letters()
    tokens = [*letters, *(c + "</w>" for c in letters), *(a + b for a, b in merges), START, END]
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {token: k for k, token in enumerate(dict.fromkeys(tokens))}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    lines = ["#version: 0.2", *(f"{a} {b}" for a, b in merges), ""]
    (folder / "merges.txt").write_text("\n".join(lines))
    tokenizer = CLIPTokenizer(
        str(folder / "vocab.json"),
        str(folder / "merges.txt"),
        model_max_length=POSITIONS,
        pad_token=END,
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def load(folder: Path) -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(folder)
