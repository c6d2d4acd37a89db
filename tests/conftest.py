"The order in which workers take the tests, the browser of those that need one, and names that a test registers."
import pytest

from abs_lab.runs import registry

SLOW = ("engine", "dashboard", "conformance", "resume", "kills", "campaign", "studies", "faults", "board", "training_faults", "damage", "session")


def pytest_collection_modifyitems(items):
    "The workers take whole files: those that take minutes come first, so that none is left alone with one at the end."
    rank = {f"test_{name}.py": i for i, name in enumerate(SLOW)}
    items.sort(key=lambda item: rank.get(item.path.name, len(SLOW)))


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    "What a test registers is gone after it."
    monkeypatch.setattr(registry, "_registered", {kind: dict(names) for kind, names in registry._registered.items()})


@pytest.fixture(scope="module")
def browser():
    "A Chromium for a file's tests."
    from playwright.sync_api import sync_playwright

    from support import CHROMIUM
    with sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()
