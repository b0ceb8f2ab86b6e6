"""Every hook on one page: the whole surface a plugin can use.

A plugin is an installed package that names a module under the entry-point group
`promptforge`:

    [project.entry-points.promptforge]
    my-plugin = "my_plugin"

and implements any of these functions in it with `@promptforge.hookimpl`. Role hooks return
the components a plugin provides; import the heavy modules inside the function, so that
`promptforge --help` stays fast. Event hooks watch or change a run. A hook is only ever
extended by adding an argument: an implementation takes the arguments it wants.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    import click
    from torch import Tensor

    from promptforge.attention import AttentionPattern
    from promptforge.backbone.batch import Batch
    from promptforge.calibration import Calibration
    from promptforge.data import Reader
    from promptforge.evaluation import AnyEvaluation
    from promptforge.exits.policy import ExitPolicy
    from promptforge.exporting import TemplateExporter
    from promptforge.generation.metrics import TextEvaluation
    from promptforge.importing import TemplateImporter
    from promptforge.models import ModelSource
    from promptforge.scoring import Scorer
    from promptforge.search import VerbalizerSearch
    from promptforge.selection import DemonstrationSelector
    from promptforge.template import Prompt, TemplateRenderer
    from promptforge.template_search import TemplateSearch
    from promptforge.tuning.method import TuningMethod
    from promptforge.tuning.parametrization import Parametrization
    from promptforge.tuning.strategy import Strategy
    from promptforge.verbalizer import Verbalizer

hookspec = pluggy.HookspecMarker("promptforge")
hookimpl = pluggy.HookimplMarker("promptforge")

#: Of the surface: the first number rises when a plugin written for the last one may break, the second
#: with each hook, argument or role that is added.
VERSION = "1.0"

#: role of a component -> the hook that provides it
ROLES: dict[str, str] = {
    "model-source": "promptforge_model_sources",
    "renderer": "promptforge_template_renderers",
    "verbalizer": "promptforge_verbalizers",
    "search": "promptforge_verbalizer_searches",
    "template-search": "promptforge_template_searches",
    "scorer": "promptforge_scorers",
    "calibration": "promptforge_calibrations",
    "demonstrations": "promptforge_demonstration_selectors",
    "method": "promptforge_tuning_methods",
    "parametrization": "promptforge_soft_parametrizations",
    "strategy": "promptforge_strategies",
    "exit-policy": "promptforge_exit_policies",
    "attention": "promptforge_attention_patterns",
    "reader": "promptforge_data_readers",
    "importer": "promptforge_template_importers",
    "exporter": "promptforge_template_exporters",
}


# --- roles: what a plugin provides ---------------------------------------------------------


@hookspec
def promptforge_model_sources() -> Sequence[type[ModelSource]]:  # type: ignore[empty-body]
    """Where models come from: a name on the command line -> a local folder."""


@hookspec
def promptforge_template_renderers() -> Sequence[type[TemplateRenderer]]:  # type: ignore[empty-body]
    """Template languages: source + row -> `Prompt`. Jinja is the built-in one."""


@hookspec
def promptforge_template_filters() -> Mapping[str, Callable[..., Any]]:  # type: ignore[empty-body]
    """Jinja filters: name -> function of the value and further arguments."""


@hookspec
def promptforge_template_globals() -> Mapping[str, Any]:  # type: ignore[empty-body]
    """Jinja globals: name -> value or function."""


@hookspec
def promptforge_verbalizers() -> Sequence[type[Verbalizer]]:  # type: ignore[empty-body]
    """Label words -> class scores."""


@hookspec
def promptforge_verbalizer_searches() -> Sequence[type[VerbalizerSearch]]:  # type: ignore[empty-body]
    """Labelled rows + a model -> label words (`promptforge search-verbalizer --search NAME`)."""


@hookspec
def promptforge_template_searches() -> Sequence[type[TemplateSearch]]:  # type: ignore[empty-body]
    """Labelled rows + label words + a model -> templates (`promptforge search-template`)."""


@hookspec
def promptforge_scorers() -> Sequence[type[Scorer]]:  # type: ignore[empty-body]
    """How words of several tokens are scored."""


@hookspec
def promptforge_calibrations() -> Sequence[type[Calibration]]:  # type: ignore[empty-body]
    """Corrections of class scores for the model's bias towards some label words."""


@hookspec
def promptforge_demonstration_selectors() -> Sequence[type[DemonstrationSelector]]:  # type: ignore[empty-body]
    """Which labelled rows a template shows before the row itself."""


@hookspec
def promptforge_tuning_methods() -> Sequence[type[TuningMethod]]:  # type: ignore[empty-body]
    """What is trained: all weights, a few of them, or new ones (`--method NAME`)."""


@hookspec
def promptforge_soft_parametrizations() -> Sequence[type[Parametrization]]:  # type: ignore[empty-body]
    """What the vectors of a soft prompt are computed from while they are trained."""


@hookspec
def promptforge_strategies() -> Sequence[type[Strategy]]:  # type: ignore[empty-body]
    """How a classifier is made from few labels (`promptforge train --strategy NAME`)."""


@hookspec
def promptforge_exit_policies() -> Sequence[type[ExitPolicy]]:  # type: ignore[empty-body]
    """When a row leaves the model before its last layer (`--exit-policy NAME`)."""


@hookspec
def promptforge_attention_patterns() -> Sequence[type[AttentionPattern]]:  # type: ignore[empty-body]
    """What takes the place of full attention on long inputs (`--attention NAME`)."""


@hookspec
def promptforge_feature_maps() -> Mapping[str, Callable[[Tensor], Tensor]]:  # type: ignore[empty-body]
    """Feature maps phi of kernel attention: name -> function [..., d] to [..., m], positive."""


@hookspec
def promptforge_data_readers() -> Sequence[type[Reader]]:  # type: ignore[empty-body]
    """Table formats: a path or name -> rows."""


@hookspec
def promptforge_template_importers() -> Sequence[type[TemplateImporter]]:  # type: ignore[empty-body]
    """Prompts of other toolkits -> tasks (`promptforge import-templates`)."""


@hookspec
def promptforge_template_exporters() -> Sequence[type[TemplateExporter]]:  # type: ignore[empty-body]
    """A task's patterns -> files that other toolkits read (`promptforge export-templates`)."""


@hookspec
def promptforge_task_folders() -> Sequence[Path]:  # type: ignore[empty-body]
    """Folders whose direct children are task folders (`task.toml` + `.jinja` patterns)."""


@hookspec
def promptforge_commands() -> Sequence[click.Command]:  # type: ignore[empty-body]
    """Commands that join `promptforge --help`; a `promptforge.cli.later.LaterCommand` keeps it fast."""


# --- events: what a plugin watches or changes ----------------------------------------------


@hookspec
def promptforge_configure(settings: dict[str, Any]) -> None:
    """A command begins. `settings` holds its options; change them in place."""


@hookspec(firstresult=True)
def promptforge_examples_loaded(examples: list[Any], origin: str) -> list[Any] | None:
    """Labelled examples were read from `origin`. Return a list to use instead, or None."""


@hookspec(firstresult=True)
def promptforge_prompt_rendered(prompt: Prompt, row: Mapping[str, Any]) -> Prompt | None:
    """A template rendered `row`. Return a prompt to use instead, or None."""


@hookspec
def promptforge_batch_encoded(batch: Batch) -> None:
    """A batch is about to enter the model."""


@hookspec
def promptforge_evaluated(evaluation: AnyEvaluation | TextEvaluation) -> None:
    """An evaluation ended."""
