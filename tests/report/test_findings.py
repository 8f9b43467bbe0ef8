"""What is read back from a run folder, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from torch.utils.tensorboard import SummaryWriter

from fmnist_lightning.errors import UserError
from fmnist_lightning.report.findings import NEEDED, read_curves, read_metrics, read_predictions
from fmnist_lightning.runs.folders import METRICS, PREDICTIONS

COUNT = 200
WITHOUT_NUMBERS = json.dumps(dict.fromkeys(NEEDED))
METRICS_OF_IT = {"n": COUNT, "accuracy": 1.0}


def write_predictions(run: Path, probs: np.ndarray, labels: np.ndarray) -> None:
    np.savez(run / PREDICTIONS, probs=probs, labels=labels)


@pytest.mark.parametrize("content", [b"", b"no events at all", bytes(1000)])
def test_damaged_event_files_are_no_obstacle(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "events.out.tfevents.1.host.1.0").write_bytes(content)
    assert read_curves(tmp_path) == {}


def test_curves_are_by_epoch_and_without_what_a_kill_undid(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As Lightning writes them: a resumed run purges the steps behind its checkpoint."""
    for purged, points in ((None, [(10, 0, 0.9), (20, 1, 0.8)]), (20, [(20, 1, 0.7), (30, 2, 0.6)])):
        with SummaryWriter(str(tmp_path), purge_step=purged, filename_suffix=f".{purged}") as writer:
            for step, epoch, loss in points:
                writer.add_scalar("val/loss", loss, step)
                writer.add_scalar("epoch", epoch, step)
    assert read_curves(tmp_path) == {
        "val/loss": [(1, pytest.approx(0.9)), (2, pytest.approx(0.7)), (3, pytest.approx(0.6))]
    }
    assert caplog.records == []  # TensorBoard's own warning, of a restart of TensorFlow, would frighten


PROBS, LABELS = np.full((COUNT, 10), 0.1, np.float32), np.zeros(COUNT, np.int64)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "truncated": lambda run: (run / PREDICTIONS).write_bytes((run / PREDICTIONS).read_bytes()[:3000]),
    "flipped": lambda run: (run / PREDICTIONS).write_bytes((run / PREDICTIONS).read_bytes().replace(b"\xcd", b"\xce")),
    "empty": lambda run: (run / PREDICTIONS).write_bytes(b""),
    "text": lambda run: (run / PREDICTIONS).write_text("probs"),
    "one array": lambda run: (np.save(run / "probs.npy", PROBS), (run / "probs.npy").replace(run / PREDICTIONS)),
    "missing": lambda run: (run / PREDICTIONS).unlink(),
    "no labels": lambda run: np.savez(run / PREDICTIONS, probs=PROBS),
    "objects": lambda run: write_predictions(run, PROBS.astype(object), LABELS),
    "float64": lambda run: write_predictions(run, PROBS.astype(np.float64), LABELS),
    "another count": lambda run: write_predictions(run, PROBS[1:], LABELS[1:]),
    "nan": lambda run: write_predictions(run, PROBS * np.float32(np.nan), LABELS),
    "logits": lambda run: write_predictions(run, PROBS * 100, LABELS),
    "an eleventh class": lambda run: write_predictions(run, PROBS, LABELS + 10),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_predictions_are_refused(tmp_path: Path, kind: str) -> None:
    write_predictions(tmp_path, PROBS, LABELS)
    assert len(read_predictions(tmp_path, METRICS_OF_IT).probs) == COUNT
    DAMAGE[kind](tmp_path)
    with pytest.raises(UserError, match=r"predictions.npz .*; test the run anew: python scripts/test.py --run"):
        read_predictions(tmp_path, METRICS_OF_IT)


def test_predictions_of_another_test_than_the_metrics_are_refused(tmp_path: Path) -> None:
    """A kill between the two files, or two tests at once by another version."""
    write_predictions(tmp_path, PROBS, LABELS)
    with pytest.raises(
        UserError, match=r"200 images right, and metrics\.json tells of another test; test the run anew"
    ):
        read_predictions(tmp_path, {"n": COUNT, "accuracy": 0.995})


class MakesAFile:
    """What makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.path,)


def test_code_in_predictions_does_not_run(tmp_path: Path) -> None:
    write_predictions(tmp_path, np.array([MakesAFile(tmp_path / "harm")], dtype=object), LABELS)
    with pytest.raises(UserError, match="can't be read as predictions"):
        read_predictions(tmp_path, METRICS_OF_IT)
    assert not (tmp_path / "harm").exists()
    # The control: NumPy runs it where it is allowed to.
    with np.load(tmp_path / PREDICTIONS, allow_pickle=True) as file:
        assert file["probs"].shape == (1,)
    assert (tmp_path / "harm").exists()


@pytest.mark.parametrize("content", [None, "", "{", "[]", '{"n": 200}', "\udcff", WITHOUT_NUMBERS])
def test_damaged_metrics_are_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / METRICS).write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=r"metrics.json .*; test the run anew"):
        read_metrics(tmp_path)
