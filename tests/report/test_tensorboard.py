"""What TensorBoard's own server finds in a run folder."""

import json
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from conftest import Program, small_run

from fmnist_lightning.metrics import METRIC_NAMES
from tools.browser import tensorboard


@pytest.fixture
def logs(program: Program, tmp_path: Path, small_drawn: None) -> Path:
    small_run(program, tmp_path)
    return tmp_path


@pytest.fixture
def fetch(logs: Path) -> Iterator[Callable[..., Any]]:
    """Ask a TensorBoard of its own process, on a port that is free, about the logs."""
    with tensorboard(logs) as address:

        def ask(path: str, body: object = None) -> Any:
            data = json.dumps(body).encode() if body is not None else None
            request = urllib.request.Request(f"{address}data/plugin/{path}", data, {"Content-Type": "application/json"})
            with urllib.request.urlopen(request, timeout=30) as answer:
                content = answer.read().decode()
            return content if path.startswith("graphs") else json.loads(content)

        deadline = time.monotonic() + 60
        while not ask("scalars/tags") and time.monotonic() < deadline:
            time.sleep(0.2)  # it answers before it has read the files
        yield ask


def test_the_server_shows_scalars_hparams_and_graph(fetch: Callable[..., Any]) -> None:
    tags = fetch("scalars/tags")
    assert list(tags) == ["version_0"]
    expected = {f"{stage}/{name}" for stage in ("val", "test") for name in (*METRIC_NAMES, "loss")}
    expected |= {"train/loss", "train/accuracy", "train/images_per_second", "lr-KerasAdam", "epoch"}
    assert set(tags["version_0"]) == expected  # and so no hp_metric

    def points(tag: str) -> list[list[float]]:
        return fetch(f"scalars/scalars?run=version_0&tag={quote(tag, safe='')}")

    assert len(points("train/loss")) == 2
    assert len(points("val/accuracy")) == 2
    assert len(points("test/accuracy")) == 1
    assert points("train/images_per_second")[-1][2] > 0
    assert points("lr-KerasAdam")[-1][2] == pytest.approx(1e-3)

    assert "Conv2d" in fetch("graphs/graph?run=version_0")

    experiment = fetch("hparams/experiment", {"experimentName": ""})
    names = {info["name"] for info in experiment["hparamInfos"]}
    assert {"lr", "batch_size", "max_epochs", "model", "seed", "dataset"} <= names
    request = {
        "startIndex": 0,
        "sliceSize": 10,
        "allowedStatuses": ["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING"],
        "colParams": [{"metric": info["name"]} for info in experiment["metricInfos"]],
    }
    [group] = fetch("hparams/session_groups", request)["sessionGroups"]
    assert group["sessions"][0]["status"] != "STATUS_SUCCESS"  # written at the start, it would be a guess
    assert group["hparams"]["lr"] == pytest.approx(1e-3)
    shown = {metric["name"]["tag"]: metric["value"] for metric in group["metricValues"]}
    assert set(shown) == {f"{stage}/{name}" for stage in ("val", "test") for name in METRIC_NAMES}
    assert shown["test/accuracy"] == pytest.approx(points("test/accuracy")[0][2])
