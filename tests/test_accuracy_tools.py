"""Localisation and robustness: on networks and pictures whose answer is known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from models.localise import defect_boxes, peak_of

torch = pytest.importorskip("torch", reason="needs package torch (the `train` extra)")

from models.training.ablations import ABLATIONS  # noqa: E402
from models.training.count import count_mflops, count_parameters  # noqa: E402
from models.training.data import Sample, load_truth  # noqa: E402
from models.training.export import to_onnx  # noqa: E402
from models.training.layers import layer_rows, markdown  # noqa: E402
from models.training.lightdefectnet import (  # noqa: E402
    AttentionCondenser,
    BlurPool,
    LightDefectNet,
)
from models.training.localisation import localise, predict_maps  # noqa: E402
from models.training.networks import build  # noqa: E402
from models.training.robustness import changes, robustness  # noqa: E402


def test_a_box_lies_around_the_evidence() -> None:
    evidence = np.full((7, 7), -1, np.float32)
    evidence[2, 4] = 3
    ((x, y, width, height), strength), *others = defect_boxes(evidence)
    assert not others
    assert x <= 4 * 32 + 16 <= x + width
    assert y <= 2 * 32 + 16 <= y + height
    assert width <= 48
    assert strength > 1.5
    assert np.hypot(*(np.array(peak_of(evidence)) - (144, 80))) < 16


def test_two_places_give_two_boxes_and_no_evidence_gives_none() -> None:
    evidence = np.full((7, 7), -1, np.float32)
    evidence[1, 1], evidence[5, 6] = 2, 3
    boxes = defect_boxes(evidence)
    assert [box[0] > 112 for box, _ in boxes] == [True, False], "strongest first"
    assert defect_boxes(np.full((7, 7), -1, np.float32)) == []


def test_a_cell_weighs_what_it_would_add_alone() -> None:
    torch.manual_seed(0)
    network = LightDefectNet().eval()
    features = torch.zeros(1, 256, 7, 7)
    features[0, :, 3, 4] = torch.rand(256)
    with torch.inference_mode():
        odds = network.classify(features).diff(dim=2).mean()
        dark = network.classify(torch.zeros_like(features)).diff(dim=2).mean()
        cell = torch.nn.functional.conv2d(features, network.cell_weights())[0, 0, 3, 4]
    assert float(cell) == pytest.approx(float(odds - dark), abs=1e-5)


@pytest.fixture
def sample(tmp_path: Path) -> Sample:
    """A picture of 448 x 112 px, its defect right of the middle."""
    picture = np.full((112, 448), 90, np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), picture)
    mask = np.zeros_like(picture)
    mask[40:60, 300:340] = 255
    cv2.imwrite(str(tmp_path / "mask.png"), mask)
    return Sample(tmp_path / "a.png", "a.png", 1, "test", "a", "", tmp_path / "mask.png")


def test_masks_and_boxes_are_scaled_with_their_picture(sample: Sample) -> None:
    boxed = replace(sample, mask_file=None, boxes=((300.0, 40.0, 340.0, 60.0),))
    for each in (sample, boxed):
        truth = load_truth(each)
        assert truth is not None
        y, x = np.nonzero(truth)
        assert (x.min(), x.max() + 1) == pytest.approx((150, 170), abs=1)
        assert (y.min(), y.max() + 1) == pytest.approx((80, 120), abs=1)
    assert load_truth(replace(boxed, boxes=())) is None


def test_a_network_that_looks_at_the_defect_hits_it(sample: Sample) -> None:
    """Weights that make bright places speak for a defect."""
    network = _brightness_network()
    tile = np.full((1, 1, 224, 224), 90, np.uint8)
    tile[..., 80:120, 150:170] = 250
    found = localise(network, [sample], tile)
    assert found is not None
    assert found.peak_hits.value == 1
    assert found.peak_hits_by_chance < 0.1
    elsewhere = np.full((1, 1, 224, 224), 90, np.uint8)
    elsewhere[..., 10:40, 10:40] = 250
    missed = localise(network, [sample], elsewhere)
    assert missed is not None
    assert missed.peak_hits.value == 0
    assert localise(network, [replace(sample, mask_file=None)], tile) is None


def _brightness_network() -> LightDefectNet:
    """One whose last features are the brightness of each cell."""

    class Bright(LightDefectNet):
        def features(self, tiles: torch.Tensor) -> torch.Tensor:
            cells = torch.nn.functional.avg_pool2d(tiles.float(), 32)
            return (cells - 90).clamp_min(0).expand(-1, 256, -1, -1)

    network = Bright().eval()
    with torch.no_grad():
        network.heads.weight.copy_(torch.tensor([-1.0, 1.0, -1.0, 1.0])[:, None] / 256)
    return network


def test_maps_come_in_the_order_of_the_tiles() -> None:
    tiles = np.full((40, 1, 224, 224), 90, np.uint8)
    tiles[37, :, :32, 32:64] = 200
    maps = predict_maps(_brightness_network(), tiles)
    assert maps.shape == (40, 7, 7)
    assert np.unravel_index(maps.argmax(), maps.shape) == (37, 0, 1)


def test_decisions_on_brightness_hold_under_shifts_and_fall_under_gain() -> None:
    rng = np.random.default_rng(0)
    means = np.linspace(92, 108, 20)
    tiles = rng.normal(means[:, None, None, None], 2, (20, 1, 224, 224)).round().astype(np.uint8)

    def mean_level(some: np.ndarray) -> np.ndarray:
        return some.mean(axis=(1, 2, 3)).astype(np.float32)

    parts = [f"part{number // 2}" for number in range(20)]
    found = {a.change: a for a in robustness(mean_level, 100, tiles, parts)}
    assert found["shift by 1-8 px"].worst > 0.9
    gain = found["gain of 10 %"].mean
    assert gain.value == pytest.approx(0.5, abs=0.1)
    assert 0.2 < gain.low < gain.value < gain.high < 0.8
    assert "10 parts" in gain.method
    assert found["focus blur, sigma 1 px"].mean.value > 0.9


def test_every_change_changes_the_picture_and_keeps_its_shape() -> None:
    tiles = np.random.default_rng(0).integers(60, 200, (2, 1, 224, 224), np.uint8)
    seen = list(changes(tiles))
    assert len({name for name, _ in seen}) == 6
    for name, changed in seen:
        assert changed.shape == tiles.shape, name
        assert changed.dtype == np.uint8
        assert not np.array_equal(changed, tiles), name


def test_a_shift_moves_towards_the_end() -> None:
    tiles = np.zeros((1, 1, 224, 224), np.uint8)
    tiles[..., 100, 50] = 255
    first = next(changed for name, changed in changes(tiles))
    assert np.argwhere(first[0, 0]).tolist() == [[101, 50]]


def _count(network: torch.nn.Module, kind: type[torch.nn.Module]) -> int:
    return sum(isinstance(module, kind) for module in network.modules())


def test_an_ablation_takes_away_what_its_name_says() -> None:
    whole = build("lightdefectnet", "contrast", 1)
    without_vac = build("lightdefectnet-without-vac", "contrast", 1)
    assert _count(whole, AttentionCondenser) == 4
    assert _count(without_vac, AttentionCondenser) == 0
    assert _count(without_vac, BlurPool) == _count(whole, BlurPool) - 4
    assert _count(build("lightdefectnet-without-aads", "contrast", 1), BlurPool) == 0
    tiles = torch.randint(0, 256, (2, 1, 224, 224), dtype=torch.uint8)
    for name in ABLATIONS:
        assert build(name, "raw", 1)(tiles).shape == (2, 2, 2), name


def test_the_layer_table_adds_up_to_the_exported_graph() -> None:
    network = LightDefectNet("raw").eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.bias)  # the exporter writes equal constants once
    rows, graph = layer_rows(network), to_onnx(network)
    kernels = 9 * (16 + 16 + 32 + 32 + 128)  # equal ones are one; column B has its own
    cells = 256  # the map's weights
    constants = count_parameters(graph) - kernels - cells
    assert sum(row.parameters for row in rows) == pytest.approx(constants, abs=32)
    cell_macs = 256 * 49
    assert 2 * (sum(row.macs for row in rows) + cell_macs) / 1e6 == pytest.approx(
        count_mflops(graph), rel=1e-3
    )


def test_the_layer_table_of_the_docs_is_current() -> None:
    page = Path(__file__).parents[1] / "docs" / "network.md"
    assert markdown(layer_rows(LightDefectNet())) in page.read_text(), "python docs/make_tables.py"
