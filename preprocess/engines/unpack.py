"""The top of the archive that a Dask worker gets (see ship.py): importing it there unpacks the packages beside it.

Runs from the zip with nothing but the standard library. Workers of one machine share the folder, and with it what Numba
has compiled.
"""

import os
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path

ARCHIVE = Path(__file__).parent
FOLDER = ARCHIVE.parent.parent / ARCHIVE.stem   # beside the workers' own folders
CODE = FOLDER / "code"

if not FOLDER.is_dir():
    partial = tempfile.mkdtemp(prefix=f".{FOLDER.name}-", dir=FOLDER.parent)
    with zipfile.ZipFile(ARCHIVE) as archive:
        archive.extractall(partial)
    try:
        os.rename(partial, FOLDER)
    except OSError:
        shutil.rmtree(partial)
        if not FOLDER.is_dir():   # else a neighbour was faster
            raise
if sys.path[0] != str(CODE):
    sys.path.insert(0, str(CODE))
    for name in [name for name in sys.modules if name.split(".")[0] in ("preprocess", "shared")]:
        if not (getattr(sys.modules[name], "__file__", None) or "").startswith(str(CODE)):
            del sys.modules[name]   # other code, from an earlier run or an installed version
