"""What a user can do wrong, with its message and exit status; and how a program stops when it is asked to."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import docstring_parser
import pytest
import torch
from conftest import NOWHERE, Program, use_mirrors

from fmnist_lightning.cli import complete_flags, parse
from fmnist_lightning.data.fashion_mnist import FILES
from fmnist_lightning.runs.folders import write_config
from fmnist_lightning.training.evaluate import evaluate
from fmnist_lightning.training.train import train
from fmnist_lightning.tune.tune import tune

ROOT = Path(__file__).parent.parent
DRAWN = ("--dataset", "drawn", "--accelerator", "cpu")


@pytest.mark.parametrize("command", [train, evaluate, tune])
def test_help_names_every_option_with_its_meaning(program: Program, command: Callable[..., None]) -> None:
    status, output = program(command, "--help")
    assert status == 0
    meanings = {entry.arg_name: entry.description for entry in docstring_parser.parse(command.__doc__).params}
    assert set(meanings) == set(command.__kwdefaults__) == set(parse(command, []))
    one_line = " ".join(output.split())
    for option, meaning in meanings.items():
        assert f"--{option}" in one_line
        assert " ".join(meaning.split()) in one_line


@pytest.mark.parametrize("module", ["training", "evaluation", "tuning"])
def test_help_waits_for_no_heavy_import(module: str) -> None:
    program = f"import sys, fmnist_lightning.{module}; sys.exit('torch' in sys.modules or 'lightning' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--learning_rate", "1"], "--learning_rate"),
        (["--batch_size", "0"], 'key "batch_size"'),
        (["--batch_size", "many"], 'key "batch_size"'),
        (["--batch_size", "9" * 25], 'key "batch_size"'),
        (["--shift", "28"], 'key "shift"'),
        (["--weight_decay", "inf"], 'key "weight_decay"'),
        (["--log_dir", os.fsdecode(b"\xff")], "expected UTF-8"),
        (["--lr", "-1"], 'key "lr"'),
        (["--lr", "nan"], 'key "lr"'),
        (["--lr", "inf"], 'key "lr"'),
        (["--seed", str(2**32)], 'key "seed"'),
        (["--val_fraction", "1"], 'key "val_fraction"'),
        (["--max_epochs", "1.5"], 'key "max_epochs"'),
        (["--seed", "-1"], 'key "seed"'),
        (["--patience", "0"], 'key "patience"'),
        (["--dataset", "mnist"], "fashion_mnist"),
        (["--model", "resnet"], 'key "model"'),
        (["--precision", "8"], "32-true"),
        (["--schedule", "linear"], "one_cycle"),
        (["--dropout", "[0.1, 0.25, 0.5]"], "256ths"),
        (["--dropout", "[0.25, 0.25, 1.0]"], "256ths"),
        (["--mixup", 0.001], "0.01 to 100"),
        (["--mixup", "nan"], "0.01 to 100"),
        (["--mixup", -0.2], "0.01 to 100"),
        (["--dropout", "0.25"], 'key "dropout"'),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_a_wrong_option_is_named_and_ends_with_2(program: Program, arguments: list[str], words: str) -> None:
    status, output = program(train, *arguments)
    assert status == 2
    assert words in output


def test_an_unknown_option_in_a_recipe_is_named(program: Program, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("learning_rate: 1\n")
    status, output = program(train, "--config", tmp_path / "recipe.yaml")
    assert status == 2
    assert "learning_rate" in output


@pytest.mark.parametrize("content", [b"# f\xfcr\nlr: 1", b"dropout: &rates [*rates]"])
def test_a_recipe_that_is_no_text_of_options_is_told(program: Program, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "recipe.yaml").write_bytes(content)
    status, output = program(train, "--config", tmp_path / "recipe.yaml")
    assert status == 2
    assert "error: " in output


def test_home_and_variables_are_replaced_in_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else Lightning's logger and torchvision do it, and nobody else: a run would be written into two folders."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PLACE", "here")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("log_dir: ~/$PLACE/logs\ndata_dir: $NOWHERE/data\n")
    options = parse(train, ["--config", str(recipe), "--teacher", "~no-such-user/net"])
    paths = [options[name] for name in ("log_dir", "data_dir", "teacher")]
    assert paths == [f"{tmp_path}/here/logs", "$NOWHERE/data", "~no-such-user/net"]


def test_a_flag_alone_means_true() -> None:
    assert complete_flags(train, ["--fast_dev_run"]) == ["--fast_dev_run=true"]
    assert complete_flags(train, ["--fast_dev_run", "--seed", "1"]) == ["--fast_dev_run=true", "--seed", "1"]
    assert complete_flags(train, ["--fast_dev_run", "false"]) == ["--fast_dev_run", "false"]
    assert parse(train, ["--fast_dev_run"])["fast_dev_run"] is True


def test_a_run_to_go_on_is_found_once_with_a_recipe_too(tmp_path: Path) -> None:
    """`last` would be another run a moment later, when the processes of a training look for it themselves."""
    run = tmp_path / "version_7"
    run.mkdir()
    write_config(run, {**parse(train, []), "log_dir": "elsewhere", "lr": 0.125})
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("lr: 0.25\n")
    resuming = ["--resume", "last", "--log_dir", str(tmp_path)]
    for arguments, rate in ((resuming, 0.125), ([*resuming, "--config", str(recipe)], 0.25)):
        options = parse(train, arguments)
        assert (options["resume"], options["lr"]) == (str(run), rate)


def test_no_data_and_no_network_is_an_error_with_its_cure(
    program: Program, tmp_path: Path, tiny_files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    use_mirrors(monkeypatch, NOWHERE)
    logs = tmp_path / "logs"
    status, output = program(train, "--data_dir", tmp_path / "data", "--log_dir", logs)
    assert status == 1
    assert "error: train-images-idx3-ubyte is not in" in output
    assert "--dataset drawn" in output
    assert "Traceback" not in output
    assert not logs.exists()


def test_a_test_without_data_is_told_of_no_option_that_only_trainings_have(
    program: Program, trained: Path, tmp_path: Path, tiny_files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    use_mirrors(monkeypatch, NOWHERE)
    config = trained / "config.yaml"
    config.write_text(config.read_text().replace("dataset: drawn", "dataset: fashion_mnist"))
    status, output = program(evaluate, "--run", trained, "--data_dir", tmp_path / "data", "--accelerator", "cpu")
    assert status == 1
    assert "error: train-images-idx3-ubyte is not in" in output
    assert "--data_dir" in output
    assert "--dataset" not in output


@pytest.mark.parametrize("name", list(FILES))
def test_a_broken_file_without_a_network_is_an_error_that_names_it(
    program: Program, tiny_dir: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    use_mirrors(monkeypatch, NOWHERE)
    (tiny_dir / name).write_bytes((tiny_dir / name).read_bytes()[:-1])
    status, output = program(train, "--data_dir", tiny_dir)
    assert status == 1
    assert f"{tiny_dir / name} holds" in output


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_no_gpu_is_an_error_with_its_cure(program: Program, tmp_path: Path) -> None:
    status, output = program(train, "--dataset", "drawn", "--accelerator", "gpu", "--log_dir", tmp_path / "logs")
    assert status == 1
    assert "--accelerator gpu" in output
    assert "--accelerator auto" in output
    assert "Traceback" not in output
    assert not (tmp_path / "logs").exists()


@pytest.mark.parametrize("devices", ["0", "-3", "zero"])
def test_devices_that_cannot_be_had_are_refused(program: Program, tmp_path: Path, devices: str) -> None:
    status, output = program(train, *DRAWN, "--devices", devices, "--log_dir", tmp_path / "logs")
    assert status == 1
    assert f"--devices {devices}" in output
    assert not (tmp_path / "logs").exists()


def test_a_log_folder_that_cannot_be_written_is_an_error_with_its_cure(program: Program, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    status, output = program(train, *DRAWN, "--log_dir", tmp_path / "file" / "logs")
    assert status == 1
    assert "cannot write to" in output
    assert "--log_dir" in output


def test_a_cut_that_leaves_no_validation_image_is_an_error(program: Program, tmp_path: Path, small_drawn: None) -> None:
    status, output = program(train, *DRAWN, "--val_fraction", "0.001", "--log_dir", tmp_path / "logs")
    assert status == 1
    assert "leaves one part empty" in output
    assert not (tmp_path / "logs").exists()


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (lambda folder: None, "is not a folder"),
        (lambda folder: folder.mkdir(), "config.yaml is missing"),
        (lambda folder: (folder.mkdir(), write_config(folder, {})), "lacks dataset"),
        (lambda folder: (folder.mkdir(), (folder / "config.yaml").write_text("- 1")), "holds no options"),
        (
            lambda folder: ((folder / "checkpoints").mkdir(parents=True), (folder / "checkpoints/best.ckpt").touch()),
            "config.yaml is missing",
        ),
    ],
)
def test_an_empty_or_missing_run_is_named(
    program: Program, tmp_path: Path, prepare: Callable[[Path], object], words: str
) -> None:
    prepare(tmp_path / "run")
    status, output = program(evaluate, "--run", tmp_path / "run")
    assert status == 1
    assert words in output
    assert str(tmp_path / "run") in output


def test_no_run_at_all_is_named(program: Program, tmp_path: Path) -> None:
    status, output = program(evaluate, "--log_dir", tmp_path)
    assert status == 1
    assert "train first" in output


def test_a_checkpoint_of_another_net_is_refused(program: Program, trained: Path, tmp_path: Path) -> None:
    checkpoint = torch.load(trained / "checkpoints" / "best.ckpt", weights_only=True)
    name, weight = next(iter(checkpoint["state_dict"].items()))
    checkpoint["state_dict"][name] = weight[:-1]
    torch.save(checkpoint, tmp_path / "other.ckpt")
    status, output = program(evaluate, "--run", trained, "--ckpt", tmp_path / "other.ckpt")
    assert status == 1
    assert "of another model" in output
    assert not (trained / "metrics.json").exists()


def test_a_checkpoint_of_another_run_is_refused_and_a_copy_outside_of_runs_is_not(
    program: Program, trained: Path, tmp_path: Path
) -> None:
    """Its figures would stand in this run's folder as this run's."""
    other = shutil.copytree(trained, trained.parent / "version_1")
    foreign = trained / "checkpoints" / "best.ckpt"
    status, output = program(evaluate, "--run", other, "--ckpt", foreign)
    assert status == 1
    assert f"belongs to the run {trained.resolve()} (give --run" in output
    assert not (other / "metrics.json").exists()
    copy = shutil.copy(foreign, tmp_path / "copy.ckpt")
    assert program(evaluate, "--run", other, "--ckpt", copy)[0] == 0


def test_a_damaged_checkpoint_is_refused(program: Program, trained: Path) -> None:
    path = trained / "checkpoints" / "best.ckpt"
    path.write_bytes(path.read_bytes()[:-100])
    status, output = program(evaluate, "--run", trained)
    assert status == 1
    assert "as a checkpoint" in output


def test_weights_without_their_training_are_refused_before_the_test(program: Program, trained: Path) -> None:
    path = trained / "checkpoints" / "best.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    torch.save({name: checkpoint[name] for name in ("state_dict", "hyper_parameters")}, path)
    status, output = program(evaluate, "--run", trained)
    assert status == 1
    assert "weights without their training" in output
    assert not (trained / "predictions.npz").exists()


def test_a_net_that_this_version_lacks_is_named(program: Program, trained: Path) -> None:
    config = trained / "config.yaml"
    config.write_text(config.read_text().replace("model: seed", "model: later"))
    status, output = program(evaluate, "--run", trained)
    assert status == 1
    assert "trained with the net later" in output


def test_a_config_that_lacks_an_option_is_named(program: Program, trained: Path) -> None:
    config = trained / "config.yaml"
    config.write_text("".join(line for line in config.read_text().splitlines(True) if not line.startswith("lr")))
    status, output = program(evaluate, "--run", trained)
    assert status == 1
    assert "lr" in output
    assert "Traceback" not in output
