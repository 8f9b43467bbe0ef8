"""What is wrong with an option, in one line, and what was probably meant."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from difflib import get_close_matches
from itertools import zip_longest
from pathlib import Path
from textwrap import shorten
from typing import Any, Literal, get_args, get_origin, get_type_hints

from fmnist_lightning.cli.recipes import recipes
from fmnist_lightning.cli.shell import quoted
from fmnist_lightning.cli.types import LOG_DIR, expected, plain_text, required_words

# An option, and what other programs call it. Similar names, such as num_epochs, are found without.
SYNONYMS = {
    "config": "recipe recipes cfg conf c yaml",
    "max_epochs": "epoch n_epoch ep e iterations",
    "max_steps": "steps num_steps max_iters iters",
    "batch_size": "bs b batch",
    "lr": "learning_rate learn_rate rate eta base_lr peak_lr max_lr",
    "weight_decay": "wd decay l2",
    "optimizer": "opt optim",
    "schedule": "scheduler sched lr_scheduler lr_schedule lr_policy",
    "dropout": "drop p_drop",
    "label_smoothing": "smoothing ls",
    "class_weights": "class_weight weights",
    "gradient_clip_val": "clip grad_clip clip_grad clip_grad_norm max_grad_norm",
    "accumulate_grad_batches": "gradient_accumulation_steps grad_accum accum accumulate",
    "flip": "hflip horizontal_flip mirror",
    "shift": "crop random_crop translate",
    "erase": "random_erasing cutout",
    "val_fraction": "val_split validation_split val_size valid_fraction",
    "seed": "random_seed random_state seed_everything",
    "accelerator": "gpu cuda cpu mps device no_cuda",
    "devices": "gpus num_gpus n_gpus n_gpu ngpus gpu_ids num_devices nproc nproc_per_node num_processes",
    "num_nodes": "nnodes nodes machines",
    "precision": "amp fp16 bf16 half dtype",
    "run": "run_dir run_folder version checkpoint_dir model model_path resume",
    "ckpt": "ckpt_path checkpoint weights",
    "weights": "model ckpt ckpt_path checkpoint run",
    "resume": "ckpt_path checkpoint resume_from resume_from_checkpoint load continue restart",
    "model": "arch architecture net network backbone model_name m",
    "dataset": "data_set task",
    "data_dir": "data data_path data_root datadir root dataset_dir dataset_path path folder",
    "images": "image img input inputs file files picture pictures path",
    "output": "out output_file output_dir out_dir outdir o",
    "log_dir": "logdir logs output out output_dir out_dir outdir save_dir default_root_dir results name project",
    "logger": "loggers wandb mlflow report_to tracker",
    "trials": "n_trials num_trials",
    "teacher": "distill teacher_model",
    "patience": "early_stopping early_stop",
    "fast_dev_run": "dry_run debug smoke_test",
}
OWN_OPTIONS = ("config", "print_config", "help", "version")  # of the command line alone
WORKERS = ("workers", "num_workers", "n_workers", "j", "pin_memory", "prefetch_factor")


def no_option(options: type[Any], name: str, dashes: str = "") -> str:
    """Say that `name` is no option, and suggest one."""
    if plain_name(name) in WORKERS:
        return f"there is no option {name}: the images lie in memory, and need no workers"
    meant = suggested(options, name, OWN_OPTIONS if dashes else ())
    # A list is typed as plain words.
    if dashes and get_type_hints(options).get(meant) == list[str]:
        return f"there is no option {name}; type {meant} as plain words"
    return f"there is no option {name}" + (f"; did you mean {dashes}{meant}?" if meant else "")


def suggested(options: type[Any], name: str, more: Sequence[str] = ()) -> str:
    """The option, or one of `more`, that a user means by `name`, or nothing."""
    name = plain_name(name)
    known = {one.name for one in fields(options)} | {*more}
    if name in known:
        return name
    for option, others in SYNONYMS.items():
        if option in known and name in others.split():
            return option
    switch = name.removeprefix("no_")
    if get_type_hints(options).get(switch) is bool:
        return f"{switch} false"
    return next(iter(get_close_matches(name, known, 1, 0.7)), "")


def plain_name(name: str) -> str:
    return name.strip("-–—:+").lower().replace("-", "_")  # noqa: RUF001 (dashes of word processors)


def given_words(arguments: Sequence[str]) -> dict[str, str]:
    """What was typed for each option."""
    given = {}
    for argument, after in zip_longest(arguments, arguments[1:], fillvalue=""):
        if argument.startswith("--"):
            name, equals, value = argument[2:].partition("=")
            given[name] = value if equals else after
    return given


def explain(options: type[Any], message: str, values: Mapping[str, Any], dashes: str = "") -> str:
    """What is wrong with one of `values`, in one line, from jsonargparse's message, which has up to eight lines."""
    hints = get_type_hints(options)
    if (match := re.match(r'Parser key "(\w+)"', message)) and match[1] in hints:
        name = match[1]
        found, wanted = plain_text(values.get(name)), expected(hints[name])
        meant = meant_choice(hints[name], found)
        return f"{dashes}{name} is {shorten(found, 80) or 'empty'}; expected {wanted}{meant}"
    return shorten(message, 500)


