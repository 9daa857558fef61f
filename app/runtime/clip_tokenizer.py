"""CLIP's byte-pair tokenizer from the files of a hub folder, for runtimes that bring none (OpenVINO
GenAI brings its own). Knows no prompt weights and no text encoder."""

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

from app.errors import LoadFailed

POSITIONS = 77  # tokens that CLIP's text encoder reads, start and end included
_START, _END = "<|startoftext|>", "<|endoftext|>"
# CLIP splits text into these before it joins byte pairs: contractions, runs of letters, single
# digits, runs of anything else.
_WORDS = r"""'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""


class ClipTokenizer:
    """Reads tokenizer.json, or vocab.json and merges.txt, which older checkpoints have instead."""

    def __init__(self, folder: Path) -> None:
        """Raises LoadFailed where files are missing or damaged."""
        try:
            self._tokenizer = _tokenizer(folder)
            ids = [self._tokenizer.token_to_id(token) for token in (_START, _END, _padding(folder))]
        except Exception as error:  # the tokenizers library raises no narrower class
            raise LoadFailed(f"The tokenizer in {folder} cannot be read: {error}") from error
        if None in ids:
            raise LoadFailed(
                f"The tokenizer in {folder} is not CLIP's: it has no {_START} or {_END}."
            )
        self._start: int
        self._end: int
        self._pad: int
        self._start, self._end, self._pad = ids

    def encode(self, text: str) -> tuple[list[int], int]:
        """The 77 ids of a text, cut or padded, and how many ids the whole text has."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        kept = [self._start, *ids[: POSITIONS - 2], self._end]
        return kept + [self._pad] * (POSITIONS - len(kept)), len(ids) + 2


def _tokenizer(folder: Path) -> Any:
    """The tokenizers library's object, set to neither cut nor pad (ClipTokenizer does both). Any,
    because the library has no types."""
    library: Any = Tokenizer
    bpe: Any = models.BPE
    if (folder / "tokenizer.json").exists():
        tokenizer = library.from_file(str(folder / "tokenizer.json"))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer
    files = (str(folder / "vocab.json"), str(folder / "merges.txt"))
    tokenizer = library(bpe.from_file(*files, end_of_word_suffix="</w>", unk_token=_END))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    known = [token for token in (_START, _END) if tokenizer.token_to_id(token) is not None]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in known])
    return tokenizer


def _padding(folder: Path) -> str:
    """The token that fills the positions after the end token: the end token itself in Stable
    Diffusion 1.5, others in later models."""
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        path = folder / name
        settings: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        token: str | dict[str, Any] | None = settings.get("pad_token")
        if token:
            return token["content"] if isinstance(token, dict) else token
    return _END
