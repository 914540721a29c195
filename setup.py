"""What pyproject.toml cannot express: the data that the code reads lies beside `src` in a checkout, and inside the package in a wheel.

`ckp.kits.paths.data` finds them in both places.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
DATA = ("catalog", "deploy", "packaging", "requirements", "LICENSE")
NOT_DATA = ("setup", "__pycache__")
"""Folders that are left out, wherever they are: `packaging/setup` prepares a machine for a checkout."""


class BuildWithData(build_py):
    """Copies the data into `ckp/_data`. An editable installation finds them in the checkout."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib) / "ckp" / "_data"
        shutil.rmtree(target, ignore_errors=True)  # what an earlier build left may be gone by now
        target.mkdir(parents=True)
        for name in DATA:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns(*NOT_DATA))
            else:
                shutil.copy2(ROOT / name, target / name)


setup(cmdclass={"build_py": BuildWithData})
