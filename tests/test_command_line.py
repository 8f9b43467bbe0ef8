"""The command line: options, their help, wrong options, and messages for what a user can get wrong."""

import ast
import json
import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import NOWHERE, Program, own_signals, use_mirrors
from docstring_parser import parse_from_object

from fmnist_lightning import __main__, __version__
from fmnist_lightning.cli import shell
from fmnist_lightning.cli.parser import parse, parse_values, with_flags_completed
from fmnist_lightning.cli.recipes import find_recipe
from fmnist_lightning.data.sets.fashion_mnist import FILES
from fmnist_lightning.errors import SETUP, UserError
from fmnist_lightning.models.export import export
from fmnist_lightning.predict.predict import predict
from fmnist_lightning.runs import commands
from fmnist_lightning.runs.commands import COMMANDS
from fmnist_lightning.runs.folders import write_config
from fmnist_lightning.runs.options import PredictOptions, TrainOptions, TuneOptions, as_yaml, read_recipe
from fmnist_lightning.training.evaluate import evaluate
from fmnist_lightning.training.train import train
from fmnist_lightning.tune.tune import tune

ROOT = Path(__file__).parent.parent
DRAWN = ("--dataset", "drawn", "--accelerator", "cpu")


def shown_by(program: list[object], *arguments: str, columns: int = 80) -> subprocess.CompletedProcess[str]:
    """What a program prints in another process."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "COLUMNS": str(columns)}
    words = [sys.executable, *map(str, program), *arguments]
    return subprocess.run(words, capture_output=True, text=True, check=False, env=environment)


def test_scripts_are_the_commands() -> None:
    scripts = {path.stem: path.read_text().splitlines() for path in (ROOT / "scripts").glob("[!_]*.py")}
    assert set(scripts) == set(COMMANDS)
    assert max(map(len, scripts.values())) <= 9


@pytest.mark.parametrize("name", COMMANDS)
def test_help_explains_every_option_without_torch(name: str) -> None:
    code = (
        "import runpy, sys; sys.argv = [PATH, '--help']; sys.path.insert(0, FOLDER)\n"
        "try: runpy.run_path(PATH, run_name='__main__')\n"
        "except SystemExit as end: assert not end.code\n"
        "sys.exit('torch' in sys.modules or 'lightning' in sys.modules)"
    ).replace("PATH", repr(str(ROOT / "scripts" / f"{name}.py")))
    code = code.replace("FOLDER", repr(str(ROOT / "scripts")))
    done = shown_by(["-c", code])
    assert done.returncode == 0
    # The path in the first line can be of any length.
    assert all(len(line) <= 80 for line in done.stdout.splitlines()[1:])
    assert done.stdout.startswith(f"usage: python {ROOT / 'scripts' / name}.py ")
    shown = "".join(done.stdout.split())
    options, _ = COMMANDS[name]
    for option in fields(options):
        assert option.name in shown
        assert "".join(help_of(options, option.name).split()) in shown


def test_help_groups_options_by_purpose(program: Program) -> None:
    _, output = program(train, "--help")
    titles = [line.removesuffix(":") for line in output.splitlines() if line.endswith(":") and line[0] != " "]
    assert titles[1:] == [group.__doc__ for group in reversed(TrainOptions.__bases__)]
    assert output.index("--dataset") < output.index("Model and optimizer:") < output.index("--model")


def test_console_command_runs_main() -> None:
    [script] = entry_points(group="console_scripts", name=shell.PROGRAM)
    assert script.load() is __main__.main


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_version_is_the_packages(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    monkeypatch.setattr("sys.argv", ["fmnist", *name.split(), "--version"])
    with own_signals(), pytest.raises(SystemExit) as leaving:
        __main__.main()
    assert leaving.value.code == 0
    assert capsys.readouterr().out.split() == ["fmnist-lightning", __version__]


def test_module_lists_the_commands() -> None:
    done = shown_by(["-m", "fmnist_lightning"])
    assert done.stdout == shown_by(["-m", "fmnist_lightning", "--help"]).stdout
    assert all(f"\n    {name} " in done.stdout for name in COMMANDS)


@pytest.mark.parametrize("argument", ["trian", "--trian"])
def test_unknown_command_is_one_line(argument: str) -> None:
    done = shown_by(["-m", "fmnist_lightning"], argument)
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert argument in line
    assert "python -m fmnist_lightning --help" in line
    assert argument.startswith("-") or all(name in line for name in COMMANDS)


@pytest.mark.parametrize(
    ("started", "typed"),
    [
        (ROOT / "scripts" / "train.py", f"python {ROOT / 'scripts' / 'test.py'}"),
        ("scripts/train.py", "python scripts/test.py"),
        ("/nowhere/bin/fmnist", "/nowhere/bin/fmnist test"),
        ("/nowhere/scripts/train.py", "python -m fmnist_lightning test"),
        (ROOT / "fmnist_lightning" / "__main__.py", "python -m fmnist_lightning test"),
    ],
)
def test_command_is_one_of_this_installation(monkeypatch: pytest.MonkeyPatch, started: Any, typed: str) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("sys.argv", [str(started)])
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    assert shell.command("test") == typed


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A virtual environment `.venv` in the working folder, whose Python runs, beside another Python on the PATH."""
    real = Path(sys.executable).resolve()
    for folder in (tmp_path / ".venv" / "bin", tmp_path / "usr"):
        folder.mkdir(parents=True)
        (folder / "python").symlink_to(real)
    (tmp_path / ".venv" / "bin" / "tensorboard").touch(mode=0o755)
    monkeypatch.setattr("sys.executable", str(tmp_path / ".venv" / "bin" / "python"))
    monkeypatch.setattr("sysconfig.get_path", lambda _: str(tmp_path / ".venv" / "bin"))
    monkeypatch.setattr("sys.argv", ["/nowhere/train.py"])
    monkeypatch.setenv("PATH", str(tmp_path / "usr"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_command_names_a_python_that_has_the_packages(environment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make activates no environment, so `python` is another one there, though both link to the same file."""
    assert shell.command("test") == ".venv/bin/python -m fmnist_lightning test"
    assert shell.program("tensorboard", "tensorboard.main") == ".venv/bin/tensorboard"
    monkeypatch.setenv("PATH", f"{environment / '.venv' / 'bin'}:{environment / 'usr'}")  # as activated
    assert shell.command("test") == "python -m fmnist_lightning test"
    assert shell.program("tensorboard", "tensorboard.main") == "tensorboard"
    (environment / ".venv" / "bin" / "tensorboard").unlink()
    assert shell.program("tensorboard", "tensorboard.main") == "python -m tensorboard.main"


def test_command_runs_from_any_folder(environment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder, typed in ((environment / ".venv" / "bin", "./python"), (environment / "a b", "../.venv/bin/python")):
        folder.mkdir(exist_ok=True)
        monkeypatch.chdir(folder)
        assert shell.python() == typed
        assert Path(typed).samefile(sys.executable)


@pytest.mark.parametrize("arguments", [["scripts/train.py"], ["-m", "fmnist_lightning"]])
def test_missing_packages_are_one_line_that_sets_up(arguments: list[str]) -> None:
    """-S hides the installed packages, as in a Python without them."""
    words = [sys.executable, "-S", *arguments]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=ROOT, env=environment)
    [line] = done.stderr.splitlines()
    assert (done.returncode, SETUP in line, "No module named" in line) == (1, True, True)


def test_setup_of_an_old_python_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.version_info", (3, 8, 18))
    monkeypatch.setattr("sys.path", [*sys.path])
    with pytest.raises(SystemExit, match=rf"3\.11 or newer: found 3\.8 \({SETUP}\)"):
        runpy.run_path(str(ROOT / "scripts" / "_setup.py"))
    # Python 2.7's grammar has neither annotations nor f-strings.
    tree = ast.parse((ROOT / "scripts" / "_setup.py").read_text())
    assert not [one for one in ast.walk(tree) if isinstance(one, ast.JoinedStr | ast.AnnAssign | ast.FunctionDef)]


def test_command_on_the_path_needs_no_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "fmnist"
    program.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sys.argv", [str(program)])
    assert shell.command("test") == "fmnist test"


@pytest.mark.skipif(not shutil.which("make"), reason="there is no make")
@pytest.mark.parametrize(
    ("arguments", "refused", "shown"),
    [
        (["train", "max_epochs=2", "lr=0.1"], True, 'make train ARGS="--lr 0.1 --max_epochs 2"'),
        (["train", "args=--lr 0.1"], True, 'make train ARGS="--lr 0.1"'),
        (["tain"], True, "cannot make tain"),
        (["train", "fast"], True, "cannot make fast"),
        (
            ["train", "ARGS=--max_epochs 2", "PYTHON=python3", "CI=true"],
            False,
            "scripts/train.py --dataset auto --max_epochs 2",
        ),
        (["-pq", "__BASH_MAKE_COMPLETION__=1", ".DEFAULT"], False, "train:"),
    ],
)
def test_make_takes_no_unknown_name(arguments: list[str], refused: bool, shown: str) -> None:
    outside = {name: value for name, value in os.environ.items() if name not in ("MAKELEVEL", "MAKEFLAGS", "MFLAGS")}
    for environment in (outside, {**outside, "MAKEFLAGS": "-j2", "max_epochs": "3"}):
        done = subprocess.run(
            ["make", "-n", *arguments], capture_output=True, text=True, check=False, cwd=ROOT, env=environment
        )
        assert shown in done.stdout + done.stderr
        assert ("Makefile:" in done.stderr) == refused


@pytest.mark.skipif(not shutil.which("bash"), reason="there is no bash")
@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("tr", {"train"}),
        ("train --max_", {"--max_epochs", "--max_steps"}),
        ("train --schedule c", {"constant", "cosine"}),
        ("train --channels ", {"1", "3"}),
        ("train --flip ", {"true", "false"}),
        ("predict bo", {"boot.png"}),
        ("export --run bo", {"boot.png"}),
    ],
)
def test_bash_completes(completion: Path, tmp_path: Path, typed: str, completed: set[str]) -> None:
    (tmp_path / "boot.png").touch()
    code = (
        'source "$0"; COMP_WORDS=(fmnist "$@"); COMP_CWORD=$#; COMP_TYPE=9; _shtab_fmnist; '
        "printf '%s\\n' \"${COMPREPLY[@]}\""
    )
    done = subprocess.run(
        ["bash", "-c", code, completion, *typed.split(" ")], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert completed == set(done.stdout.split()) - {"null"}


@pytest.fixture(scope="session")
def completion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The script for bash."""
    path = tmp_path_factory.mktemp("completion") / "fmnist.bash"
    path.write_text(commands.completion("bash"))
    return path


def help_of(options: type[Any], name: str) -> str:
    """The text below a field, in the class or in one that it inherits from."""
    for owner in options.__mro__[:-1]:
        for entry in parse_from_object(owner).params:
            if entry.arg_name == name and entry.description:
                return entry.description
    raise AssertionError(f"{name} has no help")


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--learning_rate", "1"], "did you mean --lr?"),
        (["--bs", "1"], "did you mean --batch_size?"),
        (["--gpus", "1"], "did you mean --devices?"),
        (["--output_dir", "x"], "did you mean --log_dir?"),
        (["--conf", "x"], "did you mean --config?"),
        (["--workers", "4"], "workers: the images lie in memory"),
        (["--max-epochs", "3"], "did you mean --max_epochs?"),
        (["--MAX_EPOCHS=3"], "did you mean --max_epochs?"),
        (["-lr", "3"], "no option -lr; did you mean --lr?"),
        (["--no-test"], "did you mean --test false?"),
        (["--optimizer", "adm"], "adam, muon, sgd or adamw; did you mean adam?"),
        (["--precision", "16"], "did you mean 16-mixed?"),
        (["--accelerator", "CPU"], "did you mean cpu?"),
        (["--max_epochs="], "--max_epochs is empty"),
        (["--batch_size", "[1]"], "--batch_size is [1]; expected a positive integer"),
        (["--devices", "abc"], "--devices is abc; expected a number"),
        (["--devices", ""], "--devices is empty; expected a number"),
        (["--devices", "0"], "--devices is 0"),
        (["--devices", "-3"], "--devices is -3"),
        (["--classes", "a,b"], '--classes is a,b; expected a list such as "[a, b]"'),
        (["--resume"], "--resume needs a value: Run folder to resume"),
        (["--lr", "--seed", "1"], "--lr needs a value: a number above 0"),
        (["--dropout", "0.3", "0.2", "0.1"], 'did you mean --dropout "[0.3, 0.2, 0.1]"?'),
        (["max_epochs=3"], "did you mean --max_epochs 3?"),
        (["fast"], "did you mean --config fast?"),
        (["drawn"], "did you mean --dataset drawn?"),
        (["--batch_size", "0"], "batch_size"),
        (["--batch_size", "many"], "batch_size"),
        (["--max_epoch", "3"], "did you mean --max_epochs?"),
        (["--shift", "1000"], "shift"),
        (["--weight_decay", "inf"], "weight_decay"),
        (["--log_dir", os.fsdecode(b"\xff")], "UTF-8"),
        (["--lr", "-1"], "lr"),
        (["--lr", "nan"], "lr"),
        (["--seed", str(2**32)], "seed"),
        (["--seed", "-1"], "seed"),
        (["--val_fraction", "1"], "val_fraction"),
        (["--max_epochs", "1.5"], "max_epochs"),
        (["--patience", "0"], "patience"),
        (["--dataset", "cifar"], "fashion_mnist"),
        (["--precision", "8"], "32-true"),
        (["--schedule", "linear"], "one_cycle"),
        (["--dropout", "[0.25, 0.25, 1.0]"], "dropout"),
        (["--dropout", "1.5"], "dropout"),
        (["--mixup", "0.001"], "mixup"),
        (["--mixup", "nan"], "mixup"),
        (["--limit_train_batches", "0"], "a positive integer or a fraction"),
        (["--limit_train_batches", "1.5"], "a positive integer or a fraction"),
        (["--class_weights", "even"], "even; expected balanced or a list"),
        (["--class_weights", "[-1, 2]"], "[-1, 2]; expected balanced or a list"),
        (["--channels", "2"], "2; expected 1 or 3"),
        (["--logger", "csv,files"], "csv,files; expected tensorboard, csv, wandb, mlflow"),
        (["--lr"], "--lr"),
        (["boot.png"], "boot.png"),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_wrong_option_is_one_line_and_exits_with_2(program: Program, arguments: list[str], word: str) -> None:
    status, output = program(train, *arguments)
    assert status == 2
    [line] = output.splitlines()
    assert word in line
    assert line.startswith("error: cannot ")
    assert "--help)" in line or "UTF-8" in line or "nowhere.yaml" in line
    assert not any(inner in line for inner in ("typing", "restriction", "Parser key", "Fabric"))


@pytest.mark.parametrize(
    ("function", "word", "meant"),
    [
        (evaluate, "logs/version_0", "--run logs/version_0"),
        (export, "onnx", "--format onnx"),
        (tune, "compact", "--recipe compact"),
    ],
)
def test_word_without_an_option_is_explained(program: Program, function: Any, word: str, meant: str) -> None:
    status, output = program(function, word)
    assert (status, len(output.splitlines())) == (2, 1)
    assert f"did you mean {meant}?" in output


def test_run_is_meant_by_its_name(program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("lightning_logs/version_0").mkdir(parents=True)
    assert "did you mean --run lightning_logs/version_0?" in program(evaluate, "version_0")[1]


def test_missing_words_are_named(program: Program) -> None:
    status, output = program(predict, "--top_k", "2")
    assert status == 2
    [line] = output.splitlines()
    assert "images" in line


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"learning_rate: 1", "no option learning_rate"),
        (b"lr: -1", "lr is -1; expected a number above 0"),
        (b"# f\xfcr\nlr: 1", "UTF-8"),
        (b"lr: &x [*x]", ""),
        (b"lr: [", "line 1, column 6"),
        (b"lr: 1\n  seed: 1", "line 2, column 7"),
        (b"- 1", "`name: value`"),
        (b"", "empty"),
        (b"# lr: 1", "no option"),
        (b"lr: 1\nseed: 2\nlr: 1", "lr twice, in lines 1 and 3"),
        (b'{"lr": 1, "lr": 1}', "lr twice, in line 1"),
        (b"lr:\nseed: 1", "lr has no value; expected a number above 0"),
        (b"max-epochs: 1", "did you mean max_epochs?"),
        (b"LR: 1", "did you mean lr?"),
        (b"config: fast", "no option config"),
        (b"1: 2", "`name: value`"),
        (b"\0", "no text"),
        (b"[" * 5000, "nested"),
    ],
)
def test_wrong_recipe_exits_with_2(program: Program, tmp_path: Path, content: bytes, word: str) -> None:
    (tmp_path / "recipe.yaml").write_bytes(content)
    status, output = program(train, "--config", tmp_path / "recipe.yaml")
    assert status == 2
    [line] = output.splitlines()
    assert word in line
    assert "recipe.yaml" in line


def test_merged_values_are_no_repetition(tmp_path: Path) -> None:
    """The negative control of names that are given twice."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("<<: {lr: 0.5, seed: 1}\nlr: 0.25\nlog_dir: 2026-12-01\n")
    options = parse(TrainOptions, ["--config", str(recipe)])
    assert (options.lr, options.seed, options.log_dir) == (0.25, 1, "2026-12-01")
    assert options == read_recipe(recipe)


@pytest.mark.parametrize(
    ("typed", "rates"), [("0.25", (0.25,) * 3), ("0", (0.0,) * 3), ("[0, 0.5, 0]", (0.0, 0.5, 0.0))]
)
def test_one_dropout_rate_is_that_of_all_places(typed: str, rates: tuple[float, ...]) -> None:
    assert parse(TrainOptions, ["--dropout", typed]).dropout == rates
    assert parse_values(TrainOptions, {"dropout": json.loads(typed)}, "x").dropout == rates
    assert TrainOptions(dropout=json.loads(typed)).dropout in (rates, list(rates))


def test_recipe_is_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of that name wins."""
    monkeypatch.chdir(tmp_path)
    options = parse(TrainOptions, ["--config", "fast", "--seed", "7"])
    assert options == replace(read_recipe(ROOT / "recipes" / "fast.yaml"), seed=7)
    assert find_recipe(TuneOptions.recipe) == ROOT / "recipes" / "fast.yaml"
    assert find_recipe(TuneOptions.space, "search") == ROOT / "recipes" / "search" / "tuned.yaml"
    (tmp_path / "fast").write_text("lr: 0.5\n")
    assert parse(TrainOptions, ["--config", "fast"]).lr == 0.5


def test_unknown_recipe_is_one_line_with_the_list(program: Program) -> None:
    status, output = program(train, "--config", "fats")
    assert status == 2
    [line] = output.splitlines()
    assert "did you mean fast?" in line
    assert all(path.stem in line for path in (ROOT / "recipes").glob("*.yaml"))


def test_parse_values_names_source_and_option() -> None:
    assert parse_values(TrainOptions, {"lr": 0.5, "dropout": [0, 0, 0.1]}, "x").dropout == (0, 0, 0.1)
    for values in ({"lr": -1}, {"rate": 1}):
        with pytest.raises(UserError, match=rf"config\.yaml.*{next(iter(values))}"):
            parse_values(TrainOptions, values, "config.yaml")


def test_paths_expand_home_and_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise Lightning's logger and torchvision do it, and nothing else: a run would be in two folders."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PLACE", "here")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("log_dir: ~/$PLACE/logs\ndata_dir: $NOWHERE/data\n")
    options = parse(TrainOptions, ["--config", str(recipe), "--teacher", "~no-such-user/net"])
    assert options.log_dir == f"{tmp_path}/here/logs"
    assert (options.data_dir, options.teacher) == ("$NOWHERE/data", "~no-such-user/net")


def test_flag_alone_means_true() -> None:
    assert with_flags_completed(TrainOptions, ["--flip"]) == ["--flip=true"]
    assert with_flags_completed(TrainOptions, ["--flip", "--seed", "1"]) == ["--flip=true", "--seed", "1"]
    assert with_flags_completed(TrainOptions, ["--flip", "false"]) == ["--flip", "false"]
    assert parse(PredictOptions, ["--tta", "boot.png", "[1]"]).images == ["boot.png", "[1]"]


def test_resume_takes_the_options_of_the_run(tmp_path: Path) -> None:
    """`last` would be another run a moment later, when the ranks of a training look for it themselves."""
    run = tmp_path / "version_7"
    run.mkdir()
    write_config(run, as_yaml(TrainOptions(log_dir="elsewhere", lr=0.125)))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("lr: 0.25\n")
    resuming = ["--resume", "last", "--log_dir", str(tmp_path)]
    for arguments, rate in ((resuming, 0.125), ([*resuming, "--config", str(recipe)], 0.25)):
        options = TrainOptions.parse(arguments)
        assert (options.resume, options.lr) == (str(run), rate)


@pytest.mark.parametrize(
    ("has_project", "hint"), [(True, "--editable '{}[tune]'"), (False, "'fmnist-lightning[tune]'")]
)
def test_require_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, has_project: bool, hint: str) -> None:
    monkeypatch.setattr(shell, "PACKAGE", tmp_path / "fmnist_lightning")
    if has_project:
        (tmp_path / "pyproject.toml").touch()
    with pytest.raises(UserError, match="no_such_package") as caught:
        shell.require(["no_such_package"], "a search", "tune")
    assert str(caught.value).endswith(f"pip install {hint.format(tmp_path)}")


