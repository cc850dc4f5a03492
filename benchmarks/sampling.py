"""What sampling costs: our network as shipped against the published one, on whatever device.

    python benchmarks/sampling.py [--device auto] [--size 512] [--passes 2] [--compile]

Times five samples in four steps of one image (and other work of that kind) through our engine,
decoding included; then the published network of 41.7 M parameters with random weights, which takes
the image in tiles of 256 and draws its samples one after another. On a CPU only `--passes` of its
passes are timed and all of them counted. Then how near our passes come to what the machine can
compute and move. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from cdal_engine import segmenter as segmenter_module
from cdal_engine.device import select_device
from cdal_engine.ncsnpp_config import NcsnppConfig
from cdal_engine.networks.ncsnpp import NcsnppGenerator
from cdal_engine.samples import he_path
from cdal_engine.segmenter import Segmenter

REPEATS = 5
SAMPLES, STEPS = 5, 4
PUBLISHED = NcsnppConfig(  # the parameters of the released MoNuSeg checkpoint
    dataset="monu",
    image_size=256,
    num_channels=1,
    num_channels_dae=64,
    ch_mult=(1, 1, 1, 2, 2, 4, 4),
    num_res_blocks=2,
    attn_resolutions=(16, 8),
    cond_enc_layers=5,
    cond_enc_num_res_blocks=1,
    nz=100,
    z_emb_dim=256,
    n_mlp=3,
    num_timesteps=STEPS,
    beta_min=0.1,
    beta_max=20.0,
    ngf=64,
    t_emb_dim=256,
    attn_scale=3,
)


def finished(device: torch.device) -> None:
    """Wait for what a GPU still computes."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work: Callable[[], object], device: torch.device, repeats: int = REPEATS) -> float:
    """Median of several runs, after one to warm up."""
    times = []
    for _ in range(repeats + 1):
        finished(device)
        start = time.perf_counter()
        work()
        finished(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def picture(size: int) -> NDArray[np.uint8]:
    """The shipped H&E sample, repeated to a square."""
    pixels = np.asarray(Image.open(he_path()).convert("RGB"))
    times = [-(-size // n) for n in pixels.shape[:2]]
    return np.tile(pixels, (*times, 1))[:size, :size]


def memory(device: torch.device) -> float:
    """Peak megabytes so far: the GPU's, or the process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


@contextmanager
def timed(segmenter: Segmenter) -> Iterator[dict[str, float]]:
    """Seconds in the parts of a run, by name, while the context lasts."""
    spent: dict[str, float] = defaultdict(float)

    def watched(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            finished(segmenter.device)
            start = time.perf_counter()
            result = work(*args, **kwargs)
            finished(segmenter.device)
            spent[name] += time.perf_counter() - start
            return result

        return run

    generator = segmenter.networks.generator
    with (
        patch.object(generator, "encode", watched("encoder", generator.encode)),
        patch.object(generator, "denoise", watched("denoiser", generator.denoise)),
        patch.object(segmenter_module, "_decoded", watched("decoding", segmenter_module._decoded)),
    ):
        yield spent


def split(segmenter: Segmenter, image: NDArray[np.uint8]) -> dict[str, float]:
    """Milliseconds in the parts of one run; the device waits after each, so the sum is more."""
    segmenter.segment(image, attention=False)
    with timed(segmenter) as spent:
        start = time.perf_counter()
        segmenter.segment(image, attention=False)
        spent["rest"] = time.perf_counter() - start - sum(spent.values())
    return {name: 1000 * value for name, value in spent.items()}


def published(device: torch.device, size: int, passes: int) -> tuple[float, int, int]:
    """Seconds of the published network for one image, with how many passes of how many timed."""
    torch.manual_seed(0)
    edge = PUBLISHED.image_size
    network = NcsnppGenerator(PUBLISHED).to(device).eval()
    image = torch.randn(1, PUBLISHED.image_channels, edge, edge, device=device)
    x_t = torch.randn(1, PUBLISHED.num_channels, edge, edge, device=device)
    z, level = torch.randn(1, PUBLISHED.nz, device=device), torch.ones(1, device=device)
    tiles = (size // edge) ** 2
    count = tiles * SAMPLES * STEPS
    with torch.inference_mode():
        # As published, the condition is encoded anew in every pass.
        each = seconds(lambda: network(x_t, level, z, image), device, min(passes, count))
    return each * count, min(passes, count), count


class Traffic(TorchDispatchMode):
    """Bytes that operations read and write, each by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run the operation and count."""
        result = func(*args, **(kwargs or {}))
        touched = [t for t in tree_leaves((args, kwargs, result)) if isinstance(t, torch.Tensor)]
        if "view" not in str(func) and len({t.data_ptr() for t in touched}) > 1:
            self.bytes += sum(t.nbytes for t in touched)
        return result


def limits(device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
    """Operations and bytes a second that the device reaches at its best."""
    n = 8192 if device.type == "cuda" else 2048
    a = torch.randn(n, n, device=device, dtype=dtype)
    big = torch.empty(64 * n * n // 16, device=device, dtype=dtype)
    other = torch.empty_like(big)
    with torch.inference_mode():
        compute = 2 * n**3 / seconds(lambda: a @ a, device)
        moved = 2 * big.nbytes / seconds(lambda: other.copy_(big), device)
    return compute, moved


def against_limits(segmenter: Segmenter, image: NDArray[np.uint8], taken: float) -> None:
    """Print how near `taken` seconds of a run are to what arithmetic and memory allow."""
    operations, traffic = FlopCounterMode(display=False), Traffic()
    with operations:
        segmenter.segment(image, attention=False)
    with traffic:
        segmenter.segment(image, attention=False)
    compute, moved = limits(segmenter.device, segmenter.networks.dtype)
    flops, arithmetic = operations.get_total_flops(), operations.get_total_flops() / compute
    print(
        f"arithmetic: {flops / 1e9:.1f} GFLOP at {compute / 1e9:.0f} GFLOP/s (matrix product) is "
        f"{1000 * arithmetic:.1f} ms, {100 * arithmetic / taken:.0f} % of the time"
    )
    memory_bound = traffic.bytes / moved
    print(
        f"memory: {traffic.bytes / 1e9:.1f} GB, operation by operation, at {moved / 1e9:.0f} GB/s "
        f"(copy) is {1000 * memory_bound:.1f} ms, {100 * memory_bound / taken:.0f} % of the time"
    )


def main() -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--model", default="nuclei-he")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--passes", type=int, default=None)
    parser.add_argument("--compile", action="store_true", help="encoder and denoiser compiled")
    options = parser.parse_args()
    device = select_device(options.device)
    name = platform.processor() or platform.machine()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else name
    print(f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads; {torch.__version__}")
    segmenter = Segmenter.from_pretrained(options.model, options.device)
    if options.compile:
        generator = segmenter.networks.generator
        generator.encoder.compile(mode="max-autotune-no-cudagraphs")
        generator.denoiser.compile(mode="max-autotune-no-cudagraphs")
    loaded = memory(device)
    print("| work | ms | megapixels a second | peak MB | of it before |\n|---|---|---|---|---|")
    rows: list[tuple[int, dict[str, int]]] = [
        (options.size, {"samples": 1, "steps": 0}),
        (options.size, {"samples": 1}),
        (options.size, {"samples": SAMPLES}),
        (2 * options.size, {"samples": 1}),
        (2 * options.size, {"samples": SAMPLES}),
        (4 * options.size, {"samples": SAMPLES}),
    ]
    ours = 0.0
    for size, work in rows:
        image = picture(size)

        def run(image: NDArray[np.uint8] = image, work: dict[str, int] = work) -> object:
            return segmenter.segment(image, attention=False, **work)

        taken = seconds(run, device)
        if (size, work) == (options.size, {"samples": SAMPLES}):
            ours = taken
        print(
            f"| {size}x{size}, {work['samples']} x {work.get('steps', STEPS)} "
            f"| {1000 * taken:.1f} | {size**2 / 1e6 / taken:.2f} | {memory(device):.0f} "
            f"| {loaded:.0f} |",
            flush=True,
        )
    parts = split(segmenter, picture(options.size))
    print("of which", ", ".join(f"{part} {value:.1f} ms" for part, value in parts.items()))
    against_limits(segmenter, picture(options.size), ours)
    passes = options.passes or (10**6 if device.type == "cuda" else 2)
    theirs, done, count = published(device, options.size, passes)
    print(
        f"published network: {1000 * theirs:.0f} ms for {options.size}x{options.size}, "
        f"{SAMPLES} x {STEPS} ({done} of {count} passes timed); ours is {theirs / ours:.0f} times "
        "as fast"
    )


if __name__ == "__main__":
    main()
