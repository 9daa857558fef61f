"""app.runtime.axera: with and without the driver, cards and boards, and what arrives in the NPU."""

import ctypes.util
import multiprocessing
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from app.errors import GenerationFailed, LoadFailed
from app.runtime import axera
from app.runtime.axera import Graph


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, double: None) -> None:
    """Each test imports the double anew: what is plugged in is seen at its import."""
    for name in ("axengine", "axengine.session"):
        monkeypatch.delitem(sys.modules, name, raising=False)


def plug(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    monkeypatch.setenv("AXENGINE_DOUBLE", what)


def pci(folder: Path, *cards: str) -> Path:
    """A PCI bus with a network card and Axera cards at these addresses."""
    for address, vendor, device in [("0000:00:1f.6", "0x8086", "0x15fb")] + [
        (card, "0x1f4b", "0x0650") for card in cards
    ]:
        (folder / address).mkdir()
        (folder / address / "vendor").write_text(f"{vendor}\n")
        (folder / address / "device").write_text(f"{device}\n")
    return folder


def test_without_axengine_the_reason_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if "doubles" not in entry])
    (device,) = axera.devices(pci(tmp_path))
    assert device.name == "AXERA" and not device.available
    assert "package axengine is not installed" in device.reason
    assert "axera/setup.sh" in device.reason


def test_without_the_driver_the_reason_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plug(monkeypatch, "no-driver")
    (device,) = axera.devices(pci(tmp_path, "0001:01:00.0"))
    assert not device.available
    assert "driver is missing" in device.reason and "libaxcl_rt" in device.reason
    with pytest.raises(LoadFailed, match="No providers found"):
        Graph("UNet", tmp_path / "unet.axmodel", "AXERA")


def test_a_mounted_driver_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In an image without a linker, where Python's own search finds nothing."""
    (tmp_path / "libaxcl_rt.so").touch()
    monkeypatch.setenv("LD_LIBRARY_PATH", f"/nowhere::{tmp_path}")
    axera.import_axengine()
    assert ctypes.util.find_library("axcl_rt") == str(tmp_path / "libaxcl_rt.so")
    assert ctypes.util.find_library("ax_engine") is None
    assert ctypes.util.find_library("c") is not None


def test_a_board_is_one_device(tmp_path: Path) -> None:
    (device,) = axera.devices(pci(tmp_path))
    assert (device.name, device.kind, device.available) == ("AXERA", "AXERA", True)


def test_cards_are_counted_on_the_bus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plug(monkeypatch, "cards")
    first, second = axera.devices(pci(tmp_path, "0001:01:00.0", "0002:01:00.0"))
    assert (first.name, second.name) == ("AXERA.0", "AXERA.1")
    assert first.available and "0001:01:00.0" in first.full_name


def test_a_driver_without_a_card_is_reported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plug(monkeypatch, "no-card")
    (device,) = axera.devices(pci(tmp_path))
    assert not device.available and "no Axera card is on the PCI bus" in device.reason


def test_a_graph_opens_on_the_card_that_was_asked_for(
    monkeypatch: pytest.MonkeyPatch, tiny_set: Path
) -> None:
    plug(monkeypatch, "cards")
    Graph("UNet", tiny_set / "unet.axmodel", "AXERA.1")
    with pytest.raises(LoadFailed, match="Device index 2 is out of range, total 2 device"):
        Graph("UNet", tiny_set / "unet.axmodel", "AXERA.2")


def test_a_board_has_no_second_device(tiny_set: Path) -> None:
    with pytest.raises(LoadFailed, match=r"no AXERA\.1: the board's own NPU is AXERA"):
        Graph("UNet", tiny_set / "unet.axmodel", "AXERA.1")


@pytest.mark.parametrize("device", ["CPU", "AXERA.x", "AXERA.-1"])
def test_other_names_are_no_axera_devices(device: str) -> None:
    with pytest.raises(LoadFailed, match="is no Axera device"):
        axera.card_index(device)


def test_arrays_arrive_as_they_were_meant(tiny_set: Path) -> None:
    """The runtime copies memory as it lies, and takes no other dtype than the graph's."""
    graph = Graph("VAE encoder", tiny_set / "vae_encoder.axmodel", "AXERA")
    image = np.random.RandomState(0).standard_normal((1, 3, 512, 512)).astype(np.float32)
    straight = graph({graph.input: image})
    assert np.array_equal(graph({graph.input: np.asfortranarray(image)}), straight)
    assert np.array_equal(graph({graph.input: image[:, :, ::-1][:, :, ::-1]}), straight)
    assert np.allclose(graph({graph.input: image.astype(np.float64)}), straight)
    with pytest.raises(GenerationFailed, match="expect shape"):
        graph({graph.input: image[:, :, :256]})
    with pytest.raises(GenerationFailed, match="Required inputs"):
        graph({"x": image})


def test_ids_are_cast_to_what_the_encoder_takes(tiny_set: Path) -> None:
    path = tiny_set / "text_encoder" / "sd15_text_encoder_sim.axmodel"
    graph = Graph("text encoder", path, "AXERA")
    assert graph({"input_ids": np.zeros((1, 77), np.int64)}).shape == (1, 77, 768)


def test_the_lock_is_for_all_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(axera, "_lock_folder", lambda: tmp_path)
    monkeypatch.setattr(axera, "_held", {})
    before = os.umask(0o077)
    try:
        axera.hold_card("AXERA.3")
    finally:
        os.umask(before)
    assert (tmp_path / "easel-axera-3.lock").stat().st_mode & 0o777 == 0o644
    monkeypatch.setattr(axera, "_lock_folder", lambda: tmp_path / "nowhere")
    with pytest.raises(LoadFailed, match="cannot be opened"):
        axera.hold_card("AXERA.4")


def test_a_card_is_held_by_one_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(axera, "_lock_folder", lambda: tmp_path)
    monkeypatch.setattr(axera, "_held", {})
    context = multiprocessing.get_context("fork")
    ready, done = context.Event(), context.Event()

    def hold() -> None:
        axera.hold_card("AXERA")
        ready.set()
        done.wait(30)

    other = context.Process(target=hold)
    other.start()
    assert ready.wait(30)
    with pytest.raises(LoadFailed, match=r"already runs a pipeline on AXERA\.0"):
        axera.hold_card("AXERA.0", patience=0)
    axera.hold_card("AXERA.1", patience=0)
    done.set()
    axera.hold_card("AXERA", patience=20)
    other.join(30)
