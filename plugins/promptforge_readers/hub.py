"""Data sets of the Hugging Face hub, and folders that the datasets library saved."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from promptforge.data import Reader, Row
from promptforge.errors import PromptForgeError, UserError, did_you_mean, listed
from promptforge_readers.columnar import named_classes
from promptforge_readers.files import check_columns

PREFIX = "hf:"


class HubReader(Reader):
    """A data set of the hub (hf:owner/name[/config][:split]) or a folder of save_to_disk."""

    name: ClassVar[str] = "hub"

    split: str | None = Field(None, description="the split, where the name does not say it")
    revision: str | None = Field(None, description="branch, tag or commit on the hub")

    def accepts(self, source: str) -> bool:
        return source.startswith(PREFIX) or _saved_folder(source) is not None

    def rows(self, source: str, skip: int = 0) -> Iterator[Row]:
        import datasets

        table = self._one_split(self._load(source), source)
        features = table.features or {}
        # A list of classes, under any of its names, has its items' feature.
        items = {c: getattr(f, "feature", f) for c, f in features.items()}
        names = {c: list(f.names) for c, f in items.items() if isinstance(f, datasets.ClassLabel)}
        check_columns(list(features), source)
        some = False
        try:
            some = bool(skip)  # A source with fewer rows than are skipped is at its end, not empty.
            for row in table.skip(skip) if skip and _streams(table) else _from(table, skip):
                some = True
                yield named_classes(dict(row), names) if names else dict(row)
        except (PromptForgeError, GeneratorExit):
            raise
        except Exception as error:
            raise _explain(source, error) from error
        if not some:
            raise UserError(f"{source} has no rows.")

    def _load(self, source: str) -> Any:
        import datasets

        saved = _saved_folder(source)
        try:
            if saved is not None:
                return datasets.load_from_disk(str(saved[0]))
            path, config, split = _parts(source)
            return datasets.load_dataset(
                path,
                name=config,
                split=split or self.split,
                revision=self.revision,
                streaming=True,
            )
        except PromptForgeError:
            raise
        except Exception as error:  # The library raises dozens of types, of other libraries too.
            raise _explain(source, error) from error

    def _one_split(self, loaded: Any, source: str) -> Any:
        if not isinstance(loaded, dict):
            return loaded
        saved = _saved_folder(source)
        wanted = (saved[1] if saved else None) or self.split
        splits = list(loaded)
        if wanted is None and len(splits) == 1:
            return loaded[splits[0]]
        if wanted is None:
            raise UserError(
                f"{source} has several splits: {listed(splits)}. "
                f"Choose one: {source}:{splits[0] if splits else 'train'}"
            )
        if wanted not in splits:
            raise UserError(
                f"{source} has no split {wanted!r}.{did_you_mean(wanted, splits)} "
                f"Its splits: {listed(splits)}."
            )
        return loaded[wanted]


def _streams(table: Any) -> bool:
    return not hasattr(table, "num_rows")


def _from(table: Any, skip: int) -> Any:
    if _streams(table):
        return table
    return table.select(range(min(skip, table.num_rows), table.num_rows)) if skip else table


def _saved_folder(source: str) -> tuple[Path, str | None] | None:
    folder, colon, split = source.rpartition(":")
    candidates: list[tuple[str, str | None]] = [(source, None)]
    if colon and folder:
        candidates.append((folder, split))
    for name, part in candidates:
        path = Path(name)
        try:
            if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
                return path, part
        except OSError:  # It is too long for a path.
            continue
    return None


def _parts(source: str) -> tuple[str, str | None, str | None]:
    """`hf:owner/name/config:split` -> (`owner/name`, config, split)."""
    name, _, split = source.removeprefix(PREFIX).partition(":")
    parts = name.strip("/").split("/")
    if not all(parts) or len(parts) > 3:
        raise UserError(f"{source!r}: write it as hf:owner/name, hf:owner/name/config:split.")
    return "/".join(parts[:2]), parts[2] if len(parts) == 3 else None, split or None


def _explain(source: str, error: Exception) -> PromptForgeError:
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    kinds = {kind.__name__ for one in chain for kind in type(one).__mro__}
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    if not source.startswith(PREFIX):
        return UserError(f"{source} is not a folder of datasets' save_to_disk: {reason}")
    offline = {"ConnectionError", "OfflineModeIsEnabled", "TransportError", "TimeoutError"}
    if kinds & offline:
        return PromptForgeError(
            f"{source}: the Hugging Face hub cannot be reached ({reason}). Check the network; "
            f"or, on a machine that reaches it, run datasets.load_dataset(...).save_to_disk(FOLDER)"
            f" and name the folder instead."
        )
    if "DatasetNotFoundError" in kinds:
        return UserError(
            f"{source}: no such data set on the hub, or it is not public ({reason}). "
            f"Check the owner and the name."
        )
    return UserError(f"{source} could not be read: {type(error).__name__}: {reason}")
