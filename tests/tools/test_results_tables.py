"""The tables of README and docs/ are made from the records, and from nothing else."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from fmnist_lightning.errors import UserError
from fmnist_lightning.metrics import METRIC_NAMES
from tools.markdown import marks, update_document
from tools.observe import ROOT
from tools.records import read_records
from tools.results import documents
from tools.results_plot import Point, own_points, public_points, results_plot
from tools.results_tables import goals_table, mean_and_spread, original_sentences, summary_table, time_table


def test_documents_show_the_tables_of_the_records() -> None:
    assert len(documents()["README.md"]["summary"].splitlines()) - 2 <= 8
    for document, tables in documents().items():
        text = (ROOT / document).read_text(encoding="utf-8")
        for name, table in tables.items():
            begin, end = marks(name)
            assert f"{begin}\n{table}\n{end}" in text, f"{document}: {name}"


def test_original_sentences_compare_with_the_range_of_seeds() -> None:
    def run(accuracy: float, seconds: float) -> dict[str, float]:
        values = dict.fromkeys(METRIC_NAMES, 0.9)
        return {**values, "accuracy": accuracy, "training_seconds": seconds, "parameters": 1000}

    text = original_sentences({"original_notebook": [run(0.9139, 60), run(0.92, 600), run(0.9145, 120)]})
    assert "on 3 seeds: accuracy 91.39 to 92.00 (reported 91.39, within)" in text
    assert "precision 90.00 to 90.00 (reported 91.53, outside)" in text
    assert text.endswith("A training takes 2.0 min (median); the original's took 44.8 min.")


def test_time_table_needs_five_seeds_that_reach_a_target() -> None:
    def runs(*pairs: tuple[float, float]) -> list[dict[str, Any]]:
        return [{"accuracy": accuracy, "training_seconds": seconds} for accuracy, seconds in pairs]

    records = {
        "quick": runs(*[(0.92, 10.0)] * 4, (0.96, 10.0)),  # one seed reaches more, and doesn't count
        "slow": runs(*[(0.9395, seconds) for seconds in (200.0, 201.0, 204.0, 290.0, 900.0)], (0.91, 1.0)),
        "distilled": [run | {"teacher": {"model": "compact"}} for run in runs(*[(0.99, 1.0)] * 5)],
    }
    lines = time_table(records).splitlines()[2:]
    assert lines[0] == "| 91.39 | `recipes/quick.yaml` | 10 s | 5 of 5 |"
    assert lines[2] == "| 93 | `recipes/slow.yaml` | 3.4 min | 5 of 6 |"
    assert lines[3] == "| 94 | none yet | | |"


def test_goals_table_compares_the_printed_mean() -> None:
    runs = [{"accuracy": accuracy} for accuracy in (0.95, 0.95, 0.95, 0.96, 0.99)]
    cases = ((96, "tiny"), (96.01, "tiny"), (96, None), (96, "few"))
    goals = [{"for": "a model", "metric": "accuracy", "goal": goal, "recipe": recipe} for goal, recipe in cases]
    assert goals_table(goals, {"tiny": runs, "few": runs[1:]}).splitlines()[2:] == [
        "| a model: accuracy | 96 | 96.00 | `recipes/tiny.yaml` | met |",
        "| a model: accuracy | 96.01 | 96.00 | `recipes/tiny.yaml` | missed by 0.01 |",
        "| a model: accuracy | 96 | not measured | | |",
        "| a model: accuracy | 96 | not measured | | |",
    ]


def test_tables_name_a_recipe_without_records() -> None:
    with pytest.raises(UserError, match="seed"):
        summary_table({})


def test_plot_shows_recipes_and_public_results() -> None:
    records, public = read_records(ROOT / "results"), public_points(ROOT / "results" / "public.yaml")
    by_seconds, by_parameters = results_plot(own_points(records), public).axes
    [fast] = [text for text in by_seconds.texts if text.get_text() == "fast"]
    runs = records["fast"]
    accuracy = 100 * np.mean([run["accuracy"] for run in runs])
    np.testing.assert_allclose(fast.xy, (np.mean([run["training_seconds"] for run in runs]), accuracy))
    plain = [runs for runs in records.values() if runs[0]["model"] == "seed" and not runs[0].get("tta")]
    best = max(np.mean([run["accuracy"] for run in runs]) for runs in plain)
    assert any(np.allclose(text.xy, (225034, 100 * best)) for text in by_parameters.texts)
    assert {point.name for point in public} <= {text.get_text() for text in by_parameters.texts}
    sources = [result["source"] for result in yaml.safe_load((ROOT / "results" / "public.yaml").read_text())]
    assert all(source.startswith("https://") for source in sources)
    # Recipes of few seeds are left out.
    run = {"accuracy": 0.9, "parameters": 1000, "training_seconds": 10.0}
    points = own_points({"few": [run] * 4, "enough": [run] * 5, "enough_tta": [run] * 5})
    assert [point.name for point in points] == ["enough"]


def test_plot_names_do_not_overlap() -> None:
    points = [
        Point(f"a rather long name, {seconds}", accuracy, 0.1, 1000 + seconds, seconds)
        for seconds, accuracy in ((100, 94.0), (101, 94.1), (130, 94.2), (110, 90.0))
    ]
    for axes in results_plot(points[1:], [points[0]]).axes:
        boxes = [text.get_window_extent() for text in axes.texts]
        assert len(boxes) == 4
        assert not any(box.count_overlaps(boxes[:number]) for number, box in enumerate(boxes))


def test_mean_and_spread_match_numpy() -> None:
    values = [91.5, 92.0, 92.25]
    assert mean_and_spread(values) == f"{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f}"


def test_update_document_needs_its_marks(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("no marks")
    with pytest.raises(UserError, match="lacks the lines"):
        update_document(tmp_path / "README.md", "results", "table")
    assert (tmp_path / "README.md").read_text() == "no marks"
