"""A setting that cannot be stops the start with one line that says which and why."""

import os
import socket

import pytest

from app.models.catalog import HOME, Catalog, CatalogError
from app.settings import SettingsError, read_settings
from tests.conftest import clean_environment, serve_and_fail

# These are told by what reads the settings; the service prints it behind `easel: `.
BAD_VALUES = [
    ({"PORT": "-1"}, "PORT", "greater than or equal to 0"),
    ({"PORT": "70000"}, "PORT", "65535"),
    ({"DEVICE": "TPU"}, "DEVICE", "CPU, GPU"),
    ({"QUEUE_LIMIT": "0"}, "QUEUE_LIMIT", "greater than or equal to 1"),
    ({"QUEUE_LIMIT": "1.5"}, "QUEUE_LIMIT", "integer"),
    ({"LOG_LEVEL": "LOUD"}, "LOG_LEVEL", "'INFO'"),
    ({"GRACE": "-1"}, "GRACE", "greater than or equal to 0"),
    ({"GRACE": "nan"}, "GRACE", ""),
    ({"STALL_TIMEOUT": "0"}, "STALL_TIMEOUT", "greater than 0"),
    ({"CANCEL_TIMEOUT": "soon"}, "CANCEL_TIMEOUT", "number"),
    ({"LOAD_TIMEOUT": "0"}, "LOAD_TIMEOUT", "greater than 0"),
    ({"STARVATION": "-1"}, "STARVATION", "greater than or equal to 0"),
    ({"THREADS": "-2"}, "THREADS", "greater than or equal to 0"),
    ({"MEMORY_BUDGET": "lots"}, "MEMORY_BUDGET", "integer"),
    ({"MIN_FREE_DISK": "-1"}, "MIN_FREE_DISK", "greater than or equal to 0"),
    ({"MODELS_PATH": "/no/such/folder"}, "MODELS_PATH", "not a folder"),
    ({"API_KEYS": " , "}, "API_KEYS", "no key"),
    ({"GENERATION_AUTH_KEY": " "}, "GENERATION_AUTH_KEY", "no key"),
    ({"API_KEY_FILE": "/no/such/file"}, "API_KEY_FILE", "/no/such/file"),
    ({"API_KEY_FILE": "/dev/null"}, "API_KEY_FILE", "which is empty"),
    ({"HF_TOKEN_FILE": "/no/such/file"}, "HF_TOKEN_FILE", "/no/such/file"),
]


@pytest.mark.parametrize(("settings", "name", "why"), BAD_VALUES, ids=lambda value: str(value)[:40])
def test_a_bad_value_is_told_in_one_line(monkeypatch, settings, name, why):
    monkeypatch.setattr(os, "environ", {**clean_environment(), **settings})
    with pytest.raises(SettingsError) as told:
        read_settings()
    line = str(told.value)
    assert name in line
    assert why in line
    assert "\n" not in line


# These by a start that fails.
BAD_STARTS = [
    ({"PORT": "eighty"}, "PORT", "integer"),
    ({"HOST": "no.such.host.invalid"}, "HOST", "cannot listen"),
    ({"MODEL": "dall-e"}, "dall-e", "demo"),
    ({"DEVICE": "AXERA"}, "AXERA", "it runs on: CPU"),
    ({"DATABASE_URL": "nonsense"}, "DATABASE_URL", "postgresql"),
    ({"DATABASE_URL": "oracle+none://u:geheim@h/d"}, "DATABASE_URL", ""),
]


@pytest.mark.parametrize(("settings", "name", "why"), BAD_STARTS, ids=lambda value: str(value)[:40])
def test_a_bad_setting_stops_the_start_with_one_line(tmp_path, settings, name, why):
    line = serve_and_fail(**{"DATA_DIR": str(tmp_path), **settings})
    assert name in line
    assert why in line
    assert "geheim" not in line


def test_a_taken_port_stops_the_start_with_one_line(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        line = serve_and_fail(DATA_DIR=str(tmp_path), PORT=port)
    assert port in line
    assert "in use" in line


FACTS = """
licence = "MIT"
devices = ["CPU"]
defaults = { width = 64, height = 64, steps = 4 }
limits = { steps = [1, 10], side = [64, 128] }
weights = { path = "." }
[models.mine]
title = "Mine"
"""


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("not toml", ""),
        ('title = "T"', "[models.NAME]"),
        ("models = 3", "[models.NAME]"),
        ("models.mine = 3", "[models.NAME]"),
        ("\xff", ""),
        (FACTS.replace('licence = "MIT"', ""), "licence"),
        (FACTS + 'colour = "red"', "colour"),
        (FACTS + "weights = 3", "weights"),
        (FACTS + "weights = { path = 3 }", "weights"),
        (FACTS + "limits = { steps = [1] }", "limits.steps"),
        (FACTS.replace("mine", "demo"), "taken"),
        (FACTS + 'aliases = ["demo"]', "taken"),
    ],
)
def test_a_family_that_cannot_be_read_is_named(tmp_path, text, why):
    facts = tmp_path / "mine" / "model.toml"
    facts.parent.mkdir()
    facts.write_bytes(text.encode("latin-1"))
    with pytest.raises(CatalogError) as told:
        Catalog([HOME, tmp_path], tmp_path / "models")
    assert str(facts) in str(told.value)
    assert why in str(told.value)
    assert len(str(told.value).splitlines()) == 1


def test_a_family_that_cannot_be_read_stops_the_start_with_one_line(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "model.toml").write_text("not toml")
    assert "model.toml" in serve_and_fail(DATA_DIR=str(tmp_path), MODELS_PATH=str(tmp_path))


def test_an_empty_setting_is_as_good_as_none(start):
    service = start(MODEL="", DEVICE="", API_KEYS="", GENERATION_AUTH_KEY="", HF_TOKEN="")
    assert service.client.get("/models").status_code == 200


def test_levels_and_devices_may_be_in_lower_case(start, doubles):
    service = start(MODEL="the-double", MODELS_PATH=doubles, DEVICE="cpu", LOG_LEVEL="debug")
    assert service.ready().generate("well")["state"] == "succeeded"


@pytest.mark.parametrize("name", ["a?b", "a%41b", "a#b", "a b", "ä-é-中"])
def test_the_data_may_lie_in_a_folder_of_any_name(start, doubles, tmp_path, name):
    folder = tmp_path / name
    service = start(MODEL="brittle", MODELS_PATH=doubles, DATA_DIR=str(folder)).ready()
    job = service.generate("well")
    assert (folder / "easel.db").is_file()
    assert (folder / "jobs" / job["id"] / "0.png").is_file()
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()].count(name) == 1
