"""Reading the results of a run, and refusing files that are damaged or were edited."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from fmnist_lightning.data.sets.drawn import DRAWN
from fmnist_lightning.errors import UserError
from fmnist_lightning.report.results import NEEDED, read_curves, read_metrics, read_predictions
from fmnist_lightning.runs.folders import HISTORY, METRICS, PREDICTIONS

COUNT = 200
PROBS, LABELS = np.full((COUNT, 10), 0.1, np.float32), np.zeros(COUNT, np.int64)
RIGHT = {"n": COUNT, "accuracy": 1.0, "dataset": "drawn"}
VALUES = dict.fromkeys(NEEDED, 0.5) | {"n": COUNT, "dataset": "drawn"}


def test_read_curves_reads_metrics_csv(tmp_path: Path) -> None:
    assert read_curves(tmp_path) == {}
    rows = ["epoch,step,lr,train/loss,val/loss,val/accuracy,val/auroc", "1,9,,0.9,,,", "2,19,0.1,0.8,0.7,0.75,0.9"]
    (tmp_path / HISTORY).write_text("\n".join(rows))
    assert read_curves(tmp_path) == {
        "train/loss": [(1, 0.9), (2, 0.8)],
        "val/loss": [(2, 0.7)],
        "val/accuracy": [(2, 0.75)],
    }


@pytest.mark.parametrize(
    "content",
    ["", "no rows at all", "epoch,val/loss\none,0.5", "epoch,val/loss\n1,half", f"epoch\n{200_000 * '1'}", "\udcff"],
    ids=["empty", "text", "epoch", "value", "long", "bytes"],
)
def test_read_curves_refuses_damage(tmp_path: Path, content: str) -> None:
    (tmp_path / HISTORY).write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=HISTORY):
        read_curves(tmp_path)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:3000]),
    "flipped": lambda path: path.write_bytes(path.read_bytes().replace(b"\xcd", b"\xce")),
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("probs"),
    "one array": lambda path: (np.save(path.with_suffix(".npy"), PROBS), path.with_suffix(".npy").replace(path)),
    "missing": lambda path: path.unlink(),
    "no labels": lambda path: np.savez(path, probs=PROBS),
    "float64": lambda path: np.savez(path, probs=PROBS.astype(np.float64), labels=LABELS),
    "another count": lambda path: np.savez(path, probs=PROBS[1:], labels=LABELS[1:]),
    "nan": lambda path: np.savez(path, probs=PROBS * np.float32(np.nan), labels=LABELS),
    "logits": lambda path: np.savez(path, probs=PROBS * 100, labels=LABELS),
    "another accuracy": lambda path: np.savez(path, probs=PROBS, labels=LABELS + 1),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_read_predictions_refuses_damage(tmp_path: Path, kind: str) -> None:
    np.savez(tmp_path / PREDICTIONS, probs=PROBS, labels=LABELS)
    assert len(read_predictions(tmp_path, RIGHT).probs) == COUNT
    DAMAGE[kind](tmp_path / PREDICTIONS)
    with pytest.raises(UserError, match=PREDICTIONS):
        read_predictions(tmp_path, RIGHT)


@dataclass
class MakesAFile:
    """Makes a file when it is unpickled."""

    path: Path

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.path,)


def test_read_predictions_runs_no_code(tmp_path: Path) -> None:
    harm = np.array([MakesAFile(tmp_path / "harm")], dtype=object)
    np.savez(tmp_path / PREDICTIONS, probs=harm, labels=LABELS)
    with pytest.raises(UserError, match=PREDICTIONS):
        read_predictions(tmp_path, RIGHT)
    assert not (tmp_path / "harm").exists()
    # The control: NumPy runs it if it may.
    with np.load(tmp_path / PREDICTIONS, allow_pickle=True) as file:
        assert file["probs"].shape == (1,)
    assert (tmp_path / "harm").exists()


PLAIN = DRAWN.as_plain()
DATA = [
    *(None, [], {}, PLAIN | {"classes": None}, PLAIN | {"classes": [1]}, PLAIN | {"title": 1}),
    *(PLAIN | {"image_shape": [28, 28]}, PLAIN | {"published": ["f1"]}, PLAIN | {"published": {"f1": "high"}}),
    *(PLAIN | {"published": {"f1": 101}}, PLAIN | {"another": 1}),
]
EDITED = [VALUES | {name: value} for name, value in (("n", 1.5), ("f1", 2), ("f1", None), ("dataset", "cifar10"))]
EDITED += [VALUES | {"data": data} for data in DATA]


@pytest.mark.parametrize("content", [None, "", "{", "[]", '{"n": 200}', "\udcff", *map(json.dumps, EDITED)])
def test_read_metrics_refuses_damage(tmp_path: Path, content: str | None) -> None:
    (tmp_path / METRICS).write_text(json.dumps(VALUES))
    assert read_metrics(tmp_path) == VALUES
    (tmp_path / METRICS).unlink()
    if content is not None:
        (tmp_path / METRICS).write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=METRICS):
        read_metrics(tmp_path)


def test_read_metrics_accepts_data_of_any_classes(tmp_path: Path) -> None:
    metrics = VALUES | {"dataset": "folder", "data": PLAIN | {"name": "folder", "classes": ["one", "two"]}}
    (tmp_path / METRICS).write_text(json.dumps(metrics))
    assert read_metrics(tmp_path) == metrics
    np.savez(tmp_path / PREDICTIONS, probs=np.full((COUNT, 2), 0.5, np.float32), labels=LABELS)
    assert read_predictions(tmp_path, metrics | {"accuracy": 1.0}).probs.shape == (COUNT, 2)
