"""A tiny set of graphs in the hub's layout, for the axengine double: every name and shape is right,
and a picture takes milliseconds."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

DOUBLES = Path(__file__).parent.parent / "doubles"
TIME_INPUT = "/down_blocks.0/resnets.0/act_1/Mul_output_0"


@pytest.fixture(autouse=True, scope="module")
def double(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """`import axengine` finds the double, here and in worker processes; nobody else's test run
    holds its card."""
    pytest.importorskip("onnxruntime", reason="the axengine double runs graphs by onnxruntime")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(DOUBLES)
        patch.setenv("PYTHONPATH", str(DOUBLES))
        patch.setenv("TMPDIR", str(tmp_path_factory.mktemp("locks")))
        yield


@pytest.fixture(scope="session")
def tiny_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 512x512 weights as the hub has them."""
    return write_set(tmp_path_factory.mktemp("axera"), 512, 512)


@pytest.fixture(scope="session")
def write_tiny_set() -> Callable[[Path, int, int], Path]:
    return write_set


def write_set(folder: Path, width: int, height: int) -> Path:
    """Writes the graphs, the time inputs and a tokenizer into a folder; sizes in pixels."""
    pytest.importorskip("onnx", reason="the tiny graphs are made with the onnx package")
    (folder / "text_encoder").mkdir(parents=True)
    write_tokenizer(folder / "tokenizer")
    latent, image = [1, 4, height // 8, width // 8], [1, 3, height, width]
    random = np.random.RandomState(0)

    def normal(*shape: int) -> Any:
        return random.standard_normal(shape).astype(np.float32)

    _write(
        folder / "text_encoder" / "sd15_text_encoder_sim.axmodel",
        {"input_ids": ("int32", [1, 77])},
        {"last_hidden_state": [1, 77, 768]},
        {"waves": normal(1, 1, 768), "last": np.array([2])},
        [
            ("Cast", ["input_ids"], "ids", {"to": 1}),
            ("Unsqueeze", ["ids", "last"], "column", {}),
            ("Mul", ["column", "waves"], "phases", {}),
            ("Sin", ["phases"], "last_hidden_state", {}),
        ],
    )
    # Predicted noise that depends on all three inputs, so that a wrong one shows in the picture.
    _write(
        folder / "unet.axmodel",
        {
            "sample": ("float32", latent),
            TIME_INPUT: ("float32", [1, 1280]),
            "encoder_hidden_states": ("float32", [1, 77, 768]),
        },
        {"eps": latent},
        {
            "share": np.float32(0.9),
            "words": normal(768, 4),
            "times": normal(1280, 4),
            "grow": np.array([2, 3]),
        },
        [
            ("ReduceMean", ["encoder_hidden_states"], "text", {"axes": [1], "keepdims": 0}),
            ("MatMul", ["text", "words"], "said", {}),
            ("MatMul", [TIME_INPUT, "times"], "when", {}),
            ("Add", ["said", "when"], "bias", {}),
            ("Unsqueeze", ["bias", "grow"], "biases", {}),
            ("Mul", ["sample", "share"], "kept", {}),
            ("Add", ["kept", "biases"], "sum", {}),
            ("Tanh", ["sum"], "eps", {}),
        ],
    )
    _write_vae(folder, latent, image, normal)
    times = normal(4, 1280) / 40
    np.save(folder / "time_input_txt2img.npy", times)
    # As the hub's: two rows, and two empty ones behind them.
    np.save(folder / "time_input_img2img.npy", np.concatenate([times[2:], times[:2] * 0]))
    return folder


def _write_vae(
    folder: Path, latent: list[int], image: list[int], normal: Callable[..., Any]
) -> None:
    _write(
        folder / "vae_decoder.axmodel",
        {"x": ("float32", latent)},
        {"y": image},
        {"mix": normal(3, 4, 1, 1) / 400, "scales": np.array([1, 1, 8, 8], dtype=np.float32)},
        [
            ("Conv", ["x", "mix"], "rgb", {}),
            ("Resize", ["rgb", "", "scales"], "y", {"mode": "nearest"}),
        ],
    )
    _write(
        folder / "vae_encoder.axmodel",
        {"image_sample": ("float32", image)},
        {"latent_sample": [1, 8, *latent[2:]]},
        {"mix": normal(8, 3, 1, 1) * 3},
        [
            ("AveragePool", ["image_sample"], "small", {"kernel_shape": [8, 8], "strides": [8, 8]}),
            ("Conv", ["small", "mix"], "latent_sample", {}),
        ],
    )


def write_tokenizer(folder: Path) -> None:
    """CLIP's tokenizer with a vocabulary of bytes: 514 ids, start 512, end 513."""
    folder.mkdir(parents=True)
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [n for n in range(256) if n not in plain]
    letters = [chr(n) for n in plain] + [chr(256 + n) for n in range(len(others))]
    tokens = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: n for n, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "special_tokens_map.json").write_text('{"pad_token": "<|endoftext|>"}')


def _write(
    path: Path,
    inputs: dict[str, tuple[str, list[int]]],
    outputs: dict[str, list[int]],
    constants: dict[str, Any],
    nodes: list[tuple[str, list[str], str, dict[str, Any]]],
) -> None:
    from onnx import TensorProto, helper, numpy_helper, save

    kinds = {"float32": TensorProto.FLOAT, "int32": TensorProto.INT32}
    graph = helper.make_graph(
        [helper.make_node(kind, ins, [out], **options) for kind, ins, out, options in nodes],
        path.stem,
        [helper.make_tensor_value_info(n, kinds[k], shape) for n, (k, shape) in inputs.items()],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in outputs.items()],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    save(model, path)
