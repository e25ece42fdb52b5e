"""The first that a command runs. Are the packages that Python finds by our names ours? `shared`, `train` and `evaluate`
are others' names too, so commands run this file by its path, before they import anything by such a name.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

HOME = Path(__file__).resolve().parents[1]


def expect(*names: str) -> None:
    """Leave with one line and exit code 2 where a package of these names comes from anywhere but this repository."""
    for name in names:
        spec = find_spec(name)
        found = spec and (spec.origin or next(iter(spec.submodule_search_locations), None))
        if found is None or Path(found).resolve().parent != HOME / name:
            print(f"error: Python finds the package `{name}` {f'in {found}' if found else 'nowhere'}, expected "
                  f"{HOME / name}; put this repository first: export PYTHONPATH={HOME}${{PYTHONPATH:+:$PYTHONPATH}}",
                  file=sys.stderr)
            sys.exit(2)


def begin(*names: str, rank: int = 0) -> None:
    """`expect`; from then on whatever comes, while modules are imported too, leaves with the contract's exit code.

    rank: see shared.cli.catch_interrupts.
    """
    expect(*names)
    from shared import cli

    cli.catch_interrupts(rank)
