"""The package as a stranger gets it: built into a wheel, unpacked, used from another folder."""
import subprocess
import sys
import zipfile

import pytest
from conftest import ROOT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel built from a copy of the files, so that no build folder is left in the checkout."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in "setup.cfg", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in":
        (source / name).write_bytes((ROOT / name).read_bytes())
    for folder in "tinybert_family", "kernels":
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                target = source / path.relative_to(ROOT)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(path.read_bytes())
    pip = "-m pip wheel --quiet --no-deps --disable-pip-version-check -w".split()
    done = subprocess.run([sys.executable, *pip, str(out), str(source)], capture_output=True,
                          text=True)
    unfit = "No matching distribution", "Could not find a version", "No module named pip"
    if done.returncode and any(word in done.stderr for word in unfit):
        pytest.skip("pip cannot fetch the build tools here")
    assert not done.returncode, done.stderr
    return next(out.glob("*.whl"))


def test_the_wheel_holds_every_file_and_one_top_level_name(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    top = next(name for name in names if name.endswith("top_level.txt"))
    assert zipfile.ZipFile(wheel).read(top).split() == [b"tinybert_family"]
    for path in (ROOT / "tinybert_family").rglob("*.py"):
        assert path.relative_to(ROOT).as_posix() in names
    for path in (ROOT / "kernels").glob("*.cu*"):
        assert f"tinybert_family/kernels/{path.name}" in names
    assert not any(name.startswith(("kernels/", "tests/")) for name in names)


def test_it_works_from_another_folder(wheel, tmp_path):
    place, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    zipfile.ZipFile(wheel).extractall(place)
    code = """
import sys; sys.path.insert(0, sys.argv[1])
import numpy as np, tinybert_family as tbf
from tinybert_family.engine import backend, nn
from tinybert_family.models import bert
from dataclasses import replace
assert tbf.__file__.startswith(sys.argv[1])
assert str(backend.kernel_folder()).startswith(sys.argv[1])
model = bert.Model(replace(bert.SIZES["smoke"], vocab=50), nn.Init(0))
tbf.save(model, "saved")
again = tbf.load("saved")
ids = [[2, 7, 9, 3]]
assert np.array_equal(model(ids).logits.numpy(), again(ids).logits.numpy())
print("works")
"""
    done = subprocess.run([sys.executable, "-c", code, str(place)], cwd=elsewhere,
                          capture_output=True, text=True)
    assert done.stdout.strip() == "works", done.stderr


def test_without_its_three_libraries_train_says_so_in_one_line(tmp_path):
    """-S leaves out site-packages: a Python as it comes."""
    done = subprocess.run([sys.executable, "-S", str(ROOT / "train.py")], cwd=tmp_path,
                          capture_output=True, text=True)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    assert "numpy is not installed" in done.stderr and "make train" in done.stderr
