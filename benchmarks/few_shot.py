"""The few-shot table: accuracy of every method on SST-2, TREC and AG News, over seeds.

    python benchmarks/few_shot.py --data DIR --output FILE.jsonl --setfit PYTHON
    python benchmarks/few_shot.py --data DIR --output FILE.jsonl --table methods
    python benchmarks/few_shot.py --output FILE.jsonl --table-only > table.md

DIR holds sst2, trec and agnews, each with train.csv and test.csv. PYTHON is the interpreter of the
environment described in benchmarks/peers/requirements-setfit.txt; without it SetFit's cells stay
open. Rows are drawn as in LM-BFF: K = 16 a label to train on and as many for development, and
PET's unlabelled rows from the rest. Every trained row tries the same learning rates and batch
sizes, and the development rows choose (PET and iPET: for each of their models; of the final one
the rate alone, which is trained to its end). SetFit gets the same learning rates, and batches of
its own default size.

The table is a list of cells (row, task, seed). Each is appended to FILE as it ends and never
computed again, so the run can be stopped at any time and goes on where it stood, trainings
included; open cells can be filled with other --rows, --tasks, --seeds, or with --device cuda.
Cells made with other settings do not count as done. Where a row depends on no seed one cell is
made, and PET, iPET and automatic templates get the first three seeds. The trainings of a task and
seed are kept under --work until all of its chosen cells are done (--keep: for good, so that
another --limit costs no new training): up to 5 GB.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics as st
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from few_shot_draw import TASKS, drawn
from few_shot_methods import METHODS
from few_shot_rows import ROWS as STRATEGIES
from few_shot_rows import Bench

from promptforge.errors import PromptForgeError

SEEDS = [13, 21, 42, 87, 100]
FEW = 3
TABLES = {"strategies": list(STRATEGIES), "methods": list(METHODS)}
ROWS = {**STRATEGIES, **METHODS}
Cells = dict[tuple[str, str, str, int], dict[str, Any]]


class Key(NamedTuple):
    """A cell."""

    model: str
    row: str
    task: str
    seed: int


def main() -> None:
    """Compute open cells, and print the table."""
    args = arguments()
    plan = list(planned(args))
    if not args.table_only:
        fill(plan, args)
    print(table(args))


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path)
    parser.add_argument("--output", type=Path, required=True, help="JSON lines, one a cell")
    parser.add_argument("--model", default="minilm-mlm")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--table", choices=list(TABLES), default="strategies")
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), metavar="ROW")
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--limit", type=int, default=500, help="test rows, drawn once; 0: all")
    parser.add_argument("--shots", type=int, default=16)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument(
        "--patience",
        type=int,
        default=3,
        help="looks, of ten, without gain before a training stops",
    )
    parser.add_argument("--precision", default="auto", choices=["auto", "float32", "bfloat16"])
    parser.add_argument("--learning-rates", type=float, nargs="+", default=[1e-4, 3e-4])
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[8])
    parser.add_argument("--samples", type=int, default=4, help="draws of demonstrations")
    parser.add_argument("--petal-words", type=int, default=10, help="words a label")
    parser.add_argument(
        "--candidates", type=int, default=2, help="templates or sets of words that are tuned"
    )
    parser.add_argument("--beam", type=int, default=20, help="of the template search")
    parser.add_argument("--unlabeled", type=int, default=2000)
    parser.add_argument("--repetitions", type=int, default=2, help="of PET and the ensemble")
    parser.add_argument("--ipet-repetitions", type=int, default=1, help="the paper: 3")
    parser.add_argument("--teachers", type=int, default=3, help="of each model in iPET, at least")
    parser.add_argument("--generations", type=int, default=2)
    parser.add_argument("--widen", type=int, default=2, help="words a label and generation")
    parser.add_argument("--final-steps", type=int, default=150)
    parser.add_argument(
        "--final-learning-rate", type=float, default=0.0, help="0: chosen as for the models"
    )
    parser.add_argument("--encoder", default="minilm", help="of logistic regression and SetFit")
    parser.add_argument("--setfit", metavar="PYTHON")
    parser.add_argument("--setfit-batch-sizes", type=int, nargs="+", default=[16])
    parser.add_argument("--setfit-max-steps", type=int, default=-1, help="-1: one epoch of pairs")
    parser.add_argument("--threads", type=int, help="of torch; by default one a core")
    parser.add_argument("--work", type=Path, help="keeps trainings; by default beside the output")
    parser.add_argument("--keep", action="store_true", help="keep finished trainings too")
    parser.add_argument("--table-only", action="store_true")
    parser.add_argument("--verbose", action="store_true", help="show every training")
    args = parser.parse_args()
    if not args.table_only and not args.data:
        parser.error("--data is needed, or --table-only")
    args.rows = args.rows or TABLES[args.table]
    args.work = args.work or args.output.with_suffix(".work")
    return args


def planned(args: argparse.Namespace) -> Iterator[Key]:
    """The cells in the order they are made: all rows of a task and seed, then the next seed."""
    for task in args.tasks:
        for seed in args.seeds:
            for row in (r for r in ROWS if r in args.rows):
                if seed in seeds(row, args):
                    yield Key(args.model, row, task, seed)


def seeds(row: str, args: argparse.Namespace) -> list[int]:
    """The seeds of a row."""
    found: list[int] = args.seeds
    if not ROWS[row].seeded:
        return found[:1]
    return found[:FEW] if ROWS[row].few else found


def read(path: Path) -> list[dict[str, Any]]:
    """The cells of a file; a last line cut by a kill is no cell."""
    if not path.exists():
        return []
    cells = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            cells.append(json.loads(line))
        except ValueError:
            print(f"{path}: a line that is no JSON is passed over", file=sys.stderr)
    return cells


def is_key(cell: dict[str, Any], key: Key) -> bool:
    """Whether a cell is that of a key; where no seed matters, any seed's."""
    same = (cell["model"], cell["row"], cell["task"]) == key[:3]
    return same and (cell["seed"] == key.seed or not ROWS[key.row].seeded)


