from pathlib import Path

import pytest

from spatext.modules.spatext import SpaText
from tiny import load_loud


@pytest.fixture(scope="module")
def model(base: Path) -> SpaText:
    return load_loud(base)
