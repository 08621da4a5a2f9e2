"""docs/development.md says nothing that is not so: its code runs, its names and commands exist."""

from __future__ import annotations

import inspect
import itertools
import re
import shlex
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from tests.harness import (
    backend,
    client,
    exchanges,
    memory,
    offload,
    packets,
    vhost_user,
    virtio,
)

ROOT = Path(__file__).parents[1]
GUIDE = (ROOT / "docs" / "development.md").read_text()
SNIPPETS = re.findall(r"^```python\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)
COMMANDS = re.findall(r"^\.venv/bin/pytest (.*)$", GUIDE, re.MULTILINE)
TABLE_ROWS = re.findall(r"^\| `(\w+)\(([^)]*)\)` \|", GUIDE, re.MULTILINE)
FIXTURES = {"nursery", "autojump_clock"}


def namespace() -> dict[str, object]:
    """What the snippets take for granted: the names of the harness, and two imports."""
    names: dict[str, object] = {"pytest": pytest, "trio": trio}
    for module in (backend, client, exchanges, memory, offload, packets, vhost_user, virtio):
        names.update({name: value for name, value in vars(module).items() if name[0] != "_"})
    return names


@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda text: text.splitlines()[0])
async def test_snippet_runs(nursery: trio.Nursery, autojump_clock: MockClock, snippet: str) -> None:
    names = namespace()
    known = set(names)
    exec(compile(snippet, "development.md", "exec"), names)
    for name in names.keys() - known:
        test = names[name]
        if name.startswith("test_") and inspect.iscoroutinefunction(test):
            fixtures = {"nursery": nursery, "autojump_clock": autojump_clock}
            wanted = inspect.signature(test).parameters
            assert wanted.keys() <= FIXTURES
            await test(**{name: fixtures[name] for name in wanted})


def test_the_guide_has_its_example() -> None:
    assert sum("async def test_" in snippet for snippet in SNIPPETS) == 7
    assert any("async def test_example" in snippet for snippet in SNIPPETS)


@pytest.mark.parametrize(("name", "arguments"), TABLE_ROWS, ids=[name for name, _ in TABLE_ROWS])
def test_table_names_a_function_with_these_arguments(name: str, arguments: str) -> None:
    if (function := getattr(packets, name, None)) is None:
        function = getattr(client.VhostTestClient, name)
    positional = [
        argument for argument in arguments.split(", ") if argument and "=" not in argument
    ]
    parameters = [
        parameter.name
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD and parameter.name != "self"
    ]
    if function.__module__.startswith(packets.__name__):
        assert parameters == positional
    else:
        assert parameters[: len(positional)] == positional


def test_options_of_connect_are_all_named() -> None:
    (listed,) = re.findall(r"^Options of `connect`.*?\):(.*?)\.\n\n", GUIDE, re.M | re.DOTALL)
    fields = [attribute.name for attribute in client.ClientOptions.__attrs_attrs__]
    assert re.findall(r"`(\w+)`", listed) == fields


@pytest.mark.parametrize("arguments", COMMANDS)
def test_command_selects_tests(pytestconfig: pytest.Config, arguments: str) -> None:
    """Paths, keywords and markers of each command exist. Running them is the business of CI."""
    words = shlex.split(arguments)
    options = dict(itertools.pairwise(words))
    paths = [ROOT / word for word in words if word.startswith("tests/")]
    assert all(path.exists() for path in paths)
    if (keyword := options.get("-k")) is not None:
        assert re.search(rf"def test_\w*{keyword}", paths[0].read_text())
    if (marker := options.get("-m")) is not None:
        assert any(line.startswith(f"{marker}:") for line in pytestconfig.getini("markers"))
    if (setting := options.get("-o")) is not None:
        pytestconfig.getini(setting.partition("=")[0])


def test_every_file_of_the_harness_is_in_the_picture() -> None:
    for path in (ROOT / "tests" / "harness").glob("*.py"):
        assert re.search(rf"── {re.escape(path.name)} ", GUIDE), path.name
