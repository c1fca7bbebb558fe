"""Fixtures that every test file may use."""
import importlib.util
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Our folder kernels/ holds CUDA text, not Python; some releases of transformers take the bare
# folder for a package of the same name and stumble over it. None in sys.modules says "there is no
# such module" to both import and find_spec.
_spec = importlib.util.find_spec("kernels")
if _spec is not None and _spec.origin is None:
    sys.modules["kernels"] = None

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# The matrices of tests are small: threads that wait for each other would take most of the time.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def shared():
    """The folder of real data that lies beside a checkout on some machines.

    The tests that want it skip elsewhere.
    """
    folder = Path(os.environ.get("TINYBERT_SHARED", ROOT.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip("no folder shared/ with real data beside this checkout")
    return folder
