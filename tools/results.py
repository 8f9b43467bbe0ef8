"""Keep finished runs as records, and rebuild the tables of README and docs/: python -m tools.results --help"""

import sys
from dataclasses import dataclass
from pathlib import Path

import yaml

from fmnist_lightning.cli.main import main
from tools.markdown import update_document
from tools.observe import ROOT
from tools.records import add_record, read_records
from tools.results_plot import write_results_plot
from tools.results_tables import goals_table, original_sentences, results_table, summary_table, time_table
from tools.scaling import model_table, scaling_table
from tools.speed_tables import growth_table, read_record, speed_table, startup_table, trainer_table
from tools.torture import torture_table


@dataclass(frozen=True, kw_only=True)
class ResultsOptions:
    """Rebuild the tables of README and docs/ from the records in results/ and benchmarks/."""

    add: list[str] | None = None
    """Run folders to keep as records first, as a list: [lightning_logs/version_0, ...]."""
    recipe: str = "seed"
    """The recipe that they were trained by."""


def documents() -> dict[str, dict[str, str]]:
    """The tables of each document by the name of their marks, from the records."""
    records = read_records(ROOT / "results")
    goals = yaml.safe_load((ROOT / "results" / "goals.yaml").read_text(encoding="utf-8"))
    measured = {path.stem: read_record(path) for path in (ROOT / "benchmarks").glob("*.json")}
    return {
        "README.md": {"summary": summary_table(records)},
        "docs/results.md": {
            "results": results_table(records),
            "goals": goals_table(goals, records),
            "time": time_table(records),
            "original": original_sentences(records),
        },
        "docs/speed.md": {
            "speed": speed_table(measured["speed"]),
            "trainer": trainer_table(measured["trainer"]),
            "startup": startup_table(measured["startup"]),
            "growth": growth_table(measured["growth"]),
        },
        "docs/faults.md": {"torture": torture_table(measured["torture"])},
        "docs/scale.md": {"scaling": scaling_table(measured["scaling"]), "model": model_table()},
    }


def results(options: ResultsOptions) -> None:
    """Add records, if any are named, and rebuild all tables and the plot."""
    for folder in options.add or []:
        print(add_record(Path(folder), ROOT / "recipes" / f"{options.recipe}.yaml", ROOT / "results"))
    plot = ROOT / "docs" / "images" / "results.png"
    write_results_plot(read_records(ROOT / "results"), ROOT / "results" / "public.yaml", plot)
    for document, tables in documents().items():
        for name, table in tables.items():
            update_document(ROOT / document, name, table)


if __name__ == "__main__":
    sys.exit(main(ResultsOptions, results))
