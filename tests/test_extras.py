"""The one wording for a missing extra, against packages made for the purpose."""

import json
import sys

import pytest

from merger_plugins._extras import missing, require
from merger_plugins.errors import MergerError, MissingExtraError


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Makes an importable package whose module runs the given source."""
    monkeypatch.syspath_prepend(tmp_path)

    def make(name, source, *, submodule=None):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        (folder / "__init__.py").write_text("" if submodule else source)
        if submodule:
            (folder / f"{submodule}.py").write_text(source)

    before = set(sys.modules)
    yield make
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_an_installed_module_is_returned():
    assert require("json", extra="cpu", purpose="Reading") is json
    assert require("json.decoder", extra="cpu", purpose="Reading").JSONDecoder is json.JSONDecoder


def test_a_missing_package_is_an_import_error_with_the_command_that_installs_it():
    with pytest.raises(MissingExtraError) as caught:
        require("absent_package.part", extra="cpu", purpose="Embedding text")
    assert isinstance(caught.value, ImportError)
    assert isinstance(caught.value, MergerError)
    assert str(caught.value) == (
        "Embedding text needs the package 'absent_package', which is not installed. "
        "Run: pip install 'merger-plugins[cpu]'"
    )
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


def test_the_name_on_the_package_index_is_named_where_it_differs():
    with pytest.raises(MissingExtraError, match="'scikit-absent'"):
        require("skabsent", extra="cpu", purpose="It", package="scikit-absent")
    assert "'scikit-absent'" in str(missing("scikit-absent", extra="cpu", purpose="It"))


def test_a_missing_submodule_of_an_installed_package_is_reported(package):
    package("installed_package", "")
    with pytest.raises(MissingExtraError, match="'installed_package'"):
        require("installed_package.part", extra="cpu", purpose="It")


@pytest.mark.parametrize("needed", ["something_else", "runtime", "runtime_extension"])
def test_an_installed_package_that_is_broken_inside_says_so_itself(package, needed):
    # Also where the name of what it lacks is the beginning of its own: onnxruntime may lack onnx.
    package("runtime_like", f"import {needed}")
    with pytest.raises(ModuleNotFoundError, match=f"No module named '{needed}'") as caught:
        require("runtime_like", extra="cpu", purpose="It")
    assert not isinstance(caught.value, MissingExtraError)


def test_an_error_while_importing_is_not_reworded(package):
    package("failing_package", "raise ImportError('libgomp.so.1: cannot open')")
    with pytest.raises(ImportError, match=r"libgomp\.so\.1") as caught:
        require("failing_package", extra="cpu", purpose="It")
    assert not isinstance(caught.value, MissingExtraError)
