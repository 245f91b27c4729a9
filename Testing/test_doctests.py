"""The examples in docstrings run, and give what they say."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import SDFSMISLib

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(SDFSMISLib.__path__, "SDFSMISLib.")
    if not module.name.endswith("__main__")
)


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_give_what_they_say(
    name: str, tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(str(tmp_path))  # examples write files
    module = importlib.import_module(name)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    for docstring in doctest.DocTestFinder().find(module):
        if docstring.examples:  # doctest.testmod runs the others too, and looks at all known sources each time
            runner.run(docstring)
    assert runner.summarize().failed == 0