def fill(plan: list[Key], args: argparse.Namespace) -> None:
    """Make the cells of a plan that are not there."""
    if args.threads:
        import torch

        torch.set_num_threads(args.threads)

    def is_done(key: Key) -> bool:
        wanted = ROWS[key.row].settings(args)
        return any(is_key(c, key) and "accuracy" in c and c["settings"] == wanted for c in known)

    known = read(args.output)
    open_ = [key for key in plan if not is_done(key)]
    if not args.setfit and any(key.row == "setfit" for key in open_):
        print("SetFit's cells stay open: give --setfit PYTHON", file=sys.stderr)
        open_ = [key for key in open_ if key.row != "setfit"]
    print(f"{len(plan)} cells, {len(open_)} to be made", file=sys.stderr, flush=True)
    bench = Bench(args)
    began = time.monotonic()
    draw, place = None, ("", 0)
    for number, key in enumerate(open_, 1):
        if place != (key.task, key.seed):
            if draw and not args.keep:
                shutil.rmtree(draw.folder, ignore_errors=True)
            draw, place = drawn(key.task, key.seed, args), (key.task, key.seed)
        assert draw is not None
        cell: dict[str, Any] = {**key._asdict(), "settings": ROWS[key.row].settings(args)}
        start = time.perf_counter()
        try:
            cell |= ROWS[key.row].make(bench, draw)
        except (PromptForgeError, RuntimeError, OSError) as error:
            if args.verbose:
                traceback.print_exc()
            cell["error"] = str(error)
        cell["cell_seconds"] = time.perf_counter() - start
        cell["finished"] = time.strftime("%Y-%m-%d %H:%M:%S")
        append(args.output, cell)
        if not args.keep:
            shutil.rmtree(draw.folder / "own", ignore_errors=True)
        shown = f"{100 * cell['accuracy']:.1f}" if "accuracy" in cell else cell["error"]
        print(
            f"[{number}/{len(open_)}] {key.task}, seed {key.seed}, {key.row}: {shown} "
            f"({cell['cell_seconds']:.0f} s; {(time.monotonic() - began) / 60:.0f} min in all)",
            file=sys.stderr,
            flush=True,
        )
    if draw and not args.keep:
        shutil.rmtree(draw.folder, ignore_errors=True)


