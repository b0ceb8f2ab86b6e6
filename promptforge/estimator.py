"""`PromptClassifier`: few-shot prompting as a scikit-learn estimator."""

from __future__ import annotations

import io
import json
import tempfile
import threading
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from promptforge import artifact
from promptforge.backbone import Backbone, load_model
from promptforge.classifier import Classifier
from promptforge.data import Example, Row
from promptforge.errors import UserError, listed
from promptforge.models import DEFAULT_MODEL
from promptforge.plugins import build
from promptforge.progress import Reporter
from promptforge.task import Task
from promptforge.template import Template
from promptforge.tuning.run import ARTIFACT_FILE
from promptforge.tuning.settings import Settings
from promptforge.tuning.train import Run, train

_loaded: dict[tuple[Any, ...], Backbone] = {}
_lock = threading.Lock()
_COMPONENTS = ("strategy", "method", "verbalizer", "demonstrations")


def shared_backbone(name: str, **options: Any) -> Backbone:
    """The model `name`, loaded once in this process; the last one loaded is kept."""
    key = (name, *sorted(options.items()))
    with _lock:
        if key not in _loaded:
            _loaded.clear()
            _loaded[key] = load_model(name, **options)
        return _loaded[key]


class PromptClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A text classifier tuned from few labels, with scikit-learn's conventions.

    `X` is a sequence of texts, of mappings (column -> value), or a table with named columns.
    `y` holds labels of any kind that scikit-learn takes; `classes_` has them in sorted order.

    Args:
        templates: a template or several (`"{{ text }} It was {{ mask }}."`), or a mapping of
            names to templates. Texts have the column `text`.
        words: label -> its words; each label's own name by default.
        model: a packaged model, a folder or a Hugging Face id.
        strategy, method, verbalizer, demonstrations: components by name; their options are in
            `options`.
        options: `{"strategy.repetitions": 2, "demonstrations.seed": 1}`.
        samples: draws of demonstrations averaged when predicting.
        steps, batch_size, learning_rate, patience: see `Settings`; `settings` has the others.
        class_weight: None, "balanced" or label -> weight.
        dev_share: share of each label's rows kept apart to choose by, where `fit` gets no dev
            rows; 0: nothing is chosen.
        random_state: seed of the split and of the training.
        device, dtype: where and in what precision the model runs.
        run: folder to keep checkpoints in; None: in memory only.

    Attributes:
        classes_: the labels.
        classifier_: the tuned classifier, as `promptforge.train` gives it.
        run_: figures and curves of the training.
    """

    def __init__(
        self,
        templates: str | Sequence[str] | Mapping[str, str] = "{{ text }} It was {{ mask }}.",
        words: Mapping[Any, str | Sequence[str]] | None = None,
        *,
        model: str = DEFAULT_MODEL,
        strategy: str = "prompt",
        method: str = "all",
        verbalizer: str = "manual",
        demonstrations: str | None = None,
        options: Mapping[str, Any] | None = None,
        samples: int = 1,
        steps: int = 250,
        batch_size: int | list[int] = 8,
        learning_rate: float | list[float] = 3e-5,
        patience: int = 0,
        settings: Mapping[str, Any] | None = None,
        class_weight: str | Mapping[Any, float] | None = None,
        dev_share: float = 0.0,
        random_state: int = 13,
        device: str = "cpu",
        dtype: str = "float32",
        run: str | None = None,
    ) -> None:
        self.templates = templates
        self.words = words
        self.model = model
        self.strategy = strategy
        self.method = method
        self.verbalizer = verbalizer
        self.demonstrations = demonstrations
        self.options = options
        self.samples = samples
        self.steps = steps
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.patience = patience
        self.settings = settings
        self.class_weight = class_weight
        self.dev_share = dev_share
        self.random_state = random_state
        self.device = device
        self.dtype = dtype
        self.run = run

    def fit(
        self,
        X: Any,
        y: Any,
        X_unlabeled: Any = None,
        *,
        X_dev: Any = None,
        y_dev: Any = None,
        sample_weight: Any = None,
        report: Reporter | None = None,
    ) -> PromptClassifier:
        """Tune on texts `X` with labels `y`.

        Args:
            X_unlabeled: texts without labels, for strategies that use them.
            X_dev, y_dev: rows to choose by.
            sample_weight: a weight for each row.

        Raises:
            UserError: rows and labels that do not fit, fewer than two labels, a wrong option.
        """
        rows = as_rows(X)
        y = np.asarray(y)
        if y.ndim != 1 or len(y) != len(rows):
            raise UserError(
                f"X has {len(rows)} rows and y has the shape {y.shape}: give one label per row."
            )
        self.classes_ = np.unique(y)
        if len(self.classes_) < 2:
            raise UserError(
                f"y has {len(self.classes_)} class{'es' * (len(self.classes_) != 1)}; a classifier needs at least two classes."
            )
        labels = [str(c) for c in self.classes_]
        if len(set(labels)) < len(labels):
            raise UserError(f"Two labels are written the same: {listed(labels)}.")
        weights = np.ones(len(y)) if sample_weight is None else np.asarray(sample_weight, float)
        if weights.shape != y.shape or (weights < 0).any():
            raise UserError("sample_weight needs one weight of 0 or more for each row.")
        examples = self._examples(rows, y)
        dev = [] if X_dev is None else self._examples(as_rows(X_dev), np.asarray(y_dev))
        if not dev and self.dev_share:
            kept, held = self._split(y)
            dev = [examples[i] for i in held]
            examples, weights = [examples[i] for i in kept], weights[kept]
        task = self._task(labels, rows[0])
        task.check(rows[0])
        components = self._components()
        tuned = {**(self.settings or {}), "steps": self.steps, "batch_size": self.batch_size}
        tuned |= {"learning_rate": self.learning_rate, "patience": self.patience}
        class_weight = self.class_weight
        if isinstance(class_weight, Mapping):
            class_weight = {str(label): float(w) for label, w in class_weight.items()}
        self.run_: Run = train(
            task,
            examples,
            backbone=shared_backbone(self.model, device=self.device, dtype=self.dtype),
            dev=dev,
            unlabeled=[] if X_unlabeled is None else as_rows(X_unlabeled),
            settings=Settings.of(**tuned),
            samples=self.samples,
            seed=self.random_state,
            class_weight=class_weight,
            row_weights=weights.tolist(),
            run=self.run,
            compare_untrained=False,
            report=report,
            **components,
        )
        self.classifier_: Classifier = self.run_.classifier
        return self

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Class probabilities, [rows, classes], in the order of `classes_`."""
        check_is_fitted(self, "classes_")
        return self._fitted().predict_proba(as_rows(X))

    def predict(self, X: Any) -> NDArray[Any]:
        """The most probable class of each row."""
        best = self.predict_proba(X).argmax(1)
        found: NDArray[Any] = self.classes_[best]
        return found

    def save(self, path: str | Path) -> None:
        """Write the tuned classifier as an artifact; `load` and `promptforge predict` read it."""
        check_is_fitted(self, "classes_")
        classifier = self._fitted()
        about = {"classes": self.classes_.tolist(), "parameters": self.get_params(deep=False)}
        # Names and numbers only: the file is read by others too.
        about = json.loads(json.dumps(about, default=str))
        artifact.save(classifier, path, {**about, "task": self._task_of(classifier)})

    @classmethod
    def load(cls, path: str | Path, **options: Any) -> PromptClassifier:
        """What `save` wrote; `options` go to `load_model` (device, dtype)."""
        classifier = artifact.load(path, **options)
        data = json.loads((Path(path) / ARTIFACT_FILE).read_text(encoding="utf-8"))["about"]
        if "parameters" not in data:
            raise UserError(
                f"{path} was not saved by PromptClassifier: use promptforge.artifact.load."
            )
        made = cls(**data["parameters"])
        made.classes_ = np.asarray(data["classes"])
        made.classifier_ = classifier
        return made

    # --- the parts ------------------------------------------------------------------------

    def _examples(self, rows: list[Row], y: NDArray[Any]) -> list[Example]:
        return [
            Example(r, str(label), i + 1) for i, (r, label) in enumerate(zip(rows, y, strict=True))
        ]

    def _split(self, y: NDArray[Any]) -> tuple[list[int], list[int]]:
        from sklearn.model_selection import train_test_split

        kept, held = train_test_split(
            range(len(y)), test_size=self.dev_share, stratify=y, random_state=self.random_state
        )
        return sorted(kept), sorted(held)

    def _task(self, labels: list[str], row: Row) -> Task:
        given = self.templates
        if isinstance(given, str):
            given = [given]
        if not isinstance(given, Mapping):
            given = {f"template-{i + 1}" if i else "template": t for i, t in enumerate(given)}
        words = {
            str(k): [w] if isinstance(w, str) else list(w) for k, w in (self.words or {}).items()
        }
        if self.words is not None and (strange := set(words) ^ set(labels)):
            raise UserError(
                f"words and y do not have the same labels: {listed(sorted(strange))} is in one only."
            )
        return Task.inline(
            [Template(source, name=name) for name, source in given.items()],
            labels={label: words.get(label, [label]) for label in labels},
            inputs=list(row),
        )

    def _components(self) -> dict[str, Any]:
        options: dict[str, dict[str, Any]] = {role: {} for role in _COMPONENTS}
        for key, value in (self.options or {}).items():
            role, dot, name = key.partition(".")
            if not dot or role not in options:
                raise UserError(
                    f"options: {key!r}: write role.option with a role of {listed(list(options))}."
                )
            options[role][name] = value
        names = {role: getattr(self, role) for role in _COMPONENTS}
        return {role: name and build(role, name, **options[role]) for role, name in names.items()}

    def _fitted(self) -> Classifier:
        if isinstance(self.classifier_, bytes):
            self.classifier_ = self._unpacked(self.classifier_)
        return self.classifier_

    def _task_of(self, classifier: Classifier) -> dict[str, Any] | None:
        run = getattr(self, "run_", None)
        task = getattr(classifier, "task", None) or (run and run.task)
        return task.to_json() if task else None

    def __getstate__(self) -> dict[str, Any]:
        """A fitted estimator pickles as its artifact's bytes; the language model stays out."""
        state: dict[str, Any] = {**super().__getstate__()}
        state.pop("run_", None)
        if isinstance(state.get("classifier_"), Classifier):
            state["classifier_"] = self._packed(state["classifier_"])
        return state

    def _packed(self, classifier: Classifier) -> bytes:
        out = io.BytesIO()
        with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(out, "w") as archive:
            home = Path(folder) / "artifact"
            artifact.save(classifier, home)
            for path in sorted(home.rglob("*")):
                if path.is_file():
                    archive.write(path, path.relative_to(home).as_posix())
        return out.getvalue()

    def _unpacked(self, packed: bytes) -> Classifier:
        with tempfile.TemporaryDirectory() as folder:
            with zipfile.ZipFile(io.BytesIO(packed)) as archive:
                archive.extractall(folder)
            backbone = shared_backbone(self.model, device=self.device, dtype=self.dtype)
            return artifact.load(folder, backbone=backbone)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        tags.input_tags.two_d_array = False
        tags.input_tags.one_d_array = True
        tags.non_deterministic = False
        return tags


def as_rows(given: Any) -> list[Row]:
    """Texts, mappings or a table with named columns as rows.

    Raises:
        UserError: something else, or no rows.
    """
    if isinstance(given, str):
        raise UserError("X is one text: give a sequence of texts.")
    if hasattr(given, "to_dict") and hasattr(given, "columns"):
        given = given.to_dict("records")
    rows: list[Row] = []
    for i, item in enumerate(np.ravel(given).tolist() if isinstance(given, np.ndarray) else given):
        if isinstance(item, Mapping):
            rows.append(dict(item))
        elif isinstance(item, str):
            rows.append({"text": item})
        else:
            raise UserError(
                f"X: row {i} is {type(item).__name__}; give texts, or mappings of column to value."
            )
    if not rows:
        raise UserError("X has no rows (0 samples); at least 1 is required.")
    return rows
