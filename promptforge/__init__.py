"""PromptForge: prompt and tune language models with few labels.

The names below are the public API; they are imported when first used, so that
`import promptforge` is fast and never imports torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from promptforge._version import __version__
from promptforge.errors import PromptForgeError, UserError
from promptforge.hookspecs import hookimpl

if TYPE_CHECKING:
    from promptforge.adapting import Adaptation as Adaptation
    from promptforge.adapting import adapt as adapt
    from promptforge.attention import AttentionPattern as AttentionPattern
    from promptforge.backbone import Backbone as Backbone
    from promptforge.backbone import load_model as load_model
    from promptforge.bank import TaskBank as TaskBank
    from promptforge.calibration import Calibration as Calibration
    from promptforge.classifier import Classifier as Classifier
    from promptforge.components import Component as Component
    from promptforge.data import Example as Example
    from promptforge.data import Reader as Reader
    from promptforge.data import read_rows as read_rows
    from promptforge.doctor import diagnose as diagnose
    from promptforge.estimator import PromptClassifier as PromptClassifier
    from promptforge.evaluation import Evaluation as Evaluation
    from promptforge.evaluation import MultiLabelEvaluation as MultiLabelEvaluation
    from promptforge.evaluation import RegressionEvaluation as RegressionEvaluation
    from promptforge.exits.curve import ExitCurve as ExitCurve
    from promptforge.exits.curve import exit_curve as exit_curve
    from promptforge.exits.model import ExitModel as ExitModel
    from promptforge.exits.policy import ExitPolicy as ExitPolicy
    from promptforge.exporting import TemplateExporter as TemplateExporter
    from promptforge.exporting import export_templates as export_templates
    from promptforge.generation.decoding import Decoding as Decoding
    from promptforge.generation.generator import Generator as Generator
    from promptforge.generation.metrics import TextEvaluation as TextEvaluation
    from promptforge.generation.train import GeneratorRun as GeneratorRun
    from promptforge.generation.train import train_generator as train_generator
    from promptforge.importing import Remark as Remark
    from promptforge.importing import TemplateImporter as TemplateImporter
    from promptforge.importing import import_templates as import_templates
    from promptforge.merging import merge as merge
    from promptforge.model import PromptModel as PromptModel
    from promptforge.models import ModelSource as ModelSource
    from promptforge.multilabel import MultiLabel as MultiLabel
    from promptforge.multilabel import MultiLabelModel as MultiLabelModel
    from promptforge.plugin_skeleton import new_plugin as new_plugin
    from promptforge.readout import Readout as Readout
    from promptforge.scale import Scale as Scale
    from promptforge.scoring import Scorer as Scorer
    from promptforge.search import Evidence as Evidence
    from promptforge.search import FoundWords as FoundWords
    from promptforge.search import VerbalizerSearch as VerbalizerSearch
    from promptforge.search import search_verbalizer as search_verbalizer
    from promptforge.selection import DemonstrationSelector as DemonstrationSelector
    from promptforge.shots import sample_shots as sample_shots
    from promptforge.task import Pattern as Pattern
    from promptforge.task import Task as Task
    from promptforge.template import Prompt as Prompt
    from promptforge.template import Template as Template
    from promptforge.template import TemplateRenderer as TemplateRenderer
    from promptforge.template_search import FoundTemplate as FoundTemplate
    from promptforge.template_search import TemplateEvidence as TemplateEvidence
    from promptforge.template_search import TemplateSearch as TemplateSearch
    from promptforge.template_search import search_template as search_template
    from promptforge.tuning.compare import Comparison as Comparison
    from promptforge.tuning.compare import compare as compare
    from promptforge.tuning.members import Ensemble as Ensemble
    from promptforge.tuning.method import TuningMethod as TuningMethod
    from promptforge.tuning.mixed import TaskExamples as TaskExamples
    from promptforge.tuning.parametrization import Parametrization as Parametrization
    from promptforge.tuning.settings import Settings as Settings
    from promptforge.tuning.strategy import GroupStrategy as GroupStrategy
    from promptforge.tuning.strategy import Strategy as Strategy
    from promptforge.tuning.together import TogetherRun as TogetherRun
    from promptforge.tuning.together import train_together as train_together
    from promptforge.tuning.train import Run as Run
    from promptforge.tuning.train import train as train
    from promptforge.verbalizer import LabelWords as LabelWords
    from promptforge.verbalizer import Verbalizer as Verbalizer

_HOMES = {
    "Adaptation": "adapting",
    "AttentionPattern": "attention",
    "Backbone": "backbone",
    "Calibration": "calibration",
    "Classifier": "classifier",
    "Comparison": "tuning.compare",
    "Component": "components",
    "Decoding": "generation.decoding",
    "DemonstrationSelector": "selection",
    "Ensemble": "tuning.members",
    "Evaluation": "evaluation",
    "ExitCurve": "exits.curve",
    "ExitModel": "exits.model",
    "ExitPolicy": "exits.policy",
    "Evidence": "search",
    "Example": "data",
    "FoundTemplate": "template_search",
    "FoundWords": "search",
    "Generator": "generation.generator",
    "GeneratorRun": "generation.train",
    "LabelWords": "verbalizer",
    "ModelSource": "models",
    "MultiLabel": "multilabel",
    "MultiLabelEvaluation": "evaluation",
    "MultiLabelModel": "multilabel",
    "Pattern": "task",
    "Prompt": "template",
    "PromptClassifier": "estimator",
    "PromptModel": "model",
    "Reader": "data",
    "Readout": "readout",
    "RegressionEvaluation": "evaluation",
    "Remark": "importing",
    "Run": "tuning.train",
    "Scale": "scale",
    "Scorer": "scoring",
    "Settings": "tuning.settings",
    "GroupStrategy": "tuning.strategy",
    "Strategy": "tuning.strategy",
    "Task": "task",
    "TaskBank": "bank",
    "TaskExamples": "tuning.mixed",
    "Template": "template",
    "TemplateEvidence": "template_search",
    "TemplateExporter": "exporting",
    "TemplateImporter": "importing",
    "TemplateRenderer": "template",
    "TemplateSearch": "template_search",
    "TextEvaluation": "generation.metrics",
    "TogetherRun": "tuning.together",
    "TuningMethod": "tuning.method",
    "Parametrization": "tuning.parametrization",
    "Verbalizer": "verbalizer",
    "VerbalizerSearch": "search",
    "adapt": "adapting",
    "compare": "tuning.compare",
    "exit_curve": "exits.curve",
    "export_templates": "exporting",
    "import_templates": "importing",
    "diagnose": "doctor",
    "load_model": "backbone",
    "merge": "merging",
    "new_plugin": "plugin_skeleton",
    "read_rows": "data",
    "sample_shots": "shots",
    "search_template": "template_search",
    "search_verbalizer": "search",
    "train": "tuning.train",
    "train_together": "tuning.together",
    "train_generator": "generation.train",
}

__all__ = ["PromptForgeError", "UserError", "__version__", "hookimpl", *sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'promptforge' has no attribute {name!r}")
    return getattr(importlib.import_module(f"promptforge.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