def append(path: Path, cell: dict[str, Any]) -> None:
    """One line more, on the disk before the next cell begins."""
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = not path.exists() or not path.stat().st_size or path.read_bytes().endswith(b"\n")
    with path.open("a", encoding="utf-8") as file:
        file.write(("" if whole else "\n") + json.dumps(cell) + "\n")
        file.flush()
        os.fsync(file.fileno())


# --- the table ------------------------------------------------------------------------------


def table(args: argparse.Namespace) -> str:
    """The chosen rows, tasks, seeds and shots in Markdown; the last cell of a key counts."""
    latest: Cells = {}
    for cell in read(args.output):
        if cell["row"] in ROWS and cell["settings"].get("shots", args.shots) == args.shots:
            seed = cell["seed"] if ROWS[cell["row"]].seeded else args.seeds[0]
            key = Key(cell["model"], cell["row"], cell["task"], seed)
            if "accuracy" in cell or key not in latest:
                latest[key] = cell
    methods = any(row in METHODS for row in args.rows)
    more = ["values kept", "kB", "train - test"] if methods else []
    lines = [
        f"| {args.model} | {' | '.join([*args.tasks, 'mean', 'seconds to train', *more])} |",
        f"| --- |{' ---: |' * (len(args.tasks) + 2 + len(more))}",
    ]
    for row in (r for r in ROWS if r in args.rows):
        lines.append(line(ROWS[row].title, "accuracy", row, latest, args))
        if row == "ensemble":
            lines.append(line("mean of its members", "members", row, latest, args))
    notes = [
        "",
        f"Accuracy in %: mean ± standard deviation over seeds ({' '.join(map(str, args.seeds))}; "
        f"rows with fewer: the first {FEW}). (2/5): cells there, and cells planned.",
    ]
    if mixed := mixed_rows(latest):
        notes.append(f"Cells with different settings in one row: {', '.join(mixed)}.")
    return "\n".join(lines + notes)


def line(title: str, figure: str, row: str, cells: Cells, args: argparse.Namespace) -> str:
    """One row of the table."""
    shown, means, seconds = [], [], []
    planned_seeds = seeds(row, args)
    for task in args.tasks:
        found = [cells.get(Key(args.model, row, task, seed), {}) for seed in planned_seeds]
        values = [100 * c[figure] for c in found if figure in c]
        # null: of a run that was stopped and continued
        seconds += [
            c["seconds"] for c in found if c.get("seconds") is not None and figure == "accuracy"
        ]
        if not values:
            shown.append("failed" if any("error" in c for c in found) else "not run")
            continue
        text = f"{st.mean(values):.1f}"
        if len(values) > 1:
            text += f" ± {st.stdev(values):.1f}"
        if len(values) < len(planned_seeds):
            text += f" ({len(values)}/{len(planned_seeds)})"
        shown.append(text)
        means.append(st.mean(values))
    mean = f"{st.mean(means):.1f}" if len(means) == len(args.tasks) else ""
    time_ = f"{st.mean(seconds):.0f}" if seconds else ""
    shown_keys = [Key(args.model, row, task, s) for task in args.tasks for s in planned_seeds]
    weighed = [c for key in shown_keys if "kept" in (c := cells.get(key, {}))]
    more: list[str] = []
    if weighed:
        more = [
            f"{st.mean(c['kept'] for c in weighed):,.0f}",
            f"{st.mean(c['bytes'] for c in weighed) / 1000:,.0f}",
            f"{100 * st.mean(c['gap'] for c in weighed):.1f}",
        ]
    elif any(name in METHODS for name in args.rows):
        more = [""] * 3
    return f"| {' | '.join([title, *shown, mean, time_, *more])} |"


def mixed_rows(cells: Cells) -> list[str]:
    """Rows whose cells were made with settings that differ."""
    by_row: dict[tuple[str, str], set[str]] = {}
    for (model, row, _, _), cell in cells.items():
        by_row.setdefault((model, row), set()).add(json.dumps(cell["settings"], sort_keys=True))
    return [row for (_, row), made in by_row.items() if len(made) > 1]


if __name__ == "__main__":
    main()
