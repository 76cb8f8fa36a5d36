"""ONNX files: a module with named inputs of any batch size and history length is written, checked and compared.

Shapes are tuples of names of sizes that differ by call ("batch", "length") and of numbers.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nextitem.core.errors import UserError

OPSET = 20  # onnxruntime 1.17 and later read it
EXTERNAL_FROM = 2**30  # bytes of weights from which on they are stored beside the ONNX file, which may have 2 GiB
TOLERANCE = 1e-5  # largest difference from the model, absolute and relative
# Sizes for tracing, all different, so that no two of them are taken for the same one.
SAMPLE_SIZES = {"batch": 3, "length": 7, "members": 4, "rows": 5, "steps": 2, "items": 6, "tokens": 8}


@dataclass(frozen=True)
class Input:
    """One input of an ONNX file.

    Attributes:
        name: its name in the file.
        dtype: int64, float32 or float64.
        shape: names of sizes that differ by call, and numbers.
        meaning: what the caller has to pass, for README.md and manifest.json.
        high: values for tracing are below this number.

    """

    name: str
    dtype: str
    shape: tuple[str | int, ...]
    meaning: str
    high: int = 2

    def sample(self, generator: torch.Generator, sizes: Mapping[str, int] = SAMPLE_SIZES) -> Tensor:
        """Return random values of the input, of these sizes."""
        shape = [sizes.get(size, sizes["members"]) if isinstance(size, str) else size for size in self.shape]
        if self.dtype == "int64":
            return torch.randint(min(1, self.high - 1), self.high, shape, generator=generator)
        return torch.rand(shape, generator=generator, dtype=getattr(torch, self.dtype))

    def to_json(self) -> dict[str, Any]:
        """Return the entry of manifest.json."""
        return {"name": self.name, "dtype": self.dtype, "shape": list(self.shape), "meaning": self.meaning}


def import_onnx() -> tuple[Any, Any]:
    """Return the modules onnx and onnxruntime. Raises UserError if the extra `export` is not installed."""
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401 - torch writes ONNX with it
    except ImportError:
        raise UserError("ONNX needs the extra `export`; install it with: pip install 'nextitem[export]'") from None
    if not hasattr(torch.onnx, "ops"):
        raise UserError(f"ONNX needs torch 2.8 or newer, and {torch.__version__} is installed; upgrade torch")
    return onnx, onnxruntime


def write_onnx(module: nn.Module, inputs: Sequence[Input], outputs: Sequence[str], file: Path) -> None:
    """Write a module as an ONNX file, and check the file.

    Args:
        module: a module whose `forward` takes one tensor for each input and returns one for each output.
        inputs: the inputs, in order.
        outputs: names of the outputs, in order.
        file: the file to write; the weights of a large module are stored beside it, in FILE.data.

    Raises:
        UserError: the extra `export` is not installed.

    """
    onnx, _ = import_onnx()
    generator = torch.Generator().manual_seed(0)
    samples = tuple(each.sample(generator) for each in inputs)
    # A name stands for one size in all inputs; the exporter finds out which sizes are equal.
    sizes = tuple(
        {axis: size for axis, size in enumerate(each.shape) if isinstance(size, str)} or None for each in inputs
    )
    module = module.eval()
    num_bytes = sum(value.nbytes for value in (*module.parameters(), *module.buffers()))
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            module,
            samples,
            dynamo=True,
            dynamic_shapes=(sizes,),  # of the one argument `*values`
            input_names=[each.name for each in inputs],
            output_names=list(outputs),
            opset_version=OPSET,
            verbose=False,
        )
        assert program is not None
        program.save(file, external_data=num_bytes >= EXTERNAL_FROM)
    onnx.checker.check_model(str(file), full_check=True)


def open_session(file: Path) -> Any:
    """Return an onnxruntime session of a file, of one thread."""
    _, onnxruntime = import_onnx()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def largest_difference(file: Path, feeds: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """Return the largest difference of outputs from what is expected, as a multiple of TOLERANCE.

    Args:
        file: an ONNX file.
        feeds: values of its inputs.
        expected: expected values of some of its outputs; entries of -inf must be -inf.

    """
    session = open_session(file)
    outputs = session.run(list(expected), {name: value.numpy() for name, value in feeds.items()})
    return max(_difference(output, expected[name].numpy()) for name, output in zip(expected, outputs, strict=True))


def _difference(output: NDArray[Any], expected: NDArray[Any]) -> float:
    if output.shape != expected.shape or not np.array_equal(np.isneginf(output), np.isneginf(expected)):
        return float("inf")
    is_finite = np.isfinite(expected)
    if not is_finite.any():
        return 0.0
    allowed = TOLERANCE * (1 + np.abs(expected[is_finite]))
    return float((np.abs(output[is_finite] - expected[is_finite]) / allowed).max())


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's remarks on packages that are not installed, and deprecations within torch."""
    loggers = [logging.getLogger(name) for name in ("torch", "torch.onnx", "torch.__trace", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)
