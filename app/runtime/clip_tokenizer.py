"""CLIP's byte-pair tokenizer from the files of a hub folder, for runtimes that bring none."""

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

from app.errors import LoadFailed

POSITIONS = 77  # tokens the text encoder reads, start and end included
_START, _END = "<|startoftext|>", "<|endoftext|>"
# CLIP's words: contractions, letters, single digits, runs of anything else.
_WORDS = r"""'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""


class ClipTokenizer:
    """From tokenizer.json, or from vocab.json and merges.txt as older checkpoints have them."""

    def __init__(self, folder: Path) -> None:
        """Raises LoadFailed where files are missing or damaged."""
        try:
            self._tokenizer = _tokenizer(folder)
            ids = [self._tokenizer.token_to_id(token) for token in (_START, _END, _padding(folder))]
        except (
            Exception
        ) as error:  # the tokenizers library raises plain Exception on files it cannot read
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
        """The 77 ids of a text, cut or padded, and how many it would have uncut."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        kept = [self._start, *ids[: POSITIONS - 2], self._end]
        return kept + [self._pad] * (POSITIONS - len(kept)), len(ids) + 2


def _tokenizer(folder: Path) -> Any:
    """The library's tokenizer (untyped there), neither cutting nor padding."""
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
    """The token behind the end: the end once more in Stable Diffusion 1.5, others later."""
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        path = folder / name
        settings: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        token: str | dict[str, Any] | None = settings.get("pad_token")
        if token:
            return token["content"] if isinstance(token, dict) else token
    return _END