def meant_choice(hint: Any, value: str) -> str:
    """The one of a type's choices that `value` resembles, as a question."""
    choices = [str(one) for inner in (hint, *get_args(hint)) if get_origin(inner) is Literal for one in get_args(inner)]
    word = value.lower().replace("-", "_")
    by_word = {choice.replace("-", "_"): choice for choice in choices}
    close = [one for one in by_word if word and one.startswith(word)] or get_close_matches(word, by_word, 1)
    return f"; did you mean {by_word[close[0]]}?" if close else ""


def explain_words(parser: Any, message: str, arguments: Sequence[str]) -> str:
    """What is wrong with the words of a command line, from argparse's message; nothing if it is about a value."""
    options = parser.options
    if match := re.match(r"argument (?:-\w/)?--(\w+): expected one argument", message):
        hint = get_type_hints(options).get(match[1], str)
        described = str(parser._option_string_actions[f"--{match[1]}"].help)
        wanted = re.split(r"[.;] ", described)[0].removesuffix(".") if expected(hint) == "text" else expected(hint)
        return f"--{match[1]} needs a value: {' '.join(wanted.split())}"
    if match := re.match(r"the following arguments are required: (.*)", message):
        return f"it lacks {match[1]}; expected {' '.join([parser.prog, '[options]', *required_words(options)])}"
    if match := re.match(r"unrecognized arguments: (.*)", message, re.DOTALL):
        word = match[1].split(" ")[0]
        meant = meant_by_word(options, word, arguments)
        return f"unexpected word {word or repr(word)}" + (f"; did you mean {meant}?" if meant else "")
    return ""


def meant_by_word(options: type[Any], word: str, arguments: Sequence[str]) -> str:
    """What a user means by a word that follows no option, or nothing."""
    name, _, value = word.partition("=")
    is_path = Path(word).exists() or Path(LOG_DIR, word).exists() or "/" in word
    if word and not is_path and (meant := suggested(options, name, OWN_OPTIONS)):
        return f"--{meant}" + (f" {value}" if value else "")
    hints = {one.name: get_type_hints(options)[one.name] for one in fields(options)}
    # `--dropout 0.1 0.1 0.5`: words that follow a list's first one.
    before = list(arguments[: arguments.index(word)] if word in arguments else [])
    if len(before) > 1 and "[" in expected(hints.get(before[-2].removeprefix("--"), str)):
        return f'{before[-2]} "[{", ".join(arguments[len(before) - 1 :])}]"'
    for name, hint in hints.items():
        if any(get_origin(one) is Literal and word in get_args(one) for one in (hint, *get_args(hint))):
            return f"--{name} {word}"
    if hasattr(options, "RECIPES"):
        is_recipe = word in recipes() or word.endswith((".yaml", ".yml"))
        return f"--config {word}" if is_recipe else ""
    in_logs = Path(LOG_DIR, word)
    return f"--{fields(options)[0].name} {quoted(in_logs if in_logs.exists() and not Path(word).exists() else word)}"
