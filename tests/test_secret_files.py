"""API_KEY_FILE and HF_TOKEN_FILE: what they may hold, and what stops the start."""

import pytest

from app.settings import SettingsError, read_settings


@pytest.fixture(autouse=True)
def _bare(monkeypatch):
    for name in ("API_KEYS", "GENERATION_AUTH_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)


def _read(monkeypatch, tmp_path, name, content):
    path = tmp_path / "secret"
    path.write_bytes(content)
    monkeypatch.setenv(name, str(path))
    return read_settings()


def test_keys_are_lines_and_comments_are_not_keys(monkeypatch, tmp_path):
    content = b"# the team\n first \n\nsecond\n"
    settings = _read(monkeypatch, tmp_path, "API_KEY_FILE", content)
    assert settings.keys() == ("first", "second")


def test_a_token_is_the_first_line(monkeypatch, tmp_path):
    settings = _read(monkeypatch, tmp_path, "HF_TOKEN_FILE", b"# read only\nhf_secret\n")
    assert settings.token() == "hf_secret"


def test_a_comment_alone_is_no_secret(monkeypatch, tmp_path):
    settings = _read(monkeypatch, tmp_path, "HF_TOKEN_FILE", b"# none\n")
    assert settings.token() is None
    assert _read(monkeypatch, tmp_path, "API_KEY_FILE", b"# none\n").keys() == ()


@pytest.mark.parametrize("name", ["API_KEY_FILE", "HF_TOKEN_FILE"])
@pytest.mark.parametrize(
    ("content", "why"), [(b" \n", "which is empty"), (b"\xff\xfe", "it is not text")]
)
def test_a_file_without_a_word_stops_the_start(monkeypatch, tmp_path, name, content, why):
    with pytest.raises(SettingsError, match=rf"^{name} names .*{why}$"):
        _read(monkeypatch, tmp_path, name, content)


def test_a_file_that_cannot_be_read_stops_the_start(monkeypatch, tmp_path):
    monkeypatch.setenv("API_KEY_FILE", str(tmp_path))
    with pytest.raises(SettingsError, match=r"^API_KEY_FILE names .* cannot be read: Is a direct"):
        read_settings()
