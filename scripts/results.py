"""Keep finished runs as records, and rebuild README's table from all records: python scripts/results.py --help"""

import sys
from pathlib import Path

from fmnist_lightning.cli import run

ROOT = Path(__file__).parent.parent


def results(*, add: list[str] | None = None, recipe: str = "seed") -> None:
    """Rebuild README's table from the records in results/.

    Args:
        add: Run folders to keep as records first, as a list: [lightning_logs/version_0, ...].
        recipe: The recipe that they were trained by.
    """
    from fmnist_lightning.records import add_record, read_records, results_table, update_readme

    for folder in add or []:
        print(add_record(Path(folder), ROOT / "recipes" / f"{recipe}.yaml", ROOT / "results"))
    table = results_table(read_records(ROOT / "results"))
    update_readme(ROOT / "README.md", table)
    print(table)


if __name__ == "__main__":
    sys.exit(run(results))
