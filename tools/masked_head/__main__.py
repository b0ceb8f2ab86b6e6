"""The masked-LM head of `minilm-mlm`: train it, compare recipes, evaluate the result.

    python tools/masked_head train --corpora DIR --run runs/head [--device cuda] [--tokens 300000000]
    python tools/masked_head trials --corpora DIR --run runs/trials
    python tools/masked_head evaluate --data DIR --head runs/head/head.safetensors \\
        --held-out encyclopedia=encyclopedia.txt reviews=DIR/imdb/test.csv

DIR of ``--corpora`` holds plain text as ``NAME.txt`` or ``NAME.txt.xz``; ``corpus.py`` says which
names make up which kind of text. ``train`` can be interrupted: the same command goes on.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import torch
from train import Machine, Options, train

from promptforge.models import locate


def main() -> None:
    """Read the command line and run one command."""
    parser = argparse.ArgumentParser(
        prog="masked_head", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    trainer = commands.add_parser("train")
    trials = commands.add_parser("trials")
    evaluation = commands.add_parser("evaluate")
    for command in (trainer, trials):
        command.add_argument("--corpora", type=Path, required=True)
        command.add_argument(
            "--work",
            type=Path,
            default=Path("build/masked-head"),
            help="where tokenized text is kept",
        )
        command.add_argument("--run", type=Path, required=True)
        fields(command, Options)
        fields(command, Machine)
    trials.add_argument("--only", nargs="*", help="names of the trials to run")
    evaluation.add_argument("--data", type=Path, required=True)
    evaluation.add_argument("--head", type=Path, required=True)
    evaluation.add_argument(
        "--held-out",
        nargs="*",
        default=[],
        metavar="NAME=FILE",
        help="text never trained on: plain, or the column text of a CSV table",
    )
    evaluation.add_argument("--seeds", type=int, nargs="*", default=[13, 21, 42, 87, 100])
    evaluation.add_argument("--device", default="cpu")
    evaluation.add_argument("--output", type=Path)
    args = parser.parse_args()

    base = Path(locate("minilm"))
    if args.command == "evaluate":
        from evaluate import evaluate

        texts = dict(pair.split("=", 1) for pair in args.held_out)
        evaluate(args.head, base, args.data, texts, args.device, args.seeds, args.output)
        return
    torch.set_float32_matmul_precision("high")
    options, machine = taken(args, Options), taken(args, Machine)
    if args.command == "train":
        train(options, machine, base, args.corpora, args.work, args.run)
    else:
        from trials import compare

        compare(options, machine, base, args.corpora, args.work, args.run, args.only)


def fields(parser: argparse.ArgumentParser, kind: type) -> None:
    """An option for every field of a dataclass."""
    for field in dataclasses.fields(kind):
        flag = f"--{field.name.replace('_', '-')}"
        if isinstance(field.default, bool):
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=field.default)
        else:
            parser.add_argument(flag, type=type(field.default), default=field.default)


def taken(args: argparse.Namespace, kind: type):
    """The dataclass as the command line has it."""
    return kind(**{field.name: getattr(args, field.name) for field in dataclasses.fields(kind)})


if __name__ == "__main__":
    main()
