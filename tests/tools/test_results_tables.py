"""README's figures are those of the records, and of nothing else."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from fmnist_lightning.errors import UserError
from fmnist_lightning.metrics import METRIC_NAMES
from tools.records import read_records
from tools.results_plot import Point, own_points, public_points, results_figure
from tools.results_tables import (
    goals_table,
    marks,
    mean_and_spread,
    original_sentences,
    readme_tables,
    time_table,
    update_document,
)

ROOT = Path(__file__).parents[2]
GOALS = yaml.safe_load((ROOT / "results" / "goals.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["results", "goals", "time", "original"])
def test_readmes_figures_are_made_from_the_records(name: str) -> None:
    made = readme_tables(read_records(ROOT / "results"), GOALS)
    begin, end = marks(name)
    assert f"{begin}\n{made[name]}\n{end}" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_originals_figures_are_held_to_what_its_net_gives() -> None:
    def run(accuracy: float, seconds: float) -> dict[str, float]:
        return {
            **dict.fromkeys(METRIC_NAMES, 0.9),
            "accuracy": accuracy,
            "training_seconds": seconds,
            "parameters": 1000,
        }

    text = original_sentences([run(0.9139, 60), run(0.92, 600), run(0.9145, 120)])
    assert "on 3 seeds accuracy 91.39 to 92.00 (reported 91.39, within)" in text
    assert "precision 90.00 to 90.00 (reported 91.53, outside)" in text
    assert text.endswith("A training takes 2.0 min (median), the original's took 44.8 min.")


def test_the_first_to_a_target_is_the_recipe_of_which_five_seeds_reach_it_soonest() -> None:
    def runs(*pairs: tuple[float, float]) -> list[dict[str, Any]]:
        return [{"accuracy": accuracy, "training_seconds": seconds} for accuracy, seconds in pairs]

    records = {
        "quick": runs(*[(0.92, 10.0)] * 4, (0.96, 10.0)),  # one seed reaches more, and doesn't count
        "slow": runs(*[(0.9395, seconds) for seconds in (200.0, 201.0, 204.0, 290.0, 900.0)], (0.91, 1.0)),
    }
    taught = [run | {"teacher": {"model": "compact"}} for run in runs(*[(0.99, 1.0)] * 5)]
    lines = time_table({"taught": taught, **records}).splitlines()[2:]
    assert lines[0] == "| 91.39 | `recipes/quick.yaml` | 10 s | 5 of 5 |"
    assert lines[2] == "| 93 | `recipes/slow.yaml` | 3.4 min | 5 of 6 |"
    assert lines[3] == "| 94 | none yet | | |"


def test_a_goal_is_met_by_the_mean_as_it_is_printed_and_not_by_a_lucky_seed() -> None:
    runs = [{"accuracy": accuracy} for accuracy in (0.95, 0.95, 0.95, 0.96, 0.99)]
    goals = [{"for": "a net", "metric": "accuracy", "goal": goal, "recipe": "tiny"} for goal in (96, 96.01)]
    records = {"tiny": runs, "few": runs[1:]}
    lines = goals_table([*goals, *({**goals[0], "recipe": recipe} for recipe in (None, "few"))], records).splitlines()[
        2:
    ]
    assert lines == [
        "| a net: accuracy | 96 | 96.00 | `recipes/tiny.yaml` | met |",
        "| a net: accuracy | 96.01 | 96.00 | `recipes/tiny.yaml` | missed by 0.01 |",
        "| a net: accuracy | 96 | not measured | | |",
        "| a net: accuracy | 96 | not measured | | |",
    ]


def test_what_is_held_to_a_recipe_without_records_is_named() -> None:
    goal = {"for": "a net", "metric": "accuracy", "goal": 96, "recipe": "nope"}
    with pytest.raises(UserError, match=r"the goal 'a net' is held to nope, which has no records .*it has tiny"):
        goals_table([goal], {"tiny": []})
    with pytest.raises(UserError, match="the original's figures is held to original_notebook"):
        readme_tables({}, [])


def test_what_a_goal_is_held_to_has_five_seeds() -> None:
    records = read_records(ROOT / "results")
    assert all(len(records[goal["recipe"]]) >= 5 for goal in GOALS if goal["recipe"])


def test_the_plot_shows_each_recipe_where_its_records_say_and_others_beside() -> None:
    records, public = read_records(ROOT / "results"), public_points(ROOT / "results" / "public.yaml")
    by_seconds, by_parameters = results_figure(own_points(records), public).axes
    [fast] = [text for text in by_seconds.texts if text.get_text() == "fast"]
    runs = records["fast"]
    accuracy = 100 * np.mean([run["accuracy"] for run in runs])
    np.testing.assert_allclose(fast.xy, (np.mean([run["training_seconds"] for run in runs]), accuracy))
    plain = [runs for runs in records.values() if runs[0]["model"] == "seed" and not runs[0].get("tta")]
    best = max(np.mean([run["accuracy"] for run in runs]) for runs in plain)
    assert any(np.allclose(text.xy, (225034, 100 * best)) for text in by_parameters.texts)
    shown = [text.get_text() for text in by_parameters.texts]
    assert all(shown.count(point.name) >= 1 for point in public)


def test_a_recipe_of_few_seeds_has_no_place_in_the_plot() -> None:
    run = {"accuracy": 0.9, "parameters": 1000, "training_seconds": 10.0}
    points = own_points({"few": [run] * 4, "enough": [run] * 5, "enough_tta": [run] * 5})
    assert [point.name for point in points] == ["enough"]


def test_no_name_in_the_plot_hides_another() -> None:
    points = [
        Point(f"a rather long name, {seconds}", accuracy, 0.1, 1000 + seconds, seconds)
        for seconds, accuracy in ((100, 94.0), (101, 94.1), (130, 94.2), (110, 90.0))
    ]
    for axes in results_figure(points[1:], [points[0]]).axes:
        boxes = [text.get_window_extent() for text in axes.texts]
        assert len(boxes) == 4
        assert not any(box.count_overlaps(boxes[:number]) for number, box in enumerate(boxes))


def test_public_results_say_what_they_are_and_where_they_stand() -> None:
    for result in yaml.safe_load((ROOT / "results" / "public.yaml").read_text()):
        assert set(result) == {"name", "accuracy", "parameters", "how", "source"}
        assert result["source"].startswith("https://")


def test_mean_and_spread_are_numpys() -> None:
    values = [91.5, 92.0, 92.25]
    assert mean_and_spread(values) == f"{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f}"
    assert mean_and_spread([91.5]) == "91.50"


def test_a_readme_without_its_marks_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("no marks")
    with pytest.raises(UserError, match="lacks the lines"):
        update_document(tmp_path / "README.md", "results", "table")
    assert (tmp_path / "README.md").read_text() == "no marks"
