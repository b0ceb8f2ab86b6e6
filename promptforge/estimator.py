"""`PromptClassifier`: few-shot prompting as a scikit-learn estimator."""

from __future__ import annotations

import copy
import json
import tempfile
import threading
from collections.abc import Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from promptforge import artifact
from promptforge.backbone import Backbone, load_model
from promptforge.classifier import Classifier
from promptforge.data import Example, Row
from promptforge.errors import UserError, did_you_mean, listed
from promptforge.estimator_input import (
    as_class_weights,
    as_examples,
    as_indicator,
    as_labels,
    as_rows,
    as_sets,
    as_templates,
    as_weights,
    as_words,
    by_label,
    check_values,
    columns,
    same_length,
    written,
)
from promptforge.estimator_keeping import kept, packed, plain, unpacked
from promptforge.exits.model import set_policy
from promptforge.exits.train import exit_training
from promptforge.models import DEFAULT_MODEL
from promptforge.multilabel import NO, YES, MultiLabel, MultiLabelModel
from promptforge.plugins import build
from promptforge.progress import Reporter
from promptforge.task import Task
from promptforge.tuning.backends import Backend as JobBackend
from promptforge.tuning.backends import backend_class
from promptforge.tuning.settings import Settings
from promptforge.tuning.train import Run, train

# A model has room for the weights of one classifier: one thread works at a time.
_alone = threading.RLock()
_loaded: WeakValueDictionary[tuple[str, ...], Backbone] = WeakValueDictionary()
_last: list[Backbone] = []
_COMPONENTS = ("strategy", "method", "verbalizer", "demonstrations")
#: Parameters that a fitted classifier is read with: those of its `fit`, whatever is set later.
_READ_WITH = ("model", "device", "dtype", "attention", "max_length", "positions", "exit_policy", "options")  # fmt: skip


def shared_backbone(name: str, **options: Any) -> Backbone:
    """The model `name`, loaded once for all that use it; the last one asked for is kept.

    Args:
        options: for `load_model`.
    """
    place = str(Path(name).resolve()) if Path(name).is_dir() else name
    options = {"device": "cpu", "dtype": "float32", **{k: v for k, v in options.items() if v}}
    key = (place, json.dumps(options, sort_keys=True), _version(Path(place)))
    with _alone:
        backbone = _loaded.get(key) or load_model(name, **options)
        _loaded[key] = backbone
        _last[:] = [backbone]
        return backbone


def _version(folder: Path) -> str:
    """What changes when another model is written to a folder; a name has none."""
    if not folder.is_dir():
        return ""
    files = sorted(p for p in folder.iterdir() if p.suffix in (".json", ".safetensors", ".bin"))
    return json.dumps([(p.name, s.st_size, s.st_mtime_ns) for p in files for s in [p.stat()]])


class PromptClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A text classifier tuned from few labels, with scikit-learn's conventions.

    `X` is a sequence of texts, of mappings (column -> value), or a table with named columns.
    `y` holds labels of any kind that scikit-learn takes; `classes_` has them in sorted order.
    Where a row has several labels, `y` is an indicator of zeros and ones, [rows, labels], and the
    templates ask about one label: `"{{ text }} Is it about {{ label }}? {{ mask }}"`.
    Estimators of one model share it: each keeps only what its training changed, and threads
    wait for one another.

    Args:
        templates: a template or several (`"{{ text }} It was {{ mask }}."`), or a mapping of
            names to templates. Texts have the column `text`; other columns are not read.
        words: label -> its words, or the words of each label in the order of `classes_` (for
            `VotingClassifier` and others that hand on numbers for labels); each label's own
            name by default. With several labels a row those of the answers: `{"yes": ..., "no": ...}`.
        labels: the names of the columns of such a `y`; those of a table by default.
        model: a packaged model, a folder or a Hugging Face id.
        strategy, method, verbalizer, demonstrations: components by name; their options are in
            `options`.
        options: `{"strategy.repetitions": 2, "demonstrations.seed": 1}`.
        samples: draws of demonstrations averaged when predicting.
        steps, batch_size, learning_rate, patience: see `Settings`; `settings` has the others. A
            learning rate of None is what suits the method.
        class_weight: None, "balanced" or label -> weight; a label that is left out has 1.
        dev_share: share of each label's rows (or how many rows in all) kept apart to choose by,
            where `fit` gets no dev rows; 0: nothing is chosen.
        random_state: seed of the split and of the training; a `RandomState` or None draws one.
        device, dtype: where and in what precision the model runs.
        attention: what takes the place of full attention on long inputs ("longformer"); its options
            are in `options`, as `"attention.window"`.
        max_length, positions: most tokens of a prompt; beyond the model's own maximum its positions
            are extended by "copy", "interpolate" or "rope".
        exits: "joint" or "two-stage": train a classifier at every layer too; options as "exits.steps".
        exit_policy: with exits, when rows leave the model: "confidence", ...; options as
            "exit-policy.threshold". `classifier_.exit_layers` has the layers used for the last rows.
        n_jobs, backend: members of a strategy trained at the same time, and where; as `jobs` and `backend`
            of `train`. None: what `joblib.parallel_config` says, else one in this process.
        run: folder to keep checkpoints in; None: in memory only. Another `fit` with the same
            data and parameters goes on where the first stopped; with others it is an error.

    Attributes:
        classes_: the labels, [classes].
        classifier_: the tuned classifier, as `promptforge.train` gives it.
        task_: labels, patterns and columns, as plain values.
        run_: figures and curves of the training; not in a pickle or a saved estimator.
    """

    def __init__(
        self,
        templates: str
        | Sequence[str]
        | Mapping[str, str] = "{{ text }} It was {{ mask }}{{ tail('.') }}",
        words: Mapping[Any, str | Sequence[str]] | Sequence[str | Sequence[str]] | None = None,
        *,
        labels: Sequence[str] | None = None,
        model: str = DEFAULT_MODEL,
        strategy: str = "prompt",
        method: str = "all",
        verbalizer: str = "manual",
        demonstrations: str | None = None,
        options: Mapping[str, Any] | None = None,
        samples: int = 1,
        steps: int = 250,
        batch_size: int | list[int] = 8,
        learning_rate: float | list[float] | None = None,
        patience: int = 0,
        settings: Mapping[str, Any] | None = None,
        class_weight: str | Mapping[Any, float] | None = None,
        dev_share: float = 0.0,
        random_state: int | np.random.RandomState | None = 13,
        device: str = "cpu",
        dtype: str = "float32",
        attention: str | None = None,
        max_length: int | None = None,
        positions: str | None = None,
        exits: str | None = None,
        exit_policy: str | None = None,
        n_jobs: int | None = None,
        backend: str | None = None,
        run: str | None = None,
    ) -> None:
        self.templates = templates
        self.words = words
        self.labels = labels
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
        self.attention = attention
        self.max_length = max_length
        self.positions = positions
        self.exits = exits
        self.exit_policy = exit_policy
        self.n_jobs = n_jobs
        self.backend = backend
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
            X: rows, [rows].
            y: labels, [rows]; or where a row has several an indicator, [rows, labels].
            X_unlabeled: rows without labels, for strategies that use them.
            X_dev, y_dev: rows to choose by, and their labels.
            sample_weight: a weight of 0 or more for each row, [rows].
            report: where progress goes.

        Raises:
            UserError (a ValueError): rows, labels and weights that do not fit, fewer than two
                labels, a wrong parameter, a `run` folder with another run.
            PromptForgeError: a model that cannot be loaded, a loss that is not finite, no space.
        """
        rows, sets = as_rows(X), as_sets(y, self.labels)
        y = as_indicator(y, sets, "y") if sets else as_labels(y, "y")
        same_length(rows, y, "X", "y")
        classes = np.array(sets.labels) if sets else np.unique(y)
        if len(classes) < 2:
            raise UserError(
                f"y has {len(classes)} class ({written(classes[0])!r}); a classifier needs at least two classes."
            )
        task = self._task([NO, YES] if sets else [written(c) for c in classes], rows, sets)
        weights = as_weights(sample_weight, len(y))
        examples = as_examples(rows, y, task, "X")
        dev: list[Example] = []
        if X_dev is not None or y_dev is not None:
            if X_dev is None or y_dev is None:
                raise UserError("X_dev and y_dev belong together: give both or neither.")
            dev_rows = as_rows(X_dev, "X_dev")
            y_dev = as_indicator(y_dev, sets, "y_dev") if sets else as_labels(y_dev, "y_dev")
            same_length(dev_rows, y_dev, "X_dev", "y_dev")
            dev = as_examples(dev_rows, y_dev, task, "X_dev")
        seed = self.random_state
        if not isinstance(seed, Integral):
            try:
                seed = check_random_state(seed).randint(2**31)
            except ValueError:
                raise UserError(
                    f"random_state is {seed!r}: give a whole number, a numpy RandomState or None."
                ) from None
        if not dev and self.dev_share:
            kept, held = self._split(y, None if sets else y, int(seed))
            dev = [examples[i] for i in held]
            examples, weights = [examples[i] for i in kept], weights[kept]
            if not weights.any():
                raise UserError(
                    f"dev_share={self.dev_share!r} keeps every row apart whose sample_weight is above 0, so "
                    "there is nothing to learn: give more rows a weight, another random_state or X_dev."
                )
        unlabeled: list[Row] = []
        if X_unlabeled is not None:
            unlabeled = columns(as_rows(X_unlabeled, "X_unlabeled"), task.inputs, "X_unlabeled")
        class_weight = by_label(self.class_weight)
        if class_weight is not None and not isinstance(class_weight, str):
            class_weight = as_class_weights(class_weight)
        components, settings = self._components(), self._settings()
        policy = components.pop("exit-policy", None)
        with _alone:
            run = train(
                task,
                examples,
                backbone=self._backbone(),
                dev=dev,
                unlabeled=unlabeled,
                settings=settings,
                samples=self.samples,
                seed=int(seed),
                class_weight=class_weight,
                row_weights=weights.tolist(),
                jobs=self.n_jobs,
                backend=self._job_backend(),
                run=self.run,
                resume=self.run is not None,
                compare_untrained=False,
                report=report,
                **components,
            )
        if policy is not None:
            set_policy(run.classifier, policy)
        self._read_with = copy.deepcopy({name: getattr(self, name) for name in _READ_WITH})
        self.classes_, self.task_ = classes, task.to_json()
        self.run_: Run = run
        self.classifier_: Classifier | bytes = run.classifier
        return self

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Class probabilities, [rows, classes], in the order of `classes_`.

        Of several labels a row each is there or not for itself: its row does not sum to one.

        Raises:
            NotFittedError: `fit` was not called.
            UserError (a ValueError): no rows, a column of the templates that they lack.
        """
        check_is_fitted(self, "classifier_")
        rows = columns(as_rows(X), self.task_["inputs"], "X")
        with _alone:
            return self._fitted().predict_proba(rows)

    def predict(self, X: Any) -> NDArray[Any]:
        """The most probable class of each row, [rows]; of several labels a row an indicator of
        zeros and ones, [rows, labels]. Errors as for `predict_proba`."""
        probabilities, classifier = self.predict_proba(X), self._fitted()
        found: NDArray[Any]
        if isinstance(classifier, MultiLabelModel):
            found = (probabilities >= classifier.threshold).astype(int)
        else:
            found = self.classes_[probabilities.argmax(1)]
        return found

    def save(self, path: str | Path) -> None:
        """Write the tuned classifier as an artifact; `load` and `promptforge predict` read it.

        Parameters are kept as they are now, and predictions as `fit` made them.

        Raises:
            NotFittedError: `fit` was not called.
            UserError (a ValueError): `path` is a folder with other files, a parameter that no file
                can hold.
            PromptForgeError: no space, no permission.
        """
        check_is_fitted(self, "classifier_")
        about = {
            "task": self.task_,
            "classes": self.classes_.tolist(),
            "dtype": self.classes_.dtype.str,
            "parameters": kept(self.get_params(deep=False)),
            "read_with": plain(self._read_with, "options"),
        }
        with _alone:
            artifact.save(self._fitted(), path, about)

    @classmethod
    def load(
        cls, path: str | Path, *, model: str | None = None, device: str | None = None
    ) -> PromptClassifier:
        """What `save` wrote.

        Args:
            path: the folder.
            model: where the language model is now, if that has changed.
            device: where to run it, if not where it was tuned.

        Raises:
            UserError (a ValueError): nothing there that `save` wrote, another model.
            PromptForgeError: damaged files.
        """
        about = artifact.about(path)
        if "parameters" not in about:
            raise UserError(
                f"{path} was not saved by PromptClassifier: use promptforge.artifact.load."
            )
        parameters = about["parameters"]
        given = {k: v for k, v in (("model", model), ("device", device)) if v}
        made = cls(**{**parameters, **given})
        # Artifacts from before this was kept apart were read with their parameters.
        read_with = about.get("read_with") or {name: parameters[name] for name in _READ_WITH}
        made._read_with = {**read_with, **given}
        made.classes_ = np.asarray(about["classes"], dtype=np.dtype(about["dtype"]))
        made.task_ = about["task"]
        made.classifier_ = made._read(path, moved=bool(model))
        return made

    # --- the parts ------------------------------------------------------------------------

    def _task(self, labels: list[str], rows: list[Row], sets: MultiLabel | None) -> Task:
        if len(set(labels)) < len(labels):
            raise UserError(f"y has two labels that are written the same: {listed(labels)}.")
        task = Task.inline(
            as_templates(self.templates),
            labels=as_words(self.words, labels, answers=sets is not None),
            multi_label=sets,
        )
        check_values(rows, task.inputs, "X")
        task.check(rows[0])
        return task

    def _split(self, y: NDArray[Any], by: Any, seed: int) -> tuple[list[int], list[int]]:
        try:
            kept, held = train_test_split(
                range(len(y)), test_size=self.dev_share, stratify=by, random_state=seed
            )
        except ValueError as error:
            raise UserError(f"dev_share={self.dev_share!r}: {error}") from None
        return sorted(kept), sorted(held)

    def _settings(self) -> Settings:
        own = {
            name: getattr(self, name)
            for name in ("steps", "batch_size", "learning_rate", "patience")
        }
        if not isinstance(self.settings, Mapping | None):
            raise UserError(
                f"settings is a {type(self.settings).__name__}: give a mapping, settings={{'warmup': 0.1}}."
            )
        if twice := sorted(own.keys() & (self.settings or {})):
            raise UserError(f"settings: {listed(twice)} is a parameter of its own; set it there.")
        return Settings.of(**own, **(self.settings or {}))

    def _own(self, role: str) -> dict[str, Any]:
        """The options of one role, by their names."""
        options = self.options or {}
        return {k.partition(".")[2]: v for k, v in options.items() if k.startswith(f"{role}.")}

    def _backbone(self) -> Backbone:
        return shared_backbone(
            self.model, device=self.device, dtype=self.dtype, max_length=self.max_length,
            positions=self.positions, attention=self.attention,
            attention_options=self._own("attention"),
        )  # fmt: skip

    def _job_backend(self) -> JobBackend | None:
        if not self.backend:
            return None
        made: JobBackend = backend_class(self.backend).build(**self._own("backend"))
        return made

    def _components(self) -> dict[str, Any]:
        names = {role: getattr(self, role) for role in _COMPONENTS}
        if self.exit_policy and not self.exits:
            raise UserError(
                "exit_policy is for a model with exits: set exits='joint' or 'two-stage' too."
            )
        names |= {"exits": self.exits, "exit-policy": self.exit_policy}
        options: dict[str, dict[str, Any]] = {role: {} for role, name in names.items() if name}
        for key, value in (self.options or {}).items():
            role, dot, name = key.partition(".")
            if role in ("attention", "backend") and getattr(self, role):
                continue
            if not dot or role not in options:
                raise UserError(
                    f"options: {key!r}: write role.option with a role of {listed(list(options))}."
                    f"{did_you_mean(role, list(options))}"
                )
            options[role][name] = value
        trainings = options.pop("exits", None)
        made = {role: build(role, names[role], **given) for role, given in options.items()}
        if trainings is not None:
            made["exits"] = exit_training(names["exits"]).build(**trainings)
        return made

    # --- what is kept ---------------------------------------------------------------------

    def _fitted(self) -> Classifier:
        if isinstance(self.classifier_, bytes):
            with tempfile.TemporaryDirectory() as folder:
                unpacked(self.classifier_, folder)
                self.classifier_ = self._read(folder)
        self.classifier_.forget()  # a service may predict for as long as it likes
        return self.classifier_

    def __getstate__(self) -> dict[str, Any]:
        """A fitted estimator pickles as its artifact's bytes; the language model stays out."""
        state: dict[str, Any] = {**super().__getstate__()}
        state.pop("run_", None)
        if isinstance(state.get("classifier_"), Classifier):
            with _alone:
                state["classifier_"] = packed(state["classifier_"])
        return state

    def _read(self, folder: str | Path, moved: bool = False) -> Classifier:
        as_fitted = type(self)(**self._read_with)
        with _alone:
            backbone: Backbone | None = as_fitted._backbone()
            assert backbone is not None
            if not moved and backbone.checksum not in artifact.tuned_from(folder):
                backbone = None  # a strategy tuned another model in its place
            made = artifact.load(folder, backbone=backbone, device=as_fitted.device)
            if name := as_fitted.exit_policy:
                set_policy(made, build("exit-policy", name, **as_fitted._own("exit-policy")))
            return made

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string = tags.input_tags.dict = tags.input_tags.one_d_array = True
        tags.input_tags.two_d_array = False
        return tags
