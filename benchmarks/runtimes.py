"""Other ways to run the networks on a CPU, against the one chosen: float32 by torch, eager.

    python benchmarks/runtimes.py [--size 512] [--skip compiled]

bfloat16 weights, torch.compile (needs a C++ compiler) and OpenVINO (`pip install openvino`; skipped
where it is not there). For the encoder of one tile and one denoising step of five samples: seconds
to get ready, milliseconds, and the largest difference in probability from the one chosen.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import time
from collections.abc import Callable

import torch
from sampling import SAMPLES, picture, seconds
from torch import Tensor, nn

from cdal_engine.model import Model
from cdal_engine.networks import Features, Generator
from cdal_engine.preparation import normalise, prepare

CPU = torch.device("cpu")
Run = tuple[Callable[[Tensor], Features], Callable[[Tensor, Tensor, Tensor, Features], Tensor]]


class _Encode(nn.Module):
    """The encoder by itself, as what is converted."""

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Features as a plain tuple."""
        return tuple(self.generator.encode(image))


class _Denoise(_Encode):
    """A denoising step by itself."""

    def forward(  # type: ignore[override]
        self, x_t: Tensor, level: Tensor, z: Tensor, *features: Tensor
    ) -> Tensor:
        """x̂_0."""
        return self.generator.denoise(x_t, level, z, Features(*features))


def eager(generator: Generator, inputs: list[Tensor]) -> Run:
    """As shipped."""
    return generator.encode, generator.denoise


def bfloat16(generator: Generator, inputs: list[Tensor]) -> Run:
    """Weights and activations in bfloat16, as precision does on a GPU with float16."""
    reduced = copy.deepcopy(generator).bfloat16()
    return lambda image: reduced.encode(image.bfloat16()), reduced.denoise


def compiled(generator: Generator, inputs: list[Tensor]) -> Run:
    """torch.compile of both for this size."""
    faster = copy.deepcopy(generator)
    faster.encoder.compile()
    faster.denoiser.compile()
    faster.denoise(*inputs[1:], faster.encode(inputs[0]))
    return faster.encode, faster.denoise


def openvino(generator: Generator, inputs: list[Tensor], precision: str) -> Run:
    """Both converted and compiled by OpenVINO."""
    import openvino as ov

    core = ov.Core()
    hints = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
    hints["INFERENCE_NUM_THREADS"] = str(torch.get_num_threads())
    with torch.inference_mode(False), torch.no_grad():
        features = _repeated(generator.encode(inputs[0]))
        encode, denoise = (
            core.compile_model(ov.convert_model(module.eval(), example_input=example), "CPU", hints)
            for module, example in (
                (_Encode(generator), inputs[0]),
                (_Denoise(generator), (*inputs[1:], *features)),
            )
        )

    def run(model: ov.CompiledModel, *given: Tensor) -> list[Tensor]:
        result = model([t.contiguous().numpy() for t in given])
        return [torch.from_numpy(result[i]) for i in range(len(result))]

    return (
        lambda image: Features(*run(encode, image)),
        lambda x_t, level, z, features: run(denoise, x_t, level, z, *features)[0],
    )


def _repeated(features: Features) -> Features:
    return Features(
        *(
            f.repeat_interleave(SAMPLES, dim=0).contiguous(memory_format=torch.channels_last)
            for f in features
        )
    )


def main() -> None:
    """Print one row a runtime."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="nuclei-he")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--skip", nargs="*", default=[])
    options = parser.parse_args()
    model = Model.load(options.model)
    generator = model.networks.made_ready(CPU).generator
    size, net, labels = options.size // 2, model.config.network, model.config.label_channels
    torch.manual_seed(0)
    image = normalise(prepare(picture(options.size), model.config.image), model.config.image)
    inputs = [
        image[None].contiguous(memory_format=torch.channels_last),
        torch.randn(SAMPLES, labels, size, size).contiguous(memory_format=torch.channels_last),
        torch.ones(SAMPLES),
        torch.randn(SAMPLES, net.latent_dim),
    ]
    ways: dict[str, Callable[[], Run]] = {
        "float32, eager": lambda: eager(generator, inputs),
        "bfloat16, eager": lambda: bfloat16(generator, inputs),
        "compiled": lambda: compiled(generator, inputs),
    }
    if importlib.util.find_spec("openvino"):
        ways["openvino f32"] = lambda: openvino(generator, inputs, "f32")
        ways["openvino bf16"] = lambda: openvino(generator, inputs, "bf16")
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    print("| runtime | s to get ready | encoder ms | denoiser ms | largest difference |")
    print("|---|---|---|---|---|")
    with torch.inference_mode():
        expected = None
        for name, way in ways.items():
            if name.split()[0].rstrip(",") in options.skip:
                continue
            start = time.perf_counter()
            encode, denoise = way()
            ready = time.perf_counter() - start
            features = _repeated(encode(inputs[0]))
            x_0 = denoise(*inputs[1:], features)
            expected = x_0 if expected is None else expected
            difference = float((x_0 - expected).abs().max()) / 2
            first = seconds(lambda encode=encode: encode(inputs[0]), CPU)
            step = seconds(lambda d=denoise, f=features: d(*inputs[1:], f), CPU)
            print(
                f"| {name} | {ready:.1f} | {1000 * first:.0f} | {1000 * step:.0f} "
                f"| {difference:.0e} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
