"""CLIP's tokenizer: from old files and new ones, cut, padded, equal to the one of transformers."""

import json
import shutil
from pathlib import Path

import pytest

from app.errors import LoadFailed
from app.runtime.clip_tokenizer import ClipTokenizer

TEXTS = [
    "",
    "a red fox, highly detailed, 8k",
    "It's   A FOX\n\tdon't  WAIT... we'll see!!",
    "größe 日本語 🦊 ﬁne é e\u0301",
    "12345 <|endoftext|> after <|startoftext|>",
    "word " * 200,
]


def test_ids_are_cut_and_padded_to_77(tiny_set: Path) -> None:
    tokenizer = ClipTokenizer(tiny_set / "tokenizer")
    ids, count = tokenizer.encode("ab")
    assert ids == [512, 64, 321, *[513] * 74] and count == 4
    ids, count = tokenizer.encode("a " * 100)
    assert len(ids) == 77 and count == 102 and ids[0] == 512 and ids[-1] == 513


def test_another_padding_is_honoured(tiny_set: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_set / "tokenizer", tmp_path / "tokenizer")
    (folder / "special_tokens_map.json").write_text('{"pad_token": {"content": "!"}}')
    assert ClipTokenizer(folder).encode("a")[0][-1] == 0


def test_tokenizer_json_serves_as_well(tiny_set: Path, tmp_path: Path) -> None:
    """As newer checkpoints have it, cutting and padding by itself."""
    old = ClipTokenizer(tiny_set / "tokenizer")
    old._tokenizer.enable_truncation(8)
    old._tokenizer.enable_padding()
    old._tokenizer.save(str(tmp_path / "tokenizer.json"))
    old._tokenizer.no_truncation()
    old._tokenizer.no_padding()
    new = ClipTokenizer(tmp_path)
    assert [new.encode(text) for text in TEXTS] == [old.encode(text) for text in TEXTS]


def test_a_folder_without_files_is_reported(tmp_path: Path) -> None:
    with pytest.raises(LoadFailed, match=r"tokenizer in .* cannot be read"):
        ClipTokenizer(tmp_path)


@pytest.mark.convert
def test_ids_equal_those_of_transformers(tiny_set: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="needs the convert environment")
    folder = shutil.copytree(tiny_set / "tokenizer", tmp_path / "tokenizer")
    # With merges, so that not every letter is a token of its own.
    merges = ["r e", "re d</w>", "f o", "fo x</w>", "w o", "wo r", "d e"]
    letters = list(json.loads((folder / "vocab.json").read_text()))[:512]
    tokens = [*letters, *("".join(pair.split()) for pair in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: n for n, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    theirs = transformers.CLIPTokenizer(vocabulary, [tuple(pair.split()) for pair in merges])
    ours = ClipTokenizer(folder)
    for text in TEXTS:
        expected = theirs(text, padding="max_length", max_length=77, truncation=True).input_ids
        assert ours.encode(text)[0] == expected, text
