"""Keep finished runs as records, and rebuild README's tables from all records: python scripts/results.py --help"""

import sys
from pathlib import Path

from fmnist_lightning.cli import run

ROOT = Path(__file__).parent.parent


def results(*, add: list[str] | None = None, recipe: str = "seed") -> None:
    """Rebuild the tables of README and docs/ from the records in results/ and benchmarks/.

    Args:
        add: Run folders to keep as records first, as a list: [lightning_logs/version_0, ...].
        recipe: The recipe that they were trained by.
    """
    import yaml

    from tools.records import add_record, read_records
    from tools.results_plot import write_results_figure
    from tools.results_tables import readme_tables, update_document
    from tools.scaling import model_table, scaling_table
    from tools.speed_tables import growth_table, read_record, speed_table, startup_table, trainer_table
    from tools.torturing import torture_table

    for folder in add or []:
        print(add_record(Path(folder), ROOT / "recipes" / f"{recipe}.yaml", ROOT / "results"))
    records = read_records(ROOT / "results")
    write_results_figure(records, ROOT / "results" / "public.yaml", ROOT / "docs" / "images" / "results.png")
    goals = yaml.safe_load((ROOT / "results" / "goals.yaml").read_text(encoding="utf-8"))
    readme = readme_tables(records, goals)
    tables = {
        **readme,
        "speed": speed_table(read_record(ROOT / "benchmarks" / "speed.json")),
        "trainer": trainer_table(read_record(ROOT / "benchmarks" / "trainer.json")),
        "startup": startup_table(read_record(ROOT / "benchmarks" / "startup.json")),
        "growth": growth_table(read_record(ROOT / "benchmarks" / "growth.json")),
    }
    for name, table in tables.items():
        update_document(ROOT / ("README.md" if name in readme else "docs/speed.md"), name, table)
        print(f"{table}\n")
    benchmarks, docs = ROOT / "benchmarks", ROOT / "docs"
    update_document(docs / "faults.md", "torture", torture_table(read_record(benchmarks / "torture.json")))
    update_document(docs / "scale.md", "scaling", scaling_table(read_record(benchmarks / "scaling.json")))
    update_document(docs / "scale.md", "model", model_table())


if __name__ == "__main__":
    sys.exit(run(results))
