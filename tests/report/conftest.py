"""Reports without the time that drawing takes, for tests that do not look at pictures."""

import base64

import pytest
from matplotlib.figure import Figure

PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


def save_a_pixel(figure, file, **options):
    """Stand in for ``Figure.savefig``."""
    file.write(PIXEL)


@pytest.fixture
def unrendered(monkeypatch):
    """Figures are made, and each is saved as one and the same pixel."""
    monkeypatch.setattr(Figure, "savefig", save_a_pixel)


@pytest.fixture(scope="module")
def unrendered_module():
    """As ``unrendered``, for every test of the module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", save_a_pixel)
        yield
