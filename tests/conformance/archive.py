"""transformers' own common tests, of the installed version.

No wheel holds them, but the source archive of the same version on the package index does. Some of what they import is
missing there too (tests of generation, of exporters, of one configuration field after another). A model of videos has
no use for the first two, so empty classes stand in for them; for the third, fields that every configuration has.
"""

import importlib
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType

import pytest
import transformers

# The archive's folder `tests` is imported under this name; `tests` could be one of ours.
PACKAGE = "transformers_tests"
_MISSING = {
    "exporters.test_export": {"ExportTesterMixin": type("ExportTesterMixin", (), {})},
    "generation.test_utils": {"GenerationTesterMixin": type("GenerationTesterMixin", (), {})},
    "utils.test_configuration_utils": {
        "config_common_kwargs": {
            "return_dict": False,
            "output_hidden_states": True,
            "dtype": "float16",
            "chunk_size_feed_forward": 5,
            "architectures": ["SomeModel"],
            "id2label": {0: "left", 1: "right"},
            "label2id": {"left": 0, "right": 1},
            "problem_type": "regression",
        }
    },
}


# Why nothing can be imported, where the archive is not to be had.
_reasons: list[str] = []


class Unavailable(Exception):
    """The archive cannot be downloaded; the message says why."""


def fetch(cache: Path) -> Path:
    """Return the unpacked archive, downloaded into `cache` unless it is there.

    Raises:
        Unavailable: If it cannot be downloaded.
    """
    name = f"transformers-{transformers.__version__}"
    if not (cache / name).is_dir():
        wanted = ["--no-deps", "--no-binary=transformers", f"transformers=={transformers.__version__}"]
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            command = [sys.executable, "-m", "pip", "download", "--dest", folder, *wanted]
            result = subprocess.run(command, capture_output=True, text=True)
            if result.returncode:
                raise Unavailable(f"{' '.join(command)}: {result.stderr.strip()[-500:]}")
            shutil.unpack_archive(Path(folder, f"{name}.tar.gz"), folder)
            # Its tests of configurations read it, but it is left out.
            Path(folder, name, "tests", "__init__.py").touch()
            Path(folder, name).rename(cache / name)  # last, so that a download cut off leaves nothing behind
    return cache / name


def marks(archive: Path) -> set[str]:
    """Return the names of all marks in the archive's tests; what registers them is not in the archive."""
    texts = (path.read_text() for path in (archive / "tests").glob("*_common.py"))
    return {name for text in texts for name in re.findall(r"\bmark\.(\w+)", text)}


def make_importable(archive: Path) -> None:
    """Let `import_common` find the archive's tests."""
    package = ModuleType(PACKAGE)
    package.__path__ = [str(archive / "tests")]
    sys.modules[PACKAGE] = package
    for name, values in _MISSING.items():
        module = ModuleType(f"{PACKAGE}.{name}")
        vars(module).update(values)
        sys.modules[module.__name__] = module


def skip_all(reason: str) -> None:
    """Let `import_common` skip the tests that need it."""
    _reasons.append(reason)


def import_common(name: str) -> ModuleType:
    """Return a module of the archive's tests, for example `test_modeling_common`, or skip the one that asks for it."""
    if _reasons:
        pytest.skip(f"transformers' tests are not to be had: {_reasons[0]}", allow_module_level=True)
    return importlib.import_module(f"{PACKAGE}.{name}")
