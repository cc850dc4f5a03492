"""The shipped model does what its card says, on real images."""

import re
from pathlib import Path

import pytest

from cdal_engine.config import TrainConfig
from cdal_engine.segmenter import Segmenter
from cdal_engine.training.dataset import find_pairs
from cdal_engine.training.splits import split
from cdal_engine.training.validation import evaluate
from cdal_engine.weights import shipped

NUCLEI = shipped()["nuclei-he"]


def test_the_card_names_licence_data_and_split() -> None:
    card = (NUCLEI / "CARD.md").read_text("utf-8")
    assert "Licence: CC BY-NC-SA 4.0" in card
    for stem in TrainConfig.from_file(NUCLEI / "train.yaml").validation:
        assert stem in card


def test_it_was_trained_with_its_train_yaml() -> None:
    segmenter = Segmenter.from_pretrained("nuclei-he", "cpu")
    config, trained = segmenter.model.config, TrainConfig.from_file(NUCLEI / "train.yaml").model
    fitted = ("temperature", "threshold", "supervised_temperature", "supervised_threshold")
    decode = {name: getattr(config.decode, name) for name in fitted}
    assert config == trained.with_decoding(**decode).model_copy(update={"halo": config.halo})


@pytest.mark.slow
def test_a_validation_image_scores_as_on_the_card(shared_data: Path) -> None:
    config = TrainConfig.from_file(NUCLEI / "train.yaml")
    pair = split(find_pairs(shared_data / "monuseg" / "train"), config)[1][0]
    row = re.search(rf"\| {pair.stem} \|(.*)\|", (NUCLEI / "CARD.md").read_text("utf-8"))
    assert row is not None
    dice, iou, aji, pq = (float(cell) for cell in row.group(1).split("|")[:4])
    scores = evaluate(Segmenter.from_pretrained("nuclei-he", "cpu"), [pair]).images[pair.stem]
    for name, expected in (("dice", dice), ("iou", iou), ("aji", aji), ("pq", pq)):
        assert scores[name] == pytest.approx(expected, abs=0.005), name