def test_missing_data_is_an_error_with_a_hint(
    program: Program, trained: Path, tmp_path: Path, tiny_files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only a training has the option --dataset, so only its message names it."""
    use_mirrors(monkeypatch, NOWHERE)
    logs = tmp_path / "new-logs"
    status, output = program(train, "--data_dir", tmp_path / "data", "--log_dir", logs)
    assert status == 1
    assert "train-images-idx3-ubyte" in output
    assert "--dataset drawn" in output
    assert not logs.exists()
    config = trained / "config.yaml"
    config.write_text(config.read_text().replace("dataset: drawn", "dataset: fashion_mnist"))
    status, output = program(evaluate, "--run", trained, "--data_dir", tmp_path / "data", "--accelerator", "cpu")
    assert status == 1
    assert "--data_dir" in output
    assert "--dataset" not in output


def test_broken_file_without_a_network_is_named(
    program: Program, tiny_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_mirrors(monkeypatch, NOWHERE)
    name = next(iter(FILES))
    (tiny_dir / name).write_bytes((tiny_dir / name).read_bytes()[:-1])
    status, output = program(train, "--data_dir", tiny_dir)
    assert status == 1
    assert str(tiny_dir / name) in output


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        pytest.param(
            ["--accelerator", "gpu"],
            "--accelerator gpu",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU"),
        ),
        (["--model", "resnet"], "resnet"),
        (["--model", "sed"], "did you mean seed?"),
        (["--model", "timm:"], "'timm:'"),
        pytest.param(
            ["--devices", "0,1"],
            "--devices 0,1 --num_nodes 1 --precision auto: CPUs have no ids",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU"),
        ),
        (["--devices", "1000"], "--devices 1000"),
        (["--val_fraction", "0.001"], "0.001"),  # no validation image
    ],
)
def test_impossible_option_leaves_no_run_behind(
    program: Program, tmp_path: Path, small_drawn: None, arguments: list[str], word: str
) -> None:
    status, output = program(train, *DRAWN, *arguments, "--log_dir", tmp_path / "logs")
    assert status == 1
    assert word in output
    assert "Traceback" not in output
    assert not (tmp_path / "logs").exists()


def test_log_folder_that_cannot_be_written_is_named(program: Program, tmp_path: Path, small_drawn: None) -> None:
    (tmp_path / "file").write_text("in the way")
    status, output = program(train, *DRAWN, "--log_dir", tmp_path / "file" / "logs")
    assert status == 1
    assert "--log_dir" in output


@pytest.mark.parametrize(
    "prepare",
    [
        lambda folder: None,
        lambda folder: folder.mkdir(),
        lambda folder: (folder.mkdir(), write_config(folder, {})),
        lambda folder: (folder.mkdir(), (folder / "config.yaml").write_text("- 1")),
    ],
)
def test_empty_or_missing_run_is_named(program: Program, tmp_path: Path, prepare: Callable[[Path], object]) -> None:
    prepare(tmp_path / "run")
    for arguments in (("--run", tmp_path / "run"), ("--log_dir", tmp_path / "run")):
        status, output = program(evaluate, *arguments)
        assert status == 1
        assert str(tmp_path / "run") in output


def test_checkpoint_of_another_run_is_refused(program: Program, trained: Path, tmp_path: Path) -> None:
    """Its metrics would pass for this run's. A copy outside of runs is accepted, also one of an older format."""
    other = shutil.copytree(trained, trained.parent / "version_1")
    foreign = trained / "checkpoints" / "best.ckpt"
    status, output = program(evaluate, "--run", other, "--ckpt", foreign)
    assert status == 1
    assert str(trained.resolve()) in output
    assert not (other / "metrics.json").exists()
    copy = tmp_path / "copy.ckpt"
    torch.save({**torch.load(foreign, weights_only=True), "format": 1}, copy)
    assert program(evaluate, "--run", other, "--ckpt", copy)[0] == 0


def of_another_model(path: Path) -> None:
    checkpoint = torch.load(path, weights_only=True)
    name, weight = next(iter(checkpoint["state_dict"].items()))
    checkpoint["state_dict"][name] = weight[:-1]
    torch.save(checkpoint, path)


def without_training(path: Path) -> None:
    checkpoint = torch.load(path, weights_only=True)
    torch.save({name: checkpoint[name] for name in ("state_dict", "hyper_parameters")}, path)


@pytest.mark.parametrize(
    "damage", [of_another_model, without_training, lambda path: path.write_bytes(path.read_bytes()[:-100])]
)
def test_unusable_checkpoint_is_refused_before_the_test(
    program: Program, trained: Path, damage: Callable[[Path], object]
) -> None:
    path = trained / "checkpoints" / "best.ckpt"
    damage(path)
    status, output = program(evaluate, "--run", trained)
    assert status == 1
    assert "best.ckpt" in output
    assert not (trained / "predictions.npz").exists()


@pytest.mark.parametrize(("line", "edited"), [("schedule: constant", "schedule: later"), ("lr: 0.001\n", "")])
def test_edited_config_is_named(program: Program, trained: Path, line: str, edited: str) -> None:
    config = trained / "config.yaml"
    assert line in config.read_text()
    config.write_text(config.read_text().replace(line, edited))
    status, output = program(evaluate, "--run", trained)
    assert status == 1
    assert str(config) in output
    assert line.partition(":")[0] in output
