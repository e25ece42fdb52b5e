"""Print constraints that hold every dependency of setup.cfg at the oldest version that it allows."""

import configparser
import re
from pathlib import Path

setup = configparser.ConfigParser()
setup.read(Path(__file__).resolve().parents[1] / "setup.cfg")
lists = [setup["options"]["install_requires"], setup["options.extras_require"]["test"]]
for line in sorted(set("\n".join(lists).split("\n")) - {""}):
    name, version = re.fullmatch(r"([\w.-]+)(?:\[[\w,]+\])? >=([\d.]+)", line).groups()
    print(f"{name}=={version}")
