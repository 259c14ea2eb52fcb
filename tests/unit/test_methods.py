"""Methods describe themselves: the register, methods from outside the package, and what the rest asks of them."""

import json
import re
import sys
from pathlib import Path

import pytest

import selfdistill
from selfdistill.artifacts.source_digest import outside_digest
from selfdistill.schema.errors import UserError
from selfdistill.schema.methods import Grpo, Sdpo, Sft, method_settings, method_title, shipped_methods
from selfdistill.schema.stages import TrainSpec
from selfdistill.training.methods import make_method
from selfdistill.views.style import METHODS
from training_session import SDPO, TOKENIZER, make_spec

PACKAGE = Path(selfdistill.__file__).parent
SETTINGS = '''
from typing import Literal
from selfdistill.schema.methods import MethodSettings, register_method

@register_method("{training}")
class Mine(MethodSettings):
    """Mine."""
    name: Literal["{name}"] = "{name}"
'''


@pytest.fixture
def outside(tmp_path, monkeypatch):
    """Writes modules of a package `outside_pkg` in the current directory, which is on no Python path."""
    before, path = set(sys.modules), list(sys.path)
    monkeypatch.chdir(tmp_path)

    def write(**modules: str) -> None:
        for name, text in {"__init__": "", **modules}.items():
            file = tmp_path / "outside_pkg" / f"{name}.py"
            file.parent.mkdir(exist_ok=True)
            file.write_text(text)

    yield write
    sys.path[:] = path
    for name in set(sys.modules) - before:
        if name.startswith("outside_pkg"):
            del sys.modules[name]


def test_no_module_asks_which_method_it_has():
    """Names of methods belong to the methods, to the palette, and to the claims of the paper."""
    own = ("schema/methods/", "training/methods/", "views/style.py")
    asks = re.compile(r"isinstance\([^)]*\bmethod, [A-Z]|[\"'](grpo|sdpo)[\"']|\bimport .*\b(Grpo|Sdpo|Sft)\b")
    found = [
        f"{path.relative_to(PACKAGE)}: {line.strip()}"
        for path in PACKAGE.rglob("*.py")
        if not str(path.relative_to(PACKAGE)).startswith(own)
        for line in path.read_text().splitlines()
        if asks.search(line)
    ]
    assert not found


def test_every_shipped_method_has_a_training_class_and_a_name_without_a_dot():
    assert {m.model_fields["name"].default for m in shipped_methods()} >= {"grpo", "sdpo", "sft"}
    for settings in shipped_methods():
        assert "." not in settings.model_fields["name"].default
        module, _, name = settings.training.partition(":")
        assert f"class {name}(" in (PACKAGE.parent / f"{module.replace('.', '/')}.py").read_text()


@pytest.mark.parametrize("method", [Grpo(), SDPO, Sft(arm="guided"), Sft(arm="unguided")])
def test_the_palette_calls_the_papers_methods_as_they_call_themselves(method):
    assert METHODS[method.name, method.variant].label.replace("\u00a0", " ") == method.label


def test_a_spec_keeps_its_json_and_names_the_field_of_a_mistake():
    spec = make_spec(SDPO)
    again = TrainSpec.model_validate(json.loads(json.dumps(spec.identity())))
    assert again == spec and "method_code" not in spec.identity()
    assert TrainSpec.model_validate(spec.model_dump(mode="json")) == spec
    with pytest.raises(ValueError, match=r"method\.alpha"):
        TrainSpec.model_validate(spec.identity() | {"method": SDPO.identity() | {"alpha": 2.0}})
    listed = TrainSpec.model_json_schema()["properties"]["method"]["discriminator"]["mapping"]
    assert set(listed) == {m.model_fields["name"].default for m in shipped_methods()}


def test_only_methods_that_sample_have_on_policy_settings():
    spec = make_spec(SDPO).identity()
    with pytest.raises(ValueError, match="on_policy is not used by method sft"):
        TrainSpec.model_validate(spec | {"method": {"name": "sft", "arm": "guided"}})
    with pytest.raises(ValueError, match="on_policy is needed by method sdpo"):
        TrainSpec.model_validate(spec | {"on_policy": None})


def test_what_a_method_reads_with_its_second_network():
    assert Grpo().teacher_prompts(100, 900) == () and Grpo().second_network is None
    assert Grpo(kl_coefficient=0.1).teacher_prompts(100, 900) == (100,)
    assert Sdpo(reprompt=SDPO.reprompt, max_reprompt_tokens=600).teacher_prompts(100, 900) == (600,)
    assert not Grpo.shows_context and Sdpo.shows_context


def test_a_method_is_found_in_the_current_directory_by_its_name(outside):
    outside(mine=SETTINGS.format(training="outside_pkg.train:Mine", name="outside_pkg.mine.own"))
    found = method_settings({"name": "outside_pkg.mine.own"})
    assert found.outside_modules == ("outside_pkg.mine", "outside_pkg.train")
    assert (found.label, found.samples, found.variant) == ("OWN", True, None)
    assert Grpo().outside_modules == ()


def test_the_digest_of_a_method_follows_its_code_and_that_of_its_package(outside):
    settings = SETTINGS.format(training="outside_pkg.train:Mine", name="outside_pkg.mine.own")
    train = "from outside_pkg.helper import factor\n\ndef loss(x):\n    return factor * x\n"
    modules = ("outside_pkg.mine", "outside_pkg.train")
    sys.path.append(str(Path.cwd()))

    def digest(**changed: str) -> str:
        outside(**{"mine": settings, "train": train, "helper": "factor = 1\n"} | changed)
        return outside_digest(modules)

    first = digest()
    assert digest(train=f"# A comment\n\n{train}", helper='"""A docstring."""\nfactor = 1\n') == first
    assert len({first, digest(helper="factor = 2\n"), digest(train=train.replace("*", "-"))}) == 3
    assert outside_digest(()) is None
    (Path.cwd() / "outside_pkg/__init__.py").unlink()
    assert outside_digest(modules) is not None


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ("raise ValueError('no')", r"importing outside_pkg.train failed: ValueError: no \(.*train.py, line 1\)"),
        ("", "outside_pkg.train has no training class `Mine`"),
        ("class Mine: pass", "outside_pkg.train has no training class `Mine` \\(a TrainingMethod\\)"),
    ],
)
def test_a_training_class_that_is_none_is_a_users_mistake(outside, train, message):
    outside(mine=SETTINGS.format(training="outside_pkg.train:Mine", name="outside_pkg.mine.own"), train=train)
    spec = make_spec(method_settings({"name": "outside_pkg.mine.own"}))
    with pytest.raises(UserError, match=message):
        make_method(spec, TOKENIZER, 256)


def test_a_method_that_is_gone_keeps_its_name_in_titles():
    assert method_title(SDPO.identity()) == "sdpo (solution)"
    assert method_title({"name": "sft", "arm": "guided"}) == "sft (guided)"
    assert method_title({"name": "no_longer.here", "context": "x"}) == "no_longer.here"
