"""The site of `make docs`: built without a warning, every module in it, and a dead link fails it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def build(folder, target):
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(target)],
        cwd=folder,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    target = tmp_path_factory.mktemp("site")
    done = build(ROOT, target)
    assert done.returncode == 0, done.stderr
    return target


def test_every_public_module_is_in_the_reference(site):
    source = ROOT / "src" / "tsexp"
    modules = {
        file.relative_to(source).with_suffix("")
        for file in source.rglob("*.py")
        if not file.stem.startswith("_") and "conf" not in file.parts
    }
    assert not [m for m in modules if not (site / "api" / "tsexp" / m / "index.html").exists()]
    text = (site / "api" / "tsexp" / "energy" / "windows" / "index.html").read_text()
    assert "The test split, (series, channels, time)" in text  # of the docstring of `run`


def test_pages_fetch_nothing_from_elsewhere(site):
    text = (site / "index.html").read_text()
    assert 'src="http' not in text
    assert "fonts.googleapis" not in text


@pytest.mark.slow
def test_a_dead_link_fails_it(tmp_path):
    for name in ("docs", "src"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    with (tmp_path / "docs" / "usage.md").open("a") as page:
        page.write("\n[nowhere](nowhere.md)\n")
    done = build(tmp_path, tmp_path / "site")
    assert done.returncode != 0
    assert "nowhere.md" in done.stderr
