"""cdal demo: the shipped H&E sample with the shipped model."""

from pathlib import Path

import typer

from . import options
from .progress import bars
from .threads import use_available_processors


def demo(
    output: options.Out = Path("cdal-demo"),
    device: options.Device = "auto",
) -> None:
    """Segment the shipped H&E sample with the shipped model."""
    from ..batch.run import Input, Parameters, run_one
    from ..samples import HE_MPP, he_path
    from ..segmenter import Segmenter
    from ..weights import DEFAULT

    use_available_processors()
    segmenter = Segmenter.from_pretrained(DEFAULT, device)
    save = ("labels", "probability", "uncertainty", "attention", "table", "geojson", "overview")
    item = Input(he_path(), output)
    with bars(1) as shown:
        shown.start(item.path.name)
        result, _ = run_one(item, segmenter, Parameters(save=save), shown.passes)
    assert result is not None  # only a slide's is not returned
    area = result.labels.size * (HE_MPP / 1000) ** 2  # mm²
    count = len(result.objects["label"])
    sure = float((result.objects["agreement"] == 1).mean()) if count else 0.0
    typer.echo(
        f"{count} nuclei on {area:.3f} mm² of skin ({count / area:.0f} per mm²), "
        f"{sure:.0%} of them in all {5} samples, in {result.seconds:.1f} s on {segmenter.device}"
    )
    typer.echo(f"results: {output.resolve()}; look at {output.resolve() / 'overview.png'}")
