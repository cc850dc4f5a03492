"""A job done by the engine: regions, more samples of them, or a whole volume."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from cdal_engine.errors import Cancelled, CdalError

from .decode import inside, with_more
from .jobs import Answer, Job
from .live import answer, live
from .planes import Plane
from .reading import read
from .regions import Region
from .volumes import axes_of, for_layer

if TYPE_CHECKING:
    from cdal_engine.segmenter import Segmenter

__all__ = ["Segmenting"]


class Segmenting:
    """Does one job.

    Parameters
    ----------
    job : Job
    keep : callable
        Called with the number of a region and the newest answer for it.
    report : callable
        Called with the number of the region being worked on and the part of all work that is
        done, 0 … 1, first when the model is loaded; returning False cancels.
    """

    def __init__(
        self,
        job: Job,
        keep: Callable[[int, Answer], None],
        report: Callable[[int, float], bool],
    ) -> None:
        self._job = job
        self._keep_part, self._tell = keep, report
        self._part = 0

    def __call__(self) -> None:
        """Do it.

        Raises
        ------
        CdalError
            What the user can act on.
        Cancelled
        """
        job, segmenter = self._job, self._segmenter()
        facts = self._facts(segmenter)
        if not job.regions:
            self._volume(segmenter, facts)
        for part, region in enumerate(job.regions):
            self._part = part
            if not job.kept:
                self._region(segmenter, region, facts)
            elif part in job.kept:
                self._more(segmenter, region, job.kept[part])

    def _segmenter(self) -> Segmenter:
        try:  # loads torch, which takes seconds
            import torch
            from dask.system import CPU_COUNT

            from cdal_engine.model import Model
            from cdal_engine.segmenter import Segmenter
        except (ImportError, OSError) as error:
            raise CdalError(
                f"PyTorch cannot be loaded: {error}", "install torch anew for this computer"
            ) from error
        # Of a container's processors torch does not know, and more threads wait for each other.
        torch.set_num_threads(min(torch.get_num_threads(), CPU_COUNT))
        segmenter = Segmenter(Model.load(self._job.model), self._job.device)
        if not self._tell(0, 0.0):
            raise Cancelled
        return segmenter

    def _facts(self, segmenter: Segmenter) -> dict[str, Any]:
        job = self._job
        return {
            "source": job.plane.name,
            "index": job.plane.index,
            "model": segmenter.model.name,
            "digest": segmenter.model.digest,
            "device": str(segmenter.device),
            "samples": job.samples if job.steps else 1,
            "steps": job.steps,
            "seed": job.seed,
            "classes": segmenter.model.config.classes,
            "axes": job.plane.axes,
        }

    def _region(self, segmenter: Segmenter, region: Region, facts: dict[str, Any]) -> None:
        """Keep the answers for a region as they come."""
        job, config = self._job, segmenter.model.config
        seen = read(job, region, segmenter)
        found = live(segmenter, seen.image, seen.box, seen.options, self._report, seen.colours)
        for each, so_far in found:
            result = seen.turn.onto_layer(each) if seen.turn else each
            head = so_far == "preview" or not job.steps
            used = config.of_supervised_head() if head else config
            corner, step = seen.corner, seen.step
            mask = region.mask(result.labels.shape, corner, step)
            if mask is not None:
                result = inside(result, used, mask, seen.colours)
            centre = tuple(at + (step - 1) / 2 for at in corner)
            self._keep(
                Answer(
                    job=job,
                    region=region,
                    segmentation=result,
                    config=used,
                    so_far=so_far,
                    offset=(*map(float, job.plane.index), *centre),
                    step=step,
                    mask=mask,
                    facts={**facts, **_place(job.plane, result.mpp, corner, step)},
                    colours=seen.colours,
                )
            )

    def _more(self, segmenter: Segmenter, region: Region, kept: Answer) -> None:
        """Draw the samples that follow those of an answer, and keep what all give together."""
        assert kept.segmentation.samples is not None
        drawn = len(kept.segmentation.samples)
        seen = read(self._job, region, segmenter, first_sample=drawn)
        more = answer(segmenter, seen.image, seen.box, seen.options, self._report)
        more = seen.turn.onto_layer(more) if seen.turn else more
        if kept.mask is not None:
            more = inside(more, kept.config, kept.mask, None)
        result = with_more(kept.segmentation, more, kept.config, kept.colours)
        facts = {**kept.facts, "samples": drawn + self._job.samples}
        self._keep(replace(kept, segmentation=result, facts=facts))

    def _volume(self, segmenter: Segmenter, facts: dict[str, Any]) -> None:
        """Segment all slices: a preview, then the samples."""
        from cdal_engine.volume import segment_volume

        job, config = self._job, segmenter.model.config
        axes = axes_of(job.plane, config)
        voxels = job.plane.read_volume().transpose(np.argsort(axes))
        runs = [0, job.steps] if job.steps and config.network.has_head else [job.steps]
        for number, steps in enumerate(runs):
            found = segment_volume(
                segmenter,
                voxels,
                samples=job.samples,
                steps=steps,
                seed=job.seed,
                keep_samples=steps > 0,
                affine=job.plane.affine,
                progress=partial(self._report_slices, number, len(runs)),
            )
            self._keep(
                Answer(
                    job=job,
                    region=None,
                    segmentation=for_layer(found, axes),
                    config=config,
                    so_far="" if steps == job.steps else "preview",
                    offset=(0.0,) * 3,
                    step=1.0,
                    mask=None,
                    facts=facts,
                )
            )

    def _keep(self, answer: Answer) -> None:
        self._keep_part(self._part, answer)

    def _report(self, done: float, total: float) -> bool:
        return self._tell(self._part, (self._part + done / total) / max(len(self._job.regions), 1))

    def _report_slices(self, number: int, runs: int, done: int, total: int) -> bool:
        return self._report(number + done / total, runs)


def _place(
    plane: Plane, mpp: float | None, corner: tuple[float, float], step: float
) -> dict[str, Any]:
    """Where a region's labels lie in the image, and how large their pixels are."""
    spacing = plane.spacing and tuple(each * step for each in plane.spacing)
    return {"mpp": mpp, "spacing": spacing, "pixel": step, "corner": corner}
