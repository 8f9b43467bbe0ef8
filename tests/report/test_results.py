"""Reading the results of a run, and refusing files that are damaged or were edited."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from torch.utils.tensorboard import SummaryWriter

from fmnist_lightning.errors import UserError
from fmnist_lightning.report.results import NEEDED, read_curves, read_metrics, read_predictions
from fmnist_lightning.runs.folders import METRICS, PREDICTIONS

COUNT = 200
PROBS, LABELS = np.full((COUNT, 10), 0.1, np.float32), np.zeros(COUNT, np.int64)
RIGHT = {"n": COUNT, "accuracy": 1.0}
VALUES = dict.fromkeys(NEEDED, 0.5) | {"n": COUNT, "dataset": "drawn"}


@pytest.mark.parametrize("content", [b"", b"no events at all", bytes(1000)])
def test_read_curves_skips_damaged_event_files(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "events.out.tfevents.1.host.1.0").write_bytes(content)
    assert read_curves(tmp_path) == {}


def test_read_curves_drops_what_a_kill_undid(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A resumed run purges the steps after its checkpoint."""
    for purged, points in ((None, [(10, 0, 0.9), (20, 1, 0.8)]), (20, [(20, 1, 0.7), (30, 2, 0.6)])):
        with SummaryWriter(str(tmp_path), purge_step=purged, filename_suffix=f".{purged}") as writer:
            for step, epoch, loss in points:
                writer.add_scalar("val/loss", loss, step)
                writer.add_scalar("epoch", epoch, step)
    [(name, points)] = read_curves(tmp_path).items()
    assert (name, [(epoch, round(loss, 3)) for epoch, loss in points]) == ("val/loss", [(1, 0.9), (2, 0.7), (3, 0.6)])
    assert caplog.records == []  # TensorBoard would warn about a restart of TensorFlow


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


EDITED = [VALUES | {name: value} for name, value in (("n", 1.5), ("f1", 2), ("f1", None), ("dataset", "cifar10"))]


@pytest.mark.parametrize("content", [None, "", "{", "[]", '{"n": 200}', "\udcff", *map(json.dumps, EDITED)])
def test_read_metrics_refuses_damage(tmp_path: Path, content: str | None) -> None:
    (tmp_path / METRICS).write_text(json.dumps(VALUES))
    assert read_metrics(tmp_path) == VALUES
    (tmp_path / METRICS).unlink()
    if content is not None:
        (tmp_path / METRICS).write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=METRICS):
        read_metrics(tmp_path)
